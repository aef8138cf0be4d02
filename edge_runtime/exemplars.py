"""Exemplars: features of a few labelled images of the home laboratory, which travel in the packed model.

They show on a device what a change of the last layer costs at home. They hold features alone, not images.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

MEMBER = "exemplars.bin"
"""Archive member: int8 ``(features, images)``, the roots of the features, deflated."""
MOST_BYTES = 12_000
"""Largest size of the member: about 60 images of a MobileNetV2, so that alpha 0.35 stays below 0.70 MB."""
MOST_PER_CLASS = 16
LEVELS = 15
"""Steps of a root from 0 to the largest. The last layer's outputs then differ by 2 % of their spread (measured,
MobileNetV2 0.35), in 70 % of the bytes that exact features take."""
_MOST_INFLATED = 16_000_000


@dataclass(frozen=True)
class Exemplars:
    """Features of labelled images.

    Attributes:
        features: float32 ``(images, features)``, pooled.
        truth: class indices ``(images,)``.
        subset: that the images belong to.
    """

    features: NDArray[np.float32]
    truth: NDArray[np.int64]
    subset: str


def store_exemplars(
    features: NDArray[np.float32], truth: NDArray[np.int64], subset: str
) -> tuple[dict[str, Any], bytes]:
    """The manifest's ``exemplars`` and the content of `MEMBER`.

    Takes the same number of images of each class as far as the classes allow, evenly from their images, and as many as
    fit into `MOST_BYTES`.

    Args:
        features: float32 ``(n, features)``, pooled.
        truth: class indices ``(n,)``.
        subset: see `Exemplars`.
    """
    most = float(np.abs(features).max()) or 1.0
    units = np.rint(np.sign(features) * np.sqrt(np.abs(features) / most) * LEVELS).astype(np.int8)
    chosen, content = np.arange(0), b""
    for count in range(MOST_PER_CLASS, 0, -1):
        chosen = _chosen(truth, count)
        content = zlib.compress(np.ascontiguousarray(units[chosen].T).tobytes(), 9)
        if len(content) <= MOST_BYTES:
            break
    facts = {"subset": subset, "truth": [int(index) for index in truth[chosen]]}
    return {**facts, "features": features.shape[1], "levels": LEVELS, "largest": most}, content


def read_exemplars(facts: Mapping[str, Any], content: bytes, labels: int, name: str) -> Exemplars:
    """Read what `store_exemplars` gives.

    Args:
        facts: of the manifest.
        content: of the member.
        labels: number of classes.
        name: of the file, for errors.

    Raises:
        BundleError: not written by `edgeall quantize`.
    """
    try:
        truth = np.array(facts["truth"], np.int64)
        count, levels, most = int(facts["features"]), int(facts["levels"]), float(facts["largest"])
        if not len(truth) or not ((truth >= 0) & (truth < labels)).all() or not (0 < most < np.inf and levels > 0):
            raise ValueError("invalid numbers")
        stored = _inflated(content, count * len(truth))
        shares = np.frombuffer(stored, np.int8).reshape(count, len(truth)).T / levels
        features = np.sign(shares) * np.square(shares) * most
        return Exemplars(features.astype(np.float32), truth, str(facts["subset"]))
    except (KeyError, ValueError, TypeError, OverflowError, zlib.error) as error:
        raise BundleError(
            f"{name}: its exemplars are not what `edgeall quantize` writes", hint="quantize the run again"
        ) from error


def _chosen(truth: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to ``count`` images of each class, evenly from all of them."""
    found = []
    for label in np.unique(truth):
        images = np.flatnonzero(truth == label)
        found.append(images[np.unique(np.linspace(0, len(images) - 1, count).astype(int))])
    return np.concatenate(found)


def _inflated(content: bytes, size: int) -> bytes:
    """The inflated content, which must have exactly this size; a crafted one does not fill the memory."""
    if size > _MOST_INFLATED:
        raise ValueError("too large")
    reader = zlib.decompressobj()
    stored = reader.decompress(content, size + 1)
    if len(stored) != size or not reader.eof:
        raise ValueError("another size")
    return stored
