"""Pages of the running rig: live view, captures, starting and ending a slide, settings, health."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Form, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from ...edge_runtime.errors import UsageError
from ...edge_runtime.tools.throttle import throttle_reasons
from ..language import N_, current, gettext, message
from ..record.chain import RecordError
from ..record.count import take_back_last
from ..record.record import check_label
from ..record.rows import MAX_TEXT, Event, SessionNotes, SkippedRow
from ..snapshot import SAVE, StationError
from .backup_page import EVENT as BACKUP
from .context import Context, Rig
from .errors import TooManyViewersError
from .page import Page

MAX_VIEWERS = 24
ALIVE_S = 10.0
"""Longest pause between two messages of a stream, and between two checks that its viewer is still logged in."""
Short = Annotated[str, Form(max_length=MAX_TEXT)]

routes = APIRouter()


@routes.get("/", response_class=HTMLResponse)
def live(request: Request, rig: Rig) -> HTMLResponse:
    """The camera's view and the model's prediction."""
    now, record = rig.station.live(), rig.page.record
    session_id = now.asked_session_id or rig.station.session_id
    session, last, trouble = None, None, ""
    try:
        if session_id is not None:
            session, last = record.session(session_id), record.last_time(session_id)
    except RecordError as error:  # the picture and the problems are shown all the same
        trouble = error.message
    return rig.page.html(
        request,
        "live.html",
        labels=rig.page.labels,
        session=session,
        asks=now.asked_session_id is not None,
        last=last,
        trouble=trouble,
        paused=rig.station.settings.paused,
        objectives=[each.objective for each in rig.station.objectives.scales()],
    )


@routes.get("/events", response_class=StreamingResponse)
async def events(request: Request, rig: Rig) -> StreamingResponse:
    """The live view's messages as server-sent events."""
    if rig.broadcast.viewers >= MAX_VIEWERS:
        raise TooManyViewersError(message("{count} live views are open", count=MAX_VIEWERS), hint="close one of them")
    return StreamingResponse(_stream(rig, request.state.token, current()), media_type="text/event-stream")


@routes.get("/live/{number}.jpg")
async def picture(rig: Rig, number: Annotated[int, InPath(ge=0, le=2**62)]) -> Response:
    """The picture that an event named, or the newest."""
    found = rig.broadcast.snapshot(number) or rig.station.live()
    if found.picture is None:
        return Response(status_code=404)
    return Response(await run_sync(found.picture.jpeg), media_type="image/jpeg")


@routes.post("/capture")
def capture(request: Request, rig: Rig) -> JSONResponse:
    """Record the current frame with its image; returns the frame's id, and why it has no image, if it has none."""
    frame = rig.page.record.frame(rig.station.capture(rig.page.user(request).name))
    lost = "" if frame.image else gettext(N_("the disk is nearly full"))
    return JSONResponse({"frame": frame.id, "image_lost": lost})


@routes.post("/slides")
def start(
    request: Request,
    rig: Rig,
    sample: Annotated[str, Form(min_length=1, max_length=MAX_TEXT)],
    operator: Short = "",
    stain: Short = "",
    magnification: Short = "",
    notes: Annotated[str, Form(max_length=2 * MAX_TEXT)] = "",  # browsers count a line break once and send two bytes
) -> RedirectResponse:
    """Start a slide."""
    given = (text.replace("\r\n", "\n").strip() for text in (sample, operator, stain, magnification, notes))
    rig.station.start_session(SessionNotes(*given), rig.page.user(request).name)
    return RedirectResponse("/", 303)


@routes.post("/slides/end")
def end(request: Request, rig: Rig, session: Annotated[int | None, Form(ge=1, le=2**62)] = None) -> RedirectResponse:
    """End the slide and show its summary. ``session`` is the slide that the form showed."""
    current = rig.station.live().asked_session_id or rig.station.session_id
    if session is not None and session != current:
        raise StationError(
            "this slide is not the open one any more", hint="go back: the page shows which slide is open"
        )
    return RedirectResponse(f"/slides/{rig.station.end_session(rig.page.user(request).name)}", 303)


@routes.post("/slides/continue")
def go_on(request: Request, rig: Rig) -> RedirectResponse:
    """Continue the slide from before a restart."""
    rig.station.continue_session(rig.page.user(request).name)
    return RedirectResponse("/", 303)


@routes.post("/slides/pause")
def pause(request: Request, rig: Rig) -> RedirectResponse:
    """Pause the count of the open slide, or go on with it."""
    settings = rig.station.settings
    change = dataclasses.replace(settings, paused=not settings.paused)
    rig.station.change_settings(change, rig.page.user(request).name)
    return RedirectResponse("/", 303)


