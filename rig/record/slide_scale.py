"""The scale of a recorded slide."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ...edge_runtime.vision.scale import RED_CELL_UM
from ...edge_runtime.vision.scale_bar import is_estimated
from ..scales import EVENT
from . import chain
from .reader import RecordReader
from .rows import Session


@dataclass(frozen=True)
class SlideScale:
    """Micrometres per pixel of a slide's frames; ``estimated``: from the size of red cells, not from a calibration."""

    um_per_px: float
    estimated: bool


def slide_scale(record: RecordReader, session: Session) -> SlideScale | None:
    """The scale of the slide's last frame that has one; None if it is unknown.

    Frames of an older version have none: then it is the last scale of the objective before the slide ended.
    """
    query = (
        "SELECT row FROM entries WHERE kind = 'frame' AND session = ? AND json_extract(row, '$.um_per_px') IS NOT NULL"
        " ORDER BY number DESC LIMIT 1"
    )
    with chain.reading(record.folder) as database:
        found = database.execute(query, (session.id,)).fetchone()
    if found is not None:
        row = json.loads(found[0])
        return SlideScale(row["um_per_px"], is_estimated(row["scale_source"]))
    for event in record.events(200, kind=EVENT):
        if event.detail.get("objective") == session.notes.magnification and event.at <= (session.ended or event.at):
            red_cell_px = event.detail.get("red_cell_px")
            return SlideScale(RED_CELL_UM / red_cell_px, True) if red_cell_px else None
    return None
