"""The map of a slide: where the stage has been, and which cells were found where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ..record.count import reviews_on
from ..record.found import Found, FoundOnSlide
from .context import Rig
from .slides_page import Id

_EDGE = 0.02
"""Margin around a patch, as a fraction of its longer side."""

routes = APIRouter()


@dataclass(frozen=True)
class Patch:
    """One patch: its fields and counted cells, and the view box (left, top, width, height), in pixels of a frame."""

    number: int
    fields: Sequence[Found]
    cells: Sequence[Found]

    @property
    def view(self) -> tuple[int, int, int, int]:
        """The fields with a margin."""
        left, top = min(each.x for each in self.fields), min(each.y for each in self.fields)
        right = max(each.x + each.width for each in self.fields)
        bottom = max(each.y + each.height for each in self.fields)
        margin = round(_EDGE * max(right - left, bottom - top))
        return left - margin, top - margin, right - left + 2 * margin, bottom - top + 2 * margin


@routes.get("/slides/{session}/map", response_class=HTMLResponse)
def slide_map(request: Request, rig: Rig, session: Id) -> HTMLResponse:
    """The patches of a slide's map with their fields and cells."""
    record, live = rig.page.record, rig.station.live()
    chosen, found, reviews = record.session(session), record.found(session), reviews_on(record, session)
    labels = {key: review.label for key, review in reviews.items()}
    patches = patches_of(found)
    shown = [each for patch in patches for each in (patch.cells if rig.page.unit == "cell" else patch.fields)]
    names = Counter(labels.get((each.kind, each.id), each.label) or "" for each in shown)
    return rig.page.html(
        request,
        "map.html",
        session=chosen,
        patches=patches,
        labels=labels,
        names=sorted(names.items(), key=lambda pair: (-pair[1], pair[0])),
        unit=rig.page.unit,
        pictured={each.image for patch in patches for each in patch.fields if record.image_path(each.image or "")},
        here_field=found.root("field", live.field_id) if live.session_id == session and live.field_id else None,
    )


def patches_of(found: FoundOnSlide) -> list[Patch]:
    """The patches of a map, in the order in which they began."""
    fields, cells = _by_patch(found.fields.values()), _by_patch(found.cells.values())
    return [Patch(number, fields[number], cells.get(number, ())) for number in sorted(fields)]


def _by_patch(found: Iterable[Found]) -> dict[int, list[Found]]:
    chosen: dict[int, list[Found]] = {}
    for each in found:
        if each.counts:
            chosen.setdefault(each.patch, []).append(each)
    return chosen
