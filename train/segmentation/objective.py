"""What a segmentation network minimizes, and how it is validated."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...edge_runtime.masks import CLASSES
from ...models.decoder import MASK
from ...models.keras_compat import keras, tf
from ..stage import Objective
from .images import NUCLEUS
from .tiles import IGNORED

DICE = 0.5
"""Weight of the Dice losses of nucleus and whole cell beside the cross-entropy. Source: Milletari et al. 2016."""
RED_CELL_WEIGHT = 0.1
"""Weight of the squared error of the red cells' size, in octaves."""
_SMOOTH = 50.0
"""Pixels added to both sides of a Dice loss: a batch without a cell has no gradient from it."""
_LEAST = 1e-6


def mask_loss(truth: Any, probabilities: Any) -> Any:
    """Cross-entropy of the pixels, plus the Dice losses of nucleus and whole cell over the batch.

    Args:
        truth: class index of every pixel ``(batch, h, w)``; `IGNORED` pixels do not count.
        probabilities: ``(batch, h, w, classes)``.
    """
    truth = tf.cast(truth, tf.int32)
    counted = tf.cast(truth != IGNORED, tf.float32)
    wanted = tf.one_hot(truth, len(CLASSES))  # an ignored pixel has no class
    logs = tf.math.log(tf.maximum(probabilities, _LEAST))
    entropy = -tf.reduce_sum(wanted * logs) / tf.maximum(tf.reduce_sum(counted), 1.0)
    found = probabilities * counted[..., tf.newaxis]
    nucleus = _dice_loss(wanted[..., NUCLEUS], found[..., NUCLEUS])
    cell = _dice_loss(counted - wanted[..., 0], counted - found[..., 0])
    return entropy + DICE * (nucleus + cell)


def _dice_loss(wanted: Any, found: Any) -> Any:
    both = tf.reduce_sum(wanted * found)
    return 1.0 - (2.0 * both + _SMOOTH) / (tf.reduce_sum(wanted) + tf.reduce_sum(found) + _SMOOTH)


def red_cell_loss(truth: Any, found: Any) -> Any:
    """Mean squared error in octaves of the tiles whose scale is known (not NaN)."""
    known = tf.math.is_finite(truth)
    error = tf.where(known, found - tf.where(known, truth, 0.0), 0.0)
    return tf.reduce_sum(error**2) / tf.maximum(tf.reduce_sum(tf.cast(known, tf.float32)), 1.0)


def dice(truth: Any, probabilities: Any) -> Any:
    """Mean Dice of nucleus and whole cell over a batch, as `edgeall.train.segmentation.assess.dice_of` computes it."""
    truth = tf.cast(truth, tf.int32)
    found = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
    counted = truth != IGNORED
    scores = []
    for least in (NUCLEUS, 1):  # of the nuclei, of whole cells
        wanted, given = (truth >= least) & counted, (found >= least) & counted
        both = tf.reduce_sum(tf.cast(wanted & given, tf.float32))
        total = tf.reduce_sum(tf.cast(wanted, tf.float32)) + tf.reduce_sum(tf.cast(given, tf.float32))
        scores.append((2.0 * both + 1.0) / (total + 1.0))
    return (scores[0] + scores[1]) / 2.0


def soft_mask_loss(taught: Any, probabilities: Any) -> Any:
    """Mean cross-entropy of the pixels against the probabilities of a teacher, ``(batch, h, w, classes)``."""
    logs = tf.math.log(tf.maximum(probabilities, _LEAST))
    return -tf.reduce_mean(tf.reduce_sum(taught * logs, axis=-1))


def soft_dice(taught: Any, probabilities: Any) -> Any:
    """`dice` against the most probable classes of a teacher; pixels without any do not count."""
    counted = tf.reduce_sum(taught, axis=-1) > 0
    classes = tf.argmax(taught, axis=-1, output_type=tf.int32)
    return dice(tf.where(counted, classes, IGNORED), probabilities)


def halfway(truth: Any, outputs: Any) -> tuple[Any, Any]:
    """Targets halfway between the labels of tiles and the outputs of a teacher, for `soft_mask_loss`.

    Args:
        truth: of `edgeall.train.segmentation.batches.training_tiles`. Pixels that do not count get no probability.
        outputs: of the teacher.
    """
    (masks, octaves), (taught, sizes) = truth, outputs
    counted = tf.cast(masks != IGNORED, tf.float32)[..., tf.newaxis]
    wanted = tf.one_hot(tf.cast(masks, tf.int32), len(CLASSES))
    known = tf.where(tf.math.is_finite(octaves), octaves, sizes)
    return counted * (wanted + taught) / 2.0, (known + sizes) / 2.0


def _compiled(soft: bool) -> dict[str, Any]:
    metric = keras.metrics.MeanMetricWrapper(soft_dice if soft else dice, name="dice")
    return {
        "loss": [soft_mask_loss if soft else mask_loss, red_cell_loss],
        "loss_weights": [1.0, RED_CELL_WEIGHT],
        "metrics": [[metric], []],
    }


def _validate(batches: list[tuple[Any, Any]]) -> tuple[float, float]:
    """Loss and Dice of all validation tiles together."""
    truth, wanted = (np.concatenate([np.asarray(targets[index]) for targets, _ in batches]) for index in (0, 1))
    masks, sizes = (np.concatenate([found[index] for _, found in batches]) for index in (0, 1))
    loss = float(mask_loss(truth, masks)) + RED_CELL_WEIGHT * float(red_cell_loss(wanted, sizes))
    return loss, float(dice(truth, masks))


OBJECTIVE = Objective("dice", f"{MASK}_dice", _compiled, _validate)
