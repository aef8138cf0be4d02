"""The fields and cells of a slide, each counted once: their rows in the record.

A row states all that is known of one field or cell at that time; the last row about it counts. Such a row is written in
one step with the row of the frame that brought the news.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIELD, CELL = "field", "cell"
"""The kinds of `Found`, and of their rows."""


@dataclass(frozen=True)
class Found:
    """A field or a cell of a slide, counted once however many frames show it.

    Attributes:
        kind: ``field`` or ``cell``.
        id: counts from 1 within the slide and the kind.
        field_id: the field where the cell was first seen; of a field its own id.
        patch: the part of the map that it lies in; counts from 1. Positions in two patches cannot be compared.
        x, y: of a field the left and top of its view, of a cell its centre; pixels from the patch's first frame.
        width, height: of the view or of the cell's box, pixels.
        label: the pooled verdict of its sharpest frames; None for a field of a model of cells.
        probability: of `label`.
        probabilities: of every label.
        review_reason: why the pooled verdict asks for a review; None if it does not.
        frames: number of judged frames that show it.
        chances: number of judged frames in which all of its place was in view.
        sharpness: of the sharpest of its frames.
        counted: False for a cell that was found in too few of its `chances`.
        same_as: id of the earlier one that it turned out to be, when two patches were joined; it counts no more.
        frame_id: a recorded frame that shows it: that of its picture, if it has one.
        index: the cell's index in that frame; None for a field.
        image: digest of its picture: the field's thumbnail, or the crop of the cell; None if it has none.
    """

    kind: str
    id: int
    field_id: int
    patch: int
    x: int
    y: int
    width: int
    height: int
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    review_reason: str | None = None
    frames: int = 0
    chances: int = 0
    sharpness: float = 0.0
    counted: bool = True
    same_as: int | None = None
    frame_id: int | None = None
    index: int | None = None
    image: str | None = None

    @property
    def counts(self) -> bool:
        """It is one of the slide's different fields or cells."""
        return self.counted and self.same_as is None


@dataclass(frozen=True)
class News:
    """A new state of a field or cell; its picture, uint8 ``(height, width, 3)``, if there is a new one."""

    found: Found
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class FoundOnSlide:
    """The last state of each field and each cell of a slide, by id."""

    fields: Mapping[int, Found] = field(default_factory=dict)
    cells: Mapping[int, Found] = field(default_factory=dict)

    def root(self, kind: str, found_id: int) -> int:
        """The id under which a field or cell counts: follows `Found.same_as`."""
        known = self.cells if kind == CELL else self.fields
        while (found := known.get(found_id)) is not None and found.same_as is not None:
            found_id = found.same_as
        return found_id

    @property
    def patches(self) -> int:
        """Number of patches of the map."""
        return len({found.patch for found in self.fields.values()})


_NAMES = tuple(each.name for each in dataclasses.fields(Found) if each.name not in ("kind", "id"))


def to_row(found: Found) -> dict[str, Any]:
    """The facts of a row; `from_row` is the inverse."""
    return {"found_id": found.id, **{name: getattr(found, name) for name in _NAMES}}


def from_row(row: Mapping[str, Any]) -> Found:
    """What a row states; ignores unknown names."""
    return Found(kind=row["kind"], id=row["found_id"], **{name: row[name] for name in _NAMES if name in row})


def read_found(database: sqlite3.Connection, session_id: int) -> FoundOnSlide:
    """The last state of everything found on a slide, each with its last picture."""
    last: dict[str, dict[int, Found]] = {FIELD: {}, CELL: {}}
    query = "SELECT row FROM entries WHERE kind = ? AND session = ? ORDER BY number"
    for kind, known in last.items():
        for (text,) in database.execute(query, (kind, session_id)):
            found = from_row(json.loads(text))
            before = known.get(found.id)
            if found.image is None and before is not None and (before.image is not None or found.index is None):
                found = dataclasses.replace(found, image=before.image, frame_id=before.frame_id, index=before.index)
            known[found.id] = found
    return FoundOnSlide(last[FIELD], last[CELL])
