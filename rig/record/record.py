"""What the rig has done, kept so that it survives a pulled plug and can't be altered unseen.

A folder with a SQLite database of chained rows (`edgeall.rig.record.chain`) and images named by their digest
(`edgeall.rig.record.image_store`). An image is on the disk before the row that names it; a row is on the disk
before the call that adds it returns.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...edge_runtime.errors import UsageError
from . import chain
from .chain import RecordError, RecordFullError
from .image_store import ImageStore

if TYPE_CHECKING:
    from .check import Problem, Verification

__all__ = ["Record", "RecordError", "RecordFullError"]

STATUSES = ("judged", "refused", "unjudged")
"""Of a frame: the model was asked; the quality gate refused it; kept without asking either (judging is off)."""
REVIEWS = ("needed", "done", "corrected")
"""What `Record.frames` can be asked for: the model wants it looked at and nobody has; looked at; and changed."""
SPACES = ("ok", "no images", "full")
"""What the disk has room for: everything; rows alone; nothing that is judged."""
MAX_LABEL_BYTES = 200
"""Of a label, which names a folder: file systems take 255."""
MAX_TEXT = 2000
"""Characters of any one text that a person types."""
_UNFIT_FOR_A_FOLDER = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.|^\s|\s$|^$')


@dataclass(frozen=True)
class Limits:
    """Free space below which the record gives things up, bytes.

    Attributes:
        images_bytes: images are saved no more; frames are judged and recorded without them.
        judging_bytes: no frame is recorded, and so none may be judged. Corrections, ends and events still are.
    """

    images_bytes: int = 1_000_000_000
    judging_bytes: int = 200_000_000


@dataclass(frozen=True)
class Space:
    """The disk's free bytes, and what they are enough for: one of `SPACES`."""

    free_bytes: int
    state: str


@dataclass(frozen=True)
class Program:
    """What writes the record: named by every row that it writes, through the row that opens its work.

    Attributes:
        model: the model's name.
        model_sha256: hex digest of its flatbuffer.
        labels: the model's.
        settings: whatever decides what is judged and kept, JSON values.
    """

    model: str
    model_sha256: str
    labels: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionNotes:
    """What the operator says of a slide: free text, `MAX_TEXT` characters at most. No patient's name belongs here."""

    sample: str
    operator: str = ""
    stain: str = ""
    magnification: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Session:
    """One slide.

    Attributes:
        id: of the session.
        notes: the operator's.
        started: UTC, ISO 8601.
        ended: the same; None while it goes on, also across a power cut.
        model: name of the model at its start, None where it is unknown.
        model_sha256: its digest.
        software: edgeall's version at its start.
        frames: recorded so far.
    """

    id: int
    notes: SessionNotes
    started: str
    ended: str | None
    model: str | None
    model_sha256: str | None
    software: str
    frames: int


@dataclass(frozen=True)
class FrameRow:
    """What became of one frame. Plain Python numbers, no NaN.

    Attributes:
        taken: when, with its time zone.
        number: the camera's.
        status: one of `STATUSES`.
        trigger: ``auto`` or ``capture``.
        reasons: why it was refused; of a judged one what the gate would have said (captured all the same).
        label: the most probable; None where the model was not asked, or `cells` say it.
        probability: of `label`, 0..1.
        probabilities: of every label.
        review: the model asks for somebody to look.
        review_reason: why, as `edgeall.edge_runtime.pipeline.Prediction.reason` says.
        quality: the gate's figures.
        cells: for a model of cells, each with ``box`` (left, top, right, bottom), ``label``, ``probability``,
            ``review``, ``review_reason``.
        by: who captured it.
        source: the name of the file that it was; empty for a camera's.
        source_sha256: see `edgeall.rig.capture.camera.Frame.digest`.
    """

    taken: datetime
    number: int
    status: str
    trigger: str = "auto"
    reasons: Sequence[str] = ()
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    review: bool = False
    quality: Mapping[str, Any] = field(default_factory=dict)
    cells: Sequence[Mapping[str, Any]] = ()
    review_reason: str | None = None
    by: str | None = None
    source: str = ""
    source_sha256: str = ""


@dataclass(frozen=True)
class Review:
    """A person's word on a frame, or on cell number ``cell`` of it. The last one stands."""

    id: int
    at: str
    frame: int
    cell: int | None
    label: str
    by: str
    note: str


