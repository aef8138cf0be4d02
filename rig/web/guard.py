"""Checks every request before a page's code runs, and adds the security headers to every response.

Everything that is not listed here is protected: a new route requires a log-in, and the role ``operate`` if it changes
state.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs

from ..language import LANGUAGES, N_, accepted, current, message, use
from ..language import gettext as _
from .access import Access

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 64_000
"""Maximum size of a form. There are no uploads."""
MAX_FIELDS = 100
FORM = "application/x-www-form-urlencoded"
PUBLIC = re.compile(r"/login|/language|/static/[a-z0-9.-]+")
"""Paths without a log-in."""
LANGUAGE_COOKIE = "edgeall-language"
USE = N_("research use only, not a diagnosis")
"""`edgeall.edge_runtime.manifest.RESEARCH_USE`, marked for translation."""
VIEWERS = {"/logout"}
"""State changes that do not require ``operate``."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware. Sets ``user``, ``token`` and ``csrf`` in ``scope["state"]``.

    Args:
        app: the protected app.
        access: users and their roles.
        hosts: host names of this machine, see `known_host`.
        secure: served over TLS; the cookie is then sent over TLS only.
    """

    def __init__(self, app: App, *, access: Access, hosts: frozenset[str], secure: bool) -> None:
        self._app = app
        self._access = access
        self._hosts = hosts
        self._secure = secure
        self.cookie = "__Host-edgeall" if secure else "edgeall"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        token = _cookie(headers.get("cookie", ""), self.cookie)
        has_token = Access.is_token(token)
        if not has_token or token is None:
            token = Access.new_token()
        chosen = _cookie(headers.get("cookie", ""), LANGUAGE_COOKIE)
        use(chosen if chosen in LANGUAGES else accepted(headers.get("accept-language", "")))
        state = scope.setdefault("state", {})
        state["new_token"] = None if has_token else token

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers(message["headers"], state["new_token"])]
            await send(message)

        if not known_host(headers.get("host", ""), self._hosts):
            await _refuse(answer, 421, N_("unknown host name: use the address that the rig printed"))
            return
        path, changes = scope["path"], scope["method"] not in ("GET", "HEAD")
        user = self._access.user_of(token)  # reads the users file if it has changed: a few hundred bytes
        state["user"], state["token"], state["csrf"] = user, token, self._access.csrf(token)
        if changes:
            body = await _body(headers, receive)
            if isinstance(body, int):
                await _refuse(answer, body, N_("this size or type of form is not accepted"))
                return
            if not self._access.csrf_ok(token, headers.get("x-csrf-token") or _field(body, "csrf")):
                await _refuse(answer, 403, N_("this form has expired: reload the page"))
                return
            receive = _replayed(body, receive)
        if not PUBLIC.fullmatch(path):
            if user is None:
                if changes or "text/html" not in headers.get("accept", ""):
                    await _refuse(answer, 401, N_("log in first"))
                else:
                    await answer({"type": "http.response.start", "status": 303, "headers": [(b"location", b"/login")]})
                    await answer({"type": "http.response.body"})
                return
            if changes and path not in VIEWERS and not user.may("operate"):
                await _refuse(answer, 403, message("{name} has read-only access", name=user.name))
                return
        await self._app(scope, receive, answer)

    def _headers(self, given: list[tuple[bytes, bytes]], new_token: str | None) -> list[tuple[bytes, bytes]]:
        names = {name.lower() for name, _ in given}
        values = dict(HEADERS)
        values["cache-control"] = "no-store"
        if self._secure:
            values["strict-transport-security"] = "max-age=31536000"
        found = [(name.encode(), value.encode()) for name, value in values.items() if name.encode() not in names]
        if new_token is not None:
            # Not Strict: a link from another site would arrive without the cookie, get a new one and log this browser
            # out. Such a link can only read: a state change also requires the form's CSRF token.
            cookie = f"{self.cookie}={new_token}; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" * self._secure)
            found.append((b"set-cookie", cookie.encode()))
        return found


def local_names() -> frozenset[str]:
    """The host names of this machine on its network."""
    name = socket.gethostname().lower()
    return frozenset({"localhost", name, name.partition(".")[0], f"{name.partition('.')[0]}.local"})


def known_host(header: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this machine, and not a foreign name that resolves to it (DNS rebinding).

    An IP address is always accepted: it cannot be rebound.
    """
    if header.startswith("["):
        host, bracket, port = header[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") else ("0" if not port and bracket else "no port")
    else:
        host, _, port = header.partition(":")
        port = port or "0"
    if not (port.isascii() and port.isdigit()):
        return False
    if host.lower().rstrip(".") in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cookie(header: str, name: str) -> str | None:
    """The value of a cookie. `http.cookies` is not used: it drops everything after another program's invalid cookie."""
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return next((value for key, _, value in pairs if key == name), None)


async def _body(headers: dict[str, str], receive: Receive) -> bytes | int:
    """The body of the request, or the HTTP status to refuse it with."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return 400
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return 413
        if not message.get("more_body", False):
            break
    if body and headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return 415
    return bytes(body)


def _field(body: bytes, name: str) -> str | None:
    try:
        return parse_qs(body.decode("latin-1"), max_num_fields=MAX_FIELDS).get(name, [""])[0]
    except ValueError:  # more fields than any form of the page has
        return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(send: Send, status: int, reason: str) -> None:
    text = (
        f'<!DOCTYPE html><html lang="{current()}"><meta charset="utf-8"><title>{_("Refused")} · edgeall rig</title>'
        f'<link rel="stylesheet" href="/static/rig.css"><main class="message"><h1>{escape(_(reason))}</h1>'
        f'<p><a href="/">{_("Back to the rig")}</a></p><p>{escape(_(USE))}</p></main></html>'
    ).encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
