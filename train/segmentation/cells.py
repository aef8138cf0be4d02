"""Figures of found cells against drawn ones: matches, aggregated Jaccard index, distance of the outlines."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
"""Number of the cell of each pixel from 1, else 0."""

_MATCH = 0.5
"""Smallest overlap (IoU) of a found cell with a drawn one that counts as found. Source: Kirillov et al. 2019."""


def matches(drawn: Numbers, found: Numbers) -> list[float]:
    """The overlaps (IoU) above `_MATCH`; above one half every cell has one partner at most."""
    both, either = _shared(drawn, found)
    overlap = both[1:, 1:] / np.maximum(either[1:, 1:], 1)
    return [float(value) for value in overlap[overlap > _MATCH]]


def jaccard(drawn: Numbers, found: Numbers) -> float | None:
    """Aggregated Jaccard index (AJI) of one image, 0..1; None if there is no cell, neither drawn nor found.

    Every drawn cell is joined with the found one that it overlaps best. The pixels in both are divided by the pixels in
    either, summed over the drawn cells, plus the pixels of the found cells that were joined with none.

    Source: N. Kumar et al., A dataset and a technique for generalized nuclear segmentation for computational pathology,
    IEEE Transactions on Medical Imaging 2017.
    """
    both, either = _shared(drawn, found)
    areas, others = both[1:].sum(axis=1), both[:, 1:].sum(axis=0)
    if not len(areas) and not len(others):
        return None
    if not len(areas) or not len(others):
        return 0.0
    overlap = both[1:, 1:] / np.maximum(either[1:, 1:], 1)
    best = overlap.argmax(axis=1)
    rows = np.arange(len(best))
    joined = overlap[rows, best] > 0
    inside = int(both[1:, 1:][rows, best][joined].sum())
    outside = int(np.where(joined, either[1:, 1:][rows, best], areas).sum())
    alone = np.ones(len(others), np.bool_)
    alone[best[joined]] = False
    return inside / (outside + int(others[alone].sum()))


def _shared(drawn: Numbers, found: Numbers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels in both and in either of each drawn and each found number, ``(drawn, found)``; 0 is no cell."""
    width = int(found.max()) + 1
    both = np.bincount(drawn.ravel() * width + found.ravel(), minlength=(int(drawn.max()) + 1) * width)
    both = both.reshape(-1, width).astype(np.int64)
    return both, both.sum(axis=1)[:, np.newaxis] + both.sum(axis=0)[np.newaxis] - both


def outline_distance(drawn: NDArray[np.bool_], found: NDArray[np.bool_], um_per_px: float | None) -> float | None:
    """Mean distance of two outlines in micrometres: from each to the nearest point of the other, then their mean.

    None if one of the two is empty, or if the scale is unknown.
    """
    if um_per_px is None:
        return None
    outlines = [_outline(drawn), _outline(found)]
    if not all(outline.any() for outline in outlines):
        return None
    distances = [
        cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[outline].mean()
        for outline, other in (outlines, outlines[::-1])
    ]
    return float(np.mean(distances)) * um_per_px


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost pixels of a set; the border of the image is no outline."""
    filled = inside.astype(np.uint8)
    inner = cv2.erode(filled, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    outline: NDArray[np.bool_] = (filled > 0) & (inner == 0)
    return outline
