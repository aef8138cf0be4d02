"""Several interpreters of one model side by side: while some images are in the model, the next are read and resized.

Pillow's decoding and resizing and the interpreter's invoke all release Python's lock, so threads are enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import platform
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import interpreter
from .cache import cache_dir
from .classifier import MAX_DEFAULT_THREADS, Answer, Classifier, probabilities_of
from .device import cores, memory_bytes
from .errors import EdgeallError, ImageError
from .files import write_text
from .preprocess import load_input

T = TypeVar("T")
Outcome = Answer | ImageError
"""What the model says of one image, or why nothing."""

WORTH_MEASURING = 256
"""Images from which a second of measuring pays; fewer are spread as is best for most models and devices."""
_ROUNDS = 2
_ROUND_S = 0.2
_CLEARLY = 1.1
"""What is remembered must not be what another program made of one measurement."""
_MEMORY_SHARE = 0.25
"""Of the device's memory, for all interpreters: each packs the weights once more, in about twice the file's bytes."""


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
            self._idle.put(classifier if own and index == 0 else twin(classifier, layout.threads))
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
            return classifier.answer(pixels)
        finally:
            self._idle.put(classifier)


def choose(
    classifier: Classifier,
    images: Sequence[str],
    *,
    interpreters: int | None = None,
    threads: int | None = None,
    note: Callable[[str], None],
    memory: Path | None = None,
) -> Layout:
    """How to spread this model over this device.

    What is asked for; else what was measured here before; else, of `WORTH_MEASURING` images or more, what is
    measured now, and remembered; else one interpreter for each core, or each image where there are fewer.

    Args:
        classifier: as `Classifier.open` gives it.
        images: the first files of those to be classified.
        interpreters: None leaves it open; where only ``threads`` is given, as many as there are cores for.
        threads: None leaves it open, the other way round.
        note: told what was measured, in one line.
        memory: the file of what was measured.  None takes `default_memory`.
    """
    usable = cores()
    if interpreters is not None or threads is not None:
        threads = threads or min(MAX_DEFAULT_THREADS, max(1, usable // (interpreters or 1)))
        return Layout(interpreters or max(1, usable // threads), threads)
    known = fitting(classifier, layouts(usable))
    memory = default_memory() if memory is None else memory
    key = _key(classifier)
    best = remembered = _recall(memory, key)
    if best is None or best not in known:
        best = known[0]
    if best == remembered or len(known) == 1 or len(images) < WORTH_MEASURING:
        return replace(best, interpreters=max(1, min(best.interpreters, len(images))))
    rates = dict.fromkeys(known, 0.0)
    for _, layout in itertools.product(range(_ROUNDS), known):
        rates[layout] = max(rates[layout], _measure(classifier, layout, images))
    fastest = max(rates, key=rates.__getitem__)
    if rates[fastest] > _CLEARLY * rates[best]:
        best = fastest
    if rates[best] > 0:  # none of the images can be read otherwise
        _remember(memory, key, best)
        shown = ", ".join(f"{layout}: {rate:.0f}" for layout, rate in rates.items())
        note(f"images/s by interpreters x threads: {shown}; {best} is remembered (--workers and --threads override it)")
    return best


def layouts(usable: int) -> tuple[Layout, ...]:
    """Every way to spread ``usable`` cores evenly; one interpreter for each comes first."""
    return tuple(
        Layout(usable // threads, threads)
        for threads in range(1, min(usable, MAX_DEFAULT_THREADS) + 1)
        if usable % threads == 0
    )


def fitting(classifier: Classifier, known: Sequence[Layout]) -> Sequence[Layout]:
    """Those that the device's memory is enough for; at least the one with the fewest interpreters."""
    assert classifier.bundle is not None
    most = _MEMORY_SHARE * (memory_bytes() or float("inf"))
    needed = 2 * len(classifier.bundle.flatbuffer)
    return [layout for layout in known if layout.interpreters * needed <= most] or known[-1:]


def twin(classifier: Classifier, threads: int) -> Classifier:
    """The same model again, in an interpreter of its own; the file's bytes are shared."""
    assert classifier.bundle is not None, "only a classifier opened from a file has a twin"
    bundle, name = classifier.bundle, classifier.model.name
    answer = probabilities_of(bundle.graph, name) if bundle.manifest else None
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


def throughput(
    pool: Pool, load: Callable[[T], NDArray[np.uint8]], items: Sequence[T], seconds: float, min_images: int
) -> tuple[int, float]:
    """Classify ``items``, over and over, for so long and so many at least.

    Returns:
        How many were classified (those that can't be read don't count), and the seconds it took.
    """
    begin = time.perf_counter()

    def supply() -> Iterator[T]:
        for number, item in enumerate(itertools.cycle(items)):
            if number >= min_images and time.perf_counter() - begin >= seconds:
                return
            yield item

    done = sum(not isinstance(outcome, ImageError) for _, outcome in pool.map(load, supply()))
    return done, time.perf_counter() - begin


def default_memory() -> Path:
    """``layouts.json`` in the user's `cache_dir`."""
    return cache_dir() / "layouts.json"


def _measure(classifier: Classifier, layout: Layout, images: Sequence[str]) -> float:
    """Images/s."""

    def load(image: str) -> NDArray[np.uint8]:
        return load_input(image, classifier.input)

    with Pool(classifier, layout) as pool:
        throughput(pool, load, images, 0, 4 * layout.interpreters)  # first runs pack weights
        done, seconds = throughput(pool, load, images, _ROUND_S, 4 * layout.interpreters)
    return done / seconds


def _key(classifier: Classifier) -> str:
    """Says which model it is, which interpreter and which device. Not by `describe_device`: finding a package's version
    takes 1.5 MB of memory, a file's time takes none.
    """
    assert classifier.bundle is not None
    facts = [platform.node(), cores(), interpreter.installation()]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(classifier.bundle.flatbuffer)  # by itself: joined to the rest it would be copied
    return digest.hexdigest()


def _recall(memory: Path, key: str) -> Layout | None:
    try:
        entry = json.loads(memory.read_text(encoding="utf-8"))[key]
        return Layout(entry["interpreters"], entry["threads"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or nothing we wrote
        return None


def _remember(memory: Path, key: str, layout: Layout) -> None:
    """A device that can't keep it (a read-only disk) measures again the next time."""
    try:
        entries = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    if not isinstance(entries, dict):
        entries = {}
    with contextlib.suppress(OSError, EdgeallError):
        write_text(memory, json.dumps({**entries, key: asdict(layout)}))
