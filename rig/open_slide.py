"""Which slide is being recorded: it is started, reopened, continued after a restart, and ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from .capture.seen import SeenImages
from .language import message
from .record.chain import moment
from .record.record import Record
from .record.rows import SessionNotes
from .snapshot import StationError

RESUME_S = 600.0
"""A slide that a restart interrupted is continued without a question if its last row is at most this old. Later another
slide may be on the stage."""


class OpenSlide:
    """The open slide of a record. Thread-safe.

    Args:
        record: a session that a power cut left open is continued; after more than `RESUME_S` seconds, or if the clock
            was set back, the operator is asked first.
        seen: of the camera: files seen before a slide is started are left out of it.
        frames: total number of frames of the camera so far.
    """

    def __init__(self, record: Record, seen: SeenImages, frames: Callable[[], int]) -> None:
        self._record, self._seen, self._frames = record, seen, frames
        self._changing = threading.Lock()  # only one slide starts or ends at a time
        self.queueing = threading.Lock()
        """Held while a row is queued for the open slide: none is queued after its end."""
        unended = record.open_sessions()[:1]
        resumes = bool(unended) and 0 <= _age_s(record.last_time(unended[0].id)) <= RESUME_S
        self.session_id = unended[0].id if resumes else None
        """Of the open slide."""
        self.asked = unended[0].id if unended and not resumes else None
        """Id of a slide from before a restart, until the operator continues or ends it."""
        self.after = 0
        """Frames up to this number are older than the open slide, except those of a replay."""
        self._is_new = False

    def take_new(self) -> bool:
        """Whether the slide has changed since the last call."""
        new, self._is_new = self._is_new, False
        return new

    def is_open(self, session_id: int | None) -> bool:
        """Whether this is the open slide."""
        return self.session_id == session_id

    @contextmanager
    def none_open(self) -> Iterator[None]:
        """No slide is open or opened in this block. Raises StationError if one is."""
        with self._changing, self.queueing:
            if self.session_id is not None or self.asked is not None:
                raise StationError("a slide is open", hint="end it first")
            yield

    def start(self, notes: SessionNotes, by: str) -> int:
        """Start a slide. Raises StationError if one is open, and EdgeallError as `Record.start_session`."""
        return self._open(lambda: self._record.start_session(notes, by))

    def reopen(self, session_id: int, by: str) -> int:
        """Go on recording an ended slide.

        Raises:
            StationError: a slide is open, or another model judged this one.
            EdgeallError: as `Record.reopen_session`.
        """
        session = self._record.session(session_id)
        if session.model_sha256 != self._record.model_sha256:
            raise StationError(
                message(
                    "{sample} was judged by another model ({model})", sample=session.notes.sample, model=session.model
                ),
                hint="start a new slide",
            )

        def add_row() -> int:
            self._record.reopen_session(session_id, by)
            return session_id

        return self._open(add_row)

    def resume(self, by: str) -> int:
        """Continue the slide that `asked` names. Raises StationError if there is none."""
        with self._changing, self.queueing:
            if self.asked is None:
                raise StationError("no slide waits to be continued", hint="reload the page")
            self._record.add_event("continued", {"session": self.asked, "by": by})
            return self._begin(self.asked, 0)

    def end(self, by: str, flush: Callable[[], None]) -> int:
        """End the open slide, or the one that `asked` names, once ``flush`` has recorded what was queued for it.

        Raises:
            StationError: no slide is open.
            RecordError: the end cannot be recorded; the slide stays open.
        """
        with self._changing:
            with self.queueing:
                session_id, asked = self.session_id, self.asked
                ended = asked if session_id is None else session_id
                if ended is None:
                    raise StationError("no slide is open", hint="start one first")
                self.session_id = self.asked = None
            flush()
            try:
                self._record.end_session(ended, by)
            except BaseException:
                self.session_id, self.asked = session_id, asked
                raise
            return ended

    def _open(self, add_row: Callable[[], int]) -> int:
        """Start or reopen a slide by a row. What was seen or waited before does not belong to it."""
        with self.none_open():
            try:
                self._seen.begin_slide()
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
                raise StationError(
                    message("the slide cannot be started ({reason})", reason=reason), hint="check the disk"
                ) from error
            return self._begin(add_row(), self._frames())

    def _begin(self, session_id: int, after: int) -> int:
        self.after, self._is_new = after, True
        self.asked, self.session_id = None, session_id
        return session_id


def _age_s(text: str) -> float:
    """Seconds since a time of the record; negative if the clock was set back."""
    return (datetime.now(timezone.utc) - moment(text)).total_seconds()
