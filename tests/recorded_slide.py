"""A record with one counted slide: cells with pictures, readings of two people, names in several scripts."""

from __future__ import annotations

from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path

import numpy as np
from fixtures_models import grainy_image

from edgeall.rig.counting.picture import picture_of_cell
from edgeall.rig.record.found import Found
from edgeall.rig.record.record import FoundWithJpeg, Record
from edgeall.rig.record.rows import FrameRow, Limits, Program, SessionNotes
from edgeall.rig.snapshot import encode_jpeg

SAMPLE = "S-17 \u05e9\u05dc\u05d5\u05dd"
RED_CELL_PX = 71.0
SIZE = (640, 480)
LABORATORY = "Blood Laboratory\nHospital Street 1"
TAKEN = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)


def record_slide(folder: Path, *, lossless: bool = False) -> tuple[Record, int]:
    """A record, open, and its slide, ended: two fields with eight cells, of which three are reviewed."""
    record = Record(folder, program=Program("demo", "ab" * 32, ("Benign", "Pre")), limits=Limits(0, 0))
    record.add_event("settings", {"laboratory": LABORATORY})
    record.add_event("scale", {"objective": "100x oil", "red_cell_px": RED_CELL_PX})
    notes = SessionNotes(SAMPLE, "\u041e\u043b\u044c\u0433\u0430 \u202e", "Wright", "100x oil", "one\ntwo")
    session = record.start_session(notes, "olga")
    for field in (1, 2):
        image = grainy_image(field, SIZE)
        pixels = np.asarray(image)
        cells: list[dict[str, object]] = []
        news: list[FoundWithJpeg] = []
        news.append((Found("field", field, field, 1, 500 * (field - 1), 0, *SIZE, frames=3, chances=3), None))
        for index in range(4):
            number = 4 * (field - 1) + index + 1
            box, label = (100 * index, 200, 100 * index + 80, 280), "Pre" if index == 3 else "Benign"
            reason = "uncertain" if index == 0 else None
            cells.append({"box": box, "label": label, "probability": 0.6, "review": bool(reason), "cell_id": number})
            place = (500 * (field - 1) + 100 * index + 40, 240, 80, 80)
            found = Found("cell", number, field, 1, *place, label, 0.6, {}, reason, 3, 3, 1.0, index=index)
            news.append((found, encode_jpeg(picture_of_cell(pixels, box), 88)))
        row = FrameRow(TAKEN, field, "judged", cells=cells, field_id=field, patch=1, position=(500 * (field - 1), 0))
        file = BytesIO()
        image.save(file, "PNG" if lossless else "JPEG")
        frame = record.add_frame(session, row, file.getvalue(), news)
        if field == 1:
            for cell, label, by in (
                (0, "Pre", "olga"),
                (0, "Benign", "dana"),
                (1, "Benign", "olga"),
                (2, "artefact", "olga"),
            ):
                record.add_review(frame, label, by, cell=cell)
    record.add_frame(session, FrameRow(TAKEN, 9, "refused", reasons=("blurred",)))
    record.end_session(session, "olga")
    return record, session
