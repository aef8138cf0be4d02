"""The results of a session: counts of frames, labels, reasons and reviews."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from collections import Counter
from typing import Any

from .queries import CELL_LABEL_BY_MODEL, read_frame
from .rows import STATUSES, RecordedFrame, Share, Summary


def summarize(database: sqlite3.Connection, session_id: int) -> Summary:
    """Count all frames with the model's labels in SQL, then apply the reviews of the few frames that have any."""
    repeats = _repeats(database, session_id)
    frames = _count_frames(database, session_id, repeats)
    refused = _each_item(database, session_id, repeats, "refused", "c.value", "$.reasons")
    cells_by_model = Counter(_each_item(database, session_id, repeats, "judged", CELL_LABEL_BY_MODEL, "$.cells"))
    labels, cells = Counter(frames["label"]), Counter(cells_by_model)
    reviewed = _reviewed_frames(database, session_id, repeats)
    for frame in reviewed:
        if frame.row.status == "judged":
            _move(labels, frame.row.label, frame.label)
            for cell, label in {review.cell: review.label for review in frame.reviews}.items():
                if cell is not None:
                    _move(cells, frame.row.cells[cell]["label"], label)
    return Summary(
        frames={status: frames["status"][status] for status in STATUSES},
        reasons=refused,
        labels=_shares(labels, frames["label"]),
        cells=_shares(cells, cells_by_model),
        review_needed=frames["asked"][True] - sum(each.row.review and not each.review_needed for each in reviewed),
        reviewed=len(reviewed),
        corrected=sum(frame.corrected for frame in reviewed),
        images=frames["image"][True],
        images_lost=frames["lost"][True],
    )


def _count_frames(database: sqlite3.Connection, session_id: int, repeats: dict[int, int]) -> dict[str, Counter[Any]]:
    """Counts by status, label, saved image, lost image and requested review."""
    frames: dict[str, Counter[Any]] = {name: Counter() for name in ("status", "label", "image", "lost", "asked")}
    counted = database.execute(
        "SELECT status, label, review, image IS NOT NULL, json_extract(row, '$.image_lost') IS NOT NULL, count(*)"
        " FROM entries WHERE kind = 'frame' AND session = ? AND number NOT IN (SELECT value FROM json_each(?))"
        " GROUP BY 1, 2, 3, 4, 5",
        (session_id, json.dumps(list(repeats))),
    )
    for status, label, asked, image, lost, count in counted:
        frames["status"][status] += count
        frames["label"][label if status == "judged" else None] += count
        for name, holds in (("image", image), ("lost", lost), ("asked", asked)):
            frames[name][bool(holds)] += count
    return frames


def _each_item(
    database: sqlite3.Connection, session_id: int, repeats: dict[int, int], status: str, value: str, path: str
) -> dict[str, int]:
    """Counts of ``value`` over the items ``c`` of a JSON list in each frame of a status; most frequent first."""
    query = (
        f"SELECT {value}, count(*) FROM entries e JOIN json_each(e.row, '{path}') c"
        " WHERE e.kind = 'frame' AND e.session = ? AND e.status = ?"
        " AND e.number NOT IN (SELECT value FROM json_each(?)) GROUP BY 1 ORDER BY 2 DESC"
    )
    return dict(database.execute(query, (session_id, status, json.dumps(list(repeats)))).fetchall())


def _reviewed_frames(database: sqlite3.Connection, session_id: int, repeats: dict[int, int]) -> list[RecordedFrame]:
    """Frames with a review. A frame that was recorded twice appears once, with the reviews of both rows."""
    written = database.execute(
        "SELECT row FROM entries WHERE kind = 'frame' AND number IN"
        " (SELECT frame FROM entries WHERE kind = 'review' AND session = ?)",
        (session_id,),
    ).fetchall()
    reviewed: dict[int, RecordedFrame] = {}
    for (text,) in written:
        frame = read_frame(database, json.loads(text))
        counted_as = repeats.get(frame.id, frame.id)
        others = reviewed[counted_as].reviews if counted_as in reviewed else ()
        in_order = tuple(sorted((*others, *frame.reviews), key=lambda review: review.id))
        reviewed[counted_as] = dataclasses.replace(frame, reviews=in_order)
    return list(reviewed.values())


def _repeats(database: sqlite3.Connection, session_id: int) -> dict[int, int]:
    """Rows whose frame a later capture recorded again, each with the last row of that frame."""
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


def _shares(current: Counter[Any], by_model: Counter[Any]) -> tuple[Share, ...]:
    labels = [label for label in {*current, *by_model} if label is not None]
    total = sum(current[label] for label in labels)
    shares = []
    for label in sorted(labels, key=lambda label: (-current[label], label)):
        low, high = wilson_interval(current[label], total)
        shares.append(Share(label, current[label], by_model[label], current[label] / total, low, high))
    return tuple(shares)


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of the fraction ``count / total``; ``total`` at least 1. Source: Wilson 1927."""
    z = 1.959963984540054
    fraction, square = count / total, z * z
    middle = (fraction + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(fraction * (1 - fraction) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