@dataclass(frozen=True)
class RecordedFrame:
    """A frame as recorded.

    Attributes:
        id: of the frame.
        session: the id of its.
        at: when it was recorded, UTC, ISO 8601.
        row: what was recorded.
        image: digest of its image, None where none was saved.
        image_lost: why an image that was to be saved was not: ``disk``.
        reviews: oldest first.
    """

    id: int
    session: int
    at: str
    row: FrameRow
    image: str | None
    image_lost: str | None
    reviews: tuple[Review, ...]

    @property
    def label(self) -> str | None:
        """The label that stands: the last reviewer's, else the model's."""
        own = [review.label for review in self.reviews if review.cell is None]
        return own[-1] if own else self.row.label

    @property
    def cell_labels(self) -> tuple[str, ...]:
        """The labels that stand of its cells, in their order."""
        said = {review.cell: review.label for review in self.reviews}
        return tuple(said.get(index, cell["label"]) for index, cell in enumerate(self.row.cells))

    @property
    def corrected(self) -> bool:
        """A label that stands, the frame's or a cell's, is not the model's."""
        by_model = tuple(cell["label"] for cell in self.row.cells)
        return (self.label, self.cell_labels) != (self.row.label, by_model)

    @property
    def review_needed(self) -> bool:
        """The model asks for somebody to look, and nobody has: of cells, at each that it asks for."""
        looked_at = {review.cell for review in self.reviews}
        asking = {index for index, cell in enumerate(self.row.cells) if cell.get("review")}
        return self.row.review and (not looked_at or bool(asking - looked_at))


