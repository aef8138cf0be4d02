"""Distributes the station's snapshots from one thread to any number of viewers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from ..language import SOURCE


class _Numbered(Protocol):
    @property
    def number(self) -> int: ...


T = TypeVar("T", bound=_Numbered)

SHORTEST_S = 0.1
"""Minimum time between two pictures on the page; limits the network traffic."""
IDLE_S = 1.0
KEPT = 4
"""Number of recent snapshots kept for viewers that are late."""


class Broadcast(Generic[T]):
    """Encodes each new snapshot of the station once for each language of the viewers, and sends it to them.

    Args:
        wait: ``wait(after, timeout_s)`` returns the newest snapshot once its number is above ``after``, or after the
            timeout.
        text: ``text(snapshot, language)`` encodes a snapshot for the page.
    """

    def __init__(self, wait: Callable[[int, float], T], text: Callable[[T, str], str]) -> None:
        self._wait, self._text = wait, text
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakeup = asyncio.Event()
        self._round = 0
        self._messages: dict[str, str] = {}
        self._languages: Counter[str] = Counter()
        self._kept: OrderedDict[int, T] = OrderedDict()
        self._watched = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self.viewers = 0

    @property
    def closed(self) -> bool:
        """All streams have ended or are ending."""
        return self._closed.is_set()

    def start(self) -> None:
        """Start on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every viewer's stream; may be called from a signal handler."""
        self._closed.set()
        self._watched.set()
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._wake)

    def join(self) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join()

    def enter(self, language: str = SOURCE) -> int:
        """Add a viewer. Call on the event loop. Returns the last round, which may be long ago."""
        self.viewers += 1
        self._languages[language] += 1
        self._watched.set()
        return self._round

    def leave(self, language: str = SOURCE) -> None:
        """Remove a viewer. Call on the event loop. Without viewers nothing is encoded."""
        self.viewers -= 1
        self._languages[language] -= 1
        if not self.viewers and not self.closed:
            self._watched.clear()

    async def newer(self, seen: int, timeout_s: float, language: str = SOURCE) -> tuple[int, str]:
        """The newest round and its text, once there is one after round ``seen`` or the time is over.

        A round that was encoded before the first viewer of a language entered has no text in it: ``seen`` is returned.
        """
        if self._round == seen and not self.closed:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wakeup.wait(), timeout_s)
        if language not in self._messages:
            return seen, ""
        return self._round, self._messages[language]

    def snapshot(self, number: int) -> T | None:
        """A recent snapshot by its number, otherwise the newest; None before the first."""
        kept = self._kept
        if number in kept:
            return kept[number]
        return next(reversed(kept.values()), None)

    def _watch(self) -> None:
        number = -1
        while self._watched.wait() and not self._closed.is_set():
            began = time.monotonic()
            live = self._wait(number, IDLE_S)
            number = live.number
            try:
                languages = [each for each, viewers in list(self._languages.items()) if viewers > 0]
                texts = {language: self._text(live, language) for language in languages}
            except Exception:  # one snapshot fails; viewers wait for the next
                logging.getLogger(__name__).exception("live view: a snapshot cannot be encoded")
                time.sleep(IDLE_S)
                continue
            assert self._loop is not None
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._publish, live, texts)
            time.sleep(max(0.0, SHORTEST_S - (time.monotonic() - began)))

    def _publish(self, live: T, texts: dict[str, str]) -> None:
        self._kept[live.number] = live
        self._kept.move_to_end(live.number)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        self._round, self._messages = self._round + 1, texts
        self._wake()

    def _wake(self) -> None:
        current, self._wakeup = self._wakeup, asyncio.Event()
        current.set()
