"""The address of the page for a phone, as a QR code, and the app that runs the rig's model in the phone's browser."""

from __future__ import annotations

import io
import ipaddress
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from ...browser.build import HEADERS
from ...browser.serve import content_type
from ...edge_runtime.errors import EdgeallError
from .address import own_addresses
from .context import Context, Rig
from .errors import NotFoundError

APP_HEADERS = HEADERS | {"Permissions-Policy": "camera=(self), microphone=(), geolocation=()"}
"""In place of those of `edgeall.rig.web.guard`: the app compiles WebAssembly, runs threads and uses the camera."""
_BLOCK_BYTES = 1 << 16

routes = APIRouter()


@routes.get("/phone", response_class=HTMLResponse)
def phone(request: Request, rig: Rig) -> HTMLResponse:
    """How to open the page on a phone, and to run the model there."""
    fault = None
    try:
        rig.phone.check(rig.lessons.in_use.model)
    except EdgeallError as error:
        fault = error
    return rig.page.html(
        request,
        "phone.html",
        reach=rig.reach,
        addresses=_addresses(request, rig),
        fault=fault,
        model=rig.page.model,
        digest=rig.page.model_sha256,
        unit=rig.page.unit,
    )


@routes.get("/phone/app/{file:path}")
def app(rig: Rig, file: Annotated[str, InPath(max_length=80)]) -> StreamingResponse:
    """A file of the app of the model that the rig uses now."""
    try:
        files = rig.phone.files(rig.lessons.in_use.model)
    except EdgeallError as error:
        raise NotFoundError(error.message, hint=error.hint) from error
    name = file or "index.html"
    if name not in files:
        raise NotFoundError("there is no such file")
    content = files[name]
    headers = APP_HEADERS | {"Content-Length": str(len(content)), "Content-Type": content_type(name)}
    return StreamingResponse(_blocks(content), headers=headers)


@routes.get("/phone.svg")
def code(request: Request, rig: Rig) -> Response:
    """The QR code of the first address."""
    found = _addresses(request, rig)
    if not found:
        raise NotFoundError("there is no such image")
    return Response(qr_code(found[0]), media_type="image/svg+xml")


def qr_code(text: str) -> bytes:
    """A QR code as SVG, dark on light in any colour scheme, with the margin that readers need."""
    import segno

    file = io.BytesIO()
    segno.make(text, error="m", micro=False).save(file, kind="svg", scale=8, border=4, dark="#000", light="#fff")
    return file.getvalue()


def reachable(host: str, own: set[str]) -> list[str]:
    """The addresses of this machine at which a page that listens on ``host`` can be reached, private IPv4 first."""
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a host name
        anywhere = False
    if not anywhere:
        return [host]
    found = [ipaddress.ip_address(each) for each in own]
    if ipaddress.ip_address(host).version == 4:
        found = [each for each in found if each.version == 4]
    return [str(each) for each in sorted(found, key=lambda each: (each.version, not each.is_private, str(each)))]


async def _blocks(content: bytes) -> AsyncIterator[bytes]:
    """In blocks, a slow phone reads all the time: a connection that takes nothing for long is ended."""
    for begin in range(0, len(content), _BLOCK_BYTES):
        yield content[begin : begin + _BLOCK_BYTES]


def _addresses(request: Request, rig: Context) -> list[str]:
    if rig.reach is None:
        return []
    port = request.scope["server"][1]
    hosts = reachable(rig.reach.host, own_addresses())
    return [f"https://{f'[{host}]' if ':' in host else host}:{port}/" for host in hosts]