@dataclass(frozen=True)
class Event:
    """Something that is no frame: ``kind`` and what there is to say of it."""

    id: int
    at: str
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Share:
    """How many carry a label: as it stands and by the model alone; the fraction, and its 95 % interval (Wilson)."""

    label: str
    count: int
    by_model: int
    fraction: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What a session comes to. The intervals take frames for independent: overlapping fields make them too narrow.

    A frame that was captured once more, after it was recorded, counts once.

    Attributes:
        frames: of each of `STATUSES`.
        reasons: how often each was a reason to refuse; a frame may have several.
        labels: of judged frames, as they stand after review; most frequent first.
        cells: the same of the cells in judged frames; empty for a model of fields.
        review_needed: frames of which `RecordedFrame.review_needed` holds.
        reviewed: frames with a review.
        corrected: of them, those with a label that was changed.
        images: frames with an image.
        images_lost: frames whose image found no room.
    """

    frames: dict[str, int]
    reasons: dict[str, int]
    labels: tuple[Share, ...]
    cells: tuple[Share, ...]
    review_needed: int
    reviewed: int
    corrected: int
    images: int
    images_lost: int


@dataclass(frozen=True)
class Pruned:
    """What `Record.prune_images` removed."""

    images: int
    freed_bytes: int


class Record:
    """A record, open for writing and reading. Any thread may call anything; several processes may share a folder.

    Args:
        folder: made where it is missing.
        program: who writes; None for tools, whose rows name no model.
        limits: of free space.
        create: False refuses a folder without a record instead of making one.

    Raises:
        RecordError: the folder can't be made or written, its database is another program's, or of a newer version.
        RecordFullError: there is no room.
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
                raise RecordError(f"{self.folder}: can't be made ({error.strerror})") from error
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
        """Let go of the database. What was added is safe without it."""
        with self._lock:
            self._database.close()

    # Writing

    def start_session(self, notes: SessionNotes, by: str = "") -> int:
        """Begin a slide; ``by`` is who did. Returns the session's id.

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
        """End a slide; ``by`` is who did. Raises RecordError where there is no such session, or it has ended."""
        self._add("end", {"session": session_id, "by": by})

    def add_frame(self, session_id: int, row: FrameRow, image_jpeg: bytes | None = None) -> int:
        """Record a frame; returns its id.

        The image is written first. Where there is no room for it the frame is recorded without, and says so.

        Raises:
            RecordFullError: below `Limits.judging_bytes`, or no room in fact: nothing is recorded.
            RecordError: no such session, or it has ended.
        """
        if row.status not in STATUSES:
            raise ValueError(f"status {row.status!r} is none of {', '.join(STATUSES)}")
        facts = dataclasses.asdict(row) | {"taken": chain.timestamp(row.taken), "camera_frame": row.number}
        facts |= {"session": session_id, "image": None}
        state = self._refuse_when_full()
        if image_jpeg is not None:
            try:
                facts["image"] = self._images.save(image_jpeg) if state == "ok" else None
            except RecordFullError:  # the disk has its own opinion, a quota say: the row may still find room
                self._note_space("no images")
            if facts["image"] is None:
                facts["image_lost"] = "disk"
        return self._add("frame", facts)

    def add_review(self, frame_id: int, label: str, by: str, note: str = "", cell: int | None = None) -> int:
        """Record what a person says of a frame, or of one of its cells; returns the review's id.

        Args:
            frame_id: the frame.
            label: what it is: confirms the model where it is the same. It will name a folder of training images.
            by: who says so.
            note: free text.
            cell: index into the frame's cells.

        Raises:
            UsageError: the label is no name for a folder, or a text is too long, or there is no such cell.
            RecordError: no such frame.
        """
        for name, text in (("label", label), ("by", by), ("note", note)):
            _check_text(name, text)
        too_long = len(label) > 100 or len(label.encode("utf-8", "replace")) > MAX_LABEL_BYTES
        if too_long or _UNFIT_FOR_A_FOLDER.search(label):
            raise UsageError(f"label {label[:100]!r}: can't be the name of a folder of training images")
        frame = self.frame(frame_id)
        if cell is not None and not 0 <= cell < len(frame.row.cells):
            raise UsageError(f"frame {frame_id} has {len(frame.row.cells)} cells, no number {cell}")
        facts = {"session": frame.session, "frame": frame_id, "cell": cell, "label": label, "by": by, "note": note}
        return self._add("review", facts)

    def add_event(self, kind: str, detail: Mapping[str, Any]) -> int:
        """Record something that is no frame (settings changed, a camera reopened); returns its id."""
        return self._add("event", {"event": kind, "detail": dict(detail)})

    def prune_images(self, before: datetime) -> Pruned:
        """Remove the images of frames recorded before a moment; the rows stay, and so does the chain.

        An image that a later frame shares stays too, and so does one behind a row that is not older than it: the
        clock was set back since then, and what it said of the image is no time. The removal is recorded before it
        happens.
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
        """How much room there is, and for what."""
        free = _free_bytes(self.folder)
        if free < self.limits.judging_bytes:
            return Space(free, "full")
        return Space(free, "no images" if free < self.limits.images_bytes else "ok")

    def sessions(self) -> list[Session]:
        """All, newest first."""
        with chain.reading(self.folder) as database:
            numbers = database.execute("SELECT number FROM entries WHERE kind = 'session' ORDER BY number DESC")
            return [_session(database, number) for (number,) in numbers.fetchall()]

    def held(self) -> dict[str, set[str]] | None:
        """The digests of each file name that the slide which is still open has a frame of; None where no slide is open.

        A row of before digests were recorded gives an empty one.
        """
        newest = self.sessions()[:1]
        if not newest or newest[0].ended is not None:
            return None
        query = (
            "SELECT json_extract(row, '$.source'), coalesce(json_extract(row, '$.source_sha256'), '') FROM entries"
            " WHERE kind = 'frame' AND session = ? AND json_extract(row, '$.source') <> ''"
        )
        held: dict[str, set[str]] = {}
        with chain.reading(self.folder) as database:
            for source, digest in database.execute(query, (newest[0].id,)):
                held.setdefault(source, set()).add(digest)
        return held

    def session(self, session_id: int) -> Session:
        """One of them. Raises RecordError where there is none of this id."""
        with chain.reading(self.folder) as database:
            return _session(database, session_id)

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
            label: only those whose label, or that of one of whose cells, stands so.
            status: only those of one of `STATUSES`.
            review: only those of one of `REVIEWS`.
            with_image: only those whose image was saved.
            limit: how many at most; None for all.
            before: only those with a lower id: the last one of the page before.

        Raises:
            RecordError: no such session.
        """
        wanted, values = ["e.kind = 'frame'", "e.session = ?"], [session_id]  # type: tuple[list[str], list[object]]
        if status is not None:
            wanted.append("e.status = ?")
            values.append(status)
        if label is not None:
            wanted.append(f"({_STANDING} = ? OR {_ANY_CELL.format(f'{_STANDING_OF_CELL} = ?')})")
            values += [label, label]
        if review is not None:
            wanted.append(_REVIEW[review])
        if with_image:
            wanted.append("e.image IS NOT NULL")
        if before is not None:
            wanted.append("e.number < ?")
            values.append(before)
        query = f"SELECT row FROM entries e WHERE {' AND '.join(wanted)} ORDER BY e.number DESC LIMIT ?"
        with chain.reading(self.folder) as database:
            _session(database, session_id)
            rows = database.execute(query, (*values, -1 if limit is None else limit)).fetchall()
            return [_frame(database, json.loads(row)) for (row,) in rows]

    def each_frame(self, session_id: int) -> Iterator[RecordedFrame]:
        """All of a session, oldest first, a few at a time: a long slide's don't fit into a small board's memory.

        Raises:
            RecordError: no such session.
        """
        query = "SELECT row FROM entries WHERE kind = 'frame' AND session = ? AND number > ? ORDER BY number LIMIT 500"
        last = 0
        while True:
            with chain.reading(self.folder) as database:
                _session(database, session_id)
                rows = database.execute(query, (session_id, last)).fetchall()
                frames = [_frame(database, json.loads(row)) for (row,) in rows]
            if not frames:
                return
            yield from frames
            last = frames[-1].id

    def frame(self, frame_id: int) -> RecordedFrame:
        """One frame. Raises RecordError where there is none of this id."""
        with chain.reading(self.folder) as database:
            found = database.execute("SELECT row FROM entries WHERE number = ? AND kind = 'frame'", (frame_id,))
            row = found.fetchone()
            if row is None:
                raise RecordError(f"{self.folder}: no frame {frame_id}")
            return _frame(database, json.loads(row[0]))

    def events(self, limit: int = 50, before: int | None = None, kind: str | None = None) -> list[Event]:
        """What else happened, newest first; `before` as in `frames`; of one `Event.kind` alone where it is given."""
        query = (
            "SELECT row FROM entries WHERE kind = 'event' AND number < ?"
            " AND coalesce(json_extract(row, '$.event') = ?, true) ORDER BY number DESC LIMIT ?"
        )
        with chain.reading(self.folder) as database:
            rows = database.execute(query, (before or 2**62, kind, limit)).fetchall()
        values = [json.loads(row) for (row,) in rows]
        return [Event(value["number"], value["at"], value["event"], value["detail"]) for value in values]

    def summary(self, session_id: int) -> Summary:
        """What a session comes to so far. Raises RecordError where there is no such session."""
        with chain.reading(self.folder) as database:
            _session(database, session_id)
            return _summary(database, session_id)

    def head(self) -> str:
        """Digest of the last row: noted elsewhere, it proves later that nothing up to here was altered or cut off."""
        with chain.reading(self.folder) as database:
            found = database.execute("SELECT digest FROM entries ORDER BY number DESC LIMIT 1").fetchone()
            return chain.FIRST if found is None else str(found[0])

    def image_path(self, digest: str) -> Path | None:
        """The JPEG file of an image; None where it was pruned, or for what is no image's digest."""
        return self._images.path(digest)

    def verify(self) -> list[Problem]:
        """Everything that is not as it was written; see `check`, which says more."""
        return self.check().problems

    def check(self, head: str | None = None) -> Verification:
        """Go over all rows and images; see `edgeall.rig.record.check.check`."""
        from .check import check

        return check(self.folder, head)

    def export_csv(self, session_id: int, out: str | os.PathLike[str]) -> int:
        """Write the frames of a session as a table; see `edgeall.rig.record.export`."""
        from .export import export_csv

        return export_csv(self, session_id, Path(out))

    def export_cells(self, session_id: int, out: str | os.PathLike[str]) -> int:
        """Write the cells of a session as a table; see `edgeall.rig.record.export`."""
        from .export import export_cells

        return export_cells(self, session_id, Path(out))

    def export_training(self, folder: str | os.PathLike[str], session_id: int | None = None) -> dict[str, int]:
        """Write reviewed images as a folder for `edgeall train`; see `edgeall.rig.record.export`."""
        from .export import export_training

        return export_training(self, Path(folder), session_id)

    def _refuse_when_full(self) -> str:
        state = self.space().state
        self._note_space(state)
        if state == "full":
            raise chain.full(self.folder)
        return state

    def _note_space(self, state: str) -> None:
        """Record that the disk has room for less, or more again, than before."""
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
                    opening = chain.append(self._database, "opening", self._who())
                number = chain.append(self._database, kind, {**facts, "opening": opening})
            self._opening = opening  # it has been committed
        return number

    def _who(self) -> dict[str, Any]:
        program = {} if self._program is None else dataclasses.asdict(self._program)
        return {"software": __version__, "program": program}

    def _check_open(self, session_id: int) -> None:
        found = self._database.execute("SELECT kind FROM entries WHERE number = ?", (session_id,)).fetchone()
        if found != ("session",):
            raise RecordError(f"{self.folder}: no session {session_id}")
        query = "SELECT count(*) FROM entries WHERE kind = 'end' AND session = ?"
        if self._database.execute(query, (session_id,)).fetchone()[0]:
            raise RecordError(f"{self.folder}: session {session_id} has ended", hint="start a new one")


