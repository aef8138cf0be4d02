"""The nucleated cells of a field: what is said of each one, and its crop for a model of cells."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..preprocess import InputSpec, preprocess

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the field; right and bottom exclusive."""


@dataclass(frozen=True)
class Cell:
    """One nucleated cell, in pixels of the field.

    Attributes:
        box: of the cell.
        centre: x, y of the nucleus's centre of mass.
        area_px: of the nucleus.
        touches_border: whether the border of the field cuts the cell. Such a cell is not classified.
        cell_area_px: of nucleus and cytoplasm.
        roundness: of the nucleus, 0..1: its area over that of a disc with its major axis.
    """

    box: Box
    centre: tuple[float, float]
    area_px: int
    touches_border: bool
    cell_area_px: int
    roundness: float

    @property
    def nc_ratio(self) -> float:
        """Area of the nucleus over that of the whole cell, 0..1."""
        return self.area_px / self.cell_area_px


_CELL = re.compile(r"\.cell[0-9]+$")


def crop_stem(field: str, number: int) -> str:
    """The name of a cell's crop without its suffix: that of the field and the number of the cell."""
    return f"{field}.cell{number}"


def field_stem(stem: str) -> str:
    """The name of the field of a crop, see `crop_stem`; of another image its own name. Without suffixes."""
    return _CELL.sub("", stem)


def crop(field: Image.Image, box: Box, spec: InputSpec) -> NDArray[np.uint8]:
    """Crop a cell to a model's input.

    Returns:
        uint8, RGB, ``(spec.height, spec.width, 3)``.
    """
    return preprocess(cut_out(field, box, spec.width / spec.height), spec)


def cut_out(field: Image.Image, box: Box, aspect: float = 1.0) -> Image.Image:
    """The crop around a cell's box for a model of cells, with aspect ratio ``aspect`` (width over height).

    It is shifted to stay inside the field, not padded; it shrinks only if the field is smaller.
    """
    left, top, right, bottom = box
    height = max(bottom - top, (right - left) / aspect)
    wide, high = min(round(height * aspect), field.width), min(round(height), field.height)
    x = min(max((left + right - wide) // 2, 0), field.width - wide)
    y = min(max((top + bottom - high) // 2, 0), field.height - high)
    return field.crop((x, y, x + wide, y + high))
