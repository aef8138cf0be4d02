"""Finds the nucleated cells of a field: colour deconvolution, threshold, watershed, in numpy and Pillow.

Nuclei bind the blue dye of a Romanowsky stain, red cells bind eosin. Steps, figures, and the reason for not using a
library: docs/decisions/0011-cells.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .cells import Cell
from .finder import Found
from .regions import Mask, close, fill_holes, label, split
from .scale import Scale, given_scale

RED_CELL = 0.163
"""Default diameter of a red cell as a fraction of the field's longer side: 100x, oil immersion."""
WORK_PIXELS = 320
"""Longer side of the image for the search, pixels. A red cell then measures 52 pixels, a nucleus 40 to 90."""

# Optical densities of methylene blue and eosin in red, green and blue light. Source: ImageJ, Colour Deconvolution.
_DYES = np.array([[0.834750233, 0.513556283, 0.196330403], [0.092789, 0.954111, 0.283111]])
_BACKGROUND_PERCENTILE = 90
_STEPS = 64
"""Histogram bins per unit of optical density."""

LEAST_BLUE = 0.27
"""Minimum density of methylene blue in a nucleus. Red cells reach 0.2."""
NUCLEUS_RED = 0.82
"""Minimum optical density of a nucleus in red light, divided by its mean over the colours: nuclei reach 0.97 in the
first half of BCCD. Overlapping red cells are as dark, but transmit red light: 0.67 on simulated slides."""
TOWARDS_NUCLEI = 0.42
"""Position of the threshold between the mean densities of red cells (0) and nuclei (1)."""
TEXTURE = 0.03
"""Half the maximum gap inside one piece of chromatin. Lengths here and below are in red cell diameters."""
GAP = 0.07
"""Half the maximum distance between lobes of one nucleus."""
LEAST_AREA = 0.3
"""Minimum area of a nucleus, in red cell areas; platelets are smaller."""
HOLE = 0.13
"""Maximum area of a hole in a folded nucleus, in squared red cell diameters."""
CUT = 0.8
"""Factor on `LEAST_AREA` for a nucleus that the border cuts."""
NECK = 0.75
"""Two nuclei are separated if the neck is narrower than this fraction of the smaller one's width."""
LOBE = 0.3
"""Maximum area of a lobe, in squared red cell diameters."""
SPECK = 0.02
"""Minimum area of any part of a nucleus, in squared red cell diameters."""
LEAST_RADIUS = 0.33
"""Minimum inscribed radius of a nucleus that is separated from another one."""
MARGIN = 0.17
"""Margin of a cell's box around its nucleus."""


class ColourRule:
    """The rule as a `edgeall.edge_runtime.vision.finder.Finder`; it assumes the scale, and knows no cytoplasm."""

    def find(self, pixels: NDArray[np.uint8], scale: Scale | None = None, /) -> Found:
        """See `edgeall.edge_runtime.vision.finder.Finder`. The mask has the nuclei alone."""
        height, width = pixels.shape[:2]
        if scale is None:
            scale = given_scale(RED_CELL * max(height, width), "assumed")
        found, small = _find(pixels, scale.red_cell_px)

        def mask() -> NDArray[np.uint8]:
            nuclei = np.full(small, 0, np.uint8)
            for _, (left, top), one in found:
                nuclei[top : top + one.shape[0], left : left + one.shape[1]][one] = 255
            smooth = Image.fromarray(nuclei).resize((width, height), Image.Resampling.BILINEAR)
            result = np.zeros((height, width), np.uint8)
            result[np.asarray(smooth) >= 128] = 255
            return result

        return Found(tuple(cell for cell, _, _ in found), scale, (), mask)


def find_cells(pixels: NDArray[np.uint8], red_cell_px: float | None = None) -> list[Cell]:
    """Find nucleated cells.

    Args:
        pixels: uint8, RGB, ``(height, width, 3)``; a smear in brightfield, with some empty background.
        red_cell_px: diameter of a red cell, the unit of all lengths; None takes `RED_CELL` of the longer side.

    Returns:
        Cells from top to bottom, including those that the border cuts.
    """
    return [cell for cell, _, _ in _find(pixels, red_cell_px or RED_CELL * max(pixels.shape[:2]))[0]]


