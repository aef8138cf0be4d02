"""Overlays of the images in which a segmentation network errs most: as drawn, as found, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.files import file_name, output_lock
from ...edge_runtime.images import mark_output, open_rgb
from ...edge_runtime.masks import open_mask, outlined
from ...edge_runtime.tools.explain import captioned
from ...edge_runtime.vision.tiles import TileSegmenter
from .assess import answer_of
from .images import MaskedImages

SHOWN = 16
"""Number of images."""
MISSED, ADDED, SWAPPED = (213, 94, 0), (0, 114, 178), (240, 228, 66)
"""Colours of cell that was drawn and not found; found and not drawn; and of the wrong one of nucleus and cytoplasm."""
_LEAST = 640
"""Width in pixels into which the caption fits."""
_SHADE = 0.6
"""Share of the colour in a pixel."""


def write_differences(
    folder: Path, segmenter: TileSegmenter, images: MaskedImages, dice: Sequence[float]
) -> list[Path]:
    """Draw the images with the lowest Dice: outlines as drawn, outlines as found, and the pixels that differ.

    Args:
        folder: created if missing.
        segmenter: the network.
        images: with masks.
        dice: of each image, in order.

    Returns:
        The files, ``<rank>-<image>.png``, worst first.
    """
    written = []
    with output_lock(folder, "evaluate"):
        folder.mkdir(parents=True, exist_ok=True)
        mark_output(folder)
        for rank, index in enumerate(np.argsort(dice, kind="stable")[:SHOWN].tolist(), start=1):
            entry = images.entries[index]
            image = open_rgb(images.root / entry.path)
            truth = open_mask(images.root / str(entry.mask), image.size)
            found = answer_of(segmenter, entry, image, images.spec).classes
            panels = [outlined(image, truth), outlined(image, found), differences(image, truth, found)]
            row = _enlarged(Image.fromarray(np.hstack([np.asarray(panel) for panel in panels])))
            caption = f"Dice {dice[index]:.4f}: drawn, found; orange: missed, blue: added, yellow: nucleus or cytoplasm"
            written.append(folder / file_name(f"{rank:02d}-", Path(entry.path).stem, ".png"))
            captioned(row, caption).save(written[-1])
    return written


def _enlarged(row: Image.Image) -> Image.Image:
    """A picture of small images enlarged by a whole factor, so that its caption fits."""
    factor = -(-_LEAST // row.width)
    return row.resize((factor * row.width, factor * row.height), Image.Resampling.NEAREST)


def differences(image: Image.Image, truth: NDArray[np.uint8], found: NDArray[np.uint8]) -> Image.Image:
    """A grey copy of an image in which the pixels whose class differs are coloured, see `MISSED`."""
    pixels = np.asarray(image.convert("L").convert("RGB"), np.float32).copy()
    for colour, where in (
        (MISSED, (truth > 0) & (found == 0)),
        (ADDED, (truth == 0) & (found > 0)),
        (SWAPPED, (truth > 0) & (found > 0) & (truth != found)),
    ):
        pixels[where] = (1 - _SHADE) * pixels[where] + _SHADE * np.array(colour, np.float32)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))
