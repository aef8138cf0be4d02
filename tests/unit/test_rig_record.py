"""The record: round trips, detection of every alteration, and full disks."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeall import __version__, cli
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.rig.record import chain
from edgeall.rig.record import record as record_module
from edgeall.rig.record.chain import RecordError, RecordFullError
from edgeall.rig.record.check import check
from edgeall.rig.record.export import CELL_COLUMNS, COLUMNS, export_csv, export_session, export_training
from edgeall.rig.record.found import CELL, FIELD, Found
from edgeall.rig.record.record import Record
from edgeall.rig.record.results import Counts
from edgeall.rig.record.rows import FrameRow, Limits, Program, SessionNotes
from edgeall.rig.record.wilson import wilson_interval

PROGRAM = Program("smears", "ab" * 32, ("Benign", "Early"), {"judge": True})
TAKEN = datetime(2026, 11, 21, 10, 0, tzinfo=timezone.utc)
JUDGED = FrameRow(
    TAKEN, 7, "judged", label="Early", probability=0.75, probabilities={"Early": 0.75, "Benign": 0.25}, review=True
)
REFUSED = FrameRow(TAKEN, 8, "refused", reasons=("blurred", "dark"), quality={"focus": 0.2})


def jpeg(folder: Path, colour: str) -> bytes:
    file = folder / f"{colour}.jpg"
    Image.new("RGB", (64, 48), colour).save(file)
    return file.read_bytes()


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record", program=PROGRAM, limits=Limits(0, 0)) as opened:
        yield opened


@pytest.fixture
def tampered(record: Record, tmp_path: Path) -> Callable[..., list[str]]:
    """Alter a record of eight rows by SQL, and return the problems that `check` finds."""
    session = record.start_session(SessionNotes("S1"))
    frames = [record.add_frame(session, replace(JUDGED, number=n), jpeg(tmp_path, c)) for n, c in enumerate(COLOURS)]
    record.add_review(frames[0], "Benign", "expert")
    record.add_event("settings", {"judge": False})
    record.end_session(session)
    assert check(record.folder).rows == 8
    record.close()

    def alter(*statements: str, head: str | None = None) -> list[str]:
        with sqlite3.connect(record.folder / chain.DATABASE) as database:
            for trigger in ("entries_stay", "entries_are_kept", "entries_follow"):
                database.execute(f"DROP TRIGGER {trigger}")
            for statement in statements:
                database.execute(statement)
            for statement in chain.MIGRATIONS[0]:
                if "TRIGGER" in statement:
                    database.execute(statement)
        database.close()
        return [str(problem) for problem in check(record.folder, head).problems]

    return alter


COLOURS = ("red", "green", "blue")


def test_a_session_returns(record: Record) -> None:
    notes = SessionNotes("S1", "A. Operator", "Giemsa", "100x", "thin")
    number = record.start_session(notes)
    session = record.session(number)
    assert (session.id, session.notes, session.ended, session.frames) == (number, notes, None, 0)
    assert (session.model, session.model_sha256, session.software) == ("smears", "ab" * 32, __version__)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", session.started)
    record.end_session(number)
    ended = record.session(number).ended
    assert ended is not None and ended >= session.started
    with pytest.raises(RecordError, match="has ended"):
        record.end_session(number)
    with pytest.raises(RecordError, match="has ended"):
        record.add_frame(number, JUDGED)


def test_a_session_continues_after_a_restart(tmp_path: Path) -> None:
    with Record(tmp_path, program=PROGRAM) as record:
        number = record.start_session(SessionNotes("S1"))
    with Record(tmp_path, program=replace(PROGRAM, model="other")) as record:
        assert [(s.id, s.ended, s.model) for s in record.sessions()] == [(number, None, "smears")]
        frame = record.add_frame(number, JUDGED)
        assert record.frame(frame).session == number
        assert check(record.folder).problems == []
    with sqlite3.connect(tmp_path / chain.DATABASE) as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT row FROM entries ORDER BY number")]
    database.close()
    # Every row names the opening row of the program that wrote it.
    openings = {row["number"]: row["program"]["model"] for row in rows if row["kind"] == "opening"}
    assert [openings[row["opening"]] for row in rows if row["kind"] != "opening"] == ["smears", "other"]


def test_a_frame_returns(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    image = jpeg(tmp_path, "red")
    cells = ({"box": [0, 0, 9, 9], "label": "Early", "probability": 0.5, "review": False},)
    row = replace(JUDGED, cells=cells, quality={"focus": 0.5}, trigger="capture")
    frame = record.frame(record.add_frame(session, row, image))
    assert replace(frame.row, reasons=(), cells=()) == replace(row, cells=())
    assert list(frame.row.cells) == list(cells)
    assert (frame.session, frame.image_lost, frame.reviews, frame.label) == (session, None, (), "Early")
    assert frame.image is not None
    path = record.image_path(frame.image)
    assert path is not None and path.read_bytes() == image


def test_what_is_asked_of_frames(record: Record, tmp_path: Path) -> None:
    session, other = record.start_session(SessionNotes("S1")), record.start_session(SessionNotes("S2"))
    sure = replace(JUDGED, label="Benign", review=False)
    a, b, c, d = (record.add_frame(session, row) for row in (JUDGED, sure, REFUSED, JUDGED))
    elsewhere = record.add_frame(other, JUDGED)
    record.add_review(a, "Benign", "expert")
    record.add_review(b, "Benign", "expert", "agreed")

    def ids(**asked: object) -> list[int]:
        return [frame.id for frame in record.frames(session, **asked)]  # type: ignore[arg-type]

    assert ids() == [d, c, b, a]
    assert ids(limit=2) == [d, c]
    assert ids(limit=2, before=c) == [b, a]
    assert ids(status="refused") == [c]
    assert ids(label="Benign") == [b, a]
    assert ids(label="Early") == [d]
    assert ids(review="needed") == [d]
    assert ids(review="done") == [b, a]
    assert ids(review="corrected") == [a]
    assert [frame.id for frame in record.frames(other)] == [elsewhere]
    assert [session.frames for session in record.sessions()] == [1, 4]
    assert record.frame(a).corrected and not record.frame(b).corrected
    with pytest.raises(RecordError, match="no session 999") as caught:
        record.frames(999)
    assert caught.value.hint == f"sessions: {session}, {other}"
    for wrong in (session, 999, 0):
        with pytest.raises(RecordError, match=f"no frame {wrong}"):
            record.frame(wrong)
    with pytest.raises(RecordError, match=f"no session {a}"):
        record.add_frame(a, JUDGED)


def test_the_last_review_stands(record: Record) -> None:
    frame = record.add_frame(record.start_session(SessionNotes("S1")), JUDGED)
    record.add_review(frame, "Pre", "first")
    record.add_review(frame, "Pro", "second")
    reviews = record.frame(frame).reviews
    assert [(review.label, review.by) for review in reviews] == [("Pre", "first"), ("Pro", "second")]
    assert record.frame(frame).label == "Pro"


@pytest.mark.parametrize(
    "label", ["", " ", "..", ".hidden", "a/b", "a\\b", "a\nb", "x" * 101, "C:", "a\0b", "trailing "]
)
def test_a_label_that_can_not_name_a_folder(record: Record, label: str) -> None:
    frame = record.add_frame(record.start_session(SessionNotes("S1")), JUDGED)
    with pytest.raises(UsageError, match="folder of training images"):
        record.add_review(frame, label, "expert")
    assert record.frame(frame).reviews == ()


def test_texts_have_a_limit(record: Record) -> None:
    with pytest.raises(UsageError, match="notes: has 2001 characters"):
        record.start_session(SessionNotes("S1", notes="x" * 2001))
    with pytest.raises(UsageError, match="name of its sample"):
        record.start_session(SessionNotes(" "))
    with pytest.raises(UsageError, match="there is no cell 0"):
        record.add_review(record.add_frame(record.start_session(SessionNotes("S1")), JUDGED), "Pre", "expert", cell=0)


def test_what_a_session_comes_to(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    benign = replace(JUDGED, label="Benign", review=False)
    frames = [record.add_frame(session, row, jpeg(tmp_path, "red")) for row in (JUDGED, JUDGED, benign)]
    for row in (REFUSED, replace(REFUSED, reasons=("dark",)), replace(JUDGED, status="unjudged", label=None)):
        record.add_frame(session, replace(row, review=False))
    record.add_review(frames[0], "Benign", "expert")
    found = record.summary(session)
    assert found.frames == {"judged": 3, "refused": 2, "unjudged": 1}
    assert found.reasons == {"dark": 2, "blurred": 1}
    assert next(iter(found.reasons)) == "dark"
    assert [(s.label, s.count, s.by_model) for s in found.labels] == [("Benign", 2, 1), ("Early", 1, 2)]
    assert found.labels[0].fraction == pytest.approx(2 / 3)
    assert (found.labels[0].low, found.labels[0].high) == pytest.approx((0.2077, 0.9385), abs=1e-4)  # Wilson, 2 of 3
    assert (found.review_needed, found.reviewed, found.corrected) == (1, 1, 1)
    assert (found.images, found.images_lost, found.cells) == (3, 0, ())


def test_frames_are_found_by_their_cells(record: Record) -> None:
    session = record.start_session(SessionNotes("S1"))

    def add(*cells: tuple[str, bool]) -> int:
        rows = [{"box": [n, n, n + 9, n + 9], "label": label, "review": asks} for n, (label, asks) in enumerate(cells)]
        return record.add_frame(session, replace(JUDGED, label=None, review=any(a for _, a in cells), cells=rows))

    def ids(**asked: object) -> set[int]:
        return {frame.id for frame in record.frames(session, **asked)}  # type: ignore[arg-type]

    mixed, benign = add(("Benign", False), ("Pre", True), ("Early", True)), add(("Benign", False))
    assert (ids(label="Pre"), ids(label="Benign"), ids(label="Pro")) == ({mixed}, {mixed, benign}, set())
    record.add_review(mixed, "Pro", "expert", cell=1)
    assert (ids(label="Pre"), ids(label="Pro"), ids(review="corrected")) == (set(), {mixed}, {mixed})
    assert record.frame(mixed).cell_labels == ("Benign", "Pro", "Early")
    assert record.frame(mixed).review_needed  # its last cell has no review
    assert (ids(review="needed"), record.summary(session).review_needed) == ({mixed}, 1)
    record.add_review(mixed, "Early", "expert", cell=2)
    assert not record.frame(mixed).review_needed
    summary = record.summary(session)
    assert (ids(review="needed"), summary.review_needed, summary.corrected) == (set(), 0, 1)
    record.add_review(mixed, "Pre", "expert", cell=1)  # a second review of the same cell
    assert (ids(review="corrected"), record.summary(session).corrected) == (set(), 0)


def test_cells_are_counted_as_they_stand(record: Record) -> None:
    session = record.start_session(SessionNotes("S1"))
    cells = [{"box": [n, n, n + 9, n + 9], "label": label} for n, label in enumerate(("all", "all", "hem"))]
    frame = record.add_frame(session, replace(JUDGED, label=None, cells=cells))
    record.add_review(frame, "hem", "expert", cell=0)
    assert [(s.label, s.count, s.by_model) for s in record.summary(session).cells] == [("hem", 2, 1), ("all", 1, 2)]
    assert record.frame(frame).label is None  # a review of one cell gives the frame no label
    assert record.summary(session).labels == ()


def test_a_frame_that_is_captured_again_counts_once(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    taken = JUDGED.taken
    cells = [{"box": [n, n, n + 9, n + 9], "label": label, "review": True} for n, label in enumerate(("Pre", "Pro"))]
    once = replace(JUDGED, label=None, cells=cells, number=0)
    first = record.add_frame(session, once)
    again = record.add_frame(session, replace(once, trigger="capture", by="olga"), jpeg(tmp_path, "red"))
    record.add_frame(session, replace(once, trigger="capture", by="olga"))
    record.add_frame(session, replace(once, taken=taken + timedelta(seconds=1)))  # the camera was reopened
    record.add_review(first, "Early", "expert", cell=0)
    record.add_review(again, "Benign", "expert", cell=1)
    found = record.summary(session)
    assert found.frames["judged"] == 2
    counts = {share.label: (share.count, share.by_model) for share in found.cells}
    assert counts == {"Pre": (1, 2), "Pro": (1, 2), "Early": (1, 0), "Benign": (1, 0)}
    assert (found.review_needed, found.reviewed, found.corrected) == (1, 1, 1)


def test_the_files_that_an_open_slide_holds(record: Record) -> None:
    assert record.recorded_files() is None
    record.add_frame(record.start_session(SessionNotes("S0")), replace(JUDGED, source="a.png", source_sha256="0"))
    record.end_session(record.sessions()[0].id)
    assert record.recorded_files() is None
    session = record.start_session(SessionNotes("S1"))
    assert record.recorded_files() == {}
    for source, digest in (("a.png", "1"), ("a.png", "2"), ("b.png", "3"), ("c.png", ""), ("", "")):
        record.add_frame(session, replace(JUDGED, source=source, source_sha256=digest))
    assert record.recorded_files() == {"a.png": {"1", "2"}, "b.png": {"3"}, "c.png": {""}}
    record.end_session(session)
    assert record.recorded_files() is None


def test_a_clock_that_was_set_back_prunes_nothing_new(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "now", lambda: "2026-01-01T10:00:00.000000Z")
    session, images = record.start_session(SessionNotes("S1")), []
    for at, colour in (
        ("2026-01-02", "red"),
        ("2026-05-01", "green"),
        ("1970-01-01", "blue"),
    ):  # a board without a clock
        monkeypatch.setattr(chain, "now", lambda at=at: f"{at}T10:00:00.000000Z")
        images.append(record.frame(record.add_frame(session, JUDGED, jpeg(tmp_path, colour))).image)
    assert record.prune_images(datetime(2026, 4, 1, tzinfo=timezone.utc)).images == 1
    assert [record.image_path(str(image)) is not None for image in images] == [False, True, True]
    assert not check(record.folder).problems
    assert (
        record.prune_images(datetime(2026, 6, 1, tzinfo=timezone.utc)).images == 2 and not check(record.folder).problems
    )


def test_an_empty_session_comes_to_nothing(record: Record) -> None:
    found = record.summary(record.start_session(SessionNotes("S1")))
    assert sum(found.frames.values()) == 0 and found.labels == ()


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_interval(count: int, total: int, low: float, high: float) -> None:
    """Source of the last: Newcombe 1998, table I, method 3."""
    assert wilson_interval(count, total) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_events(record: Record) -> None:
    numbers = [record.add_event("settings", {"judge": n}) for n in range(3)]
    found = record.events(limit=2)
    assert [(event.id, event.kind, event.detail) for event in found] == [
        (numbers[2], "settings", {"judge": 2}),
        (numbers[1], "settings", {"judge": 1}),
    ]


def test_threads_and_another_process_share_one_chain(record: Record) -> None:
    session = record.start_session(SessionNotes("S1"))
    with Record(record.folder) as other:

        def write(target: Record) -> None:
            for _ in range(10):
                target.add_frame(session, JUDGED)

        threads = [threading.Thread(target=write, args=(target,)) for target in (record, record, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert record.session(session).frames == 30
    assert check(record.folder).problems == []


# Durability


def test_it_waits_for_the_disk(record: Record) -> None:
    record.add_event("x", {})
    assert record._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert record._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_image_is_on_the_disk_before_its_row(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = record.start_session(SessionNotes("S1"))
    image = jpeg(tmp_path, "red")
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def fsynced(handle: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).relative_to(record.folder)}")
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr("os.fsync", fsynced)
    monkeypatch.setattr("os.replace", renamed)
    record._database.set_trace_callback(lambda statement: done.append(statement.split()[0]))
    digest = record.frame(record.add_frame(session, JUDGED, image)).image
    assert digest is not None
    assert done[:3] == ["fsync .", "fsync .", "fsync images"]  # the new folders' names
    assert re.fullmatch(rf"fsync incoming/{digest}\..*", done[3])
    assert done[4:6] == ["rename", f"fsync images/{digest[:2]}"]
    assert done[6] == "BEGIN" and done[-1] == "COMMIT"
    done.clear()
    record.add_frame(session, JUDGED, image)  # an existing image is not written again, but its name is flushed
    assert done[0] == f"fsync images/{digest[:2]}" and "rename" not in done


def test_what_a_power_cut_left_half_written_is_removed(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for name in ("left.1.1", "under-way.1.1"):
        (incoming / name).write_bytes(b"half")
    with open(incoming / "under-way.1.1", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as its writer does
        with Record(tmp_path):
            assert [path.name for path in incoming.iterdir()] == ["under-way.1.1"]
    with Record(tmp_path):
        assert not list(incoming.iterdir())


def test_a_label_too_long_for_a_folder_is_refused_at_once(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    frame = record.add_frame(session, JUDGED, jpeg(tmp_path, "red"))
    with pytest.raises(UsageError, match="cannot be the name of a folder"):
        record.add_review(frame, "芽" * 90, "expert")  # 270 bytes
    record.add_review(frame, "芽" * 60, "expert")
    assert export_training(record, tmp_path / "out") == {"芽" * 60: 1}


def test_a_name_with_line_breaks_is_one_field_of_a_table(record: Record, tmp_path: Path) -> None:
    names = ["a\nb.png", "c\r\nd.png", 'e"f,g.png', "=1+1.png"]
    session = record.start_session(SessionNotes("S\n1"))
    for name in names:
        record.add_frame(session, replace(JUDGED, source=name))
    export_csv(record, session, tmp_path / "frames.csv")
    with open(tmp_path / "frames.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [*names[:3], "'=1+1.png"] and {row["sample"] for row in rows} == {"S\n1"}


# Append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET row = '{}' WHERE number = 1",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries (number, row, digest) VALUES (1, '{}', '')",
        "INSERT INTO entries (number, row, digest) VALUES (9, '{}', '')",
    ],
)
def test_the_database_refuses_alterations(record: Record, statement: str) -> None:
    record.add_event("x", {})
    with sqlite3.connect(record.folder / chain.DATABASE) as database, pytest.raises(sqlite3.Error, match="append-only"):
        database.execute(statement)
    database.close()
    assert check(record.folder).problems == []


def test_a_row_is_chained_to_the_one_before(record: Record) -> None:
    record.add_event("x", {"text": "Ünicode", "number": 0.1})
    with sqlite3.connect(record.folder / chain.DATABASE) as database:
        rows = database.execute("SELECT row, digest FROM entries ORDER BY number").fetchall()
    database.close()
    assert len(rows) == 2
    previous = "0" * 64
    for text, digest in rows:
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        assert digest == chain.chained(previous, text)
        previous = digest
    assert record.head() == previous


# The alterations that must be found


SET_LABEL = "UPDATE entries SET row = json_set(row, '$.label', 'Benign') WHERE number = 4"


def test_an_untouched_record_is_intact(tampered: Callable[..., list[str]]) -> None:
    assert tampered() == []


def test_a_changed_row_is_found(tampered: Callable[..., list[str]]) -> None:
    found = tampered(SET_LABEL)
    assert found[0].startswith("row 4: ") and len({text.split(":")[0] for text in found}) == 1


def test_a_changed_row_with_a_new_digest_is_found_at_the_next(
    tampered: Callable[..., list[str]], record: Record
) -> None:
    database = sqlite3.connect(record.folder / chain.DATABASE)
    previous = database.execute("SELECT digest FROM entries WHERE number = 3").fetchone()[0]
    row = json.loads(database.execute("SELECT row FROM entries WHERE number = 4").fetchone()[0])
    database.close()
    text = chain.canonical(row | {"label": "Benign"})
    found = tampered(f"UPDATE entries SET row = '{text}', digest = '{chain.chained(previous, text)}' WHERE number = 4")
    assert found == ["row 5: altered, or does not follow the row before it"]


@pytest.mark.parametrize("number", [1, 4, 7])
def test_a_removed_row_is_found(tampered: Callable[..., list[str]], number: int) -> None:
    assert f"row {number}: it is missing" in tampered(f"DELETE FROM entries WHERE number = {number}")


def test_removed_rows_closed_up_are_found(tampered: Callable[..., list[str]]) -> None:
    found = tampered("DELETE FROM entries WHERE number = 4", "UPDATE entries SET number = number - 1 WHERE number > 4")
    assert "row 4: altered, or does not follow the row before it" in found


def test_an_inserted_row_is_found(tampered: Callable[..., list[str]]) -> None:
    found = tampered(
        "UPDATE entries SET number = -number WHERE number > 4",
        "UPDATE entries SET number = 1 - number WHERE number < 0",
        "INSERT INTO entries (number, row, digest) SELECT 5, row, digest FROM entries WHERE number = 4",
    )
    assert any(text.startswith("row 5: ") for text in found)


def test_reordered_rows_are_found(tampered: Callable[..., list[str]]) -> None:
    found = tampered(
        "UPDATE entries SET number = -1 WHERE number = 3",
        "UPDATE entries SET number = 3 WHERE number = 4",
        "UPDATE entries SET number = 4 WHERE number = -1",
    )
    assert {text.split(":")[0] for text in found} == {"row 3", "row 4", "row 5"}


def test_an_end_cut_off_is_found_by_a_head_noted_before(tampered: Callable[..., list[str]], record: Record) -> None:
    head = check(record.folder).head
    cut = "DELETE FROM entries WHERE number = 8"
    assert tampered(cut) == []  # the record itself does not show it
    found = check(record.folder, head).problems
    assert [problem.number for problem in found] == [None]
    assert "cut off" in str(found[0])


def test_a_head_noted_earlier_holds_after_more_rows(record: Record) -> None:
    record.add_event("x", {})
    head = record.head()
    record.add_event("y", {})
    assert check(record.folder, head).problems == []
    assert [str(problem) for problem in check(record.folder, "f" * 64).problems] == [
        f"no row has the digest {'f' * 64}: rows were cut off, or rewritten up to there"
    ]


def test_malformed_rows_are_found(tampered: Callable[..., list[str]]) -> None:
    found = tampered("UPDATE entries SET row = '[1]' WHERE number = 8")
    assert "row 8: not in edgeall's format" in found


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("entries", "json_extract(row, '$.label')", "'Benign'"),
        ("entries_stay", "RAISE(ABORT, 'the record is append-only')", "1"),
    ],
)
def test_columns_and_guards_that_were_rewritten_are_found(record: Record, name: str, old: str, new: str) -> None:
    record.add_event("x", {})
    head = record.head()
    with sqlite3.connect(record.folder / chain.DATABASE) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (old, new, name))
        assert database.execute("SELECT changes()").fetchone()[0] == 1
    assert [str(problem) for problem in check(record.folder, head).problems] == [f"record.sqlite: {name} was altered"]


def test_an_added_view_is_found(record: Record) -> None:
    record.add_event("x", {})
    with sqlite3.connect(record.folder / chain.DATABASE) as database:
        database.execute("CREATE VIEW more AS SELECT * FROM entries")
    assert [str(problem) for problem in check(record.folder).problems] == ["record.sqlite: more was added"]


def test_a_flipped_bit_is_found_where_it_is(tampered: Callable[..., list[str]]) -> None:
    bad = "CAST(replace(CAST(row AS TEXT), 'Early', CAST(x'45E1726C79' AS TEXT)) AS TEXT)"
    found = tampered(f"UPDATE entries SET row = {bad} WHERE number = 4")
    assert {text.split(":")[0] for text in found} == {"row 4"}


def test_the_head_of_an_empty_record_holds(record: Record) -> None:
    head = check(record.folder).head
    assert check(record.folder, head).problems == []
    record.add_event("x", {})
    assert check(record.folder, head).problems == []


def test_a_removed_trigger_is_found(record: Record) -> None:
    with sqlite3.connect(record.folder / chain.DATABASE) as database:
        database.execute("DROP TRIGGER entries_stay")
    database.close()
    assert [str(problem) for problem in check(record.folder).problems] == ["record.sqlite: entries_stay is missing"]


def test_missing_and_altered_images_are_found(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    frames = [record.frame(record.add_frame(session, JUDGED, jpeg(tmp_path, colour))) for colour in COLOURS]
    paths = [record.image_path(str(frame.image)) for frame in frames]
    assert paths[0] is not None and paths[1] is not None
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"\0")
    found = check(record.folder)
    assert [str(problem) for problem in found.problems] == [
        f"row {frames[0].id}: its image {frames[0].image} is missing",
        f"row {frames[1].id}: its image {frames[1].image} was altered",
    ]
    assert (found.images, found.pruned) == (3, 0)
    with pytest.raises(RecordError, match="altered since it was recorded"):
        record.add_frame(session, JUDGED, jpeg(tmp_path, "green"))  # nothing is overwritten


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n", "ab" * 32])
def test_only_a_digest_leads_to_an_image(record: Record, name: str) -> None:
    assert record.image_path(name) is None


# A full disk


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_to(count: int) -> None:
        monkeypatch.setattr(record_module, "_free_bytes", lambda folder: count)

    return set_to


def test_little_room_stops_images_then_judging(
    tmp_path: Path, free_bytes: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = jpeg(tmp_path, "red")
    with Record(tmp_path / "record", limits=Limits(images_bytes=1000, judging_bytes=100)) as record:
        free_bytes(1000)
        session = record.start_session(SessionNotes("S1"))
        first = record.add_frame(session, JUDGED, image)
        assert record.space().state == "ok"
        free_bytes(999)
        assert (record.space().state, record.space().free_bytes) == ("no images", 999)
        second = record.frame(record.add_frame(session, JUDGED, jpeg(tmp_path, "blue")))
        assert (second.image, second.image_lost) == (None, "disk")
        free_bytes(99)
        for _ in range(2):
            with pytest.raises(RecordFullError, match="the disk is full"):
                record.add_frame(session, JUDGED)
        with pytest.raises(RecordFullError):
            record.start_session(SessionNotes("S2"))
        record.add_review(first, "Pre", "expert")  # reviews are still recorded
        free_bytes(1000)
        third = record.frame(record.add_frame(session, JUDGED, image))
        assert third.image == record.frame(first).image
        record.end_session(session)
        assert [event.detail["state"] for event in record.events()] == ["ok", "full", "no images"]
        assert record.summary(session).images_lost == 1
        assert check(record.folder).problems == []


def test_no_room_for_an_image_leaves_nothing_of_it(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = record.start_session(SessionNotes("S1"))
    fsync = os.fsync

    def full(handle: int) -> None:
        if "incoming/" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr("os.fsync", full)
    frame = record.frame(record.add_frame(session, JUDGED, jpeg(tmp_path, "red")))
    assert (frame.image, frame.image_lost) == (None, "disk")
    assert not list((record.folder / "incoming").iterdir())
    assert not list((record.folder / "images").rglob("*.jpg"))
    assert [event.detail["state"] for event in record.events()] == ["no images"]


def test_another_trouble_with_an_image_is_named(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = record.start_session(SessionNotes("S1"))

    def broken(old: Path, new: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(RecordError, match=r"\.jpg: cannot be written \(Input/output error\)"):
        record.add_frame(session, JUDGED, jpeg(tmp_path, "red"))
    assert record.session(session).frames == 0


def test_no_room_for_a_row(record: Record) -> None:
    session = record.start_session(SessionNotes("S1"))
    pages = record._database.execute("PRAGMA page_count").fetchone()[0]
    record._database.execute(f"PRAGMA max_page_count = {pages}")
    added: list[int] = []

    def add_for_ever() -> None:
        while True:
            added.append(record.add_frame(session, JUDGED))

    with pytest.raises(RecordFullError, match=r"record\.sqlite: the disk is full"):
        add_for_ever()
    assert 0 < len(added) == record.session(session).frames
    record._database.execute("PRAGMA max_page_count = 100000")
    record.add_frame(session, JUDGED)
    assert check(record.folder).problems == []


# Versions


def test_a_newer_record_is_refused_by_name(tmp_path: Path) -> None:
    Record(tmp_path).close()
    with sqlite3.connect(tmp_path / chain.DATABASE) as database:
        database.execute(f"PRAGMA user_version = {len(chain.MIGRATIONS) + 1}")
    database.close()
    for opening in (lambda: Record(tmp_path), lambda: check(tmp_path)):
        with pytest.raises(RecordError, match="written by a newer edgeall") as caught:
            opening()
        assert caught.value.hint == "update edgeall"


def test_an_older_record_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Record(tmp_path) as record:
        record.add_event("x", {})
        head = record.head()
    newer = (*chain.MIGRATIONS, ("CREATE INDEX entries_of_digest ON entries (digest)",))
    monkeypatch.setattr(chain, "MIGRATIONS", newer)
    with pytest.raises(RecordError, match="written by an older edgeall"):
        check(tmp_path)
    with Record(tmp_path) as record:
        assert check(record.folder, head).problems == []
    monkeypatch.setattr(chain, "MIGRATIONS", (*newer, ("CREATE INDEX y ON entries (digest)", "NONSENSE")))
    with pytest.raises(RecordError, match="syntax error"):
        Record(tmp_path)
    monkeypatch.setattr(chain, "MIGRATIONS", newer)
    assert check(tmp_path, head).problems == []  # the failed migration left no changes


def test_what_is_not_a_record(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no record here"):
        Record(tmp_path, create=False)
    with sqlite3.connect(tmp_path / chain.DATABASE) as database:
        database.execute("CREATE TABLE birds (name)")
    database.close()
    with pytest.raises(RecordError, match="the database of another program"):
        Record(tmp_path)
    (tmp_path / chain.DATABASE).write_bytes(b"not a database" * 100)
    with pytest.raises(RecordError, match="not a database"):
        Record(tmp_path)
    with pytest.raises(RecordError, match="cannot be created"):
        Record(tmp_path / chain.DATABASE / "below a file")


# Retention and export


def test_pruning_removes_images_alone(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (chain.timestamp(TAKEN + timedelta(days=day)) for day in range(-2, 98))  # the session takes two
    clock = iter(times)
    monkeypatch.setattr(chain, "now", lambda: next(clock))
    session = record.start_session(SessionNotes("S1"))
    images = [jpeg(tmp_path, colour) for colour in ("red", "green", "red", "blue")]
    frames = [record.frame(record.add_frame(session, JUDGED, image)) for image in images]
    assert [frame.at[:10] for frame in frames] == ["2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24"]
    head = record.head()
    pruned = record.prune_images(datetime(2026, 11, 23, tzinfo=timezone.utc))
    assert (pruned.images, pruned.freed_bytes) == (1, len(images[1]))  # a later frame has the red image, too
    assert [record.image_path(str(frame.image)) is not None for frame in frames] == [True, False, True, True]
    found = check(record.folder, head)
    assert (found.problems, found.images, found.pruned) == ([], 2, 1)
    assert record.session(session).frames == 4
    again = record.prune_images(datetime(2026, 11, 23, tzinfo=timezone.utc))
    assert (again.images, check(record.folder).rows) == (0, found.rows)  # without images to remove, no row is added
    path = record.image_path(str(frames[3].image))
    assert path is not None
    path.unlink()  # later than ``before``: not explained by the pruning
    assert [problem.number for problem in check(record.folder).problems] == [frames[3].id]
    with pytest.raises(ValueError, match="time zone"):
        record.prune_images(datetime(2026, 11, 23))


def test_a_long_slide_is_gone_through_in_order(record: Record) -> None:
    session, other = record.start_session(SessionNotes("S1")), record.start_session(SessionNotes("S2"))
    frames = [record.add_frame(session, replace(REFUSED, number=number)) for number in range(3)]
    record.add_frame(other, REFUSED)
    assert [frame.id for frame in record.each_frame(session)] == frames
    with chain.reading(record.folder) as database:
        made = database.execute("SELECT row FROM entries WHERE number = ?", (frames[0],)).fetchone()[0]
    with record._lock, chain.appending(record._database, record.folder):
        for _ in range(1200):
            chain.append(record._database, "frame", json.loads(made))
    assert [frame.id for frame in record.each_frame(session)] == sorted(
        frame.id for frame in record.frames(session, limit=None)
    )
    with pytest.raises(RecordError, match="no session 999"):
        next(record.each_frame(999))


def test_export(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1, left", operator="Ünal"))
    cells = [{"box": [0, 0, 20, 20], "label": "all"}, {"box": [10, 10, 40, 30], "label": "all"}]
    first = record.add_frame(session, JUDGED, jpeg(tmp_path, "red"))
    second = record.add_frame(session, replace(JUDGED, cells=cells), jpeg(tmp_path, "green"))
    record.add_frame(session, REFUSED)
    record.add_review(first, "Pre", "first")
    record.add_review(first, "Pro", "expert", 'sure, "really"')
    record.add_review(second, "hem", "expert", "a hem", cell=1)
    elsewhere = record.add_frame(record.start_session(SessionNotes("S2")), JUDGED, jpeg(tmp_path, "blue"))
    record.add_review(elsewhere, "Pre", "expert")
    out = tmp_path / "out"
    summary = export_session(record, session, out)
    assert (summary["frames"], summary["images"], summary["training"]) == (3, 2, {"Pro": 1, "hem": 1})
    with open(out / "frames.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["judged", "judged", "refused"]
    assert set(rows[0]) == set(COLUMNS)
    assert (
        rows[0]
        | {
            "frame": str(first),
            "sample": "S1, left",
            "label": "Pro",
            "model_label": "Early",
            "reviewed_by": "expert",
            "review_note": 'sure, "really"',
            "use": RESEARCH_USE,
        }
        == rows[0]
    )
    assert rows[2]["reasons"] == "blurred; dark"
    assert (rows[1]["reviewed_by"], rows[1]["review_note"]) == ("expert", "cell 2: a hem")
    assert (json.loads(rows[1]["model_cell_labels"]), json.loads(rows[1]["cell_labels"])) == (
        {"all": 2},
        {"all": 1, "hem": 1},
    )
    with open(out / "cells.csv", newline="", encoding="utf-8") as file:
        of_cells = list(csv.DictReader(file))
    assert set(of_cells[0]) == set(CELL_COLUMNS) and len(of_cells) == summary["cells"] == 2
    shown = ("frame", "cell", "left", "bottom", "label", "model_label", "reviewed_by", "review_note", "image", "use")
    image = record.frame(second).image
    assert [[row[name] for name in shown] for row in of_cells] == [
        [str(second), "1", "0", "20", "all", "all", "", "", image, RESEARCH_USE],
        [str(second), "2", "10", "30", "hem", "all", "expert", "a hem", image, RESEARCH_USE],
    ]
    red = record.frame(first).image
    assert (out / "images" / f"{red}.jpg").read_bytes() == jpeg(tmp_path, "red")
    assert sorted(path.relative_to(out / "training") for path in (out / "training").rglob("*.*")) == [
        Path(f"Pro/{red}.jpg"),
        Path(f"hem/{record.frame(second).image}-1.png"),
    ]
    with Image.open(out / "training" / "hem" / f"{record.frame(second).image}-1.png") as cell:
        assert cell.size == (30, 30)  # square, for a box of 30x20
    facts = json.loads((out / "session.json").read_text(encoding="utf-8"))
    assert (facts["use"], facts["head"], facts["session"]["notes"]["operator"]) == (RESEARCH_USE, record.head(), "Ünal")
    assert export_training(record, tmp_path / "all") == {"Pre": 1, "Pro": 1, "hem": 1}
    with pytest.raises(UsageError, match="is not empty"):
        export_session(record, session, out)
    with pytest.raises(UsageError, match="already exists"):
        export_csv(record, session, out / "frames.csv")
    with pytest.raises(RecordError, match="no session 999"):
        export_session(record, 999, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_sample_that_is_a_formula_stays_a_text(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("=HYPERLINK(1)"))
    record.add_review(record.add_frame(session, JUDGED), "Pre", "expert", "@SUM(1)")
    export_csv(record, session, tmp_path / "frames.csv")
    (row,) = csv.DictReader((tmp_path / "frames.csv").read_text().splitlines())
    assert (row["sample"], row["review_note"], row["label"]) == ("'=HYPERLINK(1)", "'@SUM(1)", "Pre")


def test_export_leaves_pruned_images_out(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    record.add_review(record.add_frame(session, JUDGED, jpeg(tmp_path, "red")), "Pre", "expert")
    record.prune_images(datetime.now(timezone.utc) + timedelta(days=1))
    summary = export_session(record, session, tmp_path / "out")
    assert (summary["frames"], summary["images"], summary["training"]) == (1, 0, {})


# Any alteration, and the commands


@pytest.fixture(scope="module")
def some_rows(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("record")
    with Record(folder, program=PROGRAM, limits=Limits(0, 0)) as record:
        session = record.start_session(SessionNotes("S1"))
        record.add_review(record.add_frame(session, JUDGED), "Benign", "expert")
        record.end_session(session)
    with sqlite3.connect(folder / chain.DATABASE) as database:
        rows: list[tuple[int, str, str]] = database.execute("SELECT number, row, digest FROM entries").fetchall()
    database.close()
    return rows


def found_in(rows: Sequence[tuple[int, str, str]]) -> list[str]:
    """The problems that `check` finds in a database with these rows."""
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(Path(folder) / chain.DATABASE)
        database.execute("PRAGMA synchronous = OFF")
        statements = [statement for script in chain.MIGRATIONS for statement in script]
        for statement in statements:
            if "TRIGGER" not in statement:
                database.execute(statement)
        database.executemany("INSERT INTO entries (number, row, digest) VALUES (?, ?, ?)", rows)
        for statement in statements:
            if "TRIGGER" in statement:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(chain.MIGRATIONS)}")
        database.commit()
        database.close()
        return [str(problem) for problem in check(Path(folder)).problems]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_altered_is_found(some_rows: list[tuple[int, str, str]], data: st.DataObject) -> None:
    rows = list(some_rows)
    at = data.draw(st.integers(0, len(rows) - 2))  # removing the last row cannot be detected
    number, text, digest = rows[at]
    kind = data.draw(st.sampled_from(["text", "digest", "drop", "swap", "repeat"]))
    if kind == "text":
        # Inside a JSON text, so that SQLite can still compute its columns.
        values = json.loads(text)
        key = data.draw(st.sampled_from(sorted(set(values) - {"number"})))
        value = data.draw(
            st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=9)).filter(lambda v: v != values[key])
        )
        rows[at] = (number, chain.canonical(values | {key: value}), digest)
    elif kind == "digest":
        rows[at] = (number, text, data.draw(st.text("0123456789abcdef", min_size=64, max_size=64)))
    elif kind == "drop":
        rows = [(n - (n > number), t, d) for n, t, d in rows if n != number]
    elif kind == "swap":
        rows[at], rows[at + 1] = (number, *rows[at + 1][1:]), (number + 1, text, digest)
    else:
        rows = [*rows[: at + 1], *((n + 1, t, d) for n, t, d in rows[at:])]
    assert found_in(rows) != []


def test_the_original_rows_are_intact(some_rows: list[tuple[int, str, str]]) -> None:
    assert found_in(some_rows) == []


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "slides"
    with Record(folder, program=PROGRAM, limits=Limits(0, 0)) as record:
        session = record.start_session(SessionNotes("S1"))
        frame = record.add_frame(session, JUDGED, jpeg(tmp_path, "red"))
        record.add_review(frame, "Pre", "expert")
        head = record.head()

    def edgeall(*words: object) -> tuple[int, str, str]:
        status = cli.main(["record", *map(str, words)])
        return (status, *capsys.readouterr())

    status, out, _ = edgeall("verify", folder, "--json")
    assert (status, json.loads(out)) == (
        0,
        {"rows": 4, "images": 1, "pruned": 0, "head": head, "ok": True, "problems": []},
    )
    assert head in edgeall("verify", folder)[1]
    status, out, _ = edgeall("verify", folder, "--head", "ab" * 32)
    assert status == 1 and "ALTERED  no row has the digest" in out
    status, out, error = edgeall("export", folder, "--session", session, "--out", tmp_path / "out")
    assert status == 0 and (tmp_path / "out" / "training" / "Pre").is_dir() and RESEARCH_USE in error
    status, _, error = edgeall("export", folder, "--session", 99, "--out", tmp_path / "none")
    assert status == 1 and f"sessions: {session}" in error
    tomorrow = (datetime.now(timezone.utc) + timedelta(days=2)).date()
    status, out, _ = edgeall("prune", folder, "--before", tomorrow, "--json")
    assert (status, json.loads(out)["images"]) == (0, 1)
    assert json.loads(edgeall("verify", folder, "--head", head, "--json")[1])["pruned"] == 1
    assert edgeall("verify", tmp_path / "nothing")[0] == 1
    assert not (tmp_path / "nothing").exists()
    assert edgeall("prune", folder, "--before", "yesterday")[0] == 2


# What is counted once


def found_cell(number: int, **facts: Any) -> Found:
    label = facts.pop("label", "Early")
    said = {
        "label": label,
        "probability": 0.9,
        "probabilities": {"Early": 0.9, "Benign": 0.1},
        "frames": 1,
        "chances": 1,
    }
    return Found(CELL, number, 1, 1, 10 * number, 20, 8, 8, **(said | {"sharpness": 0.3} | facts))


SEEN = FrameRow(
    *(TAKEN, 1, "judged"),
    cells=[
        {"box": [0, 0, 8, 8], "label": "Benign", "probability": 0.6, "review": False, "cell_id": number}
        for number in (1, 2)
    ],
    field_id=1,
    patch=1,
    position=(0, 0),
)


def test_a_cell_counts_once_however_many_frames_show_it(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    field = Found(FIELD, 1, 1, 1, 0, 0, 64, 48)
    news = [(field, jpeg(tmp_path, "red")), (found_cell(1), jpeg(tmp_path, "blue")), (found_cell(2), None)]
    first = record.add_frame(session, SEEN, news=news)
    for number in range(2, 40):
        record.add_frame(session, replace(SEEN, number=number))
    last = record.add_frame(session, replace(SEEN, number=40), news=[(found_cell(1, label="Benign"), None)])
    found = record.found(session)
    assert (found.cells[1].label, found.cells[2].label, found.patches) == ("Benign", "Early", 1)
    assert found.cells[1].image and found.cells[1].frame_id == first and found.cells[2].frame_id == first
    summary = record.summary(session)
    assert summary.counts == Counts(1, 2, 1, unreviewed=2) and summary.frames["judged"] == 40 and summary.labels == ()
    assert [(share.label, share.count, share.by_model) for share in summary.cells] == [
        ("Benign", 1, 1),
        ("Early", 1, 1),
    ]
    assert (summary.cells[0].low, summary.cells[0].high) == wilson_interval(1, 2)
    record.add_review(last, "Benign", "anna", cell=1)  # of another frame than the one of its picture
    summary = record.summary(session)
    assert [(share.label, share.count, share.by_model) for share in summary.cells] == [
        ("Benign", 2, 1),
        ("Early", 0, 1),
    ]
    assert (summary.reviewed, summary.corrected) == (1, 1)


def test_what_turns_out_to_be_the_same_counts_once(record: Record) -> None:
    session = record.start_session(SessionNotes("S1"))
    field = Found(FIELD, 1, 1, 1, 0, 0, 64, 48)
    asks = {"review_reason": "uncertain"}
    rows = [(field, None), (found_cell(1), None), (found_cell(2, **asks), None), (found_cell(3, counted=False), None)]
    frame = record.add_frame(session, SEEN, news=rows)
    summary = record.summary(session)
    assert summary.counts == Counts(1, 2, 1, unreviewed=2) and summary.review_needed == 1
    record.add_frame(session, SEEN, news=[(found_cell(2, same_as=1, **asks), None)])
    summary = record.summary(session)
    assert summary.counts == Counts(1, 1, 1, unreviewed=1) and summary.review_needed == 0
    record.add_review(frame, "Benign", "anna", cell=1)
    assert [(share.label, share.count) for share in record.summary(session).cells] == [("Benign", 1), ("Early", 0)]


def test_pictures_of_cells_are_verified_and_pruned(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    record.add_frame(
        session, SEEN, news=[(Found(FIELD, 1, 1, 1, 0, 0, 64, 48), None), (found_cell(1), jpeg(tmp_path, "blue"))]
    )
    assert check(record.folder).problems == [] and check(record.folder).images == 1
    path = record.image_path(record.found(session).cells[1].image or "")
    assert path is not None
    content = path.read_bytes()
    path.unlink()
    assert "is missing" in str(check(record.folder).problems[0])
    path.write_bytes(content)
    assert record.prune_images(datetime.now(timezone.utc) + timedelta(days=1)).images == 1
    assert check(record.folder).problems == [] and check(record.folder).pruned == 1


def test_the_exports_name_the_cells(record: Record, tmp_path: Path) -> None:
    session = record.start_session(SessionNotes("S1"))
    news = [(Found(FIELD, 1, 1, 1, 0, 0, 64, 48), None), (found_cell(1), jpeg(tmp_path, "blue")), (found_cell(2), None)]
    for number in range(3):
        record.add_frame(session, replace(SEEN, number=number), news=() if number else news)
    export_session(record, session, tmp_path / "out")

    def lines(name: str) -> list[dict[str, str]]:
        with open(tmp_path / "out" / name, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    assert [(line["cell_id"], line["field_id"]) for line in lines("cells.csv")] == [("1", "1"), ("2", "1")] * 3
    assert [line["field_id"] for line in lines("frames.csv")] == ["1"] * 3
    counted = [(line["kind"], line["id"], line["label"]) for line in lines("counted.csv")]
    assert counted == [("field", "1", ""), ("cell", "1", "Early"), ("cell", "2", "Early")]
    assert [file.name for file in (tmp_path / "out" / "pictures").iterdir()] == ["cell-1.jpg"]