def _find(
    pixels: NDArray[np.uint8], red_cell_px: float
) -> tuple[list[tuple[Cell, tuple[int, int], Mask]], tuple[int, int]]:
    """Cells from top to bottom, each with the corner and the mask of its nucleus in the searched image, and its shape.

    The searched image is the field at a fraction of its size.
    """
    image = Image.fromarray(pixels)
    shrink = max(1, round(max(image.size) / WORK_PIXELS))
    small = np.asarray(image.reduce(shrink))
    unit = red_cell_px / shrink
    background = np.maximum(np.percentile(small.reshape(-1, 3)[::7], _BACKGROUND_PERCENTILE, axis=0), 1)
    blue = methylene_blue(small, background)
    threshold = _threshold(blue)
    if threshold is None:
        return [], small.shape[:2]
    found = [
        (cell, corner, mask)
        for corner, mask in _nuclei(blue > threshold, unit)
        if (cell := _cell(corner, mask, blue.shape, unit, shrink, image.size))
        and _absorbs_red(_part(small, corner, mask), background)
    ]
    found.sort(key=lambda each: (each[0].centre[1], each[0].centre[0]))
    return found, small.shape[:2]


def methylene_blue(pixels: NDArray[np.uint8], background: NDArray[np.float64]) -> NDArray[np.float32]:
    """Optical density of the blue dye, float32 ``(height, width)``.

    Relative to the field's ``background``, ``(3,)``, and so independent of the lamp and the white balance.
    """
    base = np.vstack([_DYES, np.cross(*_DYES)])
    weights = np.linalg.inv(base / np.linalg.norm(base, axis=1, keepdims=True))[:, 0]
    levels = np.maximum(np.arange(256, dtype=np.float32), 1)
    tables = [-np.log(levels / white) * weight for white, weight in zip(background, weights, strict=True)]
    density: NDArray[np.float32] = sum(
        (table.astype(np.float32)[pixels[..., i]] for i, table in enumerate(tables)),
        np.zeros(pixels.shape[:2], np.float32),
    )
    return density


def _absorbs_red(pixels: NDArray[np.uint8], background: NDArray[np.float64]) -> bool:
    """Whether these ``(count, 3)`` pixels absorb red light as a nucleus does."""
    density = np.log(background) - np.log(np.maximum(pixels, 1)).mean(axis=0)
    return bool(density[0] >= NUCLEUS_RED * density.mean())


def _part(field: NDArray[np.uint8], corner: tuple[int, int], mask: Mask) -> NDArray[np.uint8]:
    """The pixels under a mask at ``corner`` (left, top), ``(count, 3)``."""
    left, top = corner
    part: NDArray[np.uint8] = field[top : top + mask.shape[0], left : left + mask.shape[1]][mask]
    return part


def _threshold(blue: NDArray[np.float32]) -> float | None:
    """The threshold between nuclei and paler pixels, at least `LEAST_BLUE`; None if there is no nucleus."""
    if blue.max() < LEAST_BLUE:
        return None
    bins = np.clip(blue * _STEPS, 0, 2 * _STEPS - 1).astype(np.int64)
    pale, dark = upper_two_of_three(np.bincount(bins.ravel(), minlength=2 * _STEPS))
    return max(LEAST_BLUE, (pale + TOWARDS_NUCLEI * (dark - pale)) / _STEPS)


