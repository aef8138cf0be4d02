"""Pages of what was counted once: the gallery of cells by class, and their review by keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from ...edge_runtime.errors import UsageError
from ..counting.picture import side_of_picture
from ..language import N_, message
from ..record.audit import audit_sample
from ..record.count import image_of_field, readings_on, review_found, scales_of
from ..record.found import Found, FoundOnSlide
from ..record.readings import Unit, by_reader, disagree, standing
from ..record.rows import MAX_TEXT, SET_ASIDE, UNCLEAR, Review
from .context import Context, Rig
from .errors import NotFoundError
from .slides_page import Id

Queue = Literal["needed", "audit", "second", "disagreements", "all"]
QUEUES = {
    "needed": N_("asking for review"),
    "audit": N_("random audit of confident verdicts"),
    "second": N_("second reading: read by others, not by you"),
    "disagreements": N_("readers disagree"),
    "all": N_("all that were counted"),
}
ASIDE_KEYS = {SET_ASIDE[0]: "x", SET_ASIDE[1]: "a", UNCLEAR: "t"}
"""The labels beside the model's and the laboratory's, and their keys."""
PER_PAGE = 120

routes = APIRouter()


@dataclass(frozen=True)
class Reviewed:
    """The units of a slide and what was said of them.

    Attributes:
        units: counted cells, or fields of a model of fields, and those that a reviewer counted or set aside.
        readings: see `edgeall.rig.record.readings.Readings`.
    """

    session_id: int
    units: Sequence[Found]
    readings: Mapping[Unit, Sequence[Review]]

    def label(self, found: Found) -> str:
        """The current label."""
        reviews = self.readings.get((found.kind, found.id))
        return standing(reviews).label if reviews else found.label or ""

    def queue(self, name: Queue, reader: str) -> list[Found]:
        """The units in a queue, in its order; reviewed ones too where a queue is read from its beginning."""
        if name == "audit":
            return audit_sample(self.session_id, self.units)
        if name == "needed":
            return [each for each in self.units if each.review_reason is not None]
        if name == "second":
            return [each for each in self.units if set(self._readers(each)) - {reader}]
        if name == "disagreements":
            return [each for each in self.units if disagree(self.readings.get((each.kind, each.id), ()))]
        return list(self.units)

    def done(self, name: Queue, found: Found, reader: str) -> bool:
        """Whether a unit of a queue needs nothing more from this reader."""
        if name == "second":
            return reader in self._readers(found)
        return name != "disagreements" and (found.kind, found.id) in self.readings

    def _readers(self, found: Found) -> dict[str, str]:
        return by_reader(self.readings.get((found.kind, found.id), ()))


def reviewed_on(rig: Context, session: int) -> Reviewed:
    """What was counted on a slide. Raises RecordError if there is no such slide."""
    record = rig.page.record
    record.session(session)
    found, readings = record.found(session), readings_on(record, session)
    chosen = [
        each
        for each in _units(found)
        if each.same_as is None and (each.counted or (each.kind, each.id) in readings) and each.frame_id is not None
    ]
    return Reviewed(session, chosen, readings)


def labels_of(rig: Context) -> tuple[str, ...]:
    """The labels of a review: the model's, then the laboratory's own."""
    return tuple(dict.fromkeys((*rig.page.labels, *rig.station.settings.labels)))


def unknown_label(label: str, allowed: Sequence[str]) -> UsageError:
    """The error for a label that the rig does not offer."""
    hint = message("labels: {labels}", labels=", ".join(allowed))
    return UsageError(message("{label} is not a label of this rig", label=repr(label)), hint=hint)


@routes.get("/slides/{session}/cells", response_class=HTMLResponse)
def cells(
    request: Request,
    rig: Rig,
    session: Id,
    label: Annotated[str, Query(max_length=100)] = "",
    order: Literal["least", "most"] = "least",
    page: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> HTMLResponse:
    """The gallery of what was counted, by class, sorted by confidence."""
    reviewed = reviewed_on(rig, session)
    chosen = [each for each in reviewed.units if not label or reviewed.label(each) == label]
    chosen.sort(key=lambda each: (each.probability or 0.0) * (1 if order == "least" else -1))
    shown = chosen[page * PER_PAGE : (page + 1) * PER_PAGE]
    views = _views(rig, shown)
    return rig.page.html(
        request,
        "cells.html",
        session=rig.page.record.session(session),
        shown=[(each, reviewed.label(each), _picture(rig, each), views.get(each.id)) for each in shown],
        reviewed={(each.kind, each.id) for each in shown if (each.kind, each.id) in reviewed.readings},
        names=sorted({reviewed.label(each) for each in reviewed.units}),
        total=len(chosen),
        filters={"label": label, "order": order},
        page=page,
        more=len(chosen) > (page + 1) * PER_PAGE,
        unit=rig.page.unit,
    )


@routes.get("/slides/{session}/review", response_class=HTMLResponse)
def review(
    request: Request,
    rig: Rig,
    session: Id,
    queue: Queue = "needed",
    at: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    blind: bool = False,
) -> HTMLResponse:
    """One cell or field of a queue, to be labelled by a key; the next one follows."""
    reader, reviewed = rig.page.user(request).name, reviewed_on(rig, session)
    units = reviewed.queue(queue, reader)
    waiting = [each for each in units if not reviewed.done(queue, each, reader)]
    found = next((each for each in reviewed.units if each.id == at), None) if at else next(iter(waiting), None)
    ids = [each.id for each in units]
    place = ids.index(found.id) if found and found.id in ids else None
    reviews = reviewed.readings.get((found.kind, found.id), ()) if found else ()
    return rig.page.html(
        request,
        "review.html",
        session=rig.page.record.session(session),
        found=found,
        picture=_picture(rig, found, session) if found else None,
        view=_views(rig, [found]).get(found.id) if found else None,
        field=_field_of(rig, session, found) if found and found.kind == "cell" else None,
        label=reviewed.label(found) if found else "",
        reviews=reviews,
        queue=queue,
        queues=QUEUES,
        blind=blind,
        waiting=len(waiting),
        total=len(units),
        before=ids[place - 1] if place else None,
        after=ids[place + 1] if place is not None and place + 1 < len(ids) else None,
        labels=labels_of(rig),
        aside=ASIDE_KEYS,
        references=_references(rig, reviewed, found),
        unit=rig.page.unit,
        undo=_last_by(reviewed, reader) is not None,
    )


@routes.post("/slides/{session}/review")
def say(
    request: Request,
    rig: Rig,
    session: Id,
    label: Annotated[str, Form(min_length=1, max_length=100)],
    at: Annotated[int, Form(ge=1, le=2**62)],
    queue: Annotated[Queue, Form()] = "needed",
    note: Annotated[str, Form(max_length=MAX_TEXT)] = "",
    blind: Annotated[bool, Form()] = False,
) -> RedirectResponse:
    """Record a label and go to the next cell of the queue."""
    allowed = (*labels_of(rig), *ASIDE_KEYS)
    if label not in allowed:
        raise unknown_label(label, allowed)
    reader, reviewed = rig.page.user(request).name, reviewed_on(rig, session)
    found = next((each for each in reviewed.units if each.id == at), None)
    if found is None:
        raise NotFoundError("there is no such cell on this slide")
    ids = [each.id for each in reviewed.queue(queue, reader)]
    review_found(rig.page.record, found, label, reader, note.strip(), adjudicates=queue == "disagreements")
    after = reviewed_on(rig, session)
    following = [each.id for each in after.queue(queue, reader) if not after.done(queue, each, reader)]
    ahead = set(ids[ids.index(at) + 1 :] if at in ids else ids)
    later = [each for each in following if each in ahead]
    return _to(session, queue, blind, next(iter(later or following), None))


@routes.post("/slides/{session}/review/undo")
def undo(
    request: Request,
    rig: Rig,
    session: Id,
    queue: Annotated[Queue, Form()] = "needed",
    blind: Annotated[bool, Form()] = False,
) -> RedirectResponse:
    """Withdraw the reader's last review on this slide, and show its cell."""
    reader = rig.page.user(request).name
    last = _last_by(reviewed_on(rig, session), reader)
    if last is None:
        raise NotFoundError("you have no review on this slide to undo")
    unit, said = last
    rig.page.record.withdraw_review(session, said.id, reader)
    return _to(session, queue, blind, unit[1])


