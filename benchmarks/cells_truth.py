"""The truth that `benchmarks/cells.py` compares with: masks, boxes and points of cells."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeall.edge_runtime.vision.cells import Box, Cell

LEAST_OVERLAP = 0.3
"""Intersection over union of a box and a found cell that are the same cell."""
NEAR_BORDER = 3
"""Pixels: BCCD's boxes of cells that the border cuts end so near to it."""
SPECK = 30
"""Minimum area of a true cell in pixels; drawn masks have single stray pixels."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Field:
    """One image and what is known of it.

    Attributes:
        name: of the image.
        pixels: uint8 RGB ``(height, width, 3)``.
        mask: uint8 ``(height, width)``: 0, 128 cytoplasm, 255 nucleus; None if unknown.
        boxes: of its white cells.
        points: one inside each whole nucleated cell.
        ignored: one inside each cell that does not count.
        red_cell_px: median of its red cells' boxes, or of its laboratory; None if unknown.
    """

    name: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    ignored: tuple[Point, ...] = ()
    red_cell_px: float | None = None


def rgb(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_boxes(folder: Path, number: slice = slice(None)) -> Iterator[Field]:
    """Fields of a VOC data set, sorted by name."""
    for file in sorted((folder / "JPEGImages").glob("*.jpg"))[number]:
        boxes: dict[str, list[Box]] = {"WBC": [], "RBC": []}
        for item in ElementTree.parse(folder / "Annotations" / f"{file.stem}.xml").iter("object"):
            left, top, right, bottom = (int(item.findtext(f"bndbox/{end}", "")) for end in _ENDS)
            boxes.setdefault(item.findtext("name", ""), []).append((left, top, right, bottom))
        sides = [max(box[2] - box[0], box[3] - box[1]) for box in boxes["RBC"]]
        yield Field(
            file.stem,
            rgb(file),
            boxes=tuple(boxes["WBC"]),
            red_cell_px=float(np.median(sides)) if len(sides) >= 5 else None,
        )


_ENDS = ("xmin", "ymin", "xmax", "ymax")


def mask_folders(data: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and of masks of each laboratory in ``data/masks``, or in ``data`` itself."""
    top = data / "masks" if (data / "masks").is_dir() and not (data / "images").is_dir() else data.parent
    labs = {data.name: data} if top == data.parent else {lab.name: lab for lab in sorted(top.iterdir()) if lab.is_dir()}
    found = {}
    for name, lab in labs.items():
        images = lab / "images" if (lab / "images").is_dir() else data / name / "JPEGImages"
        if images.is_dir() and (lab / "masks").is_dir():
            found[name] = (images, lab / "masks")
    return found


def read_masks(images: Path, masks: Path, only: set[str] | None, red_cell_px: float | None) -> Iterator[Field]:
    """Images with a mask of the same stem, sorted by name.

    Args:
        images: folder.
        masks: folder.
        only: stems of the images to read; None reads all.
        red_cell_px: of this laboratory, if it is known.
    """
    files = {file.stem: file for file in sorted(images.iterdir()) if file.is_file()}
    for mask in sorted(masks.glob("*.png")):
        if mask.stem in files and (only is None or mask.stem in only):
            with Image.open(mask) as opened:
                drawn = np.asarray(opened.convert("L"))
            yield Field(mask.stem, rgb(files[mask.stem]), mask=drawn, red_cell_px=red_cell_px)


def read_points(file: Path, data: Path) -> Iterator[Field]:
    """Images with marked cells: ``{"<image>": {"cells": [[x, y], ...], "ignore": [[x, y], ...]}}``.

    An image's path is relative to the file, to ``data`` or to ``data/all4``. ``ignore`` marks what is neither a hit nor
    false: smudge cells, cells that the border cuts.
    """
    marked = json.loads(file.read_text(encoding="utf-8"))
    for name, points in sorted(marked.items()):
        tried = [folder / name for folder in (file.parent, data, data / "all4")]
        image = next((path for path in tried if path.is_file()), tried[0])
        cells, ignored = (points["cells"], points.get("ignore", [])) if isinstance(points, dict) else (points, [])
        yield Field(name, rgb(image), points=_points(cells), ignored=_points(ignored))


def _points(marked: list[list[float]]) -> tuple[Point, ...]:
    return tuple((float(x), float(y)) for x, y in marked)


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; 1 if both are empty."""
    both = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / both if both else 1.0


def true_cells(mask: NDArray[np.uint8]) -> list[tuple[NDArray[np.bool_], float]]:
    """The whole cells of a drawn mask, each with its N:C ratio. Cells that touch count as one and are left out."""
    import cv2

    found = []
    count, parts, stats, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    height, width = mask.shape
    for number in range(1, count):
        left, top, wide, high, area = (int(value) for value in stats[number])
        one = parts == number
        nucleus = int((one & (mask == 255)).sum())
        whole = left > 0 and top > 0 and left + wide < width and top + high < height
        if whole and area >= SPECK and nucleus:
            found.append((one, nucleus / area))
    return found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def inside(point: Point, box: Box) -> bool:
    """Whether a point lies in a box."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def match_boxes(found: Sequence[Cell], boxes: Sequence[Box]) -> dict[int, int]:
    """Which cell is which box: overlap of `LEAST_OVERLAP` or the centre inside, each at most once, the best first."""
    pairs = [
        (-overlap(cell.box, box), c, b)
        for c, cell in enumerate(found)
        for b, box in enumerate(boxes)
        if overlap(cell.box, box) >= LEAST_OVERLAP or inside(cell.centre, box)
    ]
    return _once(pairs)


def match_points(found: Sequence[Cell], points: Sequence[Point]) -> dict[int, int]:
    """Which cell is which point: the point inside its box, each at most once, the nearest centres first."""
    pairs = [
        ((cell.centre[0] - point[0]) ** 2 + (cell.centre[1] - point[1]) ** 2, c, p)
        for c, cell in enumerate(found)
        for p, point in enumerate(points)
        if inside(point, cell.box)
    ]
    return _once(pairs)


def _once(pairs: list[tuple[float, int, int]]) -> dict[int, int]:
    taken: dict[int, int] = {}
    for _, cell, truth in sorted(pairs):
        if cell not in taken and truth not in taken.values():
            taken[cell] = truth
    return taken


def at_border(box: Box, width: int, height: int) -> bool:
    """Whether a box ends at the border of its image."""
    return (
        box[0] <= NEAR_BORDER
        or box[1] <= NEAR_BORDER
        or box[2] >= width - NEAR_BORDER
        or box[3] >= height - NEAR_BORDER
    )
