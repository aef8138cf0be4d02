"""The rig under attack, with a long slide, and killed: does recording go on, is nothing acknowledged lost?

python benchmarks/rig_load.py MODEL [--connections 500] [--minutes 10] [--frames 50000] [--kills 200] [--out FILE.md]

- Slow connections: an `edgeall rig` process records a simulated slide. Half a request is sent on each of many
  connections from ten addresses, a byte more every few seconds; a connection that the rig ends is opened again.
  Recorded frames/s and the latency of the page are compared with the time before. Limits: `RATE` of the frames/s, no
  failed page, an intact record; a backup taken meanwhile restores whole.
- Long slide: a record of --frames frames is written, and its summary computed (limit `SUMMARY_S` of processor time).
  Its backup is restored into a new folder and verified before and after (limits: `RESTORE_S` of wall clock, the same
  head).
- Kills: --kills in all, at random moments. A fifth each are of `tests/e2e/record_writer.py`, of `edgeall record
  backup`, and of the three kinds of update in `rig_updates.py`: deploy, switch of the rig's model, schema of the
  record. Limits: every acknowledged row is there, the record verifies, the older backup is intact, a last backup is
  whole, and what was updated is in its old or its new state, whole.

A part with 0 is left out. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import command
import numpy as np
from rig_updates import update_kills

from edgeall.rig.record import chain
from edgeall.rig.record.backup import back_up, restore
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits, SessionNotes

RATE, SUMMARY_S, RESTORE_S = 0.5, 2.0, 60.0
ADDRESSES = 10
WRITER = Path(__file__).parent.parent / "tests" / "e2e" / "record_writer.py"
PROGRAM = [sys.executable, "-c", "import sys; from edgeall.cli import main; sys.exit(main(sys.argv[1:]))"]
Row = tuple[str, str, str, bool]
"""What was measured, the figure, the limit, whether it was met."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of the slow connections; a third of it before them"
    )
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    rows += summary(arguments.frames) if arguments.frames else []
    if arguments.kills:
        rows += kills(2 * arguments.kills // 5)
        with tempfile.TemporaryDirectory() as name:
            rows += update_kills(arguments.kills // 5, Path(name))
    if arguments.connections:
        rows += slow_connections(arguments.model, arguments.connections, 60 * arguments.minutes)
    page = report(arguments, rows)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if all(met for *_, met in rows) else 1


# Slow connections


def slow_connections(model: Path, count: int, seconds: float) -> list[Row]:
    """Recording and page before and during slow connections."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _rig(model, folder) as port:
            while not _frames(folder):
                time.sleep(0.5)
            before = _watch(folder, port, seconds / 3)
            stop, ended = threading.Event(), [0]
            attackers = [
                threading.Thread(target=_attack, args=(port, f"127.0.0.{2 + n}", count // ADDRESSES, stop, ended))
                for n in range(ADDRESSES)
            ]
            for each in attackers:
                each.start()
            try:
                during = _watch(folder, port, seconds)
                whole = _restores(folder)
            finally:
                stop.set()
                for each in attackers:
                    each.join()
        problems = check(folder).problems
    rate = during[0] / max(before[0], 1e-9)
    print(f"{before[0]:.3f} frames/s before, {during[0]:.3f} during, {ended[0]} ended", file=sys.stderr)
    p95 = [float(np.percentile(times, 95)) for times in (before[1], during[1])]
    return [
        (
            f"recorded frames/s beside {count} slow connections : before ({before[0]:.2f})",
            f"{rate:.2f}",
            f">= {RATE}",
            rate >= RATE,
        ),
        (f"pages that failed, of {len(during[1])}", str(during[2]), "0", during[2] == 0),
        ("p95 of a page, ms, before and during, without a limit", f"{p95[0]:.0f}, {p95[1]:.0f}", "", True),
        ("slow connections that the rig ended", str(ended[0]), "", True),
        ("a backup taken beside them restores whole", "yes" if whole else "no", "yes", whole),
        ("problems of the record", str(len(problems)), "0", not problems),
    ]


def _restores(folder: Path) -> bool:
    """Whether a backup of a record that is being written restores with its rows and images, and continues its chain."""
    with tempfile.TemporaryDirectory() as name:
        copied = back_up(folder, Path(name) / "backup")
        found = restore(Path(name) / "backup", Path(name) / "restored")
        verified = check(Path(name) / "restored", copied.head)
    same = (found.head, found.rows, found.images) == (copied.head, copied.rows, copied.images)
    return same and copied.missing_images == 0 and not verified.problems and not check(folder, copied.head).problems


@contextmanager
def _rig(model: Path, folder: Path) -> Iterator[int]:
    command = [*PROGRAM, "rig", str(model), "--camera", "simulated", "--record", str(folder), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, "--slide", "S-1"], stderr=subprocess.PIPE, text=True) as rig:
        try:
            assert rig.stderr is not None
            said = next(found for line in rig.stderr if (found := re.search(r"http://127.0.0.1:(\d+)/", line)))
            threading.Thread(target=rig.stderr.read, daemon=True).start()
            yield int(said[1])
        finally:
            rig.send_signal(signal.SIGTERM)


def _watch(folder: Path, port: int, seconds: float) -> tuple[float, list[float], int]:
    """Recorded frames/s; ms of the page, asked twice a second; number of pages that failed."""
    times, failed = [], 0
    began, first = time.monotonic(), _frames(folder)
    while time.monotonic() < began + seconds:
        asked = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            failed += connection.getresponse().status != 200
            connection.close()
        except OSError:
            failed += 1
        times.append(1000 * (time.perf_counter() - asked))
        time.sleep(0.5)
    return (_frames(folder) - first) / (time.monotonic() - began), times, failed


def _frames(folder: Path) -> int:
    with chain.reading(folder) as database:
        return int(database.execute("SELECT count(*) FROM entries WHERE kind = 'frame'").fetchone()[0])


def _attack(port: int, source: str, count: int, stop: threading.Event, ended: list[int]) -> None:
    """Keep ``count`` connections with half a request open; each gets a byte more every five seconds."""
    clients: list[socket.socket] = []
    while not stop.is_set():
        while len(clients) < count and not stop.is_set():
            with suppress(OSError):
                client = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
                client.setblocking(False)
                clients.append(client)
        stop.wait(5.0)
        for client in list(clients):
            try:
                client.send(b"x")
                over = client.recv(4096) == b""
            except BlockingIOError:
                over = False
            except OSError:
                over = True
            if over:
                ended[0] += 1
                client.close()
                clients.remove(client)
    for client in clients:
        client.close()


# A long slide


def summary(frames: int) -> list[Row]:
    """Seconds until the summary of a slide of many frames is computed, as its page does it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Record(folder, limits=Limits(0, 0)) as record:
            session = record.start_session(SessionNotes("long"))
        _write_frames(folder, session, frames)
        with Record(folder, limits=Limits(0, 0)) as record:
            times, processor = [], []
            for _ in range(5):
                began, used = time.perf_counter(), time.process_time()
                found = record.summary(session)
                record.session(session)
                record.skipped(session)
                times.append(time.perf_counter() - began)
                processor.append(time.process_time() - used)
        assert sum(found.frames.values()) == frames, found.frames
        restored = _restored(folder)
    print(f"summary: {times}, processor {processor}", file=sys.stderr)
    cells = found.counts.cells if found.counts else 0
    name = f"summary of {frames:,} frames, {cells:,} different cells, median of five: processor time, s"
    middle = statistics.median(processor)
    return [
        (name, f"{middle:.2f}", f"< {SUMMARY_S:g}", middle < SUMMARY_S),
        (
            "the same: wall clock, without a limit: other work on the machine lengthens it, s",
            f"{statistics.median(times):.2f}",
            "",
            True,
        ),
        *restored,
    ]


def _restored(folder: Path) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        copied = back_up(folder, Path(name) / "backup")
        began, used = time.perf_counter(), time.process_time()
        found = restore(Path(name) / "backup", Path(name) / "restored")
        took, used = time.perf_counter() - began, time.process_time() - used
    same = found.head == copied.head == check(folder).head
    title = f"restore of a backup of this record, {found.rows:,} rows, verified: wall clock, s"
    return [
        (title, f"{took:.1f}", f"< {RESTORE_S:g}", took < RESTORE_S),
        ("the same: processor time, without a limit, s", f"{used:.1f}", "", True),
        ("its head is that of the record", "yes" if same else "no", "yes", same),
    ]


def _write_frames(folder: Path, session: int, frames: int) -> None:
    """Rows as a rig writes them, in few transactions: three cells a frame, a new field every 60 frames."""
    database = chain.open_writer(folder)
    at = chain.now()
    for start in range(0, frames, 5000):
        with chain.appending(database, folder / chain.DATABASE):
            for number in range(start, min(start + 5000, frames)):
                field = 1 + number // 60
                cells = [
                    {"box": [200 * n, 100, 200 * n + 90, 190], "label": ("Pre", "Early")[n % 2], "probability": 0.93}
                    | {"probabilities": {"Pre": 0.93, "Early": 0.07}, "review": n == 2, "cell_id": 3 * field + n}
                    for n in range(3)
                ]
                row = {"session": session, "taken": at, "camera_frame": number, "status": "judged", "trigger": "auto"}
                row |= {"reasons": [], "label": None, "probability": None, "probabilities": {}, "review": True}
                row |= {"cells": cells, "field_id": field, "patch": 1, "position": [0, 0], "image": None}
                row |= {"quality": {"focus": 0.9, "sharpness": 0.2, "brightness": 230.0}, "opening": None}
                frame = chain.append(database, "frame", row)
                if number % 20 == 0:  # at first, and when a sharper frame changes the pooled verdict
                    _write_found(database, session, frame, field)
    database.close()


def _write_found(database: object, session: int, frame: int, field: int) -> None:
    shared = {"session": session, "frame_id": frame, "field_id": field, "patch": 1, "width": 90, "height": 90}
    chain.append(database, "field", shared | {"found_id": field, "x": 0, "y": 0, "frames": 20, "chances": 20})  # type: ignore[arg-type]
    for n in range(3):
        cell = {"found_id": 3 * field + n, "x": 200 * n, "y": 100, "label": ("Pre", "Early")[n % 2], "index": n}
        cell |= {"probability": 0.93, "probabilities": {"Pre": 0.93, "Early": 0.07}, "frames": 20, "chances": 20}
        chain.append(database, "cell", shared | cell)  # type: ignore[arg-type]


# Kills


def kills(count: int) -> list[Row]:
    """Kill a writer and a backup in turn, at random moments."""
    chance = random.Random(count)
    lost = acknowledged = 0
    with tempfile.TemporaryDirectory() as name:
        folder, copy = Path(name) / "record", Path(name) / "backup"
        with Record(folder, limits=Limits(0, 0)) as record:
            record.start_session(SessionNotes("first"))
        head = back_up(folder, copy).head
        broken = 0
        for number in range(count // 2):
            said = _kill(number, folder, chance)
            acknowledged += len(said)
            with Record(folder, limits=Limits(0, 0)) as record:
                lost += sum(not _is_there(record, words) for words in said)
            backup = subprocess.Popen(
                [*PROGRAM, "record", "backup", str(folder), "--out", str(copy)],
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            time.sleep(chance.uniform(0.2, 2.5))
            backup.kill()
            backup.wait()
            found = check(copy, head)  # the older backup, or a newer whole one
            broken += bool(found.problems)
            head = found.head
            print(f"{2 * number + 2} kills, {acknowledged} acknowledged, {lost} lost, {broken} broken", file=sys.stderr)
        last = back_up(folder, copy)
        whole = last.head == check(folder).head and not check(folder).problems and last.missing_images == 0
    return [
        (
            f"acknowledged rows lost, of {acknowledged}, after {count // 2} kills of the writer",
            str(lost),
            "0",
            lost == 0,
        ),
        (f"backups not intact after {count // 2} kills of `edgeall record backup`", str(broken), "0", broken == 0),
        ("the record verifies, and a last backup is whole", "yes" if whole else "no", "yes", whole),
    ]


def _kill(number: int, folder: Path, chance: random.Random) -> list[list[str]]:
    """Rows that a writer acknowledged before it was killed."""
    command = [sys.executable, str(WRITER), str(folder), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(chance.randrange(0, 12))]
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        said += process.stdout.readlines()
    return [words for line in said if (words := line.split()) and words[0] in ("frame", "review")]


def _is_there(record: Record, words: list[str]) -> bool:
    kind, *facts = words
    if kind == "review":
        return [str(each.id) for each in record.frame(int(facts[1])).reviews] == [facts[0]]
    frame = record.frame(int(facts[0]))
    return str(frame.image) == facts[1] and (frame.image is None or record.image_path(frame.image) is not None)


def report(arguments: argparse.Namespace, rows: list[Row]) -> str:
    """A Markdown page."""
    lines = [
        "# The rig under load",
        "",
        f"`python benchmarks/rig_load.py {arguments.model.name} --connections {arguments.connections} --minutes"
        f" {arguments.minutes:g} --frames {arguments.frames} --kills {arguments.kills}`,"
        f" {datetime.now(timezone.utc):%Y-%m-%d}.",
        "",
        "| | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {name} | {figure} | {limit} | {('yes' if met else 'NO') if limit else ''} |"
            for name, figure, limit, met in rows
        ),
        "",
        *command.machine_lines(),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
