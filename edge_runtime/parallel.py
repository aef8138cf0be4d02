"""Several interpreters of one model side by side: while some images are in the model, the next are read and resized.

Pillow's decoding and resizing and the interpreter's invoke all release Python's lock, so threads are enough.
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

from . import interpreter
from .classifier import Classifier, Inference, probabilities_index
from .errors import ImageError

T = TypeVar("T")
Outcome = Inference | ImageError
"""What the model says of one image, or why nothing."""

WORTH_MEASURING = 256
"""Images from which a second of measuring pays; fewer are spread as is best for most models and devices."""


@dataclass(frozen=True)
class Layout:
    """How a model is spread over the cores.

    Attributes:
        interpreters: of the same model, each with buffers of its own.
        threads: of each one's kernels.
    """

    interpreters: int
    threads: int

    def __str__(self) -> str:
        return f"{self.interpreters} x {self.threads}"


class Pool:
    """Interpreters of one model and the threads that feed them: one for each, which reads, resizes and classifies image
    after image, and one more where an interpreter has several threads, which would wait for it.

    No more than that: threads beyond the cores take the cores from each other half-way through an image
    (benchmarks/results/throughput.md).

    A context manager: leaving it lets the images under way finish and starts no other.

    Args:
        classifier: used by the pool alone as long as that is open, where its threads are the layout's.
        layout: how many of them, and of how many threads.
    """

    def __init__(self, classifier: Classifier, layout: Layout) -> None:
        self.layout = layout
        self._idle: queue.SimpleQueue[Classifier] = queue.SimpleQueue()
        own = classifier.threads == layout.threads
        for index in range(layout.interpreters):
            self._idle.put(classifier if own and index == 0 else clone(classifier, layout.threads))
        self._workers = layout.interpreters + (layout.threads > 1)
        self._executor = ThreadPoolExecutor(self._workers, "edgeall")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def map(self, load: Callable[[T], NDArray[np.uint8]], items: Iterable[T]) -> Iterator[tuple[T, Outcome]]:
        """Classify every item, in order; a few are under way at a time, however many there are.

        Args:
            load: makes preprocessed pixels of an item, in a thread of the pool; may raise ImageError.
            items: taken as they are needed.

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


def clone(classifier: Classifier, threads: int) -> Classifier:
    """The same model again, in an interpreter of its own; the file's bytes are shared."""
    assert classifier.bundle is not None, "only a classifier opened from a file has a twin"
    bundle, name = classifier.bundle, classifier.model.name
    answer = probabilities_index(bundle.graph, name) if bundle.manifest else None
    shape = classifier.model.input.shape if bundle.manifest is None else None
    model = interpreter.load(bundle.flatbuffer, threads, name, answer, shape)
    return Classifier(
        model,
        classifier.labels,
        classifier.input,
        threads=threads,
        logits=classifier.logits,
        sigmoid=classifier.sigmoid,
        bundle=classifier.bundle,
    )
