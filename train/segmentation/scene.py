"""What differs between the fields of two laboratories besides the light: the size of white cells, print and dirt.

Drawn anew for each tile, in the image and in its mask: OpenCV on one tile at a time.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]

RESIZED = 0.5
"""Share of the tiles whose white cells have another size."""
RATIO = (0.65, 1.12)
"""Range of the factor of a white cell's diameter. Blasts may be hardly larger than red cells, and have no cytoplasm."""
SPREAD = 0.08
"""Standard deviation of its natural logarithm between the cells of a tile."""
REACH = 1.6
"""Around a cell, up to so many of its radii, the surroundings are stretched to fill what it leaves."""
LEAST_AREA = 400
"""Minimum area in pixels of a white cell that is resized: about that of a red cell. Smaller ones stay as they are."""
PRINTED = 0.15
"""Share of the tiles with a printed scale bar."""
DIRTY, SPECKS = 0.25, 6
"""Share of the tiles with specks, and their largest number."""
SPECK_PX = (0.6, 3.5)
"""Radius of a speck."""
PAPER = 0.7
"""Share of the scale bars on a white rectangle."""
INKS = ((0, 0, 0), (255, 255, 255), (210, 30, 30))
"""Colours of a scale bar, R, G, B."""
UNITS = ("um", "pix", "px", "pixels", "mm", "")


def resized_cells(pixels: Array, classes: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """A tile whose white cells are larger or smaller beside its red cells; see `RESIZED`.

    Every white cell is scaled about its centre. Its surroundings are stretched or compressed without a seam.

    Args:
        pixels: uint8 RGB ``(size, size, 3)``.
        classes: index into `edgeall.edge_runtime.masks.CLASSES`, ``(size, size)``.
        random: of all draws.
    """
    if random.random() >= RESIZED:
        return pixels, classes
    ratio = random.uniform(*RATIO)
    count, parts, stats, centres = cv2.connectedComponentsWithStats((classes > 0).astype(np.uint8), connectivity=8)
    rows, columns = np.indices(classes.shape, np.float32)
    x, y = columns.copy(), rows.copy()
    for number in range(1, count):
        if stats[number, cv2.CC_STAT_AREA] < LEAST_AREA:
            continue
        dx, dy = (grid - np.float32(at) for grid, at in zip((columns, rows), centres[number], strict=True))
        away = np.hypot(dx, dy)
        radius = float(away[parts == number].max()) + 2
        moved = _shift(away, radius, ratio * math.exp(random.normal(0, SPREAD)))
        x, y = x + dx * moved, y + dy * moved
    kinds = cv2.INTER_LINEAR, cv2.INTER_NEAREST
    image, mask = (
        cv2.remap(each, x, y, kind, borderMode=cv2.BORDER_REFLECT_101)
        for each, kind in zip((pixels, classes), kinds, strict=True)
    )
    return np.asarray(image, np.uint8), np.asarray(mask, np.uint8)


def _shift(away: NDArray[np.float32], radius: float, ratio: float) -> NDArray[np.float32]:
    """How much further out a pixel is read than it lies, as a fraction of its distance ``away`` from the centre."""
    inner, outer = radius * ratio, radius * REACH
    between = radius + (away - inner) * (outer - radius) / (outer - inner)
    source = np.where(away <= inner, away / ratio, np.where(away < outer, between, away))
    shift: NDArray[np.float32] = (source / np.maximum(away, 1e-3) - 1).astype(np.float32)
    return shift


def painted(pixels: Array, classes: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """A tile with a printed scale bar or specks of dirt: background, wherever they lie.

    Args:
        pixels: uint8 RGB ``(size, size, 3)``.
        classes: index into `edgeall.edge_runtime.masks.CLASSES`, ``(size, size)``.
        random: of all draws.
    """
    printed, dirty = random.random() < PRINTED, random.random() < DIRTY
    if not (printed or dirty):
        return pixels, classes
    pixels, classes = pixels.copy(), classes.copy()
    if dirty:
        _add_specks(pixels, classes, random)
    if printed:
        _add_bar(pixels, classes, random)
    return pixels, classes


def _add_bar(pixels: Array, classes: Array, random: np.random.Generator) -> None:
    """Draw a bar with or without ticks and a number above or below it, on white paper or on the field."""
    size = len(pixels)
    width, height = int(random.integers(size // 10, size // 2)), int(random.integers(size // 20, size // 6))
    left, top = (int(random.integers(-extent // 3, size - extent // 2)) for extent in (width, height))
    region = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    paper = random.random() < PAPER
    ink = INKS[int(random.integers(len(INKS)))]
    if paper:
        pixels[region] = random.integers(235, 256)
        ink = INKS[0] if ink == INKS[1] else ink
    before = pixels.copy()
    line, low = int(random.integers(1, 4)), random.random() < 0.7
    at = top + (height - 1 - line if low else 1 + line)
    cv2.line(pixels, (left + 2, at), (left + width - 3, at), ink, line)
    if random.random() < 0.6:
        tick = max(2, height // 6)
        for x in (left + 2, left + width - 3):
            cv2.line(pixels, (x, at - tick), (x, at + tick), ink, line)
    text = f"{int(random.integers(1, 500))} {UNITS[int(random.integers(len(UNITS)))]}".strip()
    scale = float(np.clip(height / 34, 0.2, 1.0) * random.uniform(0.7, 1.1))
    start = (left + width // 6, top + (height - 4 - 2 * line if low else height - 2))
    cv2.putText(pixels, text, start, int(random.integers(4)), scale, ink, int(random.integers(1, 3)), cv2.LINE_AA)
    classes[(pixels != before).any(axis=2)] = 0
    if paper:
        classes[region] = 0


def _add_specks(pixels: Array, classes: Array, random: np.random.Generator) -> None:
    """Draw dark or coloured specks."""
    size = len(pixels)
    for _ in range(int(random.integers(1, SPECKS + 1))):
        where = tuple(int(place) for place in random.integers(0, size, 2))
        axes = tuple(max(1, round(radius)) for radius in random.uniform(*SPECK_PX, 2))
        colour = tuple(int(level) for level in random.integers(10, 190, 3))
        spot = np.zeros(classes.shape, np.uint8)
        cv2.ellipse(spot, where, axes, float(random.uniform(0, 180)), 0, 360, 255, -1)
        cover = (cv2.GaussianBlur(spot, (0, 0), random.uniform(0.3, 1.2)).astype(np.float32) / 255)[..., np.newaxis]
        pixels[...] = np.rint(pixels * (1 - cover) + np.array(colour, np.float32) * cover)
        classes[cover[..., 0] > 0.5] = 0