def _units(found: FoundOnSlide) -> list[Found]:
    """The cells; for a model of fields the fields, which then have labels."""
    return list(found.cells.values()) or [each for each in found.fields.values() if each.label is not None]


def _to(session: int, queue: str, blind: bool, at: int | None) -> RedirectResponse:
    chosen = {"queue": queue, **({"at": at} if at else {}), **({"blind": "true"} if blind else {})}
    return RedirectResponse(f"/slides/{session}/review?{urlencode(chosen)}", 303)


def _last_by(reviewed: Reviewed, reader: str) -> tuple[Unit, Review] | None:
    own = [(unit, each) for unit, reviews in reviewed.readings.items() for each in reviews if each.by == reader]
    return max(own, key=lambda pair: pair[1].id, default=None)


def _picture(rig: Context, found: Found, session: int | None = None) -> str | None:
    """Address of the picture: the crop of a cell or the thumbnail of a field.

    With its ``session``, of a field the whole image, if it was saved.
    """
    digests = [found.image]
    if found.kind == "field" and session is not None:
        digests.insert(0, image_of_field(rig.page.record, session, found.id))
    return next((f"/images/{digest}.jpg" for digest in digests if digest and rig.page.record.image_path(digest)), None)


@dataclass(frozen=True)
class View:
    """What the picture of a cell or field shows: see `edgeall.rig.web.display.Scaled`; pixels of the frame."""

    um_per_px: float | None
    scale_source: str
    size: tuple[int, int]


