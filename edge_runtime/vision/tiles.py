"""Runs a segmentation network over a field of any size: at the network's scale, in overlapping tiles, blended.

The field is resized so that a red cell has the diameter that the network was trained with. Tiles overlap, and their
weights fall towards their edges, so that a cell on the edge of a tile is segmented as in the middle of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..messages import message
from ..preprocess import InputSpec, rescaled

Floats = NDArray[np.float32]

OVERLAP = 64
"""Overlap of neighbouring tiles in pixels of the network: the diameter of a large white cell."""
_EDGE = 6
"""Outermost pixels of a tile, which count only where no other tile has them."""
_LEAST_WEIGHT = 1e-3
MOST_PIXELS = 64_000_000
"""Maximum size of a field at the network's scale."""


class TileOutputs(Protocol):
    """A network's outputs for one tile, see `edgeall.edge_runtime.segmenter.Segmentation`.

    Attributes:
        probabilities: uint8 ``(size, size, 3)``: of background, cytoplasm and nucleus, 0..255.
        red_cell: log2 of the red cells' diameter in the tile over the diameter that the network was trained with.
    """

    @property
    def probabilities(self) -> NDArray[np.uint8]: ...

    @property
    def red_cell(self) -> float: ...


class TileSegmenter(Protocol):
    """A segmentation network, see `edgeall.edge_runtime.segmenter.Segmenter`.

    Attributes:
        input: its preprocessing contract; the input is square.
        red_cell_px: diameter of a red cell that the network was trained with, in pixels of its input.
    """

    @property
    def input(self) -> InputSpec: ...

    @property
    def red_cell_px(self) -> float: ...

    def infer(self, pixels: NDArray[np.uint8], /) -> TileOutputs:
        """Segment one tile, uint8 RGB ``(size, size, 3)``."""
        ...


@dataclass(frozen=True)
class ClassMap:
    """The probabilities of a field's classes at the network's scale.

    Attributes:
        cell: uint8 ``(height, width)``: of cytoplasm or nucleus, 0..255.
        nucleus: uint8, the same shape.
        zoom: pixels of the map per pixel of the field, in x and y.
        red_cells: `TileOutputs.red_cell` of each tile.
    """

    cell: NDArray[np.uint8]
    nucleus: NDArray[np.uint8]
    zoom: tuple[float, float]
    red_cells: tuple[float, ...]


def segment_field(field: Image.Image, segmenter: TileSegmenter, red_cell_px: float) -> ClassMap:
    """Segment a field.

    Args:
        field: mode ``RGB``.
        segmenter: the network.
        red_cell_px: diameter of a red cell in pixels of the field.

    Raises:
        ImageError: the field would have more than `MOST_PIXELS` pixels.
    """
    zoom = segmenter.red_cell_px / red_cell_px
    width, height = max(1, round(field.width * zoom)), max(1, round(field.height * zoom))
    if width * height > MOST_PIXELS:
        raise ImageError(
            message(
                "a field of {width}x{height} with red cells of {size} px is too large to search",
                width=field.width,
                height=field.height,
                size=f"{red_cell_px:.1f}",
            ),
            hint="check the scale; or cut the field into parts",
        )
    size = segmenter.input.width
    pixels, (left, top) = padded(np.asarray(rescaled(field, (width, height))), size)
    cell, nucleus, red_cells = _blend(pixels, segmenter, size)
    inside = slice(top, top + height), slice(left, left + width)
    return ClassMap(cell[inside], nucleus[inside], (width / field.width, height / field.height), red_cells)


def padded(pixels: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Mirror an image at its borders until it is at least ``size`` high and wide; and its corner (left, top) in it."""
    height, width = pixels.shape[:2]
    below, right = max(0, size - height), max(0, size - width)
    if below or right:
        around = ((below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0))
        pixels = np.pad(pixels, around, mode="symmetric")
    return pixels, (right // 2, below // 2)


def starts(length: int, size: int, overlap: int = OVERLAP) -> list[int]:
    """Where tiles of ``size`` begin that cover ``length``, evenly spread, with at least this overlap."""
    count = max(1, math.ceil((length - overlap) / (size - overlap)))
    return [round(at) for at in np.linspace(0, length - size, count)]


def _blend(
    pixels: NDArray[np.uint8], segmenter: TileSegmenter, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[float, ...]]:
    """Probabilities of cell and nucleus, uint8 ``(height, width)``. Holds one row of tiles in float at a time."""
    height, width = pixels.shape[:2]
    tops, lefts = starts(height, size), starts(width, size)
    result = np.empty((2, height, width), np.uint8)
    red_cells = []
    weight = _weights(size)
    across = _total(weight, lefts, width)
    down = _total(weight, tops, height)
    both = (weight[:, None] * weight[None, :])[..., None]
    band = np.zeros((size, width, 2), np.float32)
    for top, after in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            tile = segmenter.infer(np.ascontiguousarray(pixels[top : top + size, left : left + size]))
            red_cells.append(tile.red_cell)
            cell = 255 - tile.probabilities[..., 0]
            band[:, left : left + size] += both * np.stack([cell, np.minimum(tile.probabilities[..., 2], cell)], -1)
        done = after - top
        mean = band[:done] / (down[top:after, None, None] * across[None, :, None])
        result[:, top:after] = np.moveaxis(np.rint(mean), 2, 0)
        band = np.concatenate([band[done:], np.zeros((done, width, 2), np.float32)])
    return result[0], result[1], tuple(red_cells)


def _weights(size: int) -> Floats:
    """The weight of each row or column of a tile, float32 ``(size,)``."""
    inwards = np.minimum(np.arange(size), np.arange(size)[::-1])
    ramp = (inwards - _EDGE + 1) / max(OVERLAP - 2 * _EDGE, 1)
    return np.clip(ramp, _LEAST_WEIGHT, 1).astype(np.float32)


def _total(weight: Floats, starts: list[int], length: int) -> Floats:
    """The sum of the weights of all tiles along one axis, float32 ``(length,)``."""
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(weight)] += weight
    return total
