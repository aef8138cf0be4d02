"""The golden vectors of `pixel_vectors.py` for finding cells: scales, tiles, instances and whole fields.

A toy stands for the network, which JavaScript has too: `Toy`, and `toy` in `javascript/compute.mjs`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from dataclasses import asdict
from typing import Any

import numpy as np
from drawn_cells import GLASS, SOME_RED, Read, draw
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeall.edge_runtime.preprocess import InputSpec, rescaled, window
from edgeall.edge_runtime.vision.cells_files import NOT_A_SMEAR, cell_rows
from edgeall.edge_runtime.vision.finder import CellFinder
from edgeall.edge_runtime.vision.instances import find_instances
from edgeall.edge_runtime.vision.quality import looks_stained
from edgeall.edge_runtime.vision.scale import busiest, given_scale
from edgeall.edge_runtime.vision.tiles import ClassMap, segment_field

UNIT = 28.0
"""A red cell's diameter in the toy's input."""
SCALED = [
    *((640, 480, 172, 129, None), (1500, 1100, 70, 60, None), (999, 777, 50, 31, None), (40, 30, 192, 144, None)),
    *((640, 480, 192, 192, (100.25, 50.125, 500.75, 450.6)), (301, 199, 24, 20, (0.0, 0.0, 301.0, 150.3))),
    *((300, 300, 192, 192, (7.7, 200.3, 57.1, 249.7)), (5, 700, 10, 100, (0.0, 350.5, 5.0, 700.0))),
]
"""Width and height of an image, of the result, and the part that is resized; None: the whole."""
TILED = [(640, 480, 104.0), (300, 200, 20.0), (90, 41, 28.0), (20, 500, 30.5)]
"""Width and height of an image, and the diameter of a red cell."""
SEARCHED = [(300, 200), (37, 91)]
PAIRS = [(60, 0, 20, 20), (30, 4, 22, 18), (30, 20, 20, 21), (0, 0, 25, 25), (16, 10, 15, 24), (44, 44, 26, 15)]
"""Where the second of two cells is beside the first, and the radii of both."""


class Toy:
    """Takes the classes from the colours of `draw`, and the size of red cells from the mean length of their rows."""

    def __init__(self) -> None:
        self.input = InputSpec(192, 192)
        self.red_cell_px = UNIT

    def infer(self, pixels: NDArray[np.uint8], /) -> Read:
        red, green, blue = np.moveaxis(pixels.astype(int), 2, 0)
        probabilities = np.zeros(pixels.shape, np.uint8)
        probabilities[..., 2] = np.where(blue - green >= 50, 250, 0)
        probabilities[..., 1] = np.where((blue - green >= 20) & (blue - green < 50), 240, 0)
        probabilities[..., 0] = 255 - probabilities[..., 1] - probabilities[..., 2]
        cell = np.pad(red - blue >= 30, ((0, 0), (1, 0)))
        begins = int((cell[:, 1:] & ~cell[:, :-1]).sum())
        octaves = math.log2(int(cell.sum()) / begins * 4 / math.pi / UNIT) if begins else 1.0
        return Read(probabilities, float(np.float32(min(max(octaves, -1.0), 1.0))))


class Slanted(Toy):
    """Takes no two tiles for the same, so that their weights matter."""

    def infer(self, pixels: NDArray[np.uint8], /) -> Read:
        rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        probabilities = np.zeros(pixels.shape, np.uint8)
        probabilities[..., 0] = (pixels[..., 0].astype(int) + columns + 2 * rows) % 256
        probabilities[..., 2] = 255 - probabilities[..., 0] // 2
        return Read(probabilities, 0.0)


def drawn(width: int, height: int) -> NDArray[np.uint8]:
    """An RGB image that JavaScript draws alike: byte i is the upper byte of ``i * 2654435761`` in 32 bits."""
    numbers = np.arange(width * height * 3, dtype=np.uint64) * np.uint64(2654435761)
    return ((numbers & np.uint64(0xFFFFFFFF)) >> np.uint64(24)).astype(np.uint8).reshape(height, width, 3)


def digest(pixels: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def opened(case: dict[str, Any]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(case["png"]))) as image:
        return np.asarray(image)


def scaled(width: int, height: int, size: tuple[int, int], box: tuple[float, float, float, float] | None) -> str:
    image = Image.fromarray(drawn(width, height))
    return digest(np.asarray(rescaled(image, size) if box is None else window(image, size, box)))


def tiled(width: int, height: int, red_cell_px: float) -> dict[str, Any]:
    """The class map of an image, by digests."""
    found = segment_field(Image.fromarray(drawn(width, height)), Slanted(), red_cell_px)
    return {"cell": digest(found.cell), "nucleus": digest(found.nucleus), "size": list(found.cell.shape[::-1])}


def separated(maps: NDArray[np.uint8]) -> dict[str, Any]:
    """The cells in a picture of probabilities: of cell in red, of nucleus in green."""
    labels, instances = find_instances(ClassMap(maps[..., 0], maps[..., 1], (1.0, 1.0), ()), UNIT)
    return {"labels": digest(labels.astype("<i4")), "instances": [asdict(each) for each in instances]}


def found_in(field: NDArray[np.uint8], red_cell_px: float | None) -> dict[str, Any]:
    """What `edgeall cells --json` says of a field, without names of files."""
    scale = None if red_cell_px is None else given_scale(red_cell_px)
    found = CellFinder(Toy()).find(field, scale)
    warnings = [*found.warnings, *([] if looks_stained(field) else [NOT_A_SMEAR])]
    mask = {"mask": digest(found.mask()), "warnings": warnings}
    return {"cells": cell_rows(found), "scale": found.scale.to_json(), **mask}


def probability_maps() -> list[NDArray[np.uint8]]:
    """Two cells beside each other, with lobed nuclei, holes and borders; blurred, so that probabilities have slopes."""
    made = []
    for right, down, first, second in PAIRS:
        picture = Image.new("RGB", (130, 110))
        pen = ImageDraw.Draw(picture)
        for x, y, radius in ((40, 40, first), (40 + right, 40 + down, second)):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 0, 0))
        for x, y, radius in ((40, 40, first), (40 + right, 40 + down, second)):
            for lobe in (-radius // 3, radius // 3):
                size = 0.5 * radius
                pen.ellipse((x + lobe - size, y - size, x + lobe + size, y + size), (255, 245, 0))
        pen.ellipse((36, 22, 40, 26), (0, 0, 0))
        pen.ellipse((0, 90, 24, 120), (255, 250, 0))  # cut by the border
        made.append(np.asarray(picture.resize((65, 55), Image.Resampling.BOX).resize((130, 110))))
    return made


def fields() -> list[tuple[NDArray[np.uint8], float | None]]:
    """Fields, with the scale or None."""
    several = [((120, 100), 0.9), ((330, 240), 0.8), ((430, 250), 0.9), ((630, 400), 0.9)]
    plain = draw(several, SOME_RED, platelets=[(250, 60)], noise=0)
    small = draw([((60, 50), 0.9)], [(20, 90), (100, 30)], (120, 110), 0.25, noise=0)
    red = [(200, 300), (700, 800), (1000, 200)]
    large = draw([((500, 400), 0.9), ((900, 500), 0.7)], red, (1280, 960), 1.6, noise=0)
    holed = plain.copy()
    holed[250:262, 358:364] = GLASS
    grey = np.repeat(plain[..., 1:2], 3, axis=2)
    return [
        (plain, None),
        (plain, 70.0),
        (holed, 104.0),
        (small, None),
        (large, None),
        (grey, None),
        (plain[:60, :80], 104.0),
    ]


def make() -> dict[str, Any]:
    return {
        "scaling": [
            {"image": [w, h], "size": [width, height], "box": box, "sha256": scaled(w, h, (width, height), box)}
            for w, h, width, height, box in SCALED
        ],
        "tiles": [{"image": [w, h], "red_cell_px": unit} | tiled(w, h, unit) for w, h, unit in TILED],
        "busiest": [{"image": [w, h], "places": busiest(Image.fromarray(drawn(w, h)))} for w, h in SEARCHED],
        "instances": [{"png": png(maps)} | separated(maps) for maps in probability_maps()],
        "fields": [{"png": png(field), "red_cell_px": px} | found_in(field, px) for field, px in fields()],
    }
