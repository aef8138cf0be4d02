"""Slides of drawn cells that a reviewer has labelled, for tests of the learning."""

from __future__ import annotations

import io

import numpy as np
from drawn_sites import LABELS, drawn_cell
from fixtures_rig import TAKEN
from PIL import Image

from edgeall.rig.record.found import Found
from edgeall.rig.record.record import FoundWithJpeg, Record
from edgeall.rig.record.rows import FrameRow, SessionNotes

CELLS = 8
"""In each frame."""
BOX = (80, 64)


def reviewed_slide(record: Record, labels: list[int], *, sample: str = "S-1", seed: int = 0, saved: bool = True) -> int:
    """A slide, ended, whose cells have these classes and are reviewed so; every cell is Benign for the model."""
    session = record.start_session(SessionNotes(sample))
    random = np.random.default_rng(seed)
    for first in range(0, len(labels), CELLS):
        image = Image.new("RGB", (BOX[0] * CELLS, 80), (225, 215, 190))
        cells: list[dict[str, object]] = []
        news: list[FoundWithJpeg] = []
        for index, label in enumerate(labels[first : first + CELLS]):
            image.paste(drawn_cell(label, random), (BOX[0] * index + 5, 8))
            box = (BOX[0] * index + 8, 8, BOX[0] * index + 72, 72)
            number = first + index + 1
            cells.append({"box": box, "label": "Benign", "probability": 0.9, "review": False, "cell_id": number})
            place = (BOX[0] * number, 40, 64, 64)
            news.append((Found("cell", number, 1, 1, *place, "Benign", 0.9, {}, None, 1, 1, 1.0, index=index), None))
        file = io.BytesIO()
        image.save(file, "PNG")
        row = FrameRow(TAKEN, first, "judged", cells=cells, field_id=1, patch=1, position=(0, 0))
        frame = record.add_frame(session, row, file.getvalue() if saved else None, news)
        for index, label in enumerate(labels[first : first + CELLS]):
            record.add_review(frame, LABELS[label], "olga", cell=index)
    record.end_session(session)
    return session
