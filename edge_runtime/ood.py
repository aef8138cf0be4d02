"""How unlike the images it was made with an image is: the distance of its features from theirs.

The pooled features of an image, square roots of unit length, lie near a plane that the training images' span: their
mean and a few principal axes. What is left of a feature vector beside that plane is how new the image is. The plane
and the threshold are fitted by `edgeall.optimize.quantization.novelty` through the very model, and travel with it.

Source: the residual of H. Wang et al. 2022, "ViM: Out-Of-Distribution with Virtual-logit Matching", on the roots of
Hellinger's distance; what else was measured is in ``docs/decisions/0010-novelty.md``.
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
"""In the archive: int8, the mean and then the axes, each as many numbers as there are features."""
_TINY = 1e-6
"""Features that are all zero have no direction."""


@dataclass(frozen=True)
class OodDetector:
    """What a model's own images look like in its features.

    Attributes:
        mean: float32 ``(features,)``.
        axes: float32 ``(axes, features)``, about orthonormal.
        threshold: distance from which an image is unfamiliar.
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
    """Whether `novelty` is above 1, of every ``(..., features)``: ``(...)``."""
    return np.asarray(distance(features, detector).astype(np.float64) / detector.threshold > 1)


def novelty(features: NDArray[np.float32], detector: OodDetector) -> float:
    """`distance` of one image over the threshold: above 1 the image is unfamiliar."""
    return float(distance(features, detector)) / detector.threshold


def read_ood_detector(facts: Mapping[str, Any], content: bytes, name: str) -> OodDetector:
    """What the manifest's ``novelty`` and the archive's `MEMBER` say.

    Args:
        facts: ``features``, ``scales`` (of the mean and of each axis) and ``threshold``.
        content: of the member.
        name: how an error calls the file.

    Raises:
        BundleError: they aren't what `edgeall quantize` writes.
    """
    try:
        features, scales, threshold = int(facts["features"]), np.array(facts["scales"], float), facts["threshold"]
        stored = np.frombuffer(content, np.int8).reshape(len(scales), features)
        if (
            scales.ndim != 1
            or not np.isfinite(scales).all()
            or not (math.isfinite(threshold) and threshold > 0 < features)
        ):
            raise ValueError("numbers that are none")
    except (KeyError, ValueError, TypeError, OverflowError, IndexError) as error:
        raise BundleError(
            f"{name}: its novelty score is not what `edgeall quantize` writes", hint="quantize the run again"
        ) from error
    values = (stored * scales[:, None]).astype(np.float32)
    return OodDetector(values[0], values[1:], float(threshold))
