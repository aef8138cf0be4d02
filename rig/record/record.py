"""The record of a rig: it survives a power cut, and every alteration can be detected.

A folder with a SQLite database of chained rows (`edgeall.rig.record.chain`) and images named by their digest
(`edgeall.rig.record.image_store`). An image is on the disk before the row that names it; a row is on the disk
before the call that adds it returns.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ... import __version__
from ...edge_runtime.errors import UsageError
from ..language import N_, message
from . import chain
from .chain import NoSuchRowError, RecordError, RecordFullError, RecordGoneError
from .found import Found, to_row
from .queries import last_end
from .reader import RecordReader
from .rows import MAX_TEXT, SPACES, STATUSES, FrameRow, Limits, Program, Pruned, SessionNotes, Space

FoundWithJpeg = tuple[Found, bytes | None]
"""A new state of a field or cell, and its new picture, if any."""
MAX_LABEL_BYTES = 200
"""Of a label, which names a folder: file systems allow 255."""
_INVALID_FOLDER_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.|^\s|\s$|^$')


class Record(RecordReader):
    """A record, open for writing and reading. Thread-safe; several processes may share a folder.

    Args:
        folder: created if it does not exist.
        program: the writer; None for tools, whose rows name no model.
        limits: of free disk space.
        create: False refuses a folder without a record instead of creating one.

    Raises:
        RecordError: the folder cannot be created or written, its database belongs to another program or is of a newer
            version.
        RecordFullError: the disk is full.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        program: Program | None = None,
        limits: Limits | None = None,
        create: bool = True,
    ) -> None:
        super().__init__(Path(folder))
        self.limits = limits or Limits()
        self._program = program
        self._lock = threading.Lock()
        self._opening: int | None = None
        self._space = SPACES[0]
        if create:
            chain.make_folder(self.folder)
        else:
            with chain.reading(self.folder):
                pass
        self._database = chain.open_writer(self.folder)
        self._identity = _identity(self.folder)
        self._images.tidy()

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Rows that were added are safe without it."""
        with self._lock:
            self._database.close()

    # Writing

    def start_session(self, notes: SessionNotes, by: str = "") -> int:
        """Start a slide; ``by`` is the user. Returns the session's id.

        Raises:
            UsageError: a text is too long, or the sample has no name.
            RecordFullError: below `Limits.judging_bytes`.
        """
        values = dataclasses.asdict(notes)
        for name, text in values.items():
            _check_text(name, text)
        if not notes.sample.strip():
            raise UsageError("a session needs the name of its sample")
        self._refuse_when_full()
        return self._add("session", {"notes": values, "by": by})

    def end_session(self, session_id: int, by: str = "") -> None:
        """End a slide; ``by`` is the user. Raises RecordError if there is no such session or it has ended."""
        self._add("end", {"session": session_id, "by": by})

    def reopen_session(self, session_id: int, by: str = "") -> None:
        """Open an ended slide again. Raises RecordError if there is no such session or it is open."""
        if self.session(session_id).ended is None:
            raise RecordError(message("{folder}: session {number} is open", folder=self.folder, number=session_id))
        self._add("reopen", {"session": session_id, "by": by})

    def amend_session(self, session_id: int, sample: str, by: str = "", why: str = "") -> None:
        """Correct a slide's sample id by a row of its own; the first one stays in the record.

        Raises:
            UsageError: the sample has no name or is unchanged, or a text is too long.
            RecordError: no such session.
        """
        for name, text in (("sample", sample), ("why", why)):
            _check_text(name, text)
        before = self.session(session_id).notes.sample
        if not sample.strip() or sample == before:
            raise UsageError(
                message("the sample id must be another one than {before}, and not empty", before=repr(before))
            )
        self._add("amend", {"session": session_id, "before": before, "sample": sample, "by": by, "why": why})

    def add_skipped(self, session_id: int | None, source: str, source_sha256: str, reason: str) -> int:
        """Record a file that could not be used; ``session_id`` None if no slide is open. Raises RecordError."""
        facts = {"session": session_id, "source": source, "source_sha256": source_sha256, "reason": reason}
        return self._add("skipped", facts)

    def add_frame(
        self, session_id: int, row: FrameRow, image: bytes | None = None, news: Sequence[FoundWithJpeg] = ()
    ) -> int:
        """Record a frame and, in the same step, its ``news`` of fields and cells; return the frame's id.

        The images are written first. Without room for them, only the frame is recorded, with ``image_lost``.

        Raises:
            RecordFullError: below `Limits.judging_bytes`, or the disk is full: nothing is recorded.
            RecordError: no such session, or it has ended.
        """
        if row.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {row.status!r}")
        facts = dataclasses.asdict(row) | {"taken": chain.timestamp(row.taken), "camera_frame": row.number}
        facts |= {"session": session_id, "image": None}
        state = self._refuse_when_full()
        if image is not None:
            try:
                facts["image"] = self._images.save(image) if state == "ok" else None
            except RecordFullError:  # less room than reported, for example a quota: the row may still fit
                self._note_space("no images")
            if facts["image"] is None:
                facts["image_lost"] = "disk"
        rows = [(found.kind, self._found_row(session_id, found, jpeg)) for found, jpeg in news]
        return self._add("frame", facts, rows)

    def add_review(
        self, frame_id: int, label: str, by: str, note: str = "", cell: int | None = None, adjudicates: bool = False
    ) -> int:
        """Record a reviewer's label for a frame or for one of its cells; returns the review's id.

        Args:
            frame_id: the frame.
            label: the true label; the model's own label confirms it. It will name a folder of training images.
            by: name of the reviewer.
            note: free text.
            cell: index into the frame's cells.
            adjudicates: it decides between readers.

        Raises:
            UsageError: the label cannot name a folder, a text is too long, or there is no such cell.
            RecordError: no such frame.
        """
        for name, text in (("label", label), ("by", by), ("note", note)):
            _check_text(name, text)
        check_label(label)
        frame = self.frame(frame_id)
        if cell is not None and not 0 <= cell < len(frame.row.cells):
            text = N_("frame {frame} has {count} cells: there is no cell {cell}")
            raise UsageError(message(text, frame=frame_id, count=len(frame.row.cells), cell=cell))
        facts = {"session": frame.session, "frame": frame_id, "cell": cell, "label": label, "by": by, "note": note}
        facts |= frame.row.found_ids(cell) | ({"adjudicates": True} if adjudicates else {})
        return self._add("review", facts)

    def withdraw_review(self, session_id: int, review_id: int, by: str) -> int:
        """Record that a review counts no more; its row stays. Returns the withdrawal's id."""
        return self._add("withdrawal", {"session": session_id, "withdrawn": review_id, "by": by})

    def add_event(self, kind: str, detail: Mapping[str, Any], image: bytes | None = None) -> int:
        """Record an event other than a frame (settings changed, a camera reopened); returns its id.

        Its image, or the model that it brought, is never pruned. Raises RecordFullError if there is no room for it.
        """
        saved = {} if image is None else {"image": self._images.save(image)}
        return self._add("event", {"event": kind, "detail": dict(detail), **saved})

    def use_program(self, program: Program) -> None:
        """Write the next rows in the name of another program: another model judges from now on."""
        with self._lock:
            self._program, self._opening = program, None

    def prune_images(self, before: datetime) -> Pruned:
        """Remove the images of frames recorded before a moment. The rows and the chain stay.

        An image is kept if a later frame shares it, or if any earlier row is not older than ``before``: the clock was
        set back since then, so the image's time is unreliable. The removal is recorded before it happens.
        """
        moment = chain.timestamp(before)
        old = (
            "SELECT image FROM entries WHERE kind IN ('frame', 'field', 'cell') AND image IS NOT NULL GROUP BY image"
            " HAVING max(number) < coalesce((SELECT min(number) FROM entries WHERE at >= ?), max(number) + 1)"
        )
        with chain.reading(self.folder) as database:
            digests = [digest for (digest,) in database.execute(old, (moment,)) if self._images.path(digest)]
        if not digests:
            return Pruned(0, 0)
        self._add("prune", {"before": moment, "images": len(digests)})
        return Pruned(len(digests), sum(self._images.remove(digest) for digest in digests))

    @property
    def model_sha256(self) -> str | None:
        """Of the program's model; None for a tool."""
        return self._program.model_sha256 if self._program else None

    def check_present(self) -> None:
        """Raise RecordGoneError if the record was removed or replaced since it was opened.

        A removed file can still be written to, until the program ends: its rows would be lost.
        """
        if _identity(self.folder) != self._identity:
            raise RecordGoneError(
                message(
                    "{folder}: the record was removed or replaced while it is open; nothing is recorded",
                    folder=self.folder,
                ),
                hint="bring it back, or restore a backup with `edgeall record restore`; then restart the rig",
            )

    def space(self) -> Space:
        """The free disk space."""
        free = _free_bytes(self.folder)
        if free < self.limits.judging_bytes:
            return Space(free, "full")
        return Space(free, "no images" if free < self.limits.images_bytes else "ok")

    def _refuse_when_full(self) -> str:
        state = self.space().state
        self._note_space(state)
        if state == "full":
            raise chain.full(self.folder)
        return state

    def _note_space(self, state: str) -> None:
        """Record a change of the disk's state as an event."""
        with self._lock:
            changed, self._space = self._space != state, state
        if changed:
            with suppress(RecordFullError):
                self.add_event("space", {"state": state, "free_bytes": self.space().free_bytes})

    def _found_row(self, session_id: int, found: Found, jpeg: bytes | None) -> dict[str, Any]:
        """The facts of the row about a field or cell, after its picture was saved, if there is room."""
        facts = to_row(found) | {"session": session_id}
        if jpeg is not None and self._space == "ok":
            with suppress(RecordFullError):
                facts["image"] = self._images.save(jpeg)
        return facts

    def _add(self, kind: str, facts: Mapping[str, Any], more: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> int:
        """Append a row, and in the same transaction ``more`` rows, which name it as their ``frame_id``."""
        path = self.folder / chain.DATABASE
        with self._lock:
            self.check_present()
            opening = self._opening
            with chain.appending(self._database, path):
                if kind in ("frame", "end"):
                    self._check_open(facts["session"])
                if opening is None:
                    opening = chain.append(self._database, "opening", self._writer())
                number = chain.append(self._database, kind, {**facts, "opening": opening})
                for kind_of_row, row in more:
                    chain.append(self._database, kind_of_row, {**row, "frame_id": number, "opening": opening})
            self._opening = opening  # it has been committed
        return number

    def _writer(self) -> dict[str, Any]:
        program = {} if self._program is None else dataclasses.asdict(self._program)
        return {"software": __version__, "program": program}

    def _check_open(self, session_id: int) -> None:
        found = self._database.execute("SELECT kind FROM entries WHERE number = ?", (session_id,)).fetchone()
        if found != ("session",):
            raise NoSuchRowError(message("{folder}: no session {number}", folder=self.folder, number=session_id))
        if last_end(self._database, session_id) is not None:
            raise RecordError(
                message("{folder}: session {number} has ended", folder=self.folder, number=session_id),
                hint="start a new one",
            )


def _identity(folder: Path) -> tuple[int, int] | None:
    """The device and inode of the database; None if there is none."""
    try:
        state = os.stat(folder / chain.DATABASE)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def check_label(label: str) -> None:
    """Raises UsageError if a label cannot name a folder of training images."""
    too_long = len(label) > 100 or len(label.encode("utf-8", "replace")) > MAX_LABEL_BYTES
    if too_long or _INVALID_FOLDER_NAME.search(label):
        raise UsageError(
            message("label {label}: cannot be the name of a folder of training images", label=repr(label[:100]))
        )


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise UsageError(
            message("{name}: has {count} characters, the maximum is {most}", name=name, count=len(text), most=MAX_TEXT)
        )
