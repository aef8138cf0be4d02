"""The rig's web app: FastAPI with all pages. It loads nothing from outside the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI
from fastapi import Path as InPath
from fastapi.responses import Response

from ... import __version__
from ...edge_runtime.tools.device import describe_device
from ..learning.lessons import Lessons
from ..snapshot import Live
from ..station import Station
from . import (
    backup_page,
    exports,
    frame_page,
    language_page,
    learn_page,
    live_page,
    login_page,
    map_page,
    objectives_page,
    phone_page,
    review_page,
    slides_page,
)
from .access import Access
from .address import Reach
from .broadcast import Broadcast
from .context import Context
from .errors import NotFoundError, add_error_pages
from .guard import Guard
from .live_events import LiveEncoder
from .page import Page
from .phone_app import PhoneApp

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_static = APIRouter()


def create_app(
    station: Station,
    page: Page,
    access: Access,
    hosts: frozenset[str],
    *,
    lessons: Lessons,
    secure: bool,
    reach: Reach | None = None,
    phone: PhoneApp | None = None,
) -> tuple[FastAPI, Broadcast[Live]]:
    """Build the app with all pages behind `Guard`.

    Args:
        station: running, or to be started by the caller.
        page: record, labels and model.
        access: users and their roles.
        hosts: host names of this machine.
        lessons: what the rig learns from reviews.
        secure: served over TLS.
        reach: where other computers reach it; None if it listens on this machine alone.
        phone: the app for a visitor's own browser; None for one whose runtime is that of the cache.

    Returns:
        The app, and the broadcast of the live view. Close the broadcast before the server waits for open streams.
    """
    broadcast: Broadcast[Live] = Broadcast(station.wait, LiveEncoder(page))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        broadcast.start()
        yield
        broadcast.close()
        broadcast.join()

    # Without openapi_url FastAPI adds no documentation pages, which would load scripts from other servers.
    app = FastAPI(title="edgeall rig", version=__version__, lifespan=lifespan, openapi_url=None)
    phone = phone or PhoneApp()
    app.state.context = Context(page, station, access, broadcast, describe_device(), lessons, reach, phone)
    for pages in (
        live_page,
        slides_page,
        map_page,
        review_page,
        learn_page,
        frame_page,
        objectives_page,
        exports,
        backup_page,
        login_page,
        language_page,
        phone_page,
    ):
        app.include_router(pages.routes)
    app.include_router(_static)
    add_error_pages(app)
    app.add_middleware(Guard, access=access, hosts=hosts, secure=secure)
    return app, broadcast


@_static.get("/static/{name}")
async def static(name: Annotated[str, InPath(pattern="^[a-z0-9.-]{1,64}$")]) -> Response:
    """A style sheet, script or drawing. Names are looked up in `_static_files`, never in a folder."""
    content = _static_files().get(name)
    if content is None:
        raise NotFoundError("there is no such file")
    headers = {"Cache-Control": "private, max-age=60"}
    return Response(content, media_type=TYPES[name.rpartition(".")[2]], headers=headers)


@cache
def _static_files() -> dict[str, bytes]:
    folder = Path(__file__).with_name("static")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}