@dataclass(frozen=True)
class InField:
    """The field of a cell, the address of its picture, and the counted cells in it, this one too."""

    field: Found
    picture: str
    cells: Sequence[Found]


def _field_of(rig: Context, session: int, cell: Found) -> InField | None:
    """The field around a cell; None without its picture."""
    found = rig.page.record.found(session)
    field = found.fields.get(found.root("field", cell.field_id))
    picture = _picture(rig, field) if field else None
    if field is None or picture is None:
        return None
    inside = [
        each
        for each in found.cells.values()
        if each.counts
        and each.patch == field.patch
        and field.x <= each.x < field.x + field.width
        and field.y <= each.y < field.y + field.height
    ]
    return InField(field, picture, inside)


def _views(rig: Context, shown: Sequence[Found]) -> dict[int, View]:
    """The view of each picture, by the id of its cell or field; without those whose scale is unknown."""
    scales = scales_of(rig.page.record, {each.frame_id for each in shown if each.frame_id is not None})
    views = {}
    for each in shown:
        if each.frame_id in scales:
            side = side_of_picture(each.width, each.height)
            size = (each.width, each.height) if each.kind == "field" else (side, side)
            views[each.id] = View(*scales[each.frame_id], size)
    return views


def _references(rig: Context, reviewed: Reviewed, shown: Found | None) -> dict[str, str]:
    """For each label the picture of a reference: a reviewed cell, otherwise the model's most confident one."""
    chosen: dict[str, Found] = {}
    for each in sorted(
        reviewed.units, key=lambda each: ((each.kind, each.id) in reviewed.readings, each.probability or 0.0)
    ):
        if shown is None or each.id != shown.id:
            chosen[reviewed.label(each)] = each
    pictures = {label: _picture(rig, each) for label, each in chosen.items()}
    return {label: picture for label, picture in pictures.items() if picture}
