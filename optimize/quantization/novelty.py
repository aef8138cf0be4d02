"""Fits, through the very model that will run, what its images look like to it: see `edgeall.edge_runtime.novelty`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.novelty import distance, read_familiar, roots

AXES = 8
"""At least; and one for each class, whose means span as many. Fewer take unseen slides for something new, more follow
the training images closer and take other microscopes for it: see decisions 0010 and 0015."""
IMAGES = 512
"""Of the train side, as many of each class as there are."""
CLEAN_SHARE = 0.01
"""Of the validation side that may be called unfamiliar."""


def fit_novelty(
    train: NDArray[np.float32], validation: NDArray[np.float32], classes: int
) -> tuple[dict[str, Any], bytes]:
    """The plane of the train side's features, and the threshold that the validation side asks for.

    Args:
        train: pooled features ``(n, features)`` as the converted model gives them.
        validation: the same of images that the network wasn't fitted to.
        classes: how many the network tells apart.

    Returns:
        The manifest's ``novelty`` and the archive's member. The threshold is of the plane as stored, in int8.
    """
    known = roots(train)
    mean = known.mean(axis=0)
    axes = np.linalg.svd(known - mean, full_matrices=False)[2][: max(AXES, classes)]
    stored, scales = zip(*(_rounded(row) for row in (mean, *axes)), strict=True)
    content = np.stack(stored).tobytes()
    facts = {"features": train.shape[1], "scales": list(scales), "threshold": 1.0}
    found = np.sort(distance(validation, read_familiar(facts, content, "novelty")).astype(np.float64))
    allowed = int(CLEAN_SHARE * len(found))
    threshold = float(np.nextafter(found[-1 - allowed], np.inf))
    return {
        "score": "residual",
        **facts,
        "threshold": max(threshold, float(np.finfo(np.float32).eps)),
        "target": CLEAN_SHARE,
        "reviewed": float((found >= threshold).mean()),
        "images": {"train": len(train), "validation": len(validation)},
    }, content


def _rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    scale = float(np.abs(values).max()) / 127 or 1.0
    return np.rint(values / scale).astype(np.int8), scale
