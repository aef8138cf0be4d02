"""From class probabilities to single cells, by OpenCV: components, touching cells split, holes filled.

Lengths are in red cell diameters; the map has the network's scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeallError
from .tiles import ClassMap

Mask = NDArray[np.uint8]
Labels = NDArray[np.int32]

LEAST_NUCLEUS = 0.45
"""Minimum area of a nucleus, in red cell areas; platelets are smaller. White cells of three laboratories: 0.5 to 3."""
CERTAIN = 0.65
"""Minimum mean probability of the nucleus in its area. Half of what a network wrongly takes for cells is below it."""
CUT = 0.5
"""Factor on `LEAST_NUCLEUS` for a cell that the border cuts."""
HOLE = 0.25
"""Maximum area of a hole in a cell, in red cell areas."""
NECK = 0.9
"""Two cells are separated if the relief between them is below this fraction of the lower one's peak."""
PEAK = 0.3
"""Minimum height of a peak of the relief."""
_SMOOTH = 0.06
"""Standard deviation of the Gaussian that smooths the relief."""
_APART = 0.15
"""A peak is the highest place within this distance."""
_LEVELS = 48
"""Levels of the relief at which its basins are compared."""
_DEEPEST = 1.3
"""The depth inside a clump of cells is cut at this value: deeper inside, only nuclei tell the cells apart."""
_LINE = 2
"""Half the maximum width of the lines between flooded areas, pixels."""


@dataclass(frozen=True)
class Instance:
    """One cell in a class map, in its pixels.

    Attributes:
        box: left, top, right, bottom of the whole cell, right and bottom exclusive.
        centre: x, y of the nucleus's centre of mass.
        nucleus: area of the nucleus.
        cell: area of nucleus and cytoplasm.
        roundness: of the nucleus, 0..1: its area over that of a disc with its major axis. Source: ImageJ, Roundness.
        cut: whether the border of the map cuts the cell.
    """

    box: tuple[int, int, int, int]
    centre: tuple[float, float]
    nucleus: int
    cell: int
    roundness: float
    cut: bool


