"""Chooses the number of interpreters and threads for a model on this device: measures once, remembers the result."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import interpreter
from ..cache import cache_dir
from ..errors import EdgeallError, ImageError
from ..network import MAX_DEFAULT_THREADS, Network, cores
from ..parallel import WORTH_MEASURING, Layout, Pool, T
from ..preprocess import load_input
from .atomic import write_text
from .device import memory_bytes

_ROUNDS = 2
_ROUND_S = 0.2
_CLEARLY = 1.1
"""Factor by which a layout must be faster to replace the default: other programs disturb single measurements."""
_MEMORY_SHARE = 0.25
"""Largest share of the device's memory for all interpreters. Each takes about twice the file size for its weights."""


def choose_layout(
    network: Network[Any],
    images: Sequence[str],
    *,
    interpreters: int | None = None,
    threads: int | None = None,
    note: Callable[[str], None],
    memory: Path | None = None,
) -> Layout:
    """The layout for this model on this device.

    In this order: the given one; the one measured earlier; for `WORTH_MEASURING` images or more, the one measured and
    remembered now; one interpreter per core, but not more than images.

    Args:
        network: opened from a file.
        images: the first files to classify.
        interpreters: None derives them from ``threads`` and the cores, or from the measurement.
        threads: None derives them from ``interpreters`` and the cores, or from the measurement.
        note: called with one line about the measurement.
        memory: file of the remembered layouts. None takes `layouts_file`.
    """
    usable = cores()
    if interpreters is not None or threads is not None:
        threads = threads or min(MAX_DEFAULT_THREADS, max(1, usable // (interpreters or 1)))
        return Layout(interpreters or max(1, usable // threads), threads)
    known = layouts_in_memory(network, possible_layouts(usable))
    memory = layouts_file() if memory is None else memory
    key = _key(network)
    best = remembered = _recall(memory, key)
    if best is None or best not in known:
        best = known[0]
    if best == remembered or len(known) == 1 or len(images) < WORTH_MEASURING:
        return replace(best, interpreters=max(1, min(best.interpreters, len(images))))
    rates = dict.fromkeys(known, 0.0)
    for _, layout in itertools.product(range(_ROUNDS), known):
        rates[layout] = max(rates[layout], _measure(network, layout, images))
    fastest = max(rates, key=rates.__getitem__)
    if rates[fastest] > _CLEARLY * rates[best]:
        best = fastest
    if rates[best] > 0:  # otherwise no image could be read
        _remember(memory, key, best)
        shown = ", ".join(f"{layout}: {rate:.0f}" for layout, rate in rates.items())
        note(f"images/s by interpreters x threads: {shown}; {best} is remembered (--workers and --threads override it)")
    return best


def possible_layouts(usable: int) -> tuple[Layout, ...]:
    """Every layout that uses ``usable`` cores evenly. The first has one interpreter per core."""
    return tuple(
        Layout(usable // threads, threads)
        for threads in range(1, min(usable, MAX_DEFAULT_THREADS) + 1)
        if usable % threads == 0
    )


def layouts_in_memory(network: Network[Any], known: Sequence[Layout]) -> Sequence[Layout]:
    """The layouts that fit the device's memory; at least the one with the fewest interpreters."""
    assert network.bundle is not None
    most = _MEMORY_SHARE * (memory_bytes() or float("inf"))
    needed = 2 * len(network.bundle.flatbuffer)
    return [layout for layout in known if layout.interpreters * needed <= most] or known[-1:]


def measure_throughput(
    pool: Pool[Any], load: Callable[[T], NDArray[np.uint8]], items: Sequence[T], seconds: float, min_images: int
) -> tuple[int, float]:
    """Classify ``items`` repeatedly, for at least ``seconds`` and at least ``min_images`` images.

    Returns:
        The number of classified images, without those that cannot be read, and the duration in seconds.
    """
    begin = time.perf_counter()

    def supply() -> Iterator[T]:
        for number, item in enumerate(itertools.cycle(items)):
            if number >= min_images and time.perf_counter() - begin >= seconds:
                return
            yield item

    done = sum(not isinstance(outcome, ImageError) for _, outcome in pool.map(load, supply()))
    return done, time.perf_counter() - begin


def layouts_file() -> Path:
    """``layouts.json`` in the user's `cache_dir`."""
    return cache_dir() / "layouts.json"


def _measure(network: Network[Any], layout: Layout, images: Sequence[str]) -> float:
    """Images/s."""

    def load(image: str) -> NDArray[np.uint8]:
        return load_input(image, network.input)

    with Pool(network, layout) as pool:
        measure_throughput(pool, load, images, 0, 4 * layout.interpreters)  # first runs pack weights
        done, seconds = measure_throughput(pool, load, images, _ROUND_S, 4 * layout.interpreters)
    return done / seconds


def _key(network: Network[Any]) -> str:
    """Identifies the model, the interpreter and the device.

    Does not use `describe_device`: looking up a package version takes 1.5 MB of memory.
    """
    assert network.bundle is not None
    facts = [platform.node(), cores(), interpreter.installation()]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(network.bundle.flatbuffer)  # separately, to avoid a copy
    return digest.hexdigest()


def _recall(memory: Path, key: str) -> Layout | None:
    try:
        entry = json.loads(memory.read_text(encoding="utf-8"))[key]
        return Layout(entry["interpreters"], entry["threads"])
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not written by `_remember`
        return None


def _remember(memory: Path, key: str, layout: Layout) -> None:
    """Store a layout. If the disk is read-only, the next call measures again."""
    try:
        entries = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    if not isinstance(entries, dict):
        entries = {}
    with contextlib.suppress(OSError, EdgeallError):
        write_text(memory, json.dumps({**entries, key: asdict(layout)}))
