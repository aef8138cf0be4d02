"""Fits the out-of-distribution (OOD) detector of a converted model, see `edgeall.edge_runtime.ood`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..ood import distance, read_ood_detector, roots
from ..results import Result

AXES = 8
"""Smallest number of principal axes; there is at least one for each class. With fewer axes unseen slides count as out
of distribution, with more axes other microscopes do: see decisions 0010 and 0015."""
IMAGES = 512
"""Training images that the detector is fitted to, balanced by class."""
CLEAN_SHARE = 0.01
"""Largest share of unchanged validation images above the threshold."""
FOLDS = 10
"""Parts of another laboratory's images that are left out in turn."""
MARGIN = 1e-5
"""Largest distance of the threshold from the image that it is taken from, as a share of it. Processors add features in
different orders: without it such an image would be out-of-distribution on some of them."""


@dataclass(frozen=True)
class Novelty(Result):
    """The manifest's ``novelty``.

    Attributes:
        score: ``residual``: the distance from a plane.
        features: length of a feature vector.
        scales: of the stored rows: the mean, then the axes.
        threshold: distance above which an image is out of distribution.
        target: largest share of known images above it; ``reviewed`` is the share of those that it was fitted to.
        images: their number, by use.
    """

    score: str
    features: int
    scales: list[float]
    threshold: float
    target: float
    reviewed: float
    images: dict[str, int]


def fit_novelty(train: NDArray[np.float32], validation: NDArray[np.float32], classes: int) -> tuple[Novelty, bytes]:
    """The plane of the training features, and the threshold from the validation features.

    Args:
        train: pooled features ``(n, features)`` of training images, from the converted model.
        validation: the same of validation images.
        classes: number of classes.

    Returns:
        The manifest's ``novelty`` and the content of the archive's member. The threshold belongs to the plane as it is
        stored, in int8.
    """
    plane, content = _plane(train, classes)
    found = distance(validation, read_ood_detector(plane.to_json(), content, "novelty"))
    return _with_threshold(plane, found, {"train": len(train), "validation": len(validation)}), content


def refit_novelty(site: NDArray[np.float32], home: NDArray[np.float32], classes: int) -> tuple[Novelty, bytes]:
    """`fit_novelty` for another laboratory, from few images: each is measured by a plane that was fitted without it.

    Args:
        site: pooled features ``(n, features)`` of images of the other laboratory, at least two.
        home: of the old laboratory ``(m, features)``, m may be 0. They belong to the plane too.
        classes: number of classes.
    """
    found = np.empty(len(site))
    for part in range(min(FOLDS, len(site))):
        left_out = np.arange(len(site)) % FOLDS == part
        plane, content = _plane(np.concatenate([site[~left_out], home]), classes)
        found[left_out] = distance(site[left_out], read_ood_detector(plane.to_json(), content, "novelty"))
    plane, content = _plane(np.concatenate([site, home]), classes)
    return _with_threshold(plane, found, {"site": len(site), "home": len(home)}), content


def _plane(features: NDArray[np.float32], classes: int) -> tuple[Novelty, bytes]:
    """The plane of known images, with a threshold of 1, and its stored rows."""
    known = roots(features)
    mean = known.mean(axis=0)
    axes = np.linalg.svd(known - mean, full_matrices=False)[2][: max(AXES, classes)]
    stored, scales = zip(*(_rounded(row) for row in (mean, *axes)), strict=True)
    plane = Novelty("residual", features.shape[1], list(scales), 1.0, CLEAN_SHARE, 0.0, {})
    return plane, np.stack(stored).tobytes()


def _with_threshold(plane: Novelty, distances: NDArray[np.floating], images: dict[str, int]) -> Novelty:
    """The plane with the threshold that `CLEAN_SHARE` of known images exceed."""
    found = np.sort(distances.astype(np.float64))
    allowed = int(CLEAN_SHARE * len(found))
    threshold = _just_above(found, found[-1 - allowed])
    least, reviewed = float(np.finfo(np.float32).eps), float((found >= threshold).mean())
    return replace(plane, threshold=max(threshold, least), reviewed=reviewed, images=images)


def _just_above(distances: NDArray[np.float64], one: float) -> float:
    gap = distances[distances > one].min(initial=np.inf) - one
    return float(max(one + min(MARGIN * one, gap / 2), np.nextafter(one, np.inf)))


def _rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    scale = float(np.abs(values).max()) / 127 or 1.0
    return np.rint(values / scale).astype(np.int8), scale
