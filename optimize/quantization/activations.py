"""PTQ calibration: choice of images, activation ranges, and the error report by layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...console.progress import Progress
from ...models.keras_compat import exact_float32
from ...train.batches import Images, normalized, shuffled
from ...train.run_settings import RunSettings
from .layer_error import LayerError, layer_errors
from .placement import Placement, Range, extremes

CALIBRATION_BATCH = 32
"""An activation range is the mean of the extremes of batches of this size. A single outlier image has less weight in
it than in the extremes of all images."""
CALIBRATION_SEED = 2
"""Added to the run's seed: calibration images are augmented differently from those of training and QAT."""
REPORT_IMAGES = 64
"""Validation images of the layer report."""


def stratified(images: Images, count: int, seed: int) -> Images:
    """Up to ``count`` images in random order, the same number of each class as far as the classes allow."""
    generator = np.random.default_rng(seed)
    classes = np.unique(images.labels)
    share = -(-count // len(classes))
    chosen = [generator.permutation(np.flatnonzero(images.labels == label))[:share] for label in classes]
    order = generator.permutation(np.concatenate(chosen))[:count]
    return replace(images, rows=images.rows[order], labels=images.labels[order])


def activation_extremes(
    folded: Any, placement: Placement, calibration: Images, settings: RunSettings, progress: Progress
) -> dict[str, Range]:
    """Extremes of the activations over the calibration images, unchanged and augmented as in training.

    Ranges of unchanged images alone clip what a brighter lamp makes of them.

    Args:
        settings: of the run; ``augment`` and ``seed`` are used.
    """
    augmented = shuffled(
        calibration,
        CALIBRATION_BATCH,
        augment=settings.augment,
        seed=settings.seed + CALIBRATION_SEED,
        epoch=0,
        class_weights=None,
    ).map(lambda pixels, labels, weights: pixels)
    with progress.task("measuring activations", 2 * len(calibration)) as advance:

        def batches() -> Iterator[Any]:
            done = 0
            for batch in itertools.chain(normalized(calibration, CALIBRATION_BATCH), augmented):
                yield batch
                done += len(batch)
                advance(done, "")

        return extremes(folded, placement, batches())


def layer_report(
    network: Any, placement: Placement, spanned: dict[str, Range], images: Images, progress: Progress
) -> list[LayerError]:
    """Rounding error of each layer on `REPORT_IMAGES` validation images."""
    progress.note("measuring what rounding each layer costs")
    with exact_float32():
        return layer_errors(network, placement, spanned, normalized(images, CALIBRATION_BATCH))
