"""Latency of several models, measured in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.network import Network
from ...edge_runtime.results import Result

K = TypeVar("K")
IN_A_ROW = 5
"""Images that a model classifies in its turn, after one that is not timed, because the other models have displaced its
weights from the processor's caches."""
MIN_ROUNDS = 10
BUSY = 2.0
"""Ratio of p90 to p10 above which other programs, not the model, determine the latency."""


@dataclass(frozen=True)
class Latency(Result):
    """Percentiles of normalization (if the model needs it), inference and dequantization, in milliseconds."""

    p10_ms: float
    p50_ms: float
    p90_ms: float


def interleaved(
    models: Mapping[K, tuple[Network[Any], NDArray[np.uint8]]], seconds: float, progress: Progress
) -> tuple[int, dict[K, Latency]]:
    """Time models in turn in one process, so that other programs slow all of them alike.

    In every round each model, in random order, classifies one image without timing and then `IN_A_ROW` timed ones.

    Args:
        models: the open model and a preprocessed image, by any name.
        seconds: average time of each model; there are at least `MIN_ROUNDS` rounds.

    Returns:
        The number of rounds, and the latencies by name.
    """
    order = np.random.default_rng(0)
    names = [*models]
    times: dict[K, list[int]] = {name: [] for name in names}
    begin, rounds = time.perf_counter(), 0
    total = max(1, round(seconds * len(names)))
    with progress.task("timing", total) as advance:
        while rounds < MIN_ROUNDS or time.perf_counter() - begin < seconds * len(names):
            for index in order.permutation(len(names)):
                network, pixels = models[names[index]]
                network.predict(pixels)
                for _ in range(IN_A_ROW):
                    start = time.perf_counter_ns()
                    network.predict(pixels)
                    times[names[index]].append(time.perf_counter_ns() - start)
            rounds += 1
            advance(min(int(time.perf_counter() - begin), total), "")
    percentiles = {name: np.percentile(values, (10, 50, 90)) / 1e6 for name, values in times.items()}
    return rounds, {name: Latency(*map(float, found)) for name, found in percentiles.items()}
