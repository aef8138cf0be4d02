"""The pages of what goes on now: live view, captures, starting and ending a slide, settings, health."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Form, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from ...edge_runtime.device import describe_device, throttling
from ...edge_runtime.errors import EdgeallError
from ..record.record import MAX_TEXT, RecordError, SessionNotes
from ..station import SAVE, Live, Picture, Settings, Station
from . import words
from .access import Access
from .broadcast import Broadcast
from .page import Page

MAX_VIEWERS = 24
ALIVE_S = 10.0
"""A stream says something so often at least, and asks whether its viewer is still logged in."""
_COUNT_S = 3.0
Short = Annotated[str, Form(max_length=MAX_TEXT)]


class TooManyViewers(EdgeallError):
    """More live views are open than this machine should serve."""


class Teller:
    """Puts a snapshot of the station into what ``live.js`` shows; used by one thread."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._picture: Picture | None = None
        self._picture_number = 0
        self._session: dict[str, Any] | None = None
        self._counted = 0.0

    def __call__(self, live: Live) -> str:
        """One line of JSON."""
        if live.picture is not self._picture:
            self._picture, self._picture_number = live.picture, live.number
        level, title, advice = light(live)
        judged = live.status == "judged"
        label, probability, bars = self._said(live) if judged else ("", "", {})
        return json.dumps(
            {
                "picture": self._picture_number if live.picture else None,
                "size": live.size,
                "level": level,
                "title": title,
                "advice": advice,
                "label": label,
                "probability": probability,
                "bars": {label: bars.get(label, (0, "")) for label in self._page.labels},
                "review": words.asks(live.review_reason) if live.review and judged else "",
                "cells": [{"box": cell.box, "label": cell.label, "review": cell.review} for cell in live.cells]
                if judged
                else [],
                "focus": round(live.quality.focus, 3) if live.quality else 0,
                "rate": f"{live.frames_per_s:.1f} frames/s",
                "camera": f"{live.camera.name}: {live.camera.state}",
                "session": self._told_session(live.session_id),
                "problems": list(live.problems),
                "notes": list(live.notes),
            }
        )

    def _said(self, live: Live) -> tuple[str, str, dict[str, tuple[float, str]]]:
        """A judged frame's label, its probability, and for each label a bar's length, 0..1, with its words."""
        if self._page.unit == "cell":
            labels = [cell.label for cell in live.cells]
            bars = {name: (n / len(labels), f"{n} of {len(labels)}") for name, n in Counter(labels).items()}
            return words.counted(labels) or "no cells", "", bars
        bars = {label: (round(share, 4), words.percent(share)) for label, share in live.probabilities.items()}
        return live.label, words.percent(live.probability), bars

    def _told_session(self, session_id: int | None) -> dict[str, Any] | None:
        """Which slide, and how many frames it has: counted now and then."""
        now = time.monotonic()
        if session_id is None:
            self._session = None
        elif self._session is None or self._session["id"] != session_id or now - self._counted > _COUNT_S:
            self._counted = now
            with suppress(RecordError):  # the disk's trouble is told by `problems`; the picture goes on
                session = self._page.record.session(session_id)
                self._session = {"id": session_id, "sample": session.notes.sample, "frames": session.frames}
        return self._session


def light(live: Live) -> tuple[str, str, str]:
    """The quality light: ``good``, ``warn`` or ``bad``, what it means, and what to do about it."""
    if live.camera.state == "ended" and live.picture is None:
        return "bad", "No picture", live.camera.detail
    if live.camera.state not in ("live", "ended"):
        return "bad", "No picture", live.camera.detail or "waiting for the camera"
    if live.waits:
        return "warn", "The replay waits", "start a slide: it begins with it"
    if live.camera.state == "ended":
        return "warn", "The replay has ended", live.camera.detail
    if live.status == "waiting" or live.quality is None:
        return "bad", "No picture yet", "waiting for the camera"
    if live.status == "refused":
        reasons = live.quality.reasons
        return "warn", ", ".join(map(words.reason, reasons)), "; ".join(filter(None, map(words.advice, reasons)))
    if live.status == "unjudged":
        why = "judging is switched off in the settings"
        return "warn", "Not judged", live.problems[0] if live.settings.judge and live.problems else why
    return "good", "Good field", "" if live.session_id is not None else "start a slide to record what is seen"


