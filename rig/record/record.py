"""The record of a rig: it survives a power cut, and every alteration can be detected.

A folder with a SQLite database of chained rows (`edgeall.rig.record.chain`) and images named by their digest
(`edgeall.rig.record.image_store`). An image is on the disk before the row that names it; a row is on the disk
before the call that adds it returns.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ... import __version__
from ...edge_runtime.errors import UsageError
from . import chain
from .chain import RecordError, RecordFullError
from .image_store import ImageStore
from .queries import FrameFilter, find_frames, read_frame, read_session
from .rows import (
    MAX_TEXT,
    SPACES,
    STATUSES,
    Event,
    FrameRow,
    Limits,
    Program,
    Pruned,
    RecordedFrame,
    Session,
    SessionNotes,
    Space,
    Summary,
)
from .summary import summarize

MAX_LABEL_BYTES = 200
"""Of a label, which names a folder: file systems allow 255."""
_INVALID_FOLDER_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.|^\s|\s$|^$')


class Record:
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
        self.folder = Path(folder)
        self.limits = limits or Limits()
        self._program = program
        self._images = ImageStore(self.folder)
        self._lock = threading.Lock()
        self._opening: int | None = None
        self._space = SPACES[0]
        if create:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise RecordError(f"{self.folder}: cannot be created ({error.strerror})") from error
        else:
            with chain.reading(self.folder):
                pass
        self._database = chain.open_writer(self.folder)
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

    def add_frame(self, session_id: int, row: FrameRow, image_jpeg: bytes | None = None) -> int:
        """Record a frame and return its id.

        The image is written first. If there is no room for it, the frame is recorded without it, with
        ``image_lost``.

        Raises:
            RecordFullError: below `Limits.judging_bytes`, or the disk is full: nothing is recorded.
            RecordError: no such session, or it has ended.
        """
        if row.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {row.status!r}")
        facts = dataclasses.asdict(row) | {"taken": chain.timestamp(row.taken), "camera_frame": row.number}
        facts |= {"session": session_id, "image": None}
        state = self._refuse_when_full()
        if image_jpeg is not None:
            try:
                facts["image"] = self._images.save(image_jpeg) if state == "ok" else None
            except RecordFullError:  # less room than reported, for example a quota: the row may still fit
                self._note_space("no images")
            if facts["image"] is None:
                facts["image_lost"] = "disk"
        return self._add("frame", facts)

    def add_review(self, frame_id: int, label: str, by: str, note: str = "", cell: int | None = None) -> int:
        """Record a reviewer's label for a frame or for one of its cells; returns the review's id.

        Args:
            frame_id: the frame.
            label: the true label; the model's own label confirms it. It will name a folder of training images.
            by: name of the reviewer.
            note: free text.
            cell: index into the frame's cells.

        Raises:
            UsageError: the label cannot name a folder, a text is too long, or there is no such cell.
            RecordError: no such frame.
        """
        for name, text in (("label", label), ("by", by), ("note", note)):
            _check_text(name, text)
        too_long = len(label) > 100 or len(label.encode("utf-8", "replace")) > MAX_LABEL_BYTES
        if too_long or _INVALID_FOLDER_NAME.search(label):
            raise UsageError(f"label {label[:100]!r}: cannot be the name of a folder of training images")
        frame = self.frame(frame_id)
        if cell is not None and not 0 <= cell < len(frame.row.cells):
            raise UsageError(f"frame {frame_id} has {len(frame.row.cells)} cells: there is no cell {cell}")
        facts = {"session": frame.session, "frame": frame_id, "cell": cell, "label": label, "by": by, "note": note}
        return self._add("review", facts)

    def add_event(self, kind: str, detail: Mapping[str, Any]) -> int:
        """Record an event other than a frame (settings changed, a camera reopened); returns its id."""
        return self._add("event", {"event": kind, "detail": dict(detail)})

    def prune_images(self, before: datetime) -> Pruned:
        """Remove the images of frames recorded before a moment. The rows and the chain stay.

        An image is kept if a later frame shares it, or if any earlier row is not older than ``before``: the clock was
        set back since then, so the image's time is unreliable. The removal is recorded before it happens.
        """
        moment = chain.timestamp(before)
        old = (
            "SELECT image FROM entries WHERE kind = 'frame' AND image IS NOT NULL GROUP BY image"
            " HAVING max(number) < coalesce((SELECT min(number) FROM entries WHERE at >= ?), max(number) + 1)"
        )
        with chain.reading(self.folder) as database:
            digests = [digest for (digest,) in database.execute(old, (moment,)) if self._images.path(digest)]
        if not digests:
            return Pruned(0, 0)
        self._add("prune", {"before": moment, "images": len(digests)})
        return Pruned(len(digests), sum(self._images.remove(digest) for digest in digests))

    # Reading

    def space(self) -> Space:
        """The free disk space."""
        free = _free_bytes(self.folder)
        if free < self.limits.judging_bytes:
            return Space(free, "full")
        return Space(free, "no images" if free < self.limits.images_bytes else "ok")

    def sessions(self) -> list[Session]:
        """All sessions, newest first."""
        with chain.reading(self.folder) as database:
            numbers = database.execute("SELECT number FROM entries WHERE kind = 'session' ORDER BY number DESC")
            return [read_session(database, number) for (number,) in numbers.fetchall()]

    def recorded_files(self) -> dict[str, set[str]] | None:
        """The digests of each file name with a frame in the open slide; None if no slide is open.

        A row from before digests were recorded has an empty digest.
        """
        newest = self.sessions()[:1]
        if not newest or newest[0].ended is not None:
            return None
        query = (
            "SELECT json_extract(row, '$.source'), coalesce(json_extract(row, '$.source_sha256'), '') FROM entries"
            " WHERE kind = 'frame' AND session = ? AND json_extract(row, '$.source') <> ''"
        )
        recorded: dict[str, set[str]] = {}
        with chain.reading(self.folder) as database:
            for source, digest in database.execute(query, (newest[0].id,)):
                recorded.setdefault(source, set()).add(digest)
        return recorded

    def session(self, session_id: int) -> Session:
        """One session. Raises RecordError if there is none with this id."""
        with chain.reading(self.folder) as database:
            return read_session(database, session_id)

    def frames(
        self,
        session_id: int,
        *,
        label: str | None = None,
        status: str | None = None,
        review: str | None = None,
        with_image: bool = False,
        limit: int | None = 50,
        before: int | None = None,
    ) -> list[RecordedFrame]:
        """Frames of a session, newest first.

        Args:
            session_id: the session.
            label: only frames with this current label, of the frame or of one of its cells.
            status: only frames with this one of `STATUSES`.
            review: only frames with this one of `REVIEWS`.
            with_image: only frames whose image was saved.
            limit: maximum number; None for all.
            before: only frames with a lower id: the last one of the page before.

        Raises:
            RecordError: no such session.
        """
        chosen = FrameFilter(label, status, review, with_image, before)
        with chain.reading(self.folder) as database:
            read_session(database, session_id)
            return find_frames(database, session_id, chosen, limit)

    def each_frame(self, session_id: int) -> Iterator[RecordedFrame]:
        """All frames of a session, oldest first, read in batches: a long slide does not fit into memory.

        Raises:
            RecordError: no such session.
        """
        query = "SELECT row FROM entries WHERE kind = 'frame' AND session = ? AND number > ? ORDER BY number LIMIT 500"
        last = 0
        while True:
            with chain.reading(self.folder) as database:
                read_session(database, session_id)
                rows = database.execute(query, (session_id, last)).fetchall()
                frames = [read_frame(database, json.loads(row)) for (row,) in rows]
            if not frames:
                return
            yield from frames
            last = frames[-1].id

    def frame(self, frame_id: int) -> RecordedFrame:
        """One frame. Raises RecordError if there is none with this id."""
        with chain.reading(self.folder) as database:
            found = database.execute("SELECT row FROM entries WHERE number = ? AND kind = 'frame'", (frame_id,))
            row = found.fetchone()
            if row is None:
                raise RecordError(f"{self.folder}: no frame {frame_id}")
            return read_frame(database, json.loads(row[0]))

    def events(self, limit: int = 50, kind: str | None = None) -> list[Event]:
        """Events, newest first; of one `Event.kind`, if given."""
        query = (
            "SELECT row FROM entries WHERE kind = 'event'"
            " AND coalesce(json_extract(row, '$.event') = ?, true) ORDER BY number DESC LIMIT ?"
        )
        with chain.reading(self.folder) as database:
            rows = database.execute(query, (kind, limit)).fetchall()
        values = [json.loads(row) for (row,) in rows]
        return [Event(value["number"], value["at"], value["event"], value["detail"]) for value in values]

    def summary(self, session_id: int) -> Summary:
        """The results of a session so far. Raises RecordError if there is no such session."""
        with chain.reading(self.folder) as database:
            read_session(database, session_id)
            return summarize(database, session_id)

    def head(self) -> str:
        """Digest of the last row. A copy kept elsewhere proves later that no row up to here was altered or cut off."""
        with chain.reading(self.folder) as database:
            found = database.execute("SELECT digest FROM entries ORDER BY number DESC LIMIT 1").fetchone()
            return chain.FIRST if found is None else str(found[0])

    def image_path(self, digest: str) -> Path | None:
        """The JPEG file of an image; None if it was pruned or ``digest`` is invalid."""
        return self._images.path(digest)

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

    def _add(self, kind: str, facts: Mapping[str, Any]) -> int:
        path = self.folder / chain.DATABASE
        with self._lock:
            opening = self._opening
            with chain.appending(self._database, path):
                if kind in ("frame", "end"):
                    self._check_open(facts["session"])
                if opening is None:
                    opening = chain.append(self._database, "opening", self._writer())
                number = chain.append(self._database, kind, {**facts, "opening": opening})
            self._opening = opening  # it has been committed
        return number

    def _writer(self) -> dict[str, Any]:
        program = {} if self._program is None else dataclasses.asdict(self._program)
        return {"software": __version__, "program": program}

    def _check_open(self, session_id: int) -> None:
        found = self._database.execute("SELECT kind FROM entries WHERE number = ?", (session_id,)).fetchone()
        if found != ("session",):
            raise RecordError(f"{self.folder}: no session {session_id}")
        query = "SELECT count(*) FROM entries WHERE kind = 'end' AND session = ?"
        if self._database.execute(query, (session_id,)).fetchone()[0]:
            raise RecordError(f"{self.folder}: session {session_id} has ended", hint="start a new one")


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise UsageError(f"{name}: has {len(text)} characters, the maximum is {MAX_TEXT}")
