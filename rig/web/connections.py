"""Limits on the connections of the page: their number, in all and for each address, and the time for a request.

Without them, clients that send half a request, read nothing, or never finish the TLS handshake use up the files that
the process may open, and with them the record's.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 320
"""Open connections in all. A process may usually open 1024 files."""
MAX_PER_ADDRESS = 160
"""Open connections of one address. The most live views, with six connections for each browser, need 144."""
REQUEST_S = 20.0
"""Time for the TLS handshake and a complete request, and for a client that does not read its response."""
SWEEP_S = 1.0


class Connection(socket.socket):
    """An accepted connection. The listener counts it until it is closed."""

    listener: Listener | None = None
    address = ""
    busy = False
    """A complete request is being answered."""
    since = 0.0
    """When it last became idle, or stopped to read its response; monotonic, seconds."""

    def close(self) -> None:
        """Close it and take it off the listener's count."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.forget(self)
        super().close()

    def end(self) -> None:
        """Let the event loop close it: its file must not be reused while the loop still watches it."""
        with suppress(OSError):  # the other side was faster
            self.shutdown(socket.SHUT_RDWR)


class Listener(socket.socket):
    """A listening socket with limits. A new connection beyond one takes the place of the longest idle one.

    Beyond `MAX_CONNECTIONS` that is one of the address with the most connections: a person with few keeps them.
    """

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        self.setblocking(False)
        self._open: dict[Connection, None] = {}
        self._of: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection within the limits. Raises BlockingIOError if there is none."""
        while True:
            accepted, address = super().accept()
            connection = Connection(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
            connection.address, connection.since = str(address[0]), time.monotonic()
            if not self._make_room(connection.address):
                connection.close()
                continue
            connection.listener = self
            self._open[connection] = None
            self._of[connection.address] += 1
            return connection, address

    def forget(self, connection: Connection) -> None:
        """Take a closed connection off the count."""
        if connection in self._open:
            del self._open[connection]
            self._of[connection.address] -= 1
            self._of += Counter()  # removes addresses without a connection

    def sweep(self) -> None:
        """End connections that have been idle for longer than `REQUEST_S` seconds."""
        limit = time.monotonic() - REQUEST_S
        for connection in list(self._open):
            if not connection.busy and connection.since < limit:
                connection.end()

    def _make_room(self, address: str) -> bool:
        if self._of[address] >= MAX_PER_ADDRESS:
            return self._end_idle(each for each in self._open if each.address == address)
        return len(self._open) < MAX_CONNECTIONS or self._end_idle(iter(self._open))

    def _end_idle(self, candidates: Iterator[Connection]) -> bool:
        """End the longest idle connection. It leaves the count at once; the loop closes its file."""
        idle = min(
            (each for each in candidates if not each.busy),
            key=lambda each: (-self._of[each.address], each.since),
            default=None,
        )
        if idle is None:
            return False
        self.forget(idle)
        idle.end()
        return True

    async def watch(self) -> None:
        """Call `sweep` every `SWEEP_S` seconds, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol; tells its connection when it is busy with a complete request."""

    _connection: Connection | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._connection = connection_of(transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        cycle = self.cycle
        self._set_busy(cycle is not None and not cycle.more_body and not cycle.response_complete)

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        self._set_busy(False)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._set_busy(False)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._set_busy(self.cycle is not None and not self.cycle.response_complete)

    def _set_busy(self, busy: bool) -> None:
        connection = self._connection
        if connection is not None and connection.busy != busy:
            connection.busy = busy
            connection.since = time.monotonic()


def connection_of(transport: asyncio.BaseTransport) -> Connection | None:
    """The accepted connection under a transport."""
    found: Any = transport.get_extra_info("socket")
    found = getattr(found, "_sock", found)  # asyncio hands out a `TransportSocket`
    return found if isinstance(found, Connection) else None
