"""The typed rows of a record: sessions, frames, reviews, events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

STATUSES = ("judged", "refused", "unjudged")
"""Of a frame: the model judged it; the quality gate refused it; neither judged it (judging is off)."""
REVIEWS = ("needed", "done", "corrected")
"""Filters of `Record.frames`: the model asks for a review that was not done; reviewed; the review changed a label."""
SET_ASIDE = ("not a cell", "artefact", "taken back")
"""Labels of a review that take a cell or field out of the count; ``taken back`` by the counter's undo."""
UNCLEAR = "can't tell"
"""Label of a review: it is a cell, but has no share."""
SPACES = ("ok", "no images", "full")
"""What the free disk space allows: everything; rows without images; no judging."""
MAX_TEXT = 2000
"""Maximum characters of a text that a person types."""


@dataclass(frozen=True)
class Limits:
    """Minimum free disk space, bytes.

    Attributes:
        images_bytes: below it images are not saved; frames are judged and recorded without them.
        judging_bytes: below it no frame is recorded, so none may be judged. Reviews, session ends and events still are.
    """

    images_bytes: int = 1_000_000_000
    judging_bytes: int = 200_000_000


@dataclass(frozen=True)
class Space:
    """Free disk space in bytes, and the one of `SPACES` that follows from it."""

    free_bytes: int
    state: str


@dataclass(frozen=True)
class Program:
    """The program that writes the record. Every row refers to it through an ``opening`` row.

    Attributes:
        model: the model's name.
        model_sha256: hex digest of its flatbuffer.
        labels: of the model.
        settings: whatever determines what is judged and saved, as JSON values.
    """

    model: str
    model_sha256: str
    labels: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionNotes:
    """The operator's notes on a slide: free text, at most `MAX_TEXT` characters each. Never a patient's name."""

    sample: str
    operator: str = ""
    stain: str = ""
    magnification: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Amendment:
    """A correction of a slide's sample id: when (UTC, ISO 8601), from what, to what, by whom, and why."""

    at: str
    before: str
    sample: str
    by: str
    why: str


@dataclass(frozen=True)
class SkippedRow:
    """A file that could not be used.

    Attributes:
        at: time of recording, UTC, ISO 8601.
        session: id of the open slide; None if none was open.
        source: name of the file.
        source_sha256: of its content; empty if that cannot be read.
        reason: why; names the file.
    """

    at: str
    session: int | None
    source: str
    source_sha256: str
    reason: str


@dataclass(frozen=True)
class Session:
    """One slide.

    Attributes:
        id: of the session.
        notes: by the operator; ``sample`` as last amended.
        started: UTC, ISO 8601.
        ended: UTC, ISO 8601; None while it is open, also across a power cut.
        model: name of the model at its start; None if unknown.
        model_sha256: digest of that model.
        software: edgeall version at its start.
        frames: number of frames recorded so far.
        started_by: name of the user who started it; empty if unknown.
        ended_by: name of the user who ended it; empty while it is open, or if unknown.
        reopened: number of times it was reopened.
        amendments: corrections of its sample id, oldest first.
        skipped: number of files that could not be used.
    """

    id: int
    notes: SessionNotes
    started: str
    ended: str | None
    model: str | None
    model_sha256: str | None
    software: str
    frames: int
    started_by: str = ""
    ended_by: str = ""
    reopened: int = 0
    amendments: tuple[Amendment, ...] = ()
    skipped: int = 0

    @property
    def clock_was_set_back(self) -> bool:
        """It ended before it started, by the clock of the time."""
        return self.ended is not None and self.ended < self.started


@dataclass(frozen=True)
class FrameRow:
    """The result for one frame. Plain Python numbers, no NaN.

    Attributes:
        taken: time of the exposure, with its time zone.
        number: the camera's frame number.
        status: one of `STATUSES`.
        trigger: ``auto`` or ``capture``.
        reasons: why the gate refused it; for a captured and judged frame, why the gate would have refused it.
        label: the most probable; None if the model was not run, or if `cells` have labels instead.
        probability: of `label`, 0..1.
        probabilities: of every label.
        review: the model asks for a review.
        review_reason: why, see `edgeall.edge_runtime.pipeline.Prediction.reason`.
        quality: the gate's measurements.
        cells: for a cell model, each with ``box`` (left, top, right, bottom), ``label``, ``probability``,
            ``probabilities``, ``review``, ``review_reason``, ``cell_id``: the same in all frames that show the cell.
        by: name of the user who captured it.
        source: name of the file that it was read from; empty for a camera.
        source_sha256: see `edgeall.edge_runtime.vision.frame.Frame.digest`.
        field_id: the field of the slide that it shows; None if unknown: it was not judged, or no slide was open.
        patch: see `edgeall.rig.record.found.Found`.
        position: left and top of its view in the patch, pixels.
        size: width and height, pixels; None in older records.
        um_per_px: its scale; None if unknown.
        scale_source: see `edgeall.edge_runtime.vision.scale.Scale.source`; empty if the scale is unknown.
        flat_field: digest of the empty field by which its pixels were corrected before it was judged; empty if they
            were not.
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
    field_id: int | None = None
    patch: int | None = None
    position: Sequence[int] | None = None
    size: Sequence[int] | None = None
    um_per_px: float | None = None
    scale_source: str = ""
    flat_field: str = ""

    def found_ids(self, cell: int | None) -> dict[str, int]:
        """The ``field_id`` of the frame, or the ``cell_id`` of one of its cells; empty if unknown."""
        name = "field_id" if cell is None else "cell_id"
        found = self.field_id if cell is None else self.cells[cell].get(name)
        return {} if found is None else {name: found}


FRAME_FIELDS = frozenset(each.name for each in dataclasses.fields(FrameRow))


@dataclass(frozen=True)
class Review:
    """A reviewer's label for a frame, or for cell number ``cell`` of it.

    The last one that ``adjudicates`` between readers counts, otherwise the last one.
    """

    id: int
    at: str
    frame: int
    cell: int | None
    label: str
    by: str
    note: str
    adjudicates: bool = False


def read_review(row: Mapping[str, Any]) -> Review:
    """A review, from the JSON of its row."""
    return Review(
        id=row["number"],
        at=row["at"],
        frame=row["frame"],
        cell=row["cell"],
        label=row["label"],
        by=row["by"],
        note=row["note"],
        adjudicates=row.get("adjudicates", False),
    )


@dataclass(frozen=True)
class RecordedFrame:
    """A frame in the record.

    Attributes:
        id: of the frame.
        session: id of its session.
        at: time of recording, UTC, ISO 8601.
        row: what was recorded.
        image: digest of its image; None if none was saved.
        image_lost: why its image could not be saved: ``disk``.
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
        """The current label: of the last review, otherwise of the model."""
        own = [review.label for review in self.reviews if review.cell is None]
        return own[-1] if own else self.row.label

    @property
    def cell_labels(self) -> tuple[str, ...]:
        """The current label of each cell, in order."""
        reviewed = {review.cell: review.label for review in self.reviews}
        return tuple(reviewed.get(index, cell["label"]) for index, cell in enumerate(self.row.cells))

    @property
    def corrected(self) -> bool:
        """The current label of the frame or of a cell differs from the model's."""
        by_model = tuple(cell["label"] for cell in self.row.cells)
        return (self.label, self.cell_labels) != (self.row.label, by_model)

    @property
    def review_needed(self) -> bool:
        """The model asks for a review and it was not done; for cells, of each cell that it asks for."""
        reviewed = {review.cell for review in self.reviews}
        asking = {index for index, cell in enumerate(self.row.cells) if cell.get("review")}
        return self.row.review and (not reviewed or bool(asking - reviewed))


@dataclass(frozen=True)
class Event:
    """An event other than a frame: its ``kind``, details, and the digest of its image, if it has one."""

    id: int
    at: str
    kind: str
    detail: dict[str, Any]
    image: str | None = None


@dataclass(frozen=True)
class Pruned:
    """What `Record.prune_images` removed."""

    images: int
    freed_bytes: int
