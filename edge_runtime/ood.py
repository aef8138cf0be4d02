"""Out-of-distribution (OOD) detector: the distance of an image's features from those of the training images.

The square roots of the pooled features, scaled to unit length, lie near a plane: the mean of the training images and a
few principal axes. The score is the squared distance from that plane, divided by a threshold.
`edgeall.edge_runtime.tools.novelty` fits plane and threshold with the quantized model; the packed model holds them.

Source: the residual of H. Wang et al. 2022, "ViM: Out-Of-Distribution with Virtual-logit Matching", on the square roots
of the Hellinger distance. Alternatives that were measured: ``docs/decisions/0010-novelty.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

MEMBER = "novelty.bin"
"""Archive member: int8, the mean and then the axes, each ``(features,)``."""
_TINY = 1e-6
"""Avoids a division by zero if all features are zero."""


@dataclass(frozen=True)
class OodDetector:
    """The plane of the training images in feature space.

    Attributes:
        mean: float32 ``(features,)``.
        axes: float32 ``(axes, features)``, approximately orthonormal.
        threshold: squared distance above which an image is out-of-distribution.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    threshold: float


def roots(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square roots of features, signs kept, scaled to length 1: ``(..., features)``, float32."""
    sizes = np.abs(features)
    length = np.sqrt(sizes.sum(axis=-1, keepdims=True))  # of the roots
    return np.asarray(np.sign(features) * np.sqrt(sizes) / np.maximum(length, _TINY), np.float32)


def distance(features: NDArray[np.float32], detector: OodDetector) -> NDArray[np.float32]:
    """Squared distance of every ``(..., features)`` from the plane, float32 ``(...)``, 0..4."""
    offset = roots(features) - detector.mean
    along = offset @ detector.axes.T
    return np.asarray(np.square(offset).sum(axis=-1) - np.square(along).sum(axis=-1), np.float32)


def is_out_of_distribution(features: NDArray[np.float32], detector: OodDetector) -> NDArray[np.bool_]:
    """Whether `ood_score` is above 1, for every ``(..., features)``: bool ``(...)``."""
    return np.asarray(distance(features, detector).astype(np.float64) / detector.threshold > 1)


def ood_score(features: NDArray[np.float32], detector: OodDetector) -> float:
    """The OOD score of one image: `distance` over the threshold. Above 1 the image is out-of-distribution."""
    return float(distance(features, detector)) / detector.threshold


def read_ood_detector(facts: Mapping[str, Any], content: bytes, name: str) -> OodDetector:
    """Read the detector from the manifest's ``novelty`` object and the archive's `MEMBER`.

    Args:
        facts: ``features``, ``scales`` (of the mean and of each axis) and ``threshold``.
        content: of the member.
        name: of the file, for errors.

    Raises:
        BundleError: not written by `edgeall quantize`.
    """
    try:
        features, scales, threshold = int(facts["features"]), np.array(facts["scales"], float), facts["threshold"]
        stored = np.frombuffer(content, np.int8).reshape(len(scales), features)
        if (
            scales.ndim != 1
            or not np.isfinite(scales).all()
            or not (math.isfinite(threshold) and threshold > 0 < features)
        ):
            raise ValueError("invalid numbers")
    except (KeyError, ValueError, TypeError, OverflowError, IndexError) as error:
        raise BundleError(
            f"{name}: its novelty score is not what `edgeall quantize` writes", hint="quantize the run again"
        ) from error
    values = (stored * scales[:, None]).astype(np.float32)
    return OodDetector(values[0], values[1:], float(threshold))
