"""Batches of cached backbone features, for the head stage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.keras_compat import tf
from .batches import Images
from .stage import Stage


def feature_batches(
    features: NDArray[np.float32],
    images: Images,
    stage: Stage | None = None,
    seed: int = 0,
    epoch: int = 0,
    class_weights: NDArray[np.float32] | None = None,
) -> Any:
    """tf.data of ``(features, labels, weights)``, shuffled by seed and epoch; in order without ``stage``.

    Args:
        features: float32 ``(images of the split, features)``.
        images: selects the rows and gives their labels.
        stage: gives the batch size.
        seed: of the order.
        epoch: of the order.
        class_weights: float32 ``(classes,)``; None weighs all images equally.
    """
    if stage is None:
        return tf.data.Dataset.from_tensor_slices((features[images.rows], images.labels)).batch(1024)
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    labels = images.labels[order]
    weights = np.ones(len(order), np.float32) if class_weights is None else class_weights[labels]
    dataset = tf.data.Dataset.from_tensor_slices((features[images.rows[order]], labels, weights))
    return dataset.batch(stage.batch_size, drop_remainder=len(order) >= stage.batch_size).prefetch(4)
