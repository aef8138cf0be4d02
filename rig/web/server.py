"""The web server of the rig: uvicorn, which ends live views, idle connections and finished replays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from ..snapshot import Live
from .broadcast import Broadcast
from .connections import Listener

_POLL_S = 0.2


class RigServer(uvicorn.Server):
    """A server that ends the viewers' streams before it waits for connections to close.

    Args:
        config: of uvicorn.
        broadcast: of the live view.
        listener: counts the connections.
        ready: called once the server accepts connections.
        done: the server stops once this is true.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        broadcast: Broadcast[Live],
        listener: Listener,
        ready: Callable[[], None],
        done: Callable[[], bool],
    ) -> None:
        super().__init__(config)
        self._broadcast, self._listener, self._ready, self._done = broadcast, listener, ready, done
        self._watches: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        self._watches = [asyncio.create_task(self._listener.watch()), asyncio.create_task(self._stop_when_done())]
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        for watch in self._watches:
            watch.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        self._broadcast.close()
        super().handle_exit(sig, frame)

    async def _stop_when_done(self) -> None:
        while not self._done():
            await asyncio.sleep(_POLL_S)
        self._broadcast.close()
        self.should_exit = True
