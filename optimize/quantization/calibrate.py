"""The temperature of a converted model, with its effect on the images that it was fitted to.

Temperature and review rule are fitted on the validation subset, unchanged and mildly changed
(`edgeall.optimize.quantization.mild`). On the unchanged subset alone, a model without errors there would never ask for
review anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.calibration import apply_temperature
from ...edge_runtime.tools.decisions import Calibration, fit_temperature
from ...train.evaluation.metrics import brier_score, expected_calibration_error


def calibration_of(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], images: int | None = None
) -> Calibration:
    """The manifest's ``calibration``: the temperature, and errors before and after it on the fitted images.

    Args:
        probabilities: ``(n, labels)``, not calibrated.
        truth: class indices ``(n,)``.
        images: see `fit_temperature`.
    """
    temperature = fit_temperature(probabilities, truth, images)
    count = len(truth) if images is None else images
    before, after = _errors(probabilities, truth), _errors(apply_temperature(probabilities, temperature), truth)
    return Calibration(temperature, "validation", count, *before, *after)


def _errors(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> tuple[float, float]:
    """Expected calibration error and Brier score."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    return expected_calibration_error(confidence, right), brier_score(probabilities, truth)