def live_routes(page: Page, station: Station, access: Access, broadcast: Broadcast[Live]) -> APIRouter:
    """The routes."""
    routes, record = APIRouter(), page.record
    device = describe_device()

    @routes.get("/", response_class=HTMLResponse)
    def live(request: Request) -> HTMLResponse:
        """What the camera sees, and what the model says of it."""
        session_id = station.session_id
        session = record.session(session_id) if session_id is not None else None
        return page.html(request, "live.html", labels=page.labels, session=session, unit=page.unit)

    @routes.get("/events", response_class=StreamingResponse)
    async def events(request: Request) -> StreamingResponse:
        """The same as it changes: server-sent events."""
        if broadcast.viewers >= MAX_VIEWERS:
            raise TooManyViewers(f"{MAX_VIEWERS} live views are open already", hint="close one of them")
        return StreamingResponse(_stream(broadcast, access, request.state.token), media_type="text/event-stream")

    @routes.get("/live/{number}.jpg")
    async def picture(number: Annotated[int, InPath(ge=0, le=2**62)]) -> Response:
        """The picture that an event named, or the newest."""
        found = broadcast.snapshot(number) or station.live()
        if found.picture is None:
            return Response(status_code=404)
        return Response(await run_sync(found.picture.jpeg), media_type="image/jpeg")

    @routes.post("/capture")
    def capture(request: Request) -> JSONResponse:
        """Record what is shown now, with its image; gives the frame's id."""
        return JSONResponse({"frame": station.capture(page.user(request).name)})

    @routes.post("/slides")
    def start(
        request: Request,
        sample: Annotated[str, Form(min_length=1, max_length=MAX_TEXT)],
        operator: Short = "",
        stain: Short = "",
        magnification: Short = "",
        notes: Annotated[str, Form(max_length=2 * MAX_TEXT)] = "",  # browsers count a line's end once, and send two
    ) -> RedirectResponse:
        """Begin a slide."""
        given = (text.replace("\r\n", "\n").strip() for text in (sample, operator, stain, magnification, notes))
        station.start_session(SessionNotes(*given), page.user(request).name)
        return RedirectResponse("/", 303)

    @routes.post("/slides/end")
    def end(request: Request) -> RedirectResponse:
        """End it; goes on to what it comes to."""
        return RedirectResponse(f"/slides/{station.end_session(page.user(request).name)}", 303)

    @routes.get("/settings", response_class=HTMLResponse)
    def settings(request: Request, saved: bool = False) -> HTMLResponse:
        """What an operator may change."""
        return page.html(
            request, "settings.html", settings=station.settings, choices=SAVE, saved=saved, model=_model(page)
        )

    @routes.post("/settings")
    def change(
        request: Request,
        save: Annotated[Literal["every frame", "on review", "on capture"], Form()],
        judge: Annotated[bool, Form()] = False,
    ) -> RedirectResponse:
        """Change it."""
        station.change_settings(Settings(judge=judge, save=save), page.user(request).name)
        return RedirectResponse("/settings?saved=true", 303)

    @routes.get("/health", response_class=HTMLResponse)
    def health(request: Request) -> HTMLResponse:
        """How machine, camera and disk fare."""
        now = station.live()
        return page.html(
            request,
            "health.html",
            live=now,
            light=light(now),
            device=device,
            throttling=throttling(now.health.throttled),
            events=record.events(20),
            model=_model(page),
            viewers=broadcast.viewers,
        )

    return routes


def _model(page: Page) -> dict[str, Any]:
    return {"name": page.model, "sha256": page.model_sha256, "unit": page.unit}


async def _stream(broadcast: Broadcast[Live], access: Access, token: str) -> AsyncIterator[str]:
    seen, asked = broadcast.enter(), time.monotonic()
    try:
        yield "retry: 1000\n\n"
        while not broadcast.closed:
            now, message = await broadcast.newer(seen, ALIVE_S)
            yield f"data: {message}\n\n" if now != seen else ": alive\n\n"
            seen = now
            if time.monotonic() - asked > ALIVE_S:
                asked = time.monotonic()
                if access.who(token) is None:
                    return
    finally:
        broadcast.leave()
