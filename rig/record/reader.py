"""Reads a record: slides, frames, files that were skipped, events, and what is computed from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..language import message
from . import chain
from .chain import NoSuchRowError
from .found import FoundOnSlide, read_found
from .image_store import ImageStore
from .queries import FrameFilter, files_of, find_frames, open_session_ids, read_frame, read_session, read_skipped
from .results import Summary
from .rows import Event, RecordedFrame, Session, SkippedRow
from .summary import summarize


class RecordReader:
    """The readable part of a `Record`. Thread-safe; each call opens the database for itself.

    Args:
        folder: of the record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images = ImageStore(folder)

    def sessions(self) -> list[Session]:
        """All sessions, newest first."""
        with chain.reading(self.folder) as database:
            numbers = database.execute("SELECT number FROM entries WHERE kind = 'session' ORDER BY number DESC")
            return [read_session(database, number) for (number,) in numbers.fetchall()]

    def open_sessions(self) -> list[Session]:
        """All open sessions; first the one that was started or reopened last."""
        with chain.reading(self.folder) as database:
            return [read_session(database, number) for number in open_session_ids(database)]

    def last_time(self, session_id: int) -> str:
        """The time of the last row of a session, UTC, ISO 8601."""
        with chain.reading(self.folder) as database:
            query = "SELECT at FROM entries WHERE session = ?1 OR number = ?1 ORDER BY number DESC LIMIT 1"
            found = database.execute(query, (session_id,)).fetchone()
            return str(found[0])

    def recorded_files(self) -> dict[str, set[str]] | None:
        """The digests of each file name in the open slide, see `files_of`; None if no slide is open."""
        with chain.reading(self.folder) as database:
            newest = open_session_ids(database)[:1]
            return files_of(database, newest[0]) if newest else None

    def skipped(self, session_id: int | None) -> list[SkippedRow]:
        """The files of a session that could not be used, oldest first; None: those outside of any session."""
        with chain.reading(self.folder) as database:
            return read_skipped(database, session_id)

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
                raise NoSuchRowError(message("{folder}: no frame {number}", folder=self.folder, number=frame_id))
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
        return [
            Event(value["number"], value["at"], value["event"], value["detail"], value.get("image")) for value in values
        ]

    def summary(self, session_id: int) -> Summary:
        """The results of a session so far. Raises RecordError if there is no such session."""
        with chain.reading(self.folder) as database:
            read_session(database, session_id)
            return summarize(database, session_id)

    def found(self, session_id: int) -> FoundOnSlide:
        """The fields and cells found on a slide so far."""
        with chain.reading(self.folder) as database:
            return read_found(database, session_id)

    def head(self) -> str:
        """Digest of the last row. A copy kept elsewhere proves later that no row up to here was altered or cut off."""
        with chain.reading(self.folder) as database:
            found = database.execute("SELECT digest FROM entries ORDER BY number DESC LIMIT 1").fetchone()
            return chain.FIRST if found is None else str(found[0])

    def image_path(self, digest: str) -> Path | None:
        """The JPEG file of an image; None if it was pruned or ``digest`` is invalid."""
        return self._images.path(digest)
