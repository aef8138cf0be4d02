"""Runs several interpreters of one model in parallel, and decodes the next images meanwhile.

Threads are enough: Pillow's decoding and resizing and the interpreter's invoke release the GIL.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .network import A, Network
from .threads import Threads

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

    A context manager: at the end it completes the images in progress and starts no others.

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
        self._threads = Threads(layout.interpreters + (layout.threads > 1))

    def __enter__(self) -> Pool[A]:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.__exit__()

    def map(self, load: Callable[[T], NDArray[np.uint8]], items: Iterable[T]) -> Iterator[tuple[T, A | ImageError]]:
        """Run the model on every item, in order: its answer, or the error that prevented it.

        Holds only a few items in memory at a time.

        Args:
            load: returns the preprocessed pixels of an item; called in a thread of the pool; may raise ImageError.
            items: consumed as needed.

        Raises:
            BundleError: the interpreter fails.
        """
        return self._threads.map(lambda item: (item, self._one(load, item)), items)

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
