"""Finds the nucleated cells of a field: colour deconvolution, threshold, watershed, in numpy and Pillow.

Nuclei bind the blue dye of a Romanowsky stain, red cells its eosin. Which steps, which figures and why no library for
them: docs/decisions/0011-cells.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..preprocess import InputSpec, preprocess
from .regions import Mask, close, fill_holes, label, split

RED_CELL = 0.163
"""A red cell's diameter as a fraction of the field's longer side where nobody says otherwise: 100x, oil immersion."""
WORK_PIXELS = 320
"""The longer side of what is searched; a red cell then measures 52 pixels, a nucleus 40 to 90."""

# Optical densities of methylene blue and eosin in red, green and blue light. Source: ImageJ, Colour Deconvolution.
_DYES = np.array([[0.834750233, 0.513556283, 0.196330403], [0.092789, 0.954111, 0.283111]])
_BACKGROUND_PERCENTILE = 90
_STEPS = 64
"""Of one unit of optical density, where a histogram is made of it."""

LEAST_BLUE = 0.27
"""Density of methylene blue below which nothing is a nucleus: red cells reach 0.2."""
NUCLEUS_RED = 0.82
"""Least optical density of a nucleus in red light, as a share of its mean over the colours: nuclei reach 0.97 in the
first half of BCCD. Red cells that lie on one another are as dark, but let red light pass: 0.67 on simulated slides."""
TOWARDS_NUCLEI = 0.42
"""Where between the mean densities of red cells and of nuclei the one ends and the other begins."""
TEXTURE = 0.03
"""Gaps in one piece of chromatin are narrower than twice this; here and below, in red cells' diameters."""
GAP = 0.07

"""Lobes of one nucleus are no farther apart than twice this."""
LEAST_AREA = 0.3
"""The least nucleus, in red cells' areas; platelets are smaller."""
HOLE = 0.13
"""The largest gap that a folded nucleus encloses, in squares of red cells' diameters."""
CUT = 0.8
"""The share of it that the border leaves of one at least."""
NECK = 0.75
"""Two nuclei touch where the neck is narrower than this fraction of the smaller one's width."""
LOBE = 0.3
"""Lobes are smaller, in squares of red cells' diameters."""
SPECK = 0.02
"""What is smaller is no part of a nucleus either."""
LEAST_RADIUS = 0.33
"""The inscribed radius of the least nucleus that is cut off another."""
MARGIN = 0.17
"""How far a cell goes beyond its nucleus."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the field; right and bottom exclusive."""


@dataclass(frozen=True)
class Cell:
    """One nucleated cell, in pixels of the field.

    Attributes:
        box: of the nucleus and a margin around it.
        centre: x, y of the nucleus's centre of mass.
        area_px: of the nucleus.
        touches_border: the field cuts it off: it is no whole cell, and not to be judged.
    """

    box: Box
    centre: tuple[float, float]
    area_px: int
    touches_border: bool


def find_cells(pixels: NDArray[np.uint8], red_cell_px: float | None = None) -> list[Cell]:
    """Find nucleated cells.

    Args:
        pixels: uint8, RGB, ``(height, width, 3)``; a smear in brightfield, with some empty background.
        red_cell_px: diameter of a red cell, which is the scale of everything; None takes `RED_CELL` of the longer side.

    Returns:
        From top to bottom, those that the border cuts included.
    """
    image = Image.fromarray(pixels)
    longer = max(image.size)
    shrink = max(1, round(longer / WORK_PIXELS))
    small = np.asarray(image.reduce(shrink))
    unit = (red_cell_px or RED_CELL * longer) / shrink
    background = np.maximum(np.percentile(small.reshape(-1, 3)[::7], _BACKGROUND_PERCENTILE, axis=0), 1)
    blue = methylene_blue(small, background)
    threshold = _threshold(blue)
    if threshold is None:
        return []
    found = [
        cell
        for corner, mask in _nuclei(blue > threshold, unit)
        if (cell := _cell(corner, mask, blue.shape, unit, shrink, image.size))
        and _absorbs_red(_part(small, corner, mask), background)
    ]
    return sorted(found, key=lambda cell: (cell.centre[1], cell.centre[0]))


def crop(field: Image.Image, box: Box, spec: InputSpec) -> NDArray[np.uint8]:
    """Cut a cell out as the model of ``spec`` wants it.

    Returns:
        uint8, RGB, ``(spec.height, spec.width, 3)``.
    """
    return preprocess(cut_out(field, box, spec.width / spec.height), spec)


def cut_out(field: Image.Image, box: Box, aspect: float = 1.0) -> Image.Image:
    """The window around a cell's box that a model of cells sees, ``aspect`` times as wide as it is high.

    It is moved, not filled up, where it would leave the field, and shrunk only where the field is smaller.
    """
    left, top, right, bottom = box
    height = max(bottom - top, (right - left) / aspect)
    wide, high = min(round(height * aspect), field.width), min(round(height), field.height)
    x = min(max((left + right - wide) // 2, 0), field.width - wide)
    y = min(max((top + bottom - high) // 2, 0), field.height - high)
    return field.crop((x, y, x + wide, y + high))


def methylene_blue(pixels: NDArray[np.uint8], background: NDArray[np.float64]) -> NDArray[np.float32]:
    """The blue dye's optical density, float32 ``(height, width)``.

    It is relative to the field's own ``background``, ``(3,)``, and so neither the lamp nor the white balance matters.
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
    """Whether what these ``(count, 3)`` pixels show takes red light as a nucleus does."""
    density = np.log(background) - np.log(np.maximum(pixels, 1)).mean(axis=0)
    return bool(density[0] >= NUCLEUS_RED * density.mean())


def _part(field: NDArray[np.uint8], corner: tuple[int, int], mask: Mask) -> NDArray[np.uint8]:
    """The pixels of a mask that lies at ``corner`` (left, top), ``(count, 3)``."""
    left, top = corner
    part: NDArray[np.uint8] = field[top : top + mask.shape[0], left : left + mask.shape[1]][mask]
    return part


def _threshold(blue: NDArray[np.float32]) -> float | None:
    """Between nuclei and what is paler, `LEAST_BLUE` at least; None without any nucleus."""
    if blue.max() < LEAST_BLUE:
        return None
    bins = np.clip(blue * _STEPS, 0, 2 * _STEPS - 1).astype(np.int64)
    pale, dark = upper_two_of_three(np.bincount(bins.ravel(), minlength=2 * _STEPS))
    return max(LEAST_BLUE, (pale + TOWARDS_NUCLEI * (dark - pale)) / _STEPS)


def upper_two_of_three(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Means, in bins, of the upper two of the three classes that differ most. Source: Otsu 1979; Liao et al. 2001."""
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
    """The left and top end and the mask of each nucleus in a mask of what is dark enough to be one.

    Regions are cut where they are narrow. Of what lies together, the pieces as large as a nucleus are one each, and
    take the smaller ones nearest to them as their lobes; where none is that large, all are the lobes of one.
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
    """Pixels of a nucleus: their rows and columns in the searched image."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def area(self) -> int:
        return len(self.rows)

    def distance(self, other: _Piece) -> float:
        """Between the rims, if both were discs."""
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
    """The cell of a nucleus in an image of ``size``; None for what is too small to be one."""
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
