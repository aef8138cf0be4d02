"""Masks of segmented images: the classes of every pixel, and the grey values that stand for them in files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ImageError
from .images import open_rgb

CLASSES = ("background", "cytoplasm", "nucleus")
"""The classes of a mask in the order of their values, and so of a segmentation model's output."""
GREYS = (0, 128, 255)
"""Their grey values in a mask's file, an 8-bit PNG of the size of the image."""

OUTLINES = ((1, (0, 200, 60)), (2, (255, 220, 0)))
"""The lowest class of what is outlined, and the colour: the whole cell, the nucleus."""
_NONE = 255


def open_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a mask's file.

    Args:
        path: an image file with the values `GREYS`.
        size: width and height of its image; None accepts any.

    Returns:
        Index into `CLASSES` of every pixel, uint8 ``(height, width)``.

    Raises:
        ImageError: it cannot be read, has another size, or has other values.
    """
    name = os.fspath(path)
    image = open_rgb(path)
    if size is not None and image.size != size:
        raise ImageError(
            f"{name}: the mask has {image.width}x{image.height} pixels, its image {size[0]}x{size[1]}",
            hint="draw the mask on the image itself, and save it in the same size",
        )
    return classes_of(image, name)


def classes_of(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """The classes of a decoded mask, see `open_mask`; ``name`` is for errors."""
    pixels = np.asarray(image, np.uint8)
    table = np.full(256, _NONE, np.uint8)
    table[list(GREYS)] = range(len(GREYS))
    classes: NDArray[np.uint8] = table[pixels[..., 0]]
    wrong = (classes == _NONE) | (pixels[..., 0] != pixels[..., 1]) | (pixels[..., 0] != pixels[..., 2])
    if wrong.any():
        found = np.unique(pixels[wrong].reshape(-1, 3), axis=0)[0]
        value = str(found[0]) if len(set(found.tolist())) == 1 else f"RGB {tuple(found.tolist())}"
        listed = ", ".join(f"{grey} ({label})" for grey, label in zip(GREYS, CLASSES, strict=True))
        raise ImageError(
            f"{name}: {int(wrong.sum()):,} pixels of the mask have other values, such as {value}",
            hint=f"a mask has the grey values {listed}; save it as PNG, not as JPEG",
        )
    return classes


def mask_image(classes: NDArray[np.uint8]) -> Image.Image:
    """The image of a mask, mode ``L``, from the class of every pixel ``(height, width)``."""
    return Image.fromarray(np.array(GREYS, np.uint8)[classes])


def outlined(image: Image.Image, classes: NDArray[np.uint8]) -> Image.Image:
    """A copy of an image with the outlines of its cells and nuclei in the colours of `OUTLINES`."""
    pixels = np.array(image)
    width = max(1, round(max(image.size) / 640))
    for least, colour in OUTLINES:
        inside = classes >= least
        padded = np.pad(inside, width, mode="edge")
        height, length = inside.shape
        inner = inside.copy()
        for down in range(2 * width + 1):
            for across in range(2 * width + 1):
                inner &= padded[down : down + height, across : across + length]
        pixels[inside & ~inner] = colour
    return Image.fromarray(pixels)


def class_counts(classes: NDArray[np.uint8], labels: Sequence[str] = CLASSES) -> dict[str, int]:
    """Number of pixels of each class."""
    counts = np.bincount(classes.ravel(), minlength=len(labels))
    return {label: int(count) for label, count in zip(labels, counts, strict=True)}
