"""Draws what the training sees: one image of each class, preprocessed, and after augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...edge_runtime.tools.atomic import atomic_write

if TYPE_CHECKING:
    from ..batches import Images

FILE = "augmented.jpg"
DRAWN = 6
"""Augmented versions of each image."""
_SIDE, _GAP = 112, 4


def draw_augmented(folder: Path, images: Images, augment: str, seed: int) -> Path:
    """Write ``augmented.jpg``: a row for each class, the preprocessed image first, then augmented versions of it.

    Args:
        folder: exists.
        images: of the training subset.
        augment: see `edgeall.train.augment.augment_named`.
        seed: of the augmentation.
    """
    from ...models.keras_compat import tf
    from ..augment import augment_named

    change = augment_named(augment)
    rows = []
    for number, label in enumerate(np.unique(images.labels)):
        pixels = images.pixels[images.rows[np.flatnonzero(images.labels == label)[0]]]
        batch = np.repeat(pixels[None].astype(np.float32), DRAWN, axis=0)
        changed = change(tf.constant(batch), tf.constant([seed, number], tf.int64)).numpy()
        rows.append([pixels, *np.clip(np.rint(changed), 0, 255).astype(np.uint8)])
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (step * (DRAWN + 1) - _GAP, step * len(rows) - _GAP), "white")
    for y, row in enumerate(rows):
        for x, one in enumerate(row):
            sheet.paste(Image.fromarray(one).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), (x * step, y * step))
    path = folder / FILE
    with atomic_write(path) as temporary:
        sheet.save(temporary, "JPEG", quality=90)
    return path
