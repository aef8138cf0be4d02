"""Runs several interpreters of one model in parallel, and decodes the next images meanwhile.

Threads are enough: Pillow's decoding and resizing and the interpreter's invoke release the GIL.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .classifier import Classifier, Inference
from .errors import ImageError

T = TypeVar("T")
Outcome = Inference | ImageError
"""The result for one image, or the error that prevented it."""

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


class Pool:
    """Interpreters of one model, and the threads that decode, resize and classify images with them.

    One thread per interpreter, and one more if an interpreter has several threads, which would otherwise wait for the
    decoding. More threads than cores are slower (benchmarks/results/throughput.md).

    A context manager: at the end it completes the images in progress and starts no others.

    Args:
        classifier: if it has as many threads as the layout, the pool uses it; do not use it elsewhere meanwhile.
        layout: number of interpreters and threads.
    """

    def __init__(self, classifier: Classifier, layout: Layout) -> None:
        self.layout = layout
        self._idle: queue.SimpleQueue[Classifier] = queue.SimpleQueue()
        own = classifier.threads == layout.threads
        for index in range(layout.interpreters):
            self._idle.put(classifier if own and index == 0 else classifier.clone(layout.threads))
        self._workers = layout.interpreters + (layout.threads > 1)
        self._executor = ThreadPoolExecutor(self._workers, "edgeall")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def map(self, load: Callable[[T], NDArray[np.uint8]], items: Iterable[T]) -> Iterator[tuple[T, Outcome]]:
        """Classify every item, in order. Holds only a few items in memory at a time.

        Args:
            load: returns the preprocessed pixels of an item; called in a thread of the pool; may raise ImageError.
            items: consumed as needed.

        Raises:
            BundleError: the interpreter fails.
        """
        window: deque[tuple[T, Future[Outcome]]] = deque()
        try:
            for item in items:
                window.append((item, self._executor.submit(self._one, load, item)))
                while window and (len(window) >= 2 * self._workers or window[0][1].done()):
                    done, future = window.popleft()
                    yield done, future.result()
            while window:
                done, future = window.popleft()
                yield done, future.result()
        finally:
            for _, future in window:
                future.cancel()

    def _one(self, load: Callable[[T], NDArray[np.uint8]], item: T) -> Outcome:
        try:
            pixels = load(item)
        except ImageError as error:
            return error
        classifier = self._idle.get()
        try:
            return classifier.infer(pixels)
        finally:
            self._idle.put(classifier)
