"""Temperature calibration of probabilities, and the rule that sends an image to review."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .manifest import Manifest

FLOOR = 1 / 512
"""Probability that stands for an 8-bit output of 0, which is anything below half a unit."""


def temperature_of(manifest: Manifest | None) -> float:
    """The fitted temperature of a model; 1 if it has none."""
    return float(manifest.calibration.get("temperature", 1.0)) if manifest else 1.0


def review_reason(manifest: Manifest | None, probability: float, novelty: float | None) -> str | None:
    """Why an image needs review: ``unfamiliar`` (out-of-distribution, so its label is meaningless) or ``uncertain``.

    Args:
        manifest: may state ``decision.review_below``.
        probability: of the label, calibrated.
        novelty: the out-of-distribution score, see `edgeall.edge_runtime.ood`.

    Returns:
        None if the image needs no review.
    """
    if novelty is not None and novelty > 1:
        return "unfamiliar"
    below = manifest.decision.get("review_below", 0.0) if manifest else 0.0
    return "uncertain" if probability < below else None


def apply_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Calibrate probabilities: the softmax of their logarithms divided by ``temperature``. The order does not change.

    Args:
        probabilities: float32, ``(..., labels)``; non-finite values stay non-finite.
        temperature: above 0; above 1 lowers the confidence, below 1 raises it, 1 changes nothing.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if temperature == 1.0:
        return probabilities
    logits = np.log(np.maximum(probabilities, FLOOR)) / temperature  # maximum keeps a NaN
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
