"""What the report of a slide states, read from its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..counting.picture import square_of_cell
from ..record.count import readings_on
from ..record.found import CELL, Found, FoundOnSlide
from ..record.readings import Readings, standing
from ..record.record import Record
from ..record.results import Share, Summary
from ..record.rows import SET_ASIDE, Session
from ..record.slide_scale import SlideScale, slide_scale
from ..record.summary import shares_by_laboratory

PER_LABEL = 12
"""Pictures of each label."""
Fractions = tuple[float, float, float, float]
"""Left, top, right and bottom of a box in a picture, as fractions of its width and height."""


@dataclass(frozen=True)
class Shown:
    """A picture in the report: a counted cell, or a field of a model of fields.

    Attributes:
        found: the cell or field.
        path: of its picture.
        reviewed: a person has labelled it.
        box: of the cell in its picture; None for a field, or if its frame is not known.
        across_um: width of the picture, micrometres; None if the scale is not known.
        estimated: the scale comes from the size of red cells.
    """

    found: Found
    path: Path
    reviewed: bool
    box: Fractions | None
    across_um: float | None
    estimated: bool = False


@dataclass(frozen=True)
class ReportFacts:
    """All that a report states.

    Attributes:
        session: the slide.
        summary: its results.
        by_laboratory: the shares by the laboratory's own labels; empty if the settings name none.
        laboratory: its header: name and address, in lines.
        reviewers: name and number of labelled cells or fields.
        shown: pictures by label, the most frequent label first; those that ask for a review or are least confident
            come first.
        scale: of the slide's frames; None if it is not known.
        head: digest of the record's last row.
        made: the time, with a zone.
    """

    session: Session
    summary: Summary
    by_laboratory: tuple[Share, ...]
    laboratory: str
    reviewers: tuple[tuple[str, int], ...]
    shown: Mapping[str, Sequence[Shown]]
    scale: SlideScale | None
    head: str
    made: datetime


def report_facts(record: Record, session_id: int) -> ReportFacts:
    """Read what the report of a slide states. Raises RecordError if there is no such slide."""
    session, summary = record.session(session_id), record.summary(session_id)
    found, readings = record.found(session_id), readings_on(record, session_id)
    scale = slide_scale(record, session)
    last = record.events(1, kind="settings")
    settings = last[0].detail if last else {}
    names = Counter(name for reviews in readings.values() for name in {each.by for each in reviews})
    return ReportFacts(
        session=session,
        summary=summary,
        by_laboratory=shares_by_laboratory(summary, settings.get("names", {})),
        laboratory=str(settings.get("laboratory", "")),
        reviewers=tuple(sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))),
        shown=_shown(record, found, readings, scale),
        scale=scale,
        head=record.head(),
        made=datetime.now().astimezone(),
    )


def _shown(
    record: Record, found: FoundOnSlide, readings: Readings, scale: SlideScale | None
) -> dict[str, tuple[Shown, ...]]:
    units = list(found.cells.values()) or [each for each in found.fields.values() if each.label is not None]
    by_label: dict[str, list[Found]] = {}
    for each in units:
        reviews = readings.get((each.kind, each.id), ())
        label = standing(reviews).label if reviews else each.label
        if label is not None and label not in SET_ASIDE and each.same_as is None and (each.counted or reviews):
            by_label.setdefault(label, []).append(each)
    shown: dict[str, tuple[Shown, ...]] = {}
    for label, units in sorted(by_label.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        units.sort(key=lambda each: (each.review_reason is None, each.probability or 0.0, each.id))
        chosen: list[Shown] = []
        for each in units:
            path = record.image_path(each.image) if each.image else None
            if path is not None and len(chosen) < PER_LABEL:
                chosen.append(_picture(record, found, each, path, scale, (each.kind, each.id) in readings))
        shown[label] = tuple(chosen)
    return shown


def _picture(
    record: Record, found: FoundOnSlide, each: Found, path: Path, scale: SlideScale | None, reviewed: bool
) -> Shown:
    field = found.fields.get(each.field_id)
    if each.kind != CELL or each.frame_id is None or each.index is None or field is None:
        across = each.width * scale.um_per_px if scale and each.kind != CELL else None
        return Shown(each, path, reviewed, None, across, bool(scale and scale.estimated))
    cells = record.frame(each.frame_id).row.cells
    box = cells[each.index]["box"] if each.index < len(cells) else None
    if box is None:
        return Shown(each, path, reviewed, None, None)
    left, top, side = square_of_cell(box, (field.width, field.height))
    within = tuple((value - start) / side for value, start in zip(box, (left, top, left, top), strict=True))
    across = side * scale.um_per_px if scale else None
    estimated = bool(scale and scale.estimated)
    return Shown(each, path, reviewed, (within[0], within[1], within[2], within[3]), across, estimated)
