"""Connected regions, distances and watershed of small masks in numpy: a device has neither SciPy nor OpenCV.

Masks are bool, ``(height, width)``. Comparison with the libraries: docs/decisions/0011-cells.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Regions:
    """The 8-connected regions of a mask, in the order of their first pixels.

    Attributes:
        labels: int32, ``(height, width)``: 0 outside, n + 1 in region n.
        areas: pixels of each, int64.
        boxes: left, top, right, bottom of each, right and bottom exclusive; int64, ``(regions, 4)``.
    """

    labels: Labels
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]


LARGE = 3000
"""Area in pixels above which a region is split at half the resolution: the flooding is in Python."""
ROUND = 1.25
"""A region is not split if its area is below this multiple of its largest inscribed disc."""


def label(mask: Mask) -> Regions:
    """Find the regions of a mask: encodes rows as runs and joins touching runs."""
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]  # exclusive
    wide = width + 2
    # Runs of the row above that touch this run: from the first that ends at or after its start, to the last that starts
    # before or at its end.
    first = np.searchsorted(rows * wide + ends, (rows - 1) * wide + starts)
    behind = np.searchsorted(rows * wide + starts, (rows - 1) * wide + ends, side="right")
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for run, (begin, end) in enumerate(zip(first.tolist(), behind.tolist(), strict=True)):
        for other in range(begin, end):
            one, two = root(run), root(other)
            parent[max(one, two)] = min(one, two)
    roots = np.array([root(run) for run in range(len(rows))], np.int64)
    _, region = np.unique(roots, return_inverse=True)
    count = int(region.max()) + 1 if len(region) else 0
    boxes = np.tile(np.array([width, height, 0, 0], np.int64), (count, 1))
    np.minimum.at(boxes[:, 0], region, starts)
    np.minimum.at(boxes[:, 1], region, rows)
    np.maximum.at(boxes[:, 2], region, ends)
    np.maximum.at(boxes[:, 3], region, rows + 1)
    lengths = ends - starts
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(region + 1, lengths)  # both are in row-major order
    return Regions(labels, np.bincount(region, lengths, count).astype(np.int64), boxes)


def squared_distances(mask: Mask, limit: int) -> NDArray[np.int32]:
    """Squared Euclidean distance of each pixel to the nearest pixel outside the mask, int32; 0 outside.

    The area beyond the image does not count as outside. Exact up to ``limit`` pixels; above ``limit`` beyond that.
    """
    width = mask.shape[1]
    far = limit + 1
    columns = np.arange(width, dtype=np.int32)
    before = np.maximum.accumulate(np.where(mask, np.int32(-far), columns), axis=1)
    after = np.minimum.accumulate(np.where(mask, np.int32(width + far), columns)[:, ::-1], axis=1)[:, ::-1]
    across = np.minimum(np.minimum(columns - before, after - columns), far) ** 2
    result: NDArray[np.int32] = across.copy()
    for step in range(1, min(limit, mask.shape[0] - 1) + 1):
        shifted = across + step * step
        np.minimum(result[step:], shifted[:-step], out=result[step:])
        np.minimum(result[:-step], shifted[step:], out=result[:-step])
    return result


def close(mask: Mask, radius: int) -> Mask:
    """Fill gaps narrower than twice ``radius`` pixels: dilation and then erosion by a disc."""
    if radius < 1:
        return mask
    # Padding, so that the erosion reaches what the dilation added at the border.
    roomy = np.pad(mask, radius)
    grown = squared_distances(~roomy, radius) <= radius * radius
    shrunk: Mask = squared_distances(grown, radius) > radius * radius
    return shrunk[radius:-radius, radius:-radius]


def fill_holes(mask: Mask, largest: float) -> Mask:
    """Fill holes of the mask with an area of up to ``largest`` pixels."""
    height, width = mask.shape
    outside = label(~mask)
    left, top, right, bottom = outside.boxes.T
    enclosed = (left > 0) & (top > 0) & (right < width) & (bottom < height) & (outside.areas <= largest)
    filled: Mask = mask | np.concatenate([[False], enclosed])[outside.labels]
    return filled


def split(mask: Mask, neck: float, least: float) -> Labels:
    """Split one region at its necks: a watershed of the distance transform.

    Floods from the innermost pixels outwards. Two basins that meet stay separate if the neck is narrow compared with
    both inscribed radii; otherwise they are merged.

    Args:
        mask: one region.
        neck: basins stay separate if the neck is below this fraction of the smaller inscribed radius.
        least: minimum inscribed radius of a separate part, pixels.

    Returns:
        int32 labels from 1 without gaps, 0 outside the mask.
    """
    height, width = mask.shape
    area = int(mask.sum())
    if area > LARGE:
        coarse = split(mask[::2, ::2], neck, least / 2)
        return _spread(coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width], mask)
    # The border counts as outside: a region at the border is only as wide as its visible part.
    depths = np.sqrt(squared_distances(np.pad(mask, 1), min(height, width) // 2 + 1))
    widest = float(depths.max())
    if widest < least or area < ROUND * math.pi * widest * widest:
        return mask.astype(np.int32)
    stride = width + 2
    inside = np.flatnonzero(depths > 0)
    order = inside[np.argsort(-depths.ravel()[inside], kind="stable")]
    depth = depths.ravel().tolist()
    neighbours = (-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1)
    flood = [-1] * len(depth)
    parent: list[int] = []
    peak: list[float] = []

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for pixel in order.tolist():
        here = depth[pixel]
        around = [pixel + step for step in neighbours if flood[pixel + step] >= 0]
        if not around:
            flood[pixel] = len(parent)
            parent.append(len(parent))
            peak.append(here)
            continue
        flood[pixel] = flood[max(around, key=depth.__getitem__)]  # uphill
        met = sorted({root(flood[near]) for near in around}, key=peak.__getitem__)
        largest = met[-1]
        for other in met[:-1]:
            if peak[other] < least or here > neck * peak[other]:
                parent[other] = largest
    roots = {number: root(number) for number in range(len(parent))}
    names = {number: name for name, number in enumerate(sorted(set(roots.values())), 1)}
    found = np.array([names[roots[number]] if number >= 0 else 0 for number in flood], np.int32)
    return found.reshape(height + 2, stride)[1:-1, 1:-1]


def _spread(labels: Labels, mask: Mask) -> Labels:
    """Extend the labels of a coarser grid to the mask: unlabelled pixels take the label of a neighbour."""
    labels = np.where(mask, labels, 0).astype(np.int32)
    if not labels.any():
        return mask.astype(np.int32)
    height, width = mask.shape
    while (missed := mask & (labels == 0)).any():
        roomy = np.pad(labels, 1)
        for top in range(3):
            for left in range(3):
                near = roomy[top : top + height, left : left + width]
                labels = np.where(missed & (labels == 0), near, labels)
        if (mask & (labels == 0) == missed).all():  # not connected to any label
            return np.where(missed, 1, labels).astype(np.int32)
    return labels