_LAST_REVIEW = (
    "(SELECT r.label FROM entries r WHERE r.frame = e.number AND r.kind = 'review' AND r.cell IS NULL"
    " ORDER BY r.number DESC LIMIT 1)"
)
_STANDING = f"coalesce({_LAST_REVIEW}, e.label)"
_ANY_CELL = "EXISTS (SELECT 1 FROM json_each(e.row, '$.cells') c WHERE {})"
_CELL_BY_MODEL = "json_extract(c.value, '$.label')"
_CELL_ASKS = "json_extract(c.value, '$.review')"
_CELL_REVIEWED = (
    "(SELECT r.label FROM entries r WHERE r.frame = e.number AND r.kind = 'review' AND r.cell = c.key"
    " ORDER BY r.number DESC LIMIT 1)"
)
_STANDING_OF_CELL = f"coalesce({_CELL_REVIEWED}, {_CELL_BY_MODEL})"
_REVIEWED = "EXISTS (SELECT 1 FROM entries r WHERE r.frame = e.number AND r.kind = 'review')"
_REVIEW = {
    "needed": f"e.review AND (NOT {_REVIEWED} OR {_ANY_CELL.format(f'{_CELL_ASKS} AND {_CELL_REVIEWED} IS NULL')})",
    "done": _REVIEWED,
    "corrected": f"({_STANDING} IS NOT e.label OR {_ANY_CELL.format(f'{_STANDING_OF_CELL} IS NOT {_CELL_BY_MODEL}')})",
}


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise UsageError(f"{name}: {len(text)} characters, more than {MAX_TEXT}")


