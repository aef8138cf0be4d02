"""Backup and restore of a record: consistent while a rig writes, verified, and the same chain."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from fixtures_models import grainy_image

from edgeall import cli
from edgeall.console import progress
from edgeall.edge_runtime.errors import UsageError
from edgeall.rig.record import backup
from edgeall.rig.record.backup import back_up, restore
from edgeall.rig.record.chain import RecordError
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import FrameRow, Limits, SessionNotes

TAKEN = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    grainy_image(seed).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record", limits=Limits(0, 0)) as opened:
        session = opened.start_session(SessionNotes("S-1"))
        for number in range(3):
            opened.add_frame(session, FrameRow(TAKEN, number, "judged"), jpeg(number))
        yield opened


def test_there_and_back(record: Record, tmp_path: Path) -> None:
    found = back_up(record.folder, tmp_path / "b")
    assert (found.images, found.new_images, found.missing_images) == (3, 3, 0)
    assert found.head == record.head() == check(tmp_path / "b").head
    restored = restore(tmp_path / "b", tmp_path / "new")
    assert (restored.rows, restored.images, restored.head) == (found.rows, 3, found.head)
    with Record(tmp_path / "new", limits=Limits(0, 0)) as again:
        (session,) = again.open_sessions()
        again.add_frame(session.id, FrameRow(TAKEN, 9, "judged"), jpeg(9))  # the chain goes on
    assert check(tmp_path / "new", found.head).problems == []


def test_a_later_backup_copies_what_is_new(record: Record, tmp_path: Path) -> None:
    back_up(record.folder, tmp_path / "b")
    (session,) = record.open_sessions()
    record.add_frame(session.id, FrameRow(TAKEN, 4, "judged"), jpeg(4))
    found = back_up(record.folder, tmp_path / "b")
    assert (found.images, found.new_images, found.head) == (4, 1, record.head())
    with Record(tmp_path / "other", limits=Limits(0, 0)) as other:
        other.add_event("x", {})
    with pytest.raises(RecordError, match="holds another record"):
        back_up(tmp_path / "other", tmp_path / "b")
    assert check(tmp_path / "b").head == found.head


def test_while_a_rig_writes(record: Record, tmp_path: Path) -> None:
    (session,), stop = record.open_sessions(), threading.Event()

    def write() -> None:
        number = 10
        while not stop.is_set():
            record.add_frame(session.id, FrameRow(TAKEN, number, "judged"), jpeg(number % 40))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        heads = [back_up(record.folder, tmp_path / f"b{number}").head for number in range(3)]
    finally:
        stop.set()
        writer.join()
    for number, head in enumerate(heads):
        assert check(tmp_path / f"b{number}").problems == [] and check(record.folder, head).problems == []
        assert restore(tmp_path / f"b{number}", tmp_path / f"r{number}").head == head


def test_an_interrupted_backup_leaves_the_older_one_and_is_continued(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = back_up(record.folder, tmp_path / "b").head
    (session,) = record.open_sessions()
    record.add_frame(session.id, FrameRow(TAKEN, 4, "judged"), jpeg(4))
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_copy_images", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            back_up(record.folder, tmp_path / "b")
    assert check(tmp_path / "b").head == old and check(tmp_path / "b").problems == []
    assert back_up(record.folder, tmp_path / "b").head == record.head()


def test_the_log_of_a_killed_backup_is_not_in_the_way(record: Record, tmp_path: Path) -> None:
    back_up(record.folder, tmp_path / "b")
    for name in ("record.sqlite.part", "record.sqlite.part-journal", "record.sqlite.part-wal", "record.sqlite-journal"):
        (tmp_path / "b" / name).write_bytes(b"left by a process that was killed")
    assert back_up(record.folder, tmp_path / "b").head == record.head()
    assert sorted(path.name for path in (tmp_path / "b").iterdir() if path.is_file()) == ["record.sqlite", "rig.lock"]


def test_what_is_refused(record: Record, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        back_up(record.folder, tmp_path / "used")
    with pytest.raises(UsageError, match="inside the record"):
        back_up(record.folder, record.folder / "b")
    with pytest.raises(RecordError, match="no record here"):
        back_up(tmp_path / "used", tmp_path / "b")
    back_up(record.folder, tmp_path / "b")
    with pytest.raises(UsageError, match="is not empty"):
        restore(tmp_path / "b", tmp_path / "used")
    (image,) = list((tmp_path / "b" / "images").rglob("*.jpg"))[:1]
    image.write_bytes(b"altered")
    with pytest.raises(RecordError, match="was altered"):
        restore(tmp_path / "b", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_images_that_the_record_has_lost_are_counted(record: Record, tmp_path: Path) -> None:
    (image,) = list((record.folder / "images").rglob("*.jpg"))[:1]
    image.unlink()
    assert back_up(record.folder, tmp_path / "b").missing_images == 1


def test_the_commands(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "backup", str(record.folder), "--out", str(tmp_path / "b"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["head"]) == (3, record.head())
    shutil.rmtree(record.folder / "images")  # the disk is lost
    assert cli.main(["record", "restore", str(tmp_path / "b"), "--record", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head"] == said["head"]
    assert cli.main(["record", "verify", str(tmp_path / "new"), "--head", said["head"]]) == 0


def test_long_work_shows_how_far_it_is(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    (session,) = record.open_sessions()
    folder, copy = str(record.folder), str(tmp_path / "b")
    for words, shown in (
        (("verify", folder), ("verifying images: 3/3",)),
        (("backup", folder, "--out", copy), ("copying images: 3/3", "verifying images: 3/3")),
        (("restore", copy, "--record", str(tmp_path / "new")), ("copying images: 3/3", "verifying images: 3/3")),
        (("export", folder, "--session", str(session.id), "--out", str(tmp_path / "out")), ("copying images: 3/3",)),
    ):
        assert cli.main(["record", *words]) == 0
        err = capsys.readouterr().err
        assert all(text in err for text in shown), words
