"""The rig's page: FastAPI with everything in it, and nothing from outside the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Form, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from ... import __version__
from ...edge_runtime.errors import EdgeallError, UsageError
from ..record.record import RecordError, RecordFullError
from ..station import Live, Station, StationError
from .access import LONGEST_PASSWORD, Access, TooManyFailures
from .broadcast import Broadcast
from .guard import Guard
from .live_page import Teller, TooManyViewers, live_routes
from .page import Page
from .slides_page import Busy, Missing, slides_routes

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
STATUS: dict[type[EdgeallError], int] = {
    Missing: 404,
    UsageError: 400,
    StationError: 409,
    RecordFullError: 507,
    Busy: 429,
    TooManyFailures: 429,
    TooManyViewers: 429,
}
"""Of an error that a person can act on; any other of ours is a 500."""


def create_app(
    station: Station, page: Page, access: Access, hosts: frozenset[str], *, secure: bool
) -> tuple[FastAPI, Broadcast[Live]]:
    """Everything that a browser may ask for, behind `Guard`.

    Args:
        station: running, or to be started by the caller.
        page: record, labels and model.
        access: who may do what.
        hosts: names that this machine may be called by.
        secure: served over TLS.

    Returns:
        The app, and what tells its viewers what goes on: close it before the server waits for their streams to end.
    """
    broadcast: Broadcast[Live] = Broadcast(station.wait, Teller(page))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        broadcast.start()
        yield
        broadcast.close()
        broadcast.join()

    # No route of FastAPI's own: its documentation pages load scripts from elsewhere.
    app = FastAPI(title="edgeall rig", version=__version__, lifespan=lifespan, openapi_url=None)
    app.include_router(live_routes(page, station, access, broadcast))
    app.include_router(slides_routes(page))
    _add_login(app, page, access)
    _add_static(app)
    _add_errors(app, page)
    app.add_middleware(Guard, access=access, hosts=hosts, secure=secure)
    return app, broadcast


def _add_login(app: FastAPI, page: Page, access: Access) -> None:
    @app.get("/login", response_class=HTMLResponse)
    def login_form(request: Request) -> Response:
        """Name and password."""
        if request.state.user is not None:
            return RedirectResponse("/", 303)
        return page.html(request, "login.html", failure="")

    @app.post("/login", response_class=HTMLResponse)
    def log_in(
        request: Request,
        name: Annotated[str, Form(max_length=64)],
        password: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
    ) -> Response:
        """Begin a session under a cookie that nobody has seen before."""
        if access.open:
            return RedirectResponse("/", 303)
        address = request.client.host if request.client else "unknown"
        try:
            token = access.log_in(name, password, address)
        except TooManyFailures as error:
            answer = page.html(request, "login.html", 429, failure=error.message)
            answer.headers["Retry-After"] = str(int(error.wait_s) + 1)
            return answer
        except UsageError as error:
            return page.html(request, "login.html", 403, failure=error.message)
        request.state.new_token = token
        return RedirectResponse("/", 303)

    @app.post("/logout")
    def log_out(request: Request) -> RedirectResponse:
        """End it; the cookie is worth nothing any more."""
        access.log_out(request.state.token)
        return RedirectResponse("/login", 303)


def _add_static(app: FastAPI) -> None:
    """Style and scripts, read once: a name from a browser is looked up here and never in a folder."""
    folder = Path(__file__).with_name("static")
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}

    @app.get("/static/{name}")
    async def static(name: Annotated[str, InPath(pattern="^[a-z0-9.-]{1,64}$")]) -> Response:
        """A style, a script or a drawing of the page."""
        if name not in files:
            raise Missing("there is no such file")
        headers = {"Cache-Control": "private, max-age=60"}
        return Response(files[name], media_type=TYPES[name.rpartition(".")[2]], headers=headers)


def _add_errors(app: FastAPI, page: Page) -> None:
    def message(request: Request, status: int, title: str, text: str, hint: str = "") -> HTMLResponse:
        back = "/" if request.state.user is not None else "/login"
        return page.html(request, "message.html", status, title=title, message=text, hint=hint, back=back)

    @app.exception_handler(EdgeallError)
    def ours(request: Request, error: EdgeallError) -> HTMLResponse:
        status = STATUS.get(type(error), 500)
        if type(error) is RecordError:  # most often an address of something that isn't there
            status = 404 if request.method == "GET" else 409
        return message(
            request, status, "That can't be done" if status != 404 else "Not found", error.message, error.hint
        )

    @app.exception_handler(OSError)
    def disk(request: Request, error: OSError) -> HTMLResponse:
        reason = error.strerror or str(error)
        text = f"{error.filename}: {reason}" if error.filename else reason
        return message(request, 500, "That can't be done", text, "see the health page: is a disk full or away?")

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> HTMLResponse:
        fields = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
        return message(request, 400, "That can't be done", f"what was sent makes no sense: {fields}")

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> HTMLResponse:
        title = "Not found" if error.status_code == 404 else "That can't be done"
        return message(request, error.status_code, title, str(error.detail))
