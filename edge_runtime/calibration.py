"""Probabilities that mean what they say: the temperature that was fitted when the model was packed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .manifest import Manifest

FLOOR = 1 / 512
"""An 8-bit output of 0 is anything below half a unit: it is taken for that much."""


def temperature_of(manifest: Manifest | None) -> float:
    """The one that was fitted for this model; 1 where none was."""
    return float(manifest.calibration.get("temperature", 1.0)) if manifest else 1.0


def review_reason(manifest: Manifest | None, probability: float, novelty: float | None) -> str | None:
    """Why somebody should look at an image: ``unfamiliar``, since then its label means nothing, else ``uncertain``.

    Args:
        manifest: the model's, which may state ``decision.review_below``.
        probability: of the label, calibrated.
        novelty: see `edgeall.edge_runtime.ood`.

    Returns:
        None where nobody need look.
    """
    if novelty is not None and novelty > 1:
        return "unfamiliar"
    below = manifest.decision.get("review_below", 0.0) if manifest else 0.0
    return "uncertain" if probability < below else None


def apply_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of the logarithms divided by ``temperature``: above 1 less sure, below 1 surer. The order stays.

    Args:
        probabilities: float32, ``(..., labels)``; not finite ones stay so.
        temperature: above 0; 1 leaves everything as it is.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if temperature == 1.0:
        return probabilities
    logits = np.log(np.maximum(probabilities, FLOOR)) / temperature  # maximum keeps a NaN
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
