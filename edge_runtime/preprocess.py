"""The only code that turns an image into a model's input. Training, optimization and the device all call it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import BundleError
from .images import open_rgb
from .messages import message

FITS = ("stretch", "center-crop")
COLORS = ("RGB", "BGR", "GREY")
Channels = float | tuple[float, ...]
"""One number for all channels, or one for each."""
_LUMA = np.array([19595, 38470, 7471], np.uint32)
"""Weights of red, green and blue in units of 1/65536, as in Pillow's ``convert("L")``. Source: ITU-R BT.601."""

_GAP = 3.0
"""A field is reduced by whole numbers to no less than this many times the wanted size before it is resized."""


@dataclass(frozen=True)
class InputSpec:
    """The preprocessing contract of a model's input, as in the manifest.

    Attributes:
        height: pixels.
        width: pixels.
        fit: ``stretch`` resizes to the shape and ignores the aspect ratio; ``center-crop`` first crops the largest
            centred window with the model's aspect ratio, in whole pixels.
        mean: the input of the float network is ``(pixel - mean) / std``; one number, or one for each channel.
        std: see ``mean``.
        color: order of the network's channels, ``RGB`` or ``BGR``; or ``GREY`` for one channel, the grey of the RGB
            pixels.
        resize: only Pillow's antialiased ``bilinear`` exists.
    """

    height: int
    width: int
    fit: str = "stretch"
    mean: Channels = 127.5
    std: Channels = 127.5
    color: str = "RGB"
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        if self.color not in COLORS or self.resize != "bilinear" or self.fit not in FITS:
            text = message(
                "input contract {contract} is unknown to this version",
                contract=f"{self.color!r}, {self.resize!r}, {self.fit!r}",
            )
            raise BundleError(text, hint="update edgeall on this device")
        shape_ok = 0 < self.height <= 4096 and 0 < self.width <= 4096
        # Wider than any training uses, and safe in float32; NaN fails every comparison.
        values_ok = all(abs(mean) <= 1e6 for mean in self.means) and all(1e-6 <= std <= 1e6 for std in self.stds)
        counts_ok = len(self.means) == len(self.stds) == self.channels
        if not (shape_ok and values_ok and counts_ok):
            contract = f"{self.width}x{self.height}, {self.normalization}"
            raise BundleError(message("input contract {contract} is invalid", contract=contract))

    @property
    def channels(self) -> int:
        """Number of channels of the network's input."""
        return 1 if self.color == "GREY" else 3

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return self.mean if isinstance(self.mean, tuple) else (self.mean,) * self.channels

    @property
    def stds(self) -> tuple[float, ...]:
        """The standard deviation of each channel."""
        return self.std if isinstance(self.std, tuple) else (self.std,) * self.channels

    @property
    def normalization(self) -> str:
        """Mean and standard deviation in words."""
        return f"mean {numbers_text(self.mean)}, std {numbers_text(self.std)}"


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


def rescaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image at a segmentation network's scale, ``size`` (width, height): what is then cut into its input tiles."""
    across, down = (int(have / want / _GAP) or 1 for have, want in zip(image.size, size, strict=True))
    whole = image.width / across, image.height / down
    return window(image.reduce((across, down)), size, (0.0, 0.0, *whole))


def window(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """A part of an image, (left, top, right, bottom), resized to ``size`` (width, height)."""
    left, top, right, bottom = box
    reach = math.ceil(max(1.0, (bottom - top) / size[1])) + 1  # of the filter
    first, last = max(0, math.floor(top) - reach), min(image.height, math.ceil(bottom) + reach)
    rows = image if last - first == image.height else image.crop((0, first, image.width, last))
    # In two steps, as in `preprocess`.
    wide = rows.resize((size[0], rows.height), Image.Resampling.BILINEAR, (left, 0, right, rows.height))
    return wide.resize(size, Image.Resampling.BILINEAR, (0, top - first, size[0], bottom - first))


def load_input(path: str | os.PathLike[str], spec: InputSpec) -> NDArray[np.uint8]:
    """`open_rgb` and `preprocess`. Raises ImageError as `open_rgb` does."""
    return preprocess(open_rgb(path), spec)


def normalize(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """The float network's input, ``(pixel - mean) / std``: float32 ``(..., channels)``."""
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    values: NDArray[np.float32] = (in_color(pixels, spec).astype(np.float32) - mean) / std
    return values


def in_color(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """RGB pixels ``(..., 3)`` in the channels of the network's input, ``(..., channels)``."""
    if spec.color == "RGB":
        return pixels
    if spec.color == "BGR":
        return pixels[..., ::-1]
    return ((pixels @ _LUMA + 0x8000) >> 16).astype(np.uint8)[..., np.newaxis]


def numbers_text(values: Channels) -> str:
    """One number, or several with commas between them."""
    return ",".join(f"{value:g}" for value in values) if isinstance(values, tuple) else f"{values:g}"


def channels_of(text: str) -> Channels:
    """The value of ``--mean`` or ``--std``: one finite number, or three with commas. Raises ValueError."""
    values = tuple(float(part) for part in text.split(","))
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise ValueError(f"{text}: not one or three finite numbers")
    return values if len(values) == 3 else values[0]


def _center_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom. Integer arithmetic, so that every device gets the same box; an odd rest goes right."""
    (width, height), (target_w, target_h) = size, target
    crop_w = min(width, max(1, height * target_w // target_h))
    crop_h = min(height, max(1, width * target_h // target_w))
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return (left, top, left + crop_w, top + crop_h)
