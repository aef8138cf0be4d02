"""The results of a session: counts of different fields and cells, of frames, reasons and reviews."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .audit import audit
from .found import CELL, FIELD, FoundOnSlide, read_found
from .queries import CELL_LABEL_BY_MODEL, read_frame
from .readings import Readings, agreement, disagree, read_readings, standing
from .results import Agreement, Audit, Counts, Differential, Share, Summary
from .rows import SET_ASIDE, STATUSES, UNCLEAR, RecordedFrame
from .wilson import wilson_interval


@dataclass(frozen=True)
class _Results:
    """The part of `Summary` that is counted by field and cell, or by frame."""

    labels: tuple[Share, ...]
    cells: tuple[Share, ...]
    review_needed: int
    reviewed: int
    corrected: int
    counts: Counts | None = None
    audit: Audit | None = None
    agreement: Agreement | None = None
    disagreements: int = 0


def summarize(database: sqlite3.Connection, session_id: int) -> Summary:
    """The results of a session: over different fields and cells; over frames if an older version recorded it."""
    repeats = _repeats(database, session_id)
    frames = _count_frames(database, session_id, repeats)
    found = read_found(database, session_id)
    if found.fields:
        readings = read_readings(database, session_id, found)
        results = _count_found(session_id, found, readings, frames["untracked"][True])
    else:
        results = _count_by_frame(database, session_id, repeats, frames)
    return Summary(
        frames={status: frames["status"][status] for status in STATUSES},
        reasons=_each_item(database, session_id, repeats, "refused", "c.value", "$.reasons"),
        images=frames["image"][True],
        images_lost=frames["lost"][True],
        flat_field=frames["corrected"][True],
        **vars(results),
    )


def differential_of(database: sqlite3.Connection, session_id: int) -> Differential:
    """The running count of a slide, without its frames: fast enough to be repeated all the time."""
    found = read_found(database, session_id)
    results = _count_found(session_id, found, read_readings(database, session_id, found), 0)
    counts = results.counts or Counts(0, 0, 0)
    of_fields = any(each.label is not None for each in found.fields.values())
    return Differential(
        counts.fields if of_fields else counts.cells, results.labels if of_fields else results.cells, counts
    )


def shares_by_laboratory(results: Summary, names: Mapping[str, str]) -> tuple[Share, ...]:
    """The shares of a slide by the laboratory's labels; empty if the settings name none."""
    return by_laboratory(results.cells or results.labels, names) if names else ()


def by_laboratory(shares: Sequence[Share], names: Mapping[str, str]) -> tuple[Share, ...]:
    """Shares by the laboratory's own labels.

    Args:
        shares: of all labels.
        names: the laboratory's label for a model's label; several may have the same one. Others keep theirs.
    """
    current, by_model = Counter[Any](), Counter[Any]()
    for each in shares:
        name = names.get(each.label, each.label)
        current[name] += each.count
        by_model[name] += each.by_model
    return _shares(current, by_model)


def _count_found(session_id: int, found: FoundOnSlide, readings: Readings, untracked: int) -> _Results:
    """Count each different field and cell once. A review also counts what was found in too few frames."""
    by_model: dict[str, Counter[Any]] = {FIELD: Counter(), CELL: Counter()}
    current: dict[str, Counter[Any]] = {FIELD: Counter(), CELL: Counter()}
    totals, aside = Counter[str](), Counter[str]()
    reviewed = corrected = needed = unreviewed = 0
    for each in (*found.fields.values(), *found.cells.values()):
        reviews = readings.get((each.kind, each.id), ())
        review = standing(reviews) if reviews else None
        if each.same_as is not None or not (each.counted or review):
            continue
        label = review.label if review else each.label
        totals[each.kind] += label not in SET_ASIDE
        if label in (*SET_ASIDE, UNCLEAR):
            aside[label] += 1
        else:
            by_model[each.kind][each.label] += 1
            current[each.kind][label] += 1
        reviewed += review is not None
        corrected += review is not None and review.label != each.label
        needed += review is None and each.review_reason is not None
        unreviewed += review is None and each.label is not None
    counts = Counts(totals[FIELD], totals[CELL], found.patches, untracked, dict(aside), unreviewed)
    labels, cells = (_shares(current[kind], by_model[kind]) for kind in (FIELD, CELL))
    return _Results(
        *(labels, cells, needed, reviewed, corrected, counts),
        audit=audit(session_id, (*found.fields.values(), *found.cells.values()), readings),
        agreement=agreement(readings),
        disagreements=sum(map(disagree, readings.values())),
    )


def _count_by_frame(
    database: sqlite3.Connection, session_id: int, repeats: dict[int, int], frames: dict[str, Counter[Any]]
) -> _Results:
    """Count all frames with the model's labels in SQL, then apply the reviews of the few frames that have any."""
    cells_by_model = Counter(_each_item(database, session_id, repeats, "judged", CELL_LABEL_BY_MODEL, "$.cells"))
    labels, cells = Counter(frames["label"]), Counter(cells_by_model)
    reviewed = _reviewed_frames(database, session_id, repeats)
    for frame in reviewed:
        if frame.row.status == "judged":
            _move(labels, frame.row.label, frame.label)
            for cell, label in {review.cell: review.label for review in frame.reviews}.items():
                if cell is not None:
                    _move(cells, frame.row.cells[cell]["label"], label)
    return _Results(
        labels=_shares(labels, frames["label"]),
        cells=_shares(cells, cells_by_model),
        review_needed=frames["asked"][True] - sum(each.row.review and not each.review_needed for each in reviewed),
        reviewed=len(reviewed),
        corrected=sum(frame.corrected for frame in reviewed),
    )


def _count_frames(database: sqlite3.Connection, session_id: int, repeats: dict[int, int]) -> dict[str, Counter[Any]]:
    """Counts by status, label, saved image, lost image, requested review, and judged frames without a field."""
    names = ("status", "label", "image", "lost", "asked", "untracked", "corrected")
    frames: dict[str, Counter[Any]] = {name: Counter() for name in names}
    counted = database.execute(
        "SELECT status, label, review, image IS NOT NULL, json_extract(row, '$.image_lost') IS NOT NULL,"
        " status = 'judged' AND json_extract(row, '$.field_id') IS NULL,"
        " coalesce(json_extract(row, '$.flat_field'), '') != '', count(*)"
        " FROM entries WHERE kind = 'frame' AND session = ? AND number NOT IN (SELECT value FROM json_each(?))"
        " GROUP BY 1, 2, 3, 4, 5, 6, 7",
        (session_id, json.dumps(list(repeats))),
    )
    for status, label, asked, image, lost, untracked, corrected, count in counted:
        frames["status"][status] += count
        frames["label"][label if status == "judged" else None] += count
        yes_or_no = {"image": image, "lost": lost, "asked": asked, "untracked": untracked, "corrected": corrected}
        for name, holds in yes_or_no.items():
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
    captured = f"""SELECT 1 {frames} AND instr(row, '"trigger":"capture"') LIMIT 1"""  # a row is canonical JSON
    if database.execute(captured, (session_id,)).fetchone() is None:
        return {}
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
