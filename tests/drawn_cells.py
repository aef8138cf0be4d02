"""Drawn smears with known truth, and a segmenter that reads them instead of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeall.edge_runtime.preprocess import InputSpec

GLASS, RED, BLUE, PLASMA, PLATELET = (230, 228, 222), (205, 150, 150), (85, 55, 140), (190, 185, 215), (150, 120, 180)
UNIT = 104
"""A red cell's diameter in fields of 640 x 480."""
Point = tuple[int, int]


def draw(
    nuclei: Sequence[tuple[Point, float]] = (),
    red: Iterable[Point] = (),
    size: Point = (640, 480),
    scale: float = 1.0,
    platelets: Iterable[Point] = (),
    noise: float = 3,
) -> NDArray[np.uint8]:
    """A smear: nuclei (centre, diameter in red cell diameters) with cytoplasm, and sensor noise."""
    image = Image.new("RGB", size, GLASS)
    pen = ImageDraw.Draw(image)

    def disc(centre: Point, diameter: float, colour: tuple[int, int, int]) -> None:
        radius = diameter * UNIT * scale / 2
        x, y = centre
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    for centre in red:
        disc(centre, 1, RED)
        disc(centre, 0.35, tuple(np.add(RED, 18)))  # the pallor
    for centre, diameter in nuclei:
        disc(centre, diameter + 0.3, PLASMA)
    for centre, diameter in nuclei:
        disc(centre, diameter, BLUE)
    for centre in platelets:
        disc(centre, 0.3, PLATELET)
    added = np.random.default_rng(0).normal(0, noise, (size[1], size[0], 3))
    return np.clip(np.asarray(image) + added, 0, 255).astype(np.uint8)


SOME_RED = [(60, 400), (150, 420), (560, 60), (330, 440), (100, 250), (580, 250), (470, 130)]


@dataclass(frozen=True)
class Read:
    """The outputs of `DrawnSegmenter` for one tile."""

    probabilities: NDArray[np.uint8]
    red_cell: float


class DrawnSegmenter:
    """Takes the class of each pixel from the colours of `draw`, and measures the red cells that are whole.

    Like a network, it answers at most an octave in each direction.
    """

    def __init__(self, size: int = 192, red_cell_px: float = 28.0) -> None:
        self.input = InputSpec(size, size)
        self.red_cell_px = red_cell_px
        self.tiles = 0

    def infer(self, pixels: NDArray[np.uint8], /) -> Read:
        self.tiles += 1
        assert pixels.shape == (self.input.height, self.input.width, 3)
        palette = np.array([GLASS, RED, np.add(RED, 18), PLATELET, PLASMA, BLUE], np.int32)
        nearest = np.abs(pixels[..., None, :].astype(np.int32) - palette).sum(-1).argmin(-1)
        probabilities = np.zeros((*nearest.shape, 3), np.uint8)
        classes = np.array([0, 0, 0, 0, 1, 2])[nearest]
        np.put_along_axis(probabilities, classes[..., None], 255, axis=2)
        return Read(probabilities, self._octaves(((nearest == 1) | (nearest == 2)).astype(np.uint8)))

    def _octaves(self, red: NDArray[np.uint8]) -> float:
        count, _, stats, _ = cv2.connectedComponentsWithStats(red)
        diameters = []
        for left, top, width, height, area in stats[1:count]:
            whole = left > 0 and top > 0 and left + width < red.shape[1] and top + height < red.shape[0]
            if whole and area >= 12 and 0.9 < width / height < 1.1 and area > 0.7 * width * height:
                diameters.append((width + height) / 2)
        if not diameters:
            return 1.0  # a part of one cell, or glass between cells
        return float(np.clip(np.log2(np.median(diameters) / self.red_cell_px), -1, 1))
