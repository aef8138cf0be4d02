"""The temperature of a converted model, with its effect on the images that it was fitted to.

Temperature and review rule are fitted on the validation subset, unchanged and mildly changed
(`edgeall.optimize.quantization.mild`). On the unchanged subset alone, a model without errors there would never ask for
review anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.calibration import apply_temperature
from ...edge_runtime.tools.decisions import fit_temperature
from ...train.evaluation.metrics import brier_score, expected_calibration_error


def calibration_of(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], images: int | None = None
) -> dict[str, Any]:
    """The manifest's ``calibration``: the temperature, and errors before and after it on the fitted images.

    Args:
        probabilities: ``(n, labels)``, not calibrated.
        truth: class indices ``(n,)``.
        images: see `fit_temperature`.
    """
    temperature = fit_temperature(probabilities, truth, images)
    count = len(truth) if images is None else images
    found = {"temperature": temperature, "fitted_on": "validation", "images": count}
    for name, scores in (("before", probabilities), ("after", apply_temperature(probabilities, temperature))):
        confidence = scores.max(axis=1).astype(np.float64)
        found[f"ece_{name}"] = expected_calibration_error(confidence, scores.argmax(axis=1) == truth)
        found[f"brier_{name}"] = brier_score(scores, truth)
    return found
