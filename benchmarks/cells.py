"""Whether `edgeall cells` finds the white cells of BCCD, how fast, and whether a library would do it better.

python benchmarks/cells.py DATA/bccd [--out benchmarks/results/cells.md]

The figures in `edgeall.edge_runtime.vision.cells` were chosen on the first half of the fields, by number; the limit
counts on the second. The same search runs with its region operations done by scikit-image and by OpenCV where these are
installed. Times are of the thread's processor. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeall.edge_runtime.vision import cells, regions

LEAST_RECALL, LEAST_PRECISION, MOST_MS, LEAST_OVERLAP = 0.9, 0.8, 60.0, 0.3
NEAR_BORDER = 3
"""Pixels: BCCD's boxes of cells that the border cuts end so near to it."""
Box = cells.Box


@dataclass(frozen=True)
class Field:
    """One image and the boxes of its white cells."""

    pixels: NDArray[np.uint8]
    boxes: list[Box]


@dataclass(frozen=True)
class Score:
    """Counts over fields, and each field's milliseconds."""

    hits: int
    truths: int
    found: int
    ms: list[float]

    @property
    def recall(self) -> float:
        return self.hits / self.truths

    @property
    def precision(self) -> float:
        return self.hits / self.found


def read_fields(folder: Path) -> list[Field]:
    """All fields of a VOC data set, sorted by name."""
    fields = []
    for file in sorted((folder / "JPEGImages").glob("*.jpg")):
        tree = ElementTree.parse(folder / "Annotations" / f"{file.stem}.xml")
        boxes = [
            tuple(int(item.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax"))
            for item in tree.iter("object")
            if item.findtext("name") == "WBC"
        ]
        with Image.open(file) as image:
            fields.append(Field(np.asarray(image.convert("RGB")), boxes))  # type: ignore[arg-type]
    return fields


def matches(found: list[cells.Cell], boxes: list[Box]) -> dict[int, int]:
    """Which cell is which box: overlap of `LEAST_OVERLAP` or the centre inside, each at most once, the best first."""
    pairs = sorted(
        (
            (-overlap(cell.box, box), c, b)
            for c, cell in enumerate(found)
            for b, box in enumerate(boxes)
            if overlap(cell.box, box) >= LEAST_OVERLAP or inside(cell.centre, box)
        ),
    )
    taken: dict[int, int] = {}
    for _, c, b in pairs:
        if c not in taken and b not in taken.values():
            taken[c] = b
    return taken


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def inside(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def score(fields: list[Field], whole_cells: bool) -> Score:
    """Search all fields.

    Args:
        fields: to be searched.
        whole_cells: leaves aside what the border cuts: cells that touch it, and boxes that end at it. A whole cell
            found in a box that ends at the border is neither right nor wrong.
    """
    hits = truths = count = 0
    ms = []
    for field in fields:
        begin = time.thread_time()
        found = cells.find_cells(field.pixels)
        ms.append((time.thread_time() - begin) * 1000)
        height, width = field.pixels.shape[:2]
        ends = (NEAR_BORDER, NEAR_BORDER, width - NEAR_BORDER, height - NEAR_BORDER)
        counted = [
            not whole_cells or (b[0] > ends[0] and b[1] > ends[1] and b[2] < ends[2] and b[3] < ends[3])
            for b in field.boxes
        ]
        judged = [cell for cell in found if not (whole_cells and cell.touches_border)]
        taken = matches(judged, field.boxes)
        right = sum(counted[box] for box in taken.values())
        hits, truths = hits + right, truths + sum(counted)
        count += len(judged) - (len(taken) - right)
    return Score(hits, truths, count, ms)


# The same operations by libraries.


def by_skimage() -> dict[str, Callable[..., Any]]:
    from skimage import measure, morphology, segmentation  # pyright: ignore[reportMissingImports]

    def label(mask: regions.Mask) -> regions.Regions:
        labels = measure.label(mask, connectivity=2)
        found = measure.regionprops(labels)
        boxes = [(p.bbox[1], p.bbox[0], p.bbox[3], p.bbox[2]) for p in found]
        areas = np.array([p.area for p in found], np.int64)
        return regions.Regions(labels.astype(np.int32), areas, np.array(boxes, np.int64).reshape(-1, 4))

    def close(mask: regions.Mask, radius: int) -> regions.Mask:
        padded = np.pad(mask, radius)
        closed = morphology.closing(padded, morphology.disk(radius))
        return closed[radius : closed.shape[0] - radius, radius : closed.shape[1] - radius] > 0

    def fill_holes(mask: regions.Mask, largest: float) -> regions.Mask:
        return morphology.remove_small_holes(mask, max_size=int(largest)) > 0

    def split(mask: regions.Mask, neck: float, least: float) -> regions.Labels:
        from scipy.ndimage import distance_transform_edt

        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        peaks = measure.label(morphology.h_maxima(depth, max(0.5, (1 - neck) * least)), connectivity=2)
        return segmentation.watershed(-depth, peaks, mask=mask).astype(np.int32)

    return {"label": label, "close": close, "fill_holes": fill_holes, "split": split}


def by_opencv() -> dict[str, Callable[..., Any]]:
    import cv2

    def label(mask: regions.Mask) -> regions.Regions:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        left, top, width, height, area = stats[1:].T
        boxes = np.stack([left, top, left + width, top + height], axis=1).astype(np.int64)
        return regions.Regions(labels.astype(np.int32), area.astype(np.int64), boxes)

    def close(mask: regions.Mask, radius: int) -> regions.Mask:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        padded = np.pad(mask, radius).astype(np.uint8)
        closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc)
        return closed[radius : closed.shape[0] - radius, radius : closed.shape[1] - radius] > 0

    def split(mask: regions.Mask, neck: float, least: float) -> regions.Labels:
        padded = np.pad(mask, 1).astype(np.uint8)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)
        core = (depth > max(neck * float(depth.max()), 0)).astype(np.uint8)
        count, markers = cv2.connectedComponents(core, connectivity=8)
        markers = markers.astype(np.int32)
        markers[padded == 0] = count
        relief = cv2.cvtColor((255 - depth * (255 / depth.max())).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        labels = cv2.watershed(relief, markers)[1:-1, 1:-1]
        return np.where((labels > 0) & (labels < count) & mask, labels, 0).astype(np.int32)

    return {"label": label, "close": close, "split": split}


def installed_mb(*names: str) -> float:
    """What packages take on the disk."""
    files = [file.locate() for name in names for file in importlib.metadata.files(name) or []]
    return sum(Path(str(file)).stat().st_size for file in files if Path(str(file)).is_file()) / 1e6


def engines() -> dict[str, tuple[dict[str, Callable[..., Any]], str]]:
    """What does the region operations, and what it adds to the device's install."""
    found: dict[str, tuple[dict[str, Callable[..., Any]], str]] = {"numpy and Pillow": ({}, "0 MB")}
    if importlib.util.find_spec("skimage"):
        needed = ("scikit-image", "scipy", "networkx", "imageio", "tifffile", "lazy-loader")
        found["scikit-image"] = (by_skimage(), f"{installed_mb(*needed):.0f} MB")
    if importlib.util.find_spec("cv2"):
        found["OpenCV"] = (by_opencv(), f"{installed_mb('opencv-python-headless'):.0f} MB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with JPEGImages and Annotations")
    parser.add_argument("--out", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    fields = read_fields(arguments.data)
    if len(fields) < 2:
        parser.error(f"{arguments.data}: no fields")
    half = len(fields) // 2
    rows, met = [], False
    for name, (operations, size) in engines().items():
        with mock.patch.dict(vars(cells), operations):
            cells.find_cells(fields[0].pixels)
            for part, some in (("first (chosen on)", fields[:half]), ("second (held out)", fields[half:])):
                everything, whole = score(some, False), score(some, True)
                p50, p95 = np.percentile(everything.ms + whole.ms, [50, 95])
                rows.append(
                    f"| {name} | {part} | {everything.recall:.3f} | {everything.precision:.3f} | {whole.recall:.3f} | "
                    f"{whole.precision:.3f} | {p50:.0f} | {p95:.0f} | {size} |"
                )
                if not operations and some[0] is fields[half]:
                    met = everything.recall >= LEAST_RECALL and everything.precision >= LEAST_PRECISION
                    met = bool(met and p95 < MOST_MS)
    page = report(rows, len(fields), met)
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if met else 1


def report(rows: list[str], count: int, met: bool) -> str:
    """A Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    return "\n".join(
        [
            f"# White cells of BCCD, {count} fields",
            "",
            f"`python benchmarks/cells.py DATA/bccd`, {datetime.now(timezone.utc):%Y-%m-%d}. Found: overlap of "
            f"{LEAST_OVERLAP:g} or the centre inside the box. Limit, on the held-out half, with all boxes and all "
            f"cells found: recall {LEAST_RECALL:g}, precision {LEAST_PRECISION:g}, {MOST_MS:g} ms (95th percentile) on "
            f"one core: {'met' if met else 'NOT met'}.",
            "",
            "| operations | half of the fields | recall | precision | recall, whole cells | precision, whole cells "
            "| ms p50 | ms p95 | adds to the install |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "Some white cells that the border cuts have no box in BCCD: found, they count as wrong among all, and not",
            "among whole cells. The libraries split with their own markers (h-maxima; a threshold of the distance).",
            "",
            *(f"- {key}: {value}" for key, value in describe_device().items() if value is not None),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
