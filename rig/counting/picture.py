"""The pictures that are kept of counted cells and fields."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.vision.cells import Box
from .registration import opencv

PICTURE_PX = 192
"""Maximum side of a cell's picture, pixels; 5 to 9 kB as JPEG."""
FIELD_PX = 320
"""Maximum width and height of a field's picture, pixels; about 12 kB as JPEG."""
_CONTEXT = 1.3
"""Side of the picture, relative to the longer side of the cell's box."""


def picture_of_cell(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A square around a cell's box, shifted to stay inside the frame, at most `PICTURE_PX` wide. A copy."""
    height, width = pixels.shape[:2]
    x, y, side = square_of_cell(box, (width, height))
    part = pixels[y : y + side, x : x + side]
    small = min(side, PICTURE_PX)
    return _reduced(part, (small, small))


def square_of_cell(box: Box, size: tuple[int, int]) -> tuple[int, int, int]:
    """Left, top and side of the square that `picture_of_cell` shows of a frame of ``size`` (width, height)."""
    left, top, right, bottom = box
    width, height = size
    side = min(side_of_picture(right - left, bottom - top), width, height)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, side


def side_of_picture(width: int, height: int) -> int:
    """Side of the square of the frame that the picture of a cell shows, pixels, for a box of this size."""
    return round(_CONTEXT * max(width, height))


def picture_of_field(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole frame, at most `FIELD_PX` wide and high. A copy."""
    height, width = pixels.shape[:2]
    shrink = min(FIELD_PX / max(width, height), 1.0)
    return _reduced(pixels, (max(round(width * shrink), 1), max(round(height * shrink), 1)))


def read_picture(path: Path | None) -> NDArray[np.uint8] | None:
    """A recorded picture, RGB; None if it was removed or damaged, which `edgeall record verify` reports."""
    if path is not None:
        with suppress(ImageError), open_rgb(path) as image:
            return np.asarray(image)
    return None


def _reduced(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A copy of ``size`` (width, height)."""
    cv2 = opencv()
    picture: NDArray[np.uint8] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return picture
