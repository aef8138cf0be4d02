"""The only code that turns an image into a model's input. Training, optimization and the device all call it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import BundleError
from .images import open_rgb

FITS = ("stretch", "center-crop")


@dataclass(frozen=True)
class InputSpec:
    """The preprocessing contract of a model's input, as in the manifest.

    Attributes:
        height: pixels.
        width: pixels.
        fit: ``stretch`` resizes to the shape and ignores the aspect ratio; ``center-crop`` first crops the largest
            centred window with the model's aspect ratio, in whole pixels.
        mean: the input of the float network is ``(pixel - mean) / std``.
        std: see ``mean``.
        color: channel order; only ``RGB`` exists.
        resize: only Pillow's antialiased ``bilinear`` exists.
    """

    height: int
    width: int
    fit: str = "stretch"
    mean: float = 127.5
    std: float = 127.5
    color: str = "RGB"
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        if self.color != "RGB" or self.resize != "bilinear" or self.fit not in FITS:
            raise BundleError(
                f"input contract {self.color!r}, {self.resize!r}, {self.fit!r} is unknown to this version",
                hint="update edgeall on this device",
            )
        shape_ok = 0 < self.height <= 4096 and 0 < self.width <= 4096
        # Wider than any training uses, and safe in float32; NaN fails every comparison.
        if not (shape_ok and abs(self.mean) <= 1e6 and 1e-6 <= self.std <= 1e6):
            raise BundleError(
                f"input contract {self.width}x{self.height}, mean {self.mean:g}, std {self.std:g} is invalid"
            )


def preprocess(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Fit and resize a decoded RGB image.

    Args:
        image: mode ``RGB``, any size.
        spec: the model's input contract.

    Returns:
        uint8 array of shape ``(height, width, 3)``, RGB, 0..255, not normalized: full-integer models take these bytes.
    """
    size = (spec.width, spec.height)
    if spec.fit == "center-crop":
        # Not with the `box` of `resize`: its filter also reads pixels outside the box.
        box = _center_box(image.size, size)
        image = image if box == (0, 0, *image.size) else image.crop(box)
    # In two steps: since Pillow 13 the order of the passes, and so the rounding, depends on the sizes.
    for step in ((spec.width, image.height), size):
        if image.size != step:
            image = image.resize(step, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def load_input(path: str | os.PathLike[str], spec: InputSpec) -> NDArray[np.uint8]:
    """`open_rgb` and `preprocess`. Raises ImageError as `open_rgb` does."""
    return preprocess(open_rgb(path), spec)


def normalize(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """The float network's input, ``(pixel - mean) / std``, same shape, float32."""
    values: NDArray[np.float32] = (pixels.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.std)
    return values


def _center_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom. Integer arithmetic, so that every device gets the same box; an odd rest goes right."""
    (width, height), (target_w, target_h) = size, target
    crop_w = min(width, max(1, height * target_w // target_h))
    crop_h = min(height, max(1, width * target_h // target_w))
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return (left, top, left + crop_w, top + crop_h)
