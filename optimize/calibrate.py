"""Fits on the validation side, of the very model that will run, what turns its outputs into decisions.

The temperature makes its probabilities mean what they say; the review rule says below which probability somebody should
look. Both travel in the manifest, `calibration` and `decision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from edgeall.edge_runtime.calibration import FLOOR, calibrated
from edgeall.edge_runtime.errors import UsageError
from edgeall.train.metrics import brier_score, expected_calibration_error

TEMPERATURES = (0.2, 10.0)


def fit_temperature(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """The temperature under which these probabilities make the truth most likely.

    Where all but a few of some hundred images are right, the likeliest temperature is far below 1, and the model would
    be certain of everything. So the truth is softened as Platt's scaling does it: of n images one more of each other
    class is taken to have been there.

    Args:
        probabilities: ``(n, labels)``, as the model gives them.
        truth: ``(n,)``.

    Returns:
        Within `TEMPERATURES`.

    Source: Guo et al. 2017 (temperature); J. Platt 1999, "Probabilistic outputs for support vector machines", 2.2.
    """
    count, labels = probabilities.shape
    wanted = np.full((count, labels), 1 / (count + labels))
    wanted[np.arange(count), truth] = 1 - (labels - 1) / (count + labels)
    logits = np.log(np.maximum(probabilities.astype(np.float64), FLOOR))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(-(wanted * (scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))).sum(axis=1).mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def calibration_of(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, Any]:
    """The manifest's ``calibration``: the temperature, and what it does to the side it was fitted on."""
    temperature = fit_temperature(probabilities, truth)
    found = {"temperature": temperature, "fitted_on": "validation", "images": len(truth)}
    for name, scores in (("before", probabilities), ("after", calibrated(probabilities, temperature))):
        confidence = scores.max(axis=1).astype(np.float64)
        found[f"ece_{name}"] = expected_calibration_error(confidence, scores.argmax(axis=1) == truth)
        found[f"brier_{name}"] = brier_score(scores, truth)
    return found


def review_rule(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    positive: Sequence[int],
    target_sensitivity: float | None,
    review_budget: float | None,
) -> dict[str, Any]:
    """The manifest's ``decision``: below which top probability an image is to be looked at by somebody.

    Args:
        probabilities: of the validation side, calibrated, ``(n, labels)``.
        truth: ``(n,)``.
        positive: the classes that count as ill.
        target_sensitivity: the least share of ill images that is called ill or sent to review.
        review_budget: the largest share of images that may be sent to review. Of both, neither or one is given.

    Returns:
        ``review_below``, the rule and its target, and what it does on the validation side: ``reviewed`` and
        ``accuracy_of_the_rest``, shares; empty where neither is given.

    Raises:
        UsageError: both are given, a share that is none, or a sensitivity where no class counts as ill.
    """
    check_rule(positive, target_sensitivity, review_budget)
    rules = {"target_sensitivity": target_sensitivity, "review_budget": review_budget}
    given = [(name, value) for name, value in rules.items() if value is not None]
    if not given:
        return {}
    ((rule, target),) = given
    top, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == truth
    if rule == "review_budget":
        allowed = int(target * len(top))
        below = float(np.sort(top)[allowed]) if allowed < len(top) else 1.0  # so many lie below it, or fewer
    else:
        ill = np.isin(truth, positive)
        missed = top[ill & ~np.isin(probabilities.argmax(axis=1), positive)]
        spared = int((1 - target) * ill.sum() + 1e-9)  # ill images that may be missed without anybody looking
        surest = np.sort(missed)[::-1]
        below = float(np.nextafter(surest[spared], 2.0)) if len(surest) > spared else 0.0
    reviewed = top < below
    rest = right[~reviewed]
    return {
        "review_below": below,
        "rule": rule,
        "target": target,
        "reviewed": float(reviewed.mean()),
        "accuracy_of_the_rest": float(rest.mean()) if len(rest) else None,
    }


def check_rule(positive: Sequence[int], target_sensitivity: float | None, review_budget: float | None) -> None:
    """Raises UsageError for a rule that can't be meant; see `review_rule`."""
    if target_sensitivity is not None and review_budget is not None:
        raise UsageError("--target-sensitivity and --review-budget: one decides", hint="leave out the other")
    for name, value in (("target-sensitivity", target_sensitivity), ("review-budget", review_budget)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"--{name} {value:g} is no share", hint="give a number above 0 and below 1")
    if target_sensitivity is not None and not positive:
        raise UsageError("--target-sensitivity: no class counts as ill", hint="train with --positive, or give a budget")
