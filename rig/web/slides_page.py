"""Pages of recorded slides: the list, a slide's summary and report, the gallery of its frames."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, RedirectResponse

from ..drift import drift_of
from ..record.rows import MAX_TEXT, RecordedFrame
from ..record.summary import shares_by_laboratory
from .context import Rig

PER_PAGE = 48
REPORT_FRAMES = 24
Id = Annotated[int, InPath(ge=1, le=2**62)]

routes = APIRouter()


@routes.get("/slides", response_class=HTMLResponse)
def slides(request: Request, rig: Rig) -> HTMLResponse:
    """All slides, newest first."""
    return rig.page.html(request, "slides.html", sessions=rig.page.record.sessions())


@routes.get("/slides/{session}", response_class=HTMLResponse)
def summary(request: Request, rig: Rig, session: Id) -> HTMLResponse:
    """A slide's results so far."""
    record, unit = rig.page.record, rig.page.unit
    found, results = record.session(session), record.summary(session)
    station = rig.station
    return rig.page.html(
        request,
        "summary.html",
        session=found,
        summary=results,
        drift=drift_of(record, session),
        unit=unit,
        laboratory=shares_by_laboratory(results, rig.station.settings.names),
        skipped=record.skipped(session),
        current=session in (station.session_id, station.live().asked_session_id),
        free=station.session_id is None and station.live().asked_session_id is None,
    )


@routes.post("/slides/{session}/reopen")
def reopen(request: Request, rig: Rig, session: Id) -> RedirectResponse:
    """Go on recording an ended slide, for example one that was ended by mistake."""
    rig.station.reopen_session(session, rig.page.user(request).name)
    return RedirectResponse("/", 303)


@routes.post("/slides/{session}/end")
def end_other(request: Request, rig: Rig, session: Id) -> RedirectResponse:
    """End an open slide that this rig does not record, left open by another rig."""
    user = rig.page.user(request).name
    if session in (rig.station.session_id, rig.station.live().asked_session_id):
        rig.station.end_session(user)
    else:
        rig.page.record.end_session(session, user)
    return RedirectResponse(f"/slides/{session}", 303)


@routes.post("/slides/{session}/amend")
def amend(
    request: Request,
    rig: Rig,
    session: Id,
    sample: Annotated[str, Form(min_length=1, max_length=MAX_TEXT)],
    why: Annotated[str, Form(max_length=MAX_TEXT)] = "",
) -> RedirectResponse:
    """Correct the sample id of a slide."""
    rig.page.record.amend_session(session, sample.strip(), rig.page.user(request).name, why.strip())
    return RedirectResponse(f"/slides/{session}", 303)


@routes.get("/slides/{session}/report", response_class=HTMLResponse)
def report(request: Request, rig: Rig, session: Id) -> HTMLResponse:
    """A printable summary with thumbnails: reviewed frames first, then those that need a review, then the newest."""
    record = rig.page.record
    chosen: dict[int, RecordedFrame] = {}
    for review, status in (("done", None), ("needed", None), (None, "judged")):
        found = record.frames(session, review=review, status=status, with_image=True, limit=REPORT_FRAMES)
        for frame in found[: REPORT_FRAMES - len(chosen)]:
            chosen.setdefault(frame.id, frame)
    results = record.summary(session)
    return rig.page.html(
        request,
        "report.html",
        session=record.session(session),
        summary=results,
        laboratory=shares_by_laboratory(results, rig.station.settings.names),
        skipped=record.skipped(session),
        frames=[rig.page.pictures.with_current_image(frame) for frame in chosen.values()],
        head=record.head(),
        unit=rig.page.unit,
    )


@routes.get("/gallery", response_class=HTMLResponse)
def gallery(
    request: Request,
    rig: Rig,
    session: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    label: Annotated[str, Query(max_length=100)] = "",
    status: Literal["", "judged", "refused", "unjudged"] = "",
    review: Literal["", "needed", "done", "corrected"] = "",
    images: Literal["kept", "all"] = "kept",
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
) -> HTMLResponse:
    """Frames of one slide, by default the newest slide: those with an image, or all."""
    page, record = rig.page, rig.page.record
    sessions = record.sessions()
    chosen = record.session(session) if session else (sessions[0] if sessions else None)
    frames: list[RecordedFrame] = []
    if chosen is not None:
        frames = record.frames(
            chosen.id,
            label=label or None,
            status=status or None,
            review=review or None,
            with_image=images == "kept",
            limit=PER_PAGE + 1,
            before=before,
        )
    filters = {"label": label, "status": status, "review": review, "images": images}
    return page.html(
        request,
        "gallery.html",
        sessions=sessions,
        chosen=chosen,
        frames=[page.pictures.with_current_image(frame) for frame in frames[:PER_PAGE]],
        more=frames[PER_PAGE - 1].id if len(frames) > PER_PAGE else None,
        filters={"session": chosen.id if chosen else "", **filters},
        labels=page.labels,
    )
