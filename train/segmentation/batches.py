"""Batches of tiles for training, validation and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.keras_compat import tf
from ..batches import normalize
from .images import MaskedImages
from .light import changed, recoloured
from .scene import painted, resized_cells
from .tiles import IGNORED, mosaic_tile, plain_tiles


def training_tiles(images: MaskedImages, batch_size: int, *, augment: str, seed: int, epoch: int, count: int) -> Any:
    """tf.data of ``(float32 tiles, targets)`` for one epoch of ``count`` tiles.

    The targets are those of the mask, uint8 ``(batch, size, size)``, and of the red cells' size, float32
    ``(batch, 1)``. Every laboratory gives the same number of tiles. The draws depend only on ``seed``,
    ``epoch`` and the batch.
    """
    if augment == "none":
        return _plain(images, batch_size, np.random.default_rng((seed, epoch)))
    pools, size = images.by_laboratory(), images.spec.width

    def draw(step: Any) -> tuple[Any, Any, Any]:
        random = np.random.default_rng((seed, epoch, int(step)))
        tiles = [mosaic_tile(pools[int(random.integers(len(pools)))], size, random) for _ in range(batch_size)]
        pixels, masks, octaves = zip(*tiles, strict=True)
        seen, truth = zip(*(_seen(*tile, augment, random) for tile in zip(pixels, masks, strict=True)), strict=True)
        return np.stack(seen), np.stack(truth), np.array(octaves, np.float32)[:, np.newaxis]

    def load(step: Any) -> Any:
        pixels, masks, octaves = tf.numpy_function(draw, [step], [tf.uint8, tf.uint8, tf.float32], stateful=False)
        pixels.set_shape((batch_size, size, size, 3))
        masks.set_shape((batch_size, size, size))
        octaves.set_shape((batch_size, 1))
        return normalize(pixels, images.spec), (masks, octaves)

    steps = max(count // batch_size, 1)
    return tf.data.Dataset.range(steps).map(load, tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def _seen(
    pixels: NDArray[np.uint8], classes: NDArray[np.uint8], augment: str, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A tile as the network sees it in training, and its classes."""
    if augment == "microscope" and classes.max() != IGNORED:
        pixels, classes = resized_cells(pixels, classes, random)
        pixels, classes = painted(recoloured(pixels, classes, random), classes, random)
    return changed(pixels, augment, random), classes


def validation_tiles(images: MaskedImages, batch_size: int) -> Any:
    """tf.data of ``(float32 tiles, targets)``: `plain_tiles` in order."""
    return _plain(images, batch_size, None)


def _plain(images: MaskedImages, batch_size: int, random: np.random.Generator | None) -> Any:
    pixels, masks, octaves = plain_tiles(images)
    order = np.arange(len(pixels)) if random is None else random.permutation(len(pixels))
    targets = (masks[order], octaves[order][:, np.newaxis])
    dataset = tf.data.Dataset.from_tensor_slices((pixels[order], targets)).batch(
        batch_size, drop_remainder=random is not None and len(order) >= batch_size
    )
    return dataset.map(lambda tiles, truth: (normalize(tiles, images.spec), truth), 2).prefetch(2)
