"""Predictions of the converted model on the validation subset, unchanged and mildly changed like by another microscope.

Temperature and review rule are fitted on both. The validation subset comes from the same microscope as the training
images, and often from the same slides, so what is fitted on it alone need not hold elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.classifier import Classifier
from ...models.keras_compat import tf
from ...train.augment import microscope
from ...train.batches import Images
from .verify import pixels_of, predictions_and_features

STRENGTH = 0.25
"""Strength of `edgeall.train.augment.microscope`; 1 is what training draws. At this strength a network loses about as
much accuracy as on another slide: see decision 0015."""
IMAGES = 1024
"""Approximate number of changed images: several of each image of a small subset."""
MOST_COPIES = 8
"""Largest number of changed copies of one image; more add no information."""
BATCH = 32


@dataclass(frozen=True)
class ValidationPredictions:
    """Predictions on the validation subset, unchanged and mildly changed; both have the same weight.

    Attributes:
        probabilities: float32 ``(n, labels)``, not calibrated. The first half belongs to the unchanged images,
            repeated ``copies`` times, the second half to the changed ones.
        features: float32 ``(n, features)``, pooled.
        truth: int ``(n,)``.
        images: number of different images.
        copies: number of changed copies of each image.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    truth: NDArray[np.int64]
    images: int
    copies: int

    def unchanged(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of the unchanged images, each once, of an array with a row for each prediction."""
        return rows[: self.images]


def validation_predictions(
    classifier: Classifier, images: Images, seed: int, progress: Progress
) -> ValidationPredictions:
    """Run the validation subset, unchanged and mildly changed, through a model that has a second output.

    Args:
        classifier: the converted model.
        images: the validation subset.
        seed: seed of the run; the same seed gives the same changes.
    """
    copies, count = copies_of(len(images)), len(images)
    unchanged = predictions_and_features(classifier, pixels_of(images), count, "calibrating", progress)
    drawn = mildly_changed(images, copies, seed)
    changed = predictions_and_features(classifier, drawn, copies * count, "calibrating, mildly changed", progress)
    probabilities, features = (
        np.concatenate([np.tile(first, (copies, 1)), second]) for first, second in zip(unchanged, changed, strict=True)
    )
    return ValidationPredictions(probabilities, features, np.tile(images.labels, 2 * copies), count, copies)


def copies_of(images: int) -> int:
    """Number of changed copies of each of ``images`` images."""
    return min(max(IMAGES // images, 1), MOST_COPIES)


def mildly_changed(images: Images, copies: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Every image in order, changed at `STRENGTH`; the whole sequence ``copies`` times, with new changes each time.

    Args:
        images: uint8, as the device sees them.
        copies: number of changed copies of each image.
        seed: any non-negative integer; the same seed gives the same pixels.

    Yields:
        uint8 ``(h, w, 3)``.
    """
    change, stream = _mild_change(), np.random.default_rng((seed, 2)).integers(0, 2**31 - 1)
    step = 0
    for _ in range(copies):
        for start in range(0, len(images), BATCH):
            pixels = tf.constant(images.pixels[images.rows[start : start + BATCH]], tf.float32)
            changed = change(pixels, tf.constant([stream, step], tf.int64))
            yield from np.clip(np.rint(changed.numpy()), 0, 255).astype(np.uint8)
            step += 1


@cache
def _mild_change() -> Any:
    """`edgeall.train.augment.microscope` at `STRENGTH` for images of any size, traced once."""
    shapes = [tf.TensorSpec((None, None, None, 3), tf.float32), tf.TensorSpec((2,), tf.int64)]
    return tf.function(lambda pixels, seed: microscope(pixels, seed, STRENGTH), input_signature=shapes, autograph=False)