def _session(database: sqlite3.Connection, number: int) -> Session:
    found = database.execute("SELECT row FROM entries WHERE number = ? AND kind = 'session'", (number,)).fetchone()
    if found is None:
        ids = [str(i) for (i,) in database.execute("SELECT number FROM entries WHERE kind = 'session' ORDER BY number")]
        raise RecordError(f"no session {number} in this record", hint=f"there are: {', '.join(ids) or 'none yet'}")
    row = json.loads(found[0])
    opening = json.loads(database.execute("SELECT row FROM entries WHERE number = ?", (row["opening"],)).fetchone()[0])
    ended = database.execute("SELECT at FROM entries WHERE kind = 'end' AND session = ?", (number,)).fetchone()
    frames = database.execute("SELECT count(*) FROM entries WHERE kind = 'frame' AND session = ?", (number,)).fetchone()
    return Session(
        id=number,
        notes=SessionNotes(**row["notes"]),
        started=row["at"],
        ended=ended[0] if ended else None,
        model=opening["program"].get("model"),
        model_sha256=opening["program"].get("model_sha256"),
        software=opening["software"],
        frames=frames[0],
    )


def _frame(database: sqlite3.Connection, row: dict[str, Any]) -> RecordedFrame:
    about = database.execute("SELECT row FROM entries WHERE frame = ? ORDER BY number", (row["number"],)).fetchall()
    reviews = [json.loads(text) for (text,) in about]
    names = {f.name for f in dataclasses.fields(FrameRow)}
    facts = {key: value for key, value in row.items() if key in names}
    facts |= {"taken": chain.moment(row["taken"]), "number": row["camera_frame"]}
    return RecordedFrame(
        id=row["number"],
        session=row["session"],
        at=row["at"],
        row=FrameRow(**facts),
        image=row["image"],
        image_lost=row.get("image_lost"),
        reviews=tuple(
            Review(r["number"], r["at"], r["frame"], r["cell"], r["label"], r["by"], r["note"]) for r in reviews
        ),
    )