def upper_two_of_three(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Means, in bins, of the upper two of three Otsu classes. Source: Otsu 1979; Liao et al. 2001."""
    numbers = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    sums = np.concatenate([[0], np.cumsum(counts * np.arange(len(counts)))]).astype(np.float64)
    number, total = numbers[None, :] - numbers[:, None], sums[None, :] - sums[:, None]  # of the bins from i to before j
    mean = np.divide(total, number, out=np.zeros_like(total), where=number > 0)
    between = total * mean
    end = len(counts)
    first, second = np.triu_indices(end + 1, 1)
    best = int(np.argmax(between[0, first] + between[first, second] + between[second, end]))
    return float(mean[first[best], second[best]]), float(mean[second[best], end])


def _nuclei(dark: Mask, unit: float) -> list[tuple[tuple[int, int], Mask]]:
    """The corner (left, top) and the mask of each nucleus in a mask of dark pixels.

    Splits regions at their necks. In each group of neighbouring pieces, every piece of nuclear size is one nucleus, and
    takes the smaller pieces nearest to it as lobes; without such a piece, the group is one nucleus.
    """
    whole = fill_holes(close(dark, round(TEXTURE * unit)), HOLE * unit * unit)
    pieces = _pieces(whole, unit)
    if not pieces:
        return []
    together = label(close(whole, round(GAP * unit))).labels
    groups: dict[int, list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault(int(together[piece.rows[0], piece.columns[0]]), []).append(piece)
    nuclei = []
    for group in groups.values():
        cores = [piece for piece in group if piece.area >= LOBE * unit * unit] or [max(group, key=lambda p: p.area)]
        owned: list[list[_Piece]] = [[core] for core in cores]
        for piece in group:
            if not any(piece is core for core in cores):
                owned[int(np.argmin([piece.distance(core) for core in cores]))].append(piece)
        nuclei += [_joined(parts) for parts in owned]
    return nuclei


@dataclass(frozen=True, eq=False)
class _Piece:
    """Pixels of a part of a nucleus: rows and columns in the searched image."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def area(self) -> int:
        return len(self.rows)

    def distance(self, other: _Piece) -> float:
        """From the centre of this piece to the rim of the other, as if that were a disc."""
        between = math.hypot(self.rows.mean() - other.rows.mean(), self.columns.mean() - other.columns.mean())
        return between - math.sqrt(other.area / math.pi)


def _pieces(whole: Mask, unit: float) -> list[_Piece]:
    found = label(whole)
    pieces = []
    for number, (area, (left, top, right, bottom)) in enumerate(zip(found.areas, found.boxes.tolist(), strict=True), 1):
        if area < SPECK * unit * unit:
            continue
        cut = split(found.labels[top:bottom, left:right] == number, NECK, LEAST_RADIUS * unit)
        for piece in range(1, int(cut.max()) + 1):
            rows, columns = np.nonzero(cut == piece)
            pieces.append(_Piece(rows + top, columns + left))
    return pieces


def _joined(parts: list[_Piece]) -> tuple[tuple[int, int], Mask]:
    rows = np.concatenate([part.rows for part in parts])
    columns = np.concatenate([part.columns for part in parts])
    left, top = int(columns.min()), int(rows.min())
    mask = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), np.bool_)
    mask[rows - top, columns - left] = True
    return (left, top), mask


def _cell(
    corner: tuple[int, int], mask: Mask, searched: Sequence[int], unit: float, shrink: int, size: tuple[int, int]
) -> Cell | None:
    """The cell of a nucleus in an image of ``size``; None if it is too small."""
    high, wide = mask.shape
    left, top = corner
    right, bottom = left + wide, top + high
    cut = left == 0 or top == 0 or right == searched[1] or bottom == searched[0]
    area = int(mask.sum())
    if area < LEAST_AREA * unit * unit * math.pi / 4 * (CUT if cut else 1):
        return None
    rows, columns = np.nonzero(mask)
    margin = MARGIN * unit
    box = (
        max(0, math.floor((left - margin) * shrink)),
        max(0, math.floor((top - margin) * shrink)),
        min(size[0], math.ceil((right + margin) * shrink)),
        min(size[1], math.ceil((bottom + margin) * shrink)),
    )
    centre = ((left + float(columns.mean()) + 0.5) * shrink, (top + float(rows.mean()) + 0.5) * shrink)
    return Cell(box, centre, area * shrink * shrink, cut)
