"""Runs several interpreters of one model in parallel, and decodes the next images meanwhile.

Threads are enough: Pillow's decoding and resizing and the interpreter's invoke release the GIL.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .network import A, Network

T = TypeVar("T")

WORTH_MEASURING = 256
"""Number of images from which a measurement of one second pays off."""


@dataclass(frozen=True)
class Layout:
    """How a model uses the cores.

    Attributes:
        interpreters: number of interpreters, each with its own buffers.
        threads: number of threads of each interpreter.
    """

    interpreters: int
    threads: int

    def __str__(self) -> str:
        return f"{self.interpreters} x {self.threads}"


class Pool(Generic[A]):
    """Interpreters of one model, and the threads that decode, resize and classify images with them.

    One thread per interpreter, and one more if an interpreter has several threads, which would otherwise wait for the
    decoding. More threads than cores are slower (benchmarks/results/throughput.md).

    A context manager: at the end it completes the images in progress and starts no others. Threads and caller share
    nothing but `queue.SimpleQueue`: Ctrl-C can interrupt `concurrent.futures` while the caller holds the lock of a
    future, and the thread that waits for this lock then never ends.

    Args:
        network: if it has as many threads as the layout, the pool uses it; do not use it elsewhere meanwhile.
        layout: number of interpreters and threads.
    """

    def __init__(self, network: Network[A], layout: Layout) -> None:
        self.layout = layout
        self._idle: queue.SimpleQueue[Network[A]] = queue.SimpleQueue()
        own = network.threads == layout.threads
        for index in range(layout.interpreters):
            self._idle.put(network if own and index == 0 else network.clone(layout.threads))
        count = layout.interpreters + (layout.threads > 1)
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ended = False
        self._threads = [threading.Thread(target=self._work, name=f"edgeall_{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Pool[A]:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for _thread in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def map(self, load: Callable[[T], NDArray[np.uint8]], items: Iterable[T]) -> Iterator[tuple[T, A | ImageError]]:
        """Run the model on every item, in order: its answer, or the error that prevented it.

        Holds only a few items in memory at a time.

        Args:
            load: returns the preprocessed pixels of an item; called in a thread of the pool; may raise ImageError.
            items: consumed as needed.

        Raises:
            BundleError: the interpreter fails.
        """
        window: deque[tuple[T, queue.SimpleQueue[A | Exception]]] = deque()
        for item in items:
            window.append((item, self._begin(load, item)))
            while window and (len(window) >= 2 * len(self._threads) or not window[0][1].empty()):
                yield self._finished(*window.popleft())
        while window:
            yield self._finished(*window.popleft())

    def _begin(self, load: Callable[[T], NDArray[np.uint8]], item: T) -> queue.SimpleQueue[A | Exception]:
        """Give an item to the threads. The queue will hold its answer, or what was raised."""
        answer: queue.SimpleQueue[A | Exception] = queue.SimpleQueue()

        def task() -> None:
            try:
                answer.put(self._one(load, item))
            except Exception as error:  # raised again by `map`
                answer.put(error)

        self._tasks.put(task)
        return answer

    @staticmethod
    def _finished(item: T, answer: queue.SimpleQueue[A | Exception]) -> tuple[T, A | ImageError]:
        value = answer.get()
        if isinstance(value, Exception) and not isinstance(value, ImageError):
            raise value
        return item, value

    def _work(self) -> None:
        """What a thread does: one task after another, until the pool ends."""
        while (task := self._tasks.get()) is not None:
            if not self._ended:
                task()

    def _one(self, load: Callable[[T], NDArray[np.uint8]], item: T) -> A | ImageError:
        try:
            pixels = load(item)
        except ImageError as error:
            return error
        network = self._idle.get()
        try:
            return network.infer(pixels)
        finally:
            self._idle.put(network)
