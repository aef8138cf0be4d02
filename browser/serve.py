"""Serves an app to the browsers of this machine, for trying it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..edge_runtime.errors import EdgeallError
from .build import HEADERS

HOST = "127.0.0.1"
"""Loopback only: browsers accept it without HTTPS, and no other computer can connect."""

TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
"""By suffix: the system's own table may know them by other names, or not at all."""


def content_type(name: str) -> str:
    """The type of a file of an app."""
    return TYPES.get(Path(name).suffix, "application/octet-stream")


def serve(folder: Path, port: int, note: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        folder: of the app.
        port: 0 takes a free one.
        note: called with the address.

    Raises:
        EdgeallError: the port is in use.
    """
    with server(folder, port) as running:
        note(f"the page: http://{HOST}:{running.server_port}/")
        running.serve_forever()


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server that listens but does not answer yet. Raises EdgeallError as `serve` does."""
    try:
        return _Server((HOST, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise EdgeallError(f"--port {port}: can't listen ({error.strerror})", hint="choose another --port") from error


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection early is not a server error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def guess_type(self, path: Any) -> str:
        return content_type(str(path))

    def end_headers(self) -> None:
        for name, value in {**HEADERS, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass
