"""Log-in and log-out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ...edge_runtime.errors import UsageError
from .access import LONGEST_PASSWORD, TooManyFailures
from .context import Rig

routes = APIRouter()


@routes.get("/login", response_class=HTMLResponse)
def login_form(request: Request, rig: Rig) -> Response:
    """The form for name and password."""
    if request.state.user is not None:
        return RedirectResponse("/", 303)
    return rig.page.html(request, "login.html", failure="")


@routes.post("/login", response_class=HTMLResponse)
def log_in(
    request: Request,
    rig: Rig,
    name: Annotated[str, Form(max_length=64)],
    password: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
) -> Response:
    """Start a session with a new cookie."""
    if rig.access.open:
        return RedirectResponse("/", 303)
    address = request.client.host if request.client else "unknown"
    try:
        token = rig.access.log_in(name, password, address)
    except TooManyFailures as error:
        answer = rig.page.html(request, "login.html", 429, failure=error.message)
        answer.headers["Retry-After"] = str(int(error.wait_s) + 1)
        return answer
    except UsageError as error:
        return rig.page.html(request, "login.html", 403, failure=error.message)
    request.state.new_token = token
    return RedirectResponse("/", 303)


@routes.post("/logout")
def log_out(request: Request, rig: Rig) -> RedirectResponse:
    """End the session and invalidate its cookie."""
    rig.access.log_out(request.state.token)
    return RedirectResponse("/login", 303)
