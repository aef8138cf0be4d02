"""The address of the page for a phone, as a QR code."""

from __future__ import annotations

import io
import ipaddress

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from .address import own_addresses
from .context import Context, Rig
from .errors import NotFoundError

routes = APIRouter()


@routes.get("/phone", response_class=HTMLResponse)
def phone(request: Request, rig: Rig) -> HTMLResponse:
    """How to open the page on a phone."""
    reach = rig.reach
    return rig.page.html(request, "phone.html", reach=reach, addresses=_addresses(request, rig))


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


def _addresses(request: Request, rig: Context) -> list[str]:
    if rig.reach is None:
        return []
    port = request.scope["server"][1]
    hosts = reachable(rig.reach.host, own_addresses())
    return [f"https://{f'[{host}]' if ':' in host else host}:{port}/" for host in hosts]