@routes.post("/slides/take-back")
def take_back(request: Request, rig: Rig) -> RedirectResponse:
    """Take the last counted cell or field out of the count."""
    if rig.station.session_id is None:
        raise StationError("no slide is open", hint="start one first")
    take_back_last(rig.page.record, rig.station.session_id, rig.page.user(request).name)
    return RedirectResponse("/", 303)


@routes.get("/settings", response_class=HTMLResponse)
def settings(request: Request, rig: Rig, saved: bool = False) -> HTMLResponse:
    """The settings."""
    page = rig.page
    return page.html(
        request,
        "settings.html",
        settings=rig.station.settings,
        choices=SAVE,
        saved=saved,
        model=_model(page),
        labels=page.labels,
    )


class SettingsForm(BaseModel):
    """The form of the settings. A box that is not ticked is not sent; what else is not sent stays as it is."""

    save: Literal["every frame", "on review", "on capture"]
    judge: bool = False
    lossless: bool = False
    flat_field: bool = False
    target: Annotated[int | None, Field(ge=0, le=100_000)] = None
    labels: Annotated[str | None, Field(max_length=MAX_TEXT)] = None
    names: Annotated[str | None, Field(max_length=MAX_TEXT)] = None
    laboratory: Annotated[str | None, Field(max_length=MAX_TEXT)] = None


@routes.post("/settings")
def change(request: Request, rig: Rig, form: Annotated[SettingsForm, Form()]) -> RedirectResponse:
    """Change the settings."""
    now = rig.station.settings
    chosen = dataclasses.replace(
        now,
        judge=form.judge,
        save=form.save,
        lossless=form.lossless,
        flat_field=form.flat_field,
        target=now.target if form.target is None else form.target,
        labels=now.labels if form.labels is None else _read_labels(form.labels),
        names=now.names if form.names is None else _read_names(form.names, rig.page.labels),
        laboratory=now.laboratory if form.laboratory is None else form.laboratory.replace("\r\n", "\n").strip(),
    )
    rig.station.change_settings(chosen, rig.page.user(request).name)
    return RedirectResponse("/settings?saved=true", 303)


def _read_labels(text: str) -> tuple[str, ...]:
    """The laboratory's own labels, one a line. Raises UsageError."""
    own = tuple(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
    for label in own:
        check_label(label)
    return own


def _read_names(text: str, labels: Sequence[str]) -> dict[str, str]:
    """The laboratory's label of each model's label, from lines such as ``Pre = blast``. Raises UsageError."""
    names = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        label, equals, name = (part.strip() for part in line.partition("="))
        if not equals or label not in labels:
            raise UsageError(
                message(
                    "“{line}” is not a label of the model, an equals sign and a label of the laboratory", line=line
                ),
                hint=message("the model's labels: {labels}", labels=", ".join(labels)),
            )
        check_label(name)
        names[label] = name
    return names


@routes.get("/health", response_class=HTMLResponse)
def health(request: Request, rig: Rig) -> HTMLResponse:
    """The state of the camera, the disk and the machine."""
    now, record = rig.station.live(), rig.page.record
    events: list[Event] = []
    backups: list[Event] = []
    skipped: list[SkippedRow] = []
    problems = list(now.problems)
    try:
        events, skipped = record.events(20), record.skipped(now.session_id)[-20:]
        backups = record.events(1, kind=BACKUP)
    except RecordError as error:
        if not any(error.message in problem for problem in problems):
            problems.append(error.message)
    return rig.page.html(
        request,
        "health.html",
        live=now,
        problems=problems,
        device=vars(rig.device),
        throttling=throttle_reasons(now.health.throttled),
        events=events,
        skipped=skipped[::-1],
        backup=backups[0] if backups else None,
        refused_log_ins=rig.access.refused,
        model=_model(rig.page),
        viewers=rig.broadcast.viewers,
    )


def _model(page: Page) -> dict[str, Any]:
    return {"name": page.model, "sha256": page.model_sha256, "unit": page.unit}


async def _stream(rig: Context, token: str, language: str) -> AsyncIterator[str]:
    broadcast = rig.broadcast
    seen, checked = broadcast.enter(language), time.monotonic()
    try:
        yield "retry: 1000\n\n"
        while not broadcast.closed:
            now, message = await broadcast.newer(seen, ALIVE_S, language)
            yield f"data: {message}\n\n" if now != seen else ": alive\n\n"
            seen = now
            if time.monotonic() - checked > ALIVE_S:
                checked = time.monotonic()
                if rig.access.user_of(token) is None:
                    return
    finally:
        broadcast.leave(language)
