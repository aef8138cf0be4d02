"""Latency of several models against each other, measured in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.classifier import Classifier

IN_A_ROW = 5
"""Images that a model classifies before the next has its turn, after one that isn't timed: the others have driven its
weights out of the processor's caches."""
MIN_ROUNDS = 10
PERCENTILES = ("p10_ms", "p50_ms", "p90_ms")
BUSY = 2.0
"""Ratio of p90 to p10 from which a figure says more of what else was running than of the model."""


def interleaved(
    models: Mapping[str, tuple[Classifier, NDArray[np.uint8]]], seconds: float, progress: Progress
) -> dict[str, Any]:
    """Time models against each other in one process, so that whatever slows the machine slows all of them.

    In every round each model, in random order, classifies one image untimed and then `IN_A_ROW` timed.

    Args:
        models: by any name: the open model and a preprocessed image.
        seconds: rounds go on until each model has been timed so long on average, and at least `MIN_ROUNDS`.

    Returns:
        ``rounds`` and, by name, ``models``: ``p10_ms``, ``p50_ms`` and ``p90_ms`` of normalization where the model
        needs it, the model and dequantization.
    """
    order = np.random.default_rng(0)
    names = [*models]
    times: dict[str, list[int]] = {name: [] for name in names}
    begin, rounds = time.perf_counter(), 0
    total = max(1, round(seconds * len(names)))
    with progress.task("timing", total) as advance:
        while rounds < MIN_ROUNDS or time.perf_counter() - begin < seconds * len(names):
            for index in order.permutation(len(names)):
                classifier, pixels = models[names[index]]
                classifier.predict(pixels)
                for _ in range(IN_A_ROW):
                    start = time.perf_counter_ns()
                    classifier.predict(pixels)
                    times[names[index]].append(time.perf_counter_ns() - start)
            rounds += 1
            advance(min(int(time.perf_counter() - begin), total), "")
    percentiles = {name: np.percentile(values, (10, 50, 90)) / 1e6 for name, values in times.items()}
    return {
        "rounds": rounds,
        "models": {name: dict(zip(PERCENTILES, map(float, found), strict=True)) for name, found in percentiles.items()},
    }
