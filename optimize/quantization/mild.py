"""The validation side as another microscope would show it: mildly changed, through the very model that will run.

Temperature and review rule are fitted on these images besides the side itself. A validation side is taken with the same
microscope as the images that the network learned, and often from the same slides: what is fitted on it alone need not
hold elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.classifier import Classifier
from ...models.keras_compat import tf
from ...train.augment import microscope
from ...train.batches import Images
from .verify import answers, shown

STRENGTH = 0.25
"""Of `edgeall.train.augment.microscope`; at 1 it is what training draws. So much costs a network of accuracy about what
another slide does: see decision 0015."""
IMAGES = 1024
"""About as many changed images are drawn: several of each image where the side is small."""
MOST_COPIES = 8
"""Of one image: more say nothing new of it."""
BATCH = 32


@dataclass(frozen=True)
class Fitted:
    """What a model says of the validation side, as it is and mildly changed: both weigh the same.

    Attributes:
        probabilities: float32 ``(n, labels)``, as the model gives them. The first half is of the images as they are,
            ``copies`` times over, the second of the changed ones.
        features: float32 ``(n, features)``, pooled.
        truth: int ``(n,)``.
        images: how many different ones.
        copies: how often each was changed.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    truth: NDArray[np.int64]
    images: int
    copies: int

    def facts(self) -> dict[str, Any]:
        """For the manifest: how many ``changed_images`` there were, and the ``changed_strength``."""
        return {"changed_images": self.images * self.copies, "changed_strength": STRENGTH}

    def unchanged(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Of an array with a row for each of these, the rows of the images as they are, each once."""
        return rows[: self.images]


def validation_answers(classifier: Classifier, side: Images, seed: int, progress: Progress) -> Fitted:
    """Run a side through a model that has a second output, as it is and mildly changed.

    Args:
        classifier: of the converted model.
        side: the validation side.
        seed: of the run; the same one gives the same changes.
    """
    copies = copies_of(len(side))
    clean = answers(classifier, shown(side), len(side), "calibrating", progress)
    count = copies * len(side)
    changed = answers(classifier, mildly_changed(side, copies, seed), count, "calibrating, mildly changed", progress)
    probabilities, features = (
        np.concatenate([np.tile(as_it_is, (copies, 1)), other]) for as_it_is, other in zip(clean, changed, strict=True)
    )
    return Fitted(probabilities, features, np.tile(side.labels, 2 * copies), len(side), copies)


def copies_of(images: int) -> int:
    """How often each of so many images is changed."""
    return min(max(IMAGES // images, 1), MOST_COPIES)


def mildly_changed(side: Images, copies: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Every image of a side, changed at `STRENGTH`, then all of them again: ``copies`` times, drawn anew each time.

    Args:
        side: as the device sees it, uint8.
        copies: of each image.
        seed: any non-negative integer; the same one gives the same pixels.

    Yields:
        uint8 ``(h, w, 3)``.
    """
    stream = np.random.default_rng((seed, 2)).integers(0, 2**31 - 1)
    step = 0
    for _ in range(copies):
        for start in range(0, len(side), BATCH):
            pixels = tf.constant(side.pixels[side.rows[start : start + BATCH]], tf.float32)
            changed = microscope(pixels, tf.constant([stream, step], tf.int64), STRENGTH)
            yield from np.clip(np.rint(changed.numpy()), 0, 255).astype(np.uint8)
            step += 1
