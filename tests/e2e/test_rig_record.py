"""A record whose writer is killed at random moments, and one on a full disk: acknowledged rows are there."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from venvs import HANG_S

from edgeall.rig.record.chain import RecordError, RecordFullError
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits, SessionNotes

WRITER = Path(__file__).with_name("record_writer.py")


def start(folder: Path, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(WRITER), str(folder), str(seed)], stdout=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen[str], lines: int, seconds: float) -> list[list[str]]:
    """Kill the writer some time after a number of lines, and return the lines that it acknowledged."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    process.kill()
    said += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    return [line.split() for line in said if line]


def check_acknowledged(record: Record, said: list[list[str]]) -> None:
    for kind, *words in said:
        if kind == "frame":
            frame = record.frame(int(words[0]))
            assert str(frame.image) == words[1]
            assert frame.image is None or record.image_path(frame.image) is not None
        elif kind == "review":
            assert [str(review.id) for review in record.frame(int(words[1])).reviews] == [words[0]]


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    folder = tmp_path / "record"
    acknowledged = 0
    for number in range(kills):
        process = start(folder, number)
        # One in four during its start, the others while writing.
        said = kill_after(process, 0 if number % 4 == 3 else chance.randrange(1, 12), chance.uniform(0, 0.03))
        acknowledged += sum(words[0] == "frame" for words in said)
        with Record(folder) as record:  # as the program's next start does
            check_acknowledged(record, said)
            record.add_event("restarted", {"kill": number})
    assert acknowledged > 2 * kills
    with Record(folder, create=False) as record:
        found = check(record.folder)
        assert found.problems == []
        assert found.images >= acknowledged
        assert sum(session.frames for session in record.sessions()) >= acknowledged


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_full_disk(small_disk: Path, rounds: int) -> None:
    chance = random.Random(rounds)
    folder, ballast, reserve = (small_disk / name for name in ("record", "ballast", "reserve"))
    reserve.write_bytes(bytes(500_000))
    with Record(folder):
        pass
    said: list[list[str]] = []
    for number in range(rounds):
        if number % 5 == 0:  # another program uses the space and frees it
            ballast.unlink(missing_ok=True)
        elif number % 5 == 2:
            fill(ballast)
        process = start(folder, number)
        if number % 2:
            said += kill_after(process, chance.randrange(8), chance.uniform(0, 0.05))
        else:
            said += [line.split() for line in process.communicate(timeout=HANG_S)[0].splitlines()]
    assert sum(words == ["full"] for words in said) >= rounds // 4
    fill(ballast)
    with Record(folder, limits=Limits(0, 0)) as record, pytest.raises(RecordFullError, match="the disk is full"):
        start_sessions_for_ever(record)
    reserve.unlink()
    with Record(folder, create=False) as record:
        check_acknowledged(record, said)
        assert check(record.folder).problems == []
        record.add_event("room", {})
        assert check(record.folder).problems == []


def start_sessions_for_ever(record: Record) -> None:
    while True:
        record.start_session(SessionNotes("one more"))


def fill(ballast: Path) -> None:
    with open(ballast, "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


def test_a_copy_on_a_read_only_disk_can_be_verified(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "record"
    with Record(folder, limits=Limits(0, 0)) as record:
        record.start_session(SessionNotes("slide"))
        head = record.head()
    shutil.copytree(folder, small_disk / "closed")  # without a log
    live = start(folder, 1)
    assert live.stdout is not None
    for _ in range(4):
        live.stdout.readline()
    shutil.copytree(folder, tmp_path / "in use")  # with its log
    live.kill()
    live.communicate()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Record(folder, create=False) as record, pytest.raises(RecordError, match="readonly"):
        record.add_event("anything", {})
    assert check(folder, head).problems == []
    assert check(small_disk / "closed", head).rows == 2
    assert check(tmp_path / "in use", head).rows >= 3