def opencv() -> Any:
    """OpenCV's module. Raises EdgeallError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise EdgeallError(
            "OpenCV is not installed: it finds and counts cells",
            hint='pip install ".[cells]", or ".[rig]", in a checkout of edgeall',
        ) from error
    return cv2


def find_instances(found: ClassMap, red_cell_px: float) -> tuple[Labels, list[Instance]]:
    """Find the nucleated cells of a class map.

    Args:
        found: the map.
        red_cell_px: diameter of a red cell in pixels of the map.

    Returns:
        int32 labels, ``(height, width)``: 0 outside, n + 1 in cell n; and the cells, from top to bottom.
    """
    cv2 = opencv()
    least = LEAST_NUCLEUS * math.pi / 4 * red_cell_px**2
    nucleus = nuclei(found)
    count, parts, stats, _ = cv2.connectedComponentsWithStats((found.cell >= 128).astype(np.uint8), connectivity=8)
    pieces: list[tuple[Instance, tuple[int, int], Mask]] = []
    for number in range(1, count):
        left, top, width, height = (int(value) for value in stats[number, :4])
        window = slice(top, top + height), slice(left, left + width)
        whole = (parts[window] == number).astype(np.uint8)
        if int((nucleus[window] & whole).sum()) < CUT * least:
            continue
        whole = _without_holes(whole, HOLE * math.pi / 4 * red_cell_px**2)
        inner = nucleus[window] & whole
        labels = split(whole, inner, red_cell_px)
        for label in range(1, int(labels.max()) + 1):
            one = (labels == label).astype(np.uint8)
            core = inner & one
            instance = _measured(one, core, (left, top), found.cell.shape)
            if instance is None or instance.nucleus < least * (CUT if instance.cut else 1):
                continue
            if float(found.nucleus[window][core > 0].mean()) >= 255 * CERTAIN:
                pieces.append((instance, (left, top), one))
    pieces.sort(key=lambda piece: (piece[0].centre[1], piece[0].centre[0]))
    result = np.zeros(found.cell.shape, np.int32)
    for number, (_, (left, top), one) in enumerate(pieces, 1):
        result[top : top + one.shape[0], left : left + one.shape[1]][one > 0] = number
    return result, [instance for instance, _, _ in pieces]


def nuclei(found: ClassMap) -> Mask:
    """Where a class map has nuclei, uint8 0 or 1: in cells, where nucleus is more probable than cytoplasm."""
    mask: Mask = ((found.cell >= 128) & (found.nucleus > found.cell // 2)).astype(np.uint8)
    return mask


def split(whole: Mask, nucleus: Mask, red_cell_px: float) -> Labels:
    """Split one component into cells: a watershed of the depth in the cell plus the depth in its nucleus.

    The lobes of one nucleus lie in one round cell, whose depth is greatest between them; between two cells, both depths
    are low. Two peaks stay separate if every path between them falls below `NECK` of the lower one.

    Args:
        whole: uint8 0 or 1, ``(height, width)``: nucleus and cytoplasm.
        nucleus: uint8 0 or 1, the same shape.
        red_cell_px: diameter of a red cell.

    Returns:
        int32 labels from 1, 0 outside ``whole``.
    """
    cv2 = opencv()
    # The border counts as outside: a cell at the border is only as wide as its visible part.
    whole, nucleus = np.pad(whole, 1), np.pad(nucleus, 1)
    relief = np.minimum(cv2.distanceTransform(whole, cv2.DIST_L2, 5), _DEEPEST * red_cell_px)
    relief = relief + cv2.distanceTransform(nucleus, cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(relief, (0, 0), _SMOOTH * red_cell_px)
    markers = _cores(smooth, _peaks(smooth, red_cell_px))
    count = int(markers.max())
    if count < 2:
        return whole[1:-1, 1:-1].astype(np.int32)
    # What lies below the paths between the cores is flooded from all cores at the same pace: OpenCV floods in the
    # order of the differences between neighbours, which are 0 inside; across the edge of the cells it floods last.
    image = cv2.cvtColor((1 - whole) * np.uint8(255), cv2.COLOR_GRAY2BGR)
    labels = np.maximum(cv2.watershed(image, markers), 0)
    # It leaves lines between the cells, which take the label of a neighbour.
    for _ in range(_LINE):
        grown = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
        labels = np.where(whole > 0, np.where(labels == 0, grown, labels), 0)
    result: Labels = labels[1:-1, 1:-1].astype(np.int32)
    return result


def _peaks(relief: NDArray[np.float32], red_cell_px: float) -> list[tuple[int, int]]:
    """Row and column of the peaks of the relief that are cells of their own, the highest first."""
    cv2 = opencv()
    reach = max(1, round(_APART * red_cell_px))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    highest = (relief >= cv2.dilate(relief, disc)) & (relief >= PEAK * red_cell_px)
    kept: list[tuple[int, int]] = []
    for row, column in sorted(np.argwhere(highest).tolist(), key=lambda at: (-relief[at[0], at[1]], at)):
        above = (relief > NECK * relief[row, column]).astype(np.uint8)
        basins = cv2.connectedComponents(above, connectivity=8)[1]
        if not any(basins[peak] == basins[row, column] for peak in kept):  # no path to a higher peak
            kept.append((row, column))
    return kept


def _cores(relief: NDArray[np.float32], peaks: list[tuple[int, int]]) -> Labels:
    """The part around each peak, numbered from 1, that lies above every path to another one."""
    cv2 = opencv()
    cores = np.zeros(relief.shape, np.int32)
    if len(peaks) < 2:
        return cores
    for level in np.linspace(0, relief.max(), _LEVELS, endpoint=False):
        basins = cv2.connectedComponents((relief > level).astype(np.uint8), connectivity=8)[1]
        names = [int(basins[peak]) for peak in peaks]
        for number, (peak, name) in enumerate(zip(peaks, names, strict=True), 1):
            if name and names.count(name) == 1 and not cores[peak]:
                cores[basins == name] = number
    for number, peak in enumerate(peaks, 1):
        cores[peak] = number
    return cores


def _without_holes(whole: Mask, largest: float) -> Mask:
    """Fill the enclosed holes with an area of up to ``largest`` pixels."""
    cv2 = opencv()
    count, parts, stats, _ = cv2.connectedComponentsWithStats(np.pad(1 - whole, 1, constant_values=1), connectivity=4)
    if count <= 2:
        return whole
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[[0, parts[0, 0]]] = False
    return np.asarray(whole | small[parts][1:-1, 1:-1], np.uint8)


def _measured(whole: Mask, nucleus: Mask, corner: tuple[int, int], shape: tuple[int, ...]) -> Instance | None:
    """The cell of a mask at ``corner`` in a map of this shape; None without a nucleus."""
    cv2 = opencv()
    moments = cv2.moments(nucleus, binaryImage=True)
    area = moments["m00"]
    if area == 0:
        return None
    spread = np.array([[moments["mu20"], moments["mu11"]], [moments["mu11"], moments["mu02"]]]) / area + np.eye(2) / 12
    axis = 4 * math.sqrt(float(np.linalg.eigvalsh(spread)[1]))
    x, y, width, height = cv2.boundingRect(whole)
    left, top = corner[0] + x, corner[1] + y
    cut = left == 0 or top == 0 or left + width == shape[1] or top + height == shape[0]
    return Instance(
        box=(left, top, left + width, top + height),
        centre=(corner[0] + moments["m10"] / area + 0.5, corner[1] + moments["m01"] / area + 0.5),
        nucleus=round(area),
        cell=int(whole.sum()),
        roundness=min(1.0, 4 * area / (math.pi * axis**2)),
        cut=cut,
    )
