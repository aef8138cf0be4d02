"""The count of a slide: its different fields and cells with their reviews, and the running differential."""

from __future__ import annotations

import json
from collections.abc import Collection

from ..language import message
from . import chain
from .chain import RecordError
from .found import CELL, Found, read_found
from .readings import Unit, read_readings, standing
from .record import Record
from .results import Differential
from .rows import SET_ASIDE, Review
from .summary import differential_of

TAKEN_BACK = SET_ASIDE[-1]


def readings_on(record: Record, session_id: int) -> dict[Unit, list[Review]]:
    """The readings of a slide, see `edgeall.rig.record.readings.Readings`."""
    with chain.reading(record.folder) as database:
        return read_readings(database, session_id, read_found(database, session_id))


def reviews_on(record: Record, session_id: int) -> dict[Unit, Review]:
    """The review that counts, of each reviewed field and cell of a slide."""
    return {unit: standing(reviews) for unit, reviews in readings_on(record, session_id).items()}


def differential(record: Record, session_id: int) -> Differential:
    """The running count of a slide; does not read its frames."""
    with chain.reading(record.folder) as database:
        return differential_of(database, session_id)


def image_of_field(record: Record, session_id: int, field_id: int) -> str | None:
    """Digest of the newest saved image of a field's frames; None if none was saved."""
    query = (
        "SELECT image FROM entries WHERE kind = 'frame' AND session = ? AND image IS NOT NULL"
        " AND json_extract(row, '$.field_id') = ? ORDER BY number DESC LIMIT 1"
    )
    with chain.reading(record.folder) as database:
        found = database.execute(query, (session_id, field_id)).fetchone()
        return None if found is None else str(found[0])


def scales_of(record: Record, frames: Collection[int]) -> dict[int, tuple[float, str]]:
    """Micrometres per pixel and source of the scale, of those of the frames, given by their ids, that have one."""
    query = (
        "SELECT number, json_extract(row, '$.um_per_px'), json_extract(row, '$.scale_source') FROM entries"
        " WHERE number IN (SELECT value FROM json_each(?)) AND json_extract(row, '$.um_per_px') IS NOT NULL"
    )
    with chain.reading(record.folder) as database:
        return {
            number: (scale, source) for number, scale, source in database.execute(query, (json.dumps(list(frames)),))
        }


def review_found(record: Record, found: Found, label: str, by: str, note: str = "", adjudicates: bool = False) -> int:
    """Record a reviewer's label for a field or cell; returns the review's id. Raises as `Record.add_review`."""
    if found.frame_id is None:
        raise RecordError(message("no frame shows number {number}", number=found.id))
    index = found.index if found.kind == CELL else None
    return record.add_review(found.frame_id, label, by, note, index, adjudicates)


def take_back_last(record: Record, session_id: int, by: str) -> Found:
    """Take the last counted cell, or field of a model of fields, out of the count.

    Raises:
        RecordError: nothing is counted.
    """
    found, reviews = record.found(session_id), reviews_on(record, session_id)
    units = found.cells or {key: each for key, each in found.fields.items() if each.label is not None}
    for each in sorted(units.values(), key=lambda each: -each.id):
        review = reviews.get((each.kind, each.id))
        if each.counts and (review is None or review.label not in SET_ASIDE):
            review_found(record, each, TAKEN_BACK, by)
            return each
    raise RecordError("nothing is counted on this slide", hint="there is nothing to take back")
