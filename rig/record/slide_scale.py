"""The scale of a recorded slide."""

from __future__ import annotations

from ...edge_runtime.vision.scale import RED_CELL_UM
from ..scales import EVENT
from .reader import RecordReader
from .rows import Session


def um_per_px(record: RecordReader, session: Session) -> float | None:
    """Micrometres per pixel of a slide's frames: the last scale of its objective before it ended; None if unknown."""
    for event in record.events(200, kind=EVENT):
        if event.detail.get("objective") == session.notes.magnification and event.at <= (session.ended or event.at):
            red_cell_px = event.detail.get("red_cell_px")
            return RED_CELL_UM / red_cell_px if red_cell_px else None
    return None
