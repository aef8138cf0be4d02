"""The pages' own errors, and how each error becomes an HTTP status and a message page."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from ...edge_runtime.errors import EdgeallError, UsageError
from ..language import N_, gettext, message
from ..record.chain import NoSuchRowError, RecordError, RecordFullError, RecordGoneError
from ..snapshot import StationError
from .access import TooManyFailures
from .context import Context


class ExportBusyError(EdgeallError):
    """Another export is being made: only one at a time, so that exports cannot fill the disk together."""


class NotFoundError(EdgeallError):
    """There is no such slide, frame or image."""


class TooManyViewersError(EdgeallError):
    """The maximum number of live views is open."""


STATUS: dict[type[EdgeallError], int] = {
    NotFoundError: 404,
    UsageError: 400,
    StationError: 409,
    NoSuchRowError: 404,
    RecordError: 409,
    RecordGoneError: 503,
    RecordFullError: 507,
    ExportBusyError: 429,
    TooManyFailures: 429,
    TooManyViewersError: 429,
}
"""The HTTP status of an error that the user can resolve. Every other `EdgeallError` is a 500."""
FAILED, NOT_FOUND = N_("Request failed"), N_("Not found")
DETAILS = (N_("Not Found"), N_("Method Not Allowed"))
"""Of Starlette's own errors, marked for translation."""


def add_error_pages(app: FastAPI) -> None:
    """Register the handlers of this module."""
    for kind, handler in (
        (EdgeallError, _edgeall_error),
        (OSError, _os_error),
        (RequestValidationError, _invalid_request),
        (HTTPException, _http_error),
    ):
        app.exception_handler(kind)(handler)


def _message(request: Request, status: int, text: str, hint: str = "") -> HTMLResponse:
    context: Context = request.app.state.context
    title = gettext(NOT_FOUND if status == 404 else FAILED)
    back = "/" if request.state.user is not None else "/login"
    return context.page.html(request, "message.html", status, title=title, message=text, hint=hint, back=back)


def _edgeall_error(request: Request, error: EdgeallError) -> HTMLResponse:
    status = STATUS.get(type(error), 500)
    if type(error) is RecordError and request.method == "GET":  # the record cannot be read
        status = 503
    return _message(request, status, error.message, error.hint)


def _os_error(request: Request, error: OSError) -> HTMLResponse:
    reason = error.strerror or str(error)
    text = f"{error.filename}: {reason}" if error.filename else reason
    return _message(request, 500, text, N_("see the health page: is a disk full or disconnected?"))


def _invalid_request(request: Request, error: RequestValidationError) -> HTMLResponse:
    fields = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
    return _message(request, 400, message("invalid values: {fields}", fields=fields))


def _http_error(request: Request, error: HTTPException) -> HTMLResponse:
    return _message(request, error.status_code, str(error.detail))