def _summary(database: sqlite3.Connection, session_id: int) -> Summary:
    """One pass over the frames as the model left them, then what reviews make of the few that have any."""
    repeats = _repeats(database, session_id)
    left_out = json.dumps(list(repeats))
    frames: dict[str, Counter[Any]] = {
        name: Counter() for name in ("status", "label", "cell", "image", "lost", "asked")
    }
    counted = database.execute(
        "SELECT status, label, review, image IS NOT NULL, json_extract(row, '$.image_lost') IS NOT NULL, count(*)"
        " FROM entries WHERE kind = 'frame' AND session = ? AND number NOT IN (SELECT value FROM json_each(?))"
        " GROUP BY 1, 2, 3, 4, 5",
        (session_id, left_out),
    )
    for status, label, asked, image, lost, count in counted:
        frames["status"][status] += count
        frames["label"][label if status == "judged" else None] += count
        for name, holds in (("image", image), ("lost", lost), ("asked", asked)):
            frames[name][bool(holds)] += count
    each = (
        "SELECT {}, count(*) FROM entries e JOIN json_each(e.row, '{}') c"
        " WHERE e.kind = 'frame' AND e.session = ? AND e.status = ?"
        " AND e.number NOT IN (SELECT value FROM json_each(?)) GROUP BY 1 ORDER BY 2 DESC"
    )
    of_refused = (session_id, "refused", left_out)
    reasons = dict(database.execute(each.format("c.value", "$.reasons"), of_refused).fetchall())
    by_cells = each.format(_CELL_BY_MODEL, "$.cells")
    frames["cell"].update(dict(database.execute(by_cells, (session_id, "judged", left_out)).fetchall()))

    labels, cells = Counter(frames["label"]), Counter(frames["cell"])
    written = database.execute(
        "SELECT row FROM entries WHERE kind = 'frame' AND number IN"
        " (SELECT frame FROM entries WHERE kind = 'review' AND session = ?)",
        (session_id,),
    ).fetchall()
    reviewed: dict[int, RecordedFrame] = {}
    for (text,) in written:
        frame = _frame(database, json.loads(text))
        counted_as = repeats.get(frame.id, frame.id)
        others = reviewed[counted_as].reviews if counted_as in reviewed else ()
        in_order = tuple(sorted((*others, *frame.reviews), key=lambda review: review.id))
        reviewed[counted_as] = dataclasses.replace(frame, reviews=in_order)
    answered = corrected = 0
    for frame in reviewed.values():
        answered += frame.row.review and not frame.review_needed
        corrected += frame.corrected
        if frame.row.status == "judged":
            _move(labels, frame.row.label, frame.label)
            for cell, label in {review.cell: review.label for review in frame.reviews}.items():
                if cell is not None:
                    _move(cells, frame.row.cells[cell]["label"], label)
    return Summary(
        frames={status: frames["status"][status] for status in STATUSES},
        reasons=reasons,
        labels=_shares(labels, frames["label"]),
        cells=_shares(cells, frames["cell"]),
        review_needed=frames["asked"][True] - answered,
        reviewed=len(reviewed),
        corrected=corrected,
        images=frames["image"][True],
        images_lost=frames["lost"][True],
    )


def _repeats(database: sqlite3.Connection, session_id: int) -> dict[int, int]:
    """Each row whose frame a later capture recorded once more, and the last row of that frame."""
    frames = "FROM entries WHERE kind = 'frame' AND session = ?1"
    found = database.execute(
        f"SELECT json_group_array(number) {frames} AND json_extract(row, '$.taken') IN"
        f" (SELECT json_extract(row, '$.taken') {frames} AND json_extract(row, '$.trigger') = 'capture')"
        " GROUP BY json_extract(row, '$.opening'), json_extract(row, '$.camera_frame'), json_extract(row, '$.taken'),"
        " json_extract(row, '$.source') HAVING count(*) > 1 AND max(json_extract(row, '$.trigger')) = 'capture'",
        (session_id,),
    )
    rows = [sorted(json.loads(numbers)) for (numbers,) in found]
    return {number: same[-1] for same in rows for number in same[:-1]}


def _move(counts: Counter[Any], old: str | None, new: str | None) -> None:
    counts[old] -= 1
    counts[new] += 1


def _shares(standing: Counter[Any], by_model: Counter[Any]) -> tuple[Share, ...]:
    labels = [label for label in {*standing, *by_model} if label is not None]
    total = sum(standing[label] for label in labels)
    shares = []
    for label in sorted(labels, key=lambda label: (-standing[label], label)):
        low, high = wilson_interval(standing[label], total)
        shares.append(Share(label, standing[label], by_model[label], standing[label] / total, low, high))
    return tuple(shares)


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of the fraction ``count / total``; ``total`` at least 1. Source: Wilson 1927."""
    z = 1.959963984540054
    fraction, square = count / total, z * z
    middle = (fraction + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(fraction * (1 - fraction) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
