"""Fits, of the very model that will run, what turns its outputs into decisions.

The temperature makes its probabilities mean what they say; the review rule says below which probability somebody
should look. Both travel in the manifest, `calibration` and `decision`. They are fitted on the validation side as it is
and mildly changed, see `edgeall.optimize.quantization.mild`: on the side as it is alone, a model that makes no
mistake there would be believed everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ...edge_runtime.calibration import FLOOR, calibrated
from ...edge_runtime.errors import UsageError
from ...train.evaluation.metrics import brier_score, expected_calibration_error

TEMPERATURES = (0.2, 10.0)
REVIEW_BUDGET = 0.05
"""Share of images that may be sent to review where nothing else was asked for."""


def fit_temperature(probabilities: NDArray[np.float32], truth: NDArray[np.int64], images: int | None = None) -> float:
    """The temperature under which these probabilities make the truth most likely.

    Where all but a few of some hundred images are right, the likeliest temperature is far below 1, and the model would
    be certain of everything. So the truth is softened as Platt's scaling does it: of n images one more of each other
    class is taken to have been there.

    Args:
        probabilities: ``(n, labels)``, as the model gives them.
        truth: ``(n,)``.
        images: how many different ones these are; None: n. Another copy of an image doesn't make the truth surer.

    Returns:
        Within `TEMPERATURES`.

    Source: Guo et al. 2017 (temperature); J. Platt 1999, "Probabilistic outputs for support vector machines", 2.2.
    """
    rows, labels = probabilities.shape
    count = rows if images is None else images
    wanted = np.full((rows, labels), 1 / (count + labels))
    wanted[np.arange(rows), truth] = 1 - (labels - 1) / (count + labels)
    logits = np.log(np.maximum(probabilities.astype(np.float64), FLOOR))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(-(wanted * (scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))).sum(axis=1).mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def calibration_of(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], images: int | None = None
) -> dict[str, Any]:
    """The manifest's ``calibration``: the temperature, and what it does to what it was fitted on.

    Args:
        probabilities: ``(n, labels)``, as the model gives them.
        truth: ``(n,)``.
        images: see `fit_temperature`.
    """
    temperature = fit_temperature(probabilities, truth, images)
    count = len(truth) if images is None else images
    found = {"temperature": temperature, "fitted_on": "validation", "images": count}
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
    unfamiliar: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """The manifest's ``decision``: below which top probability an image is to be looked at by somebody.

    Images of equal top probability, of which 8 bits have many, are sent together or not at all: of a model that is as
    sure of nearly everything as it can be, fewer than the budget.

    Args:
        probabilities: of validation images, calibrated, ``(n, labels)``.
        truth: ``(n,)``.
        positive: the classes that count as ill.
        target_sensitivity: the least share of ill images that is called ill or sent to review.
        review_budget: the largest share of the familiar images that may be sent to review; None is `REVIEW_BUDGET`
            where no sensitivity is given; 0: no rule.
        unfamiliar: ``(n,)``, which are sent to review whatever their probability. They don't use up the budget: where
            many of the changed images are, nothing would be left of it for the others.

    Returns:
        ``review_below``, the rule and its target, and what it does to these images: ``reviewed``, the share sent to
        review for either reason, and ``accuracy_of_the_rest``; empty where no rule is wanted.

    Raises:
        UsageError: both are given, a share that is none, or a sensitivity where no class counts as ill.
    """
    rule, target = wanted_rule(positive, target_sensitivity, review_budget)
    if target == 0:
        return {}
    top, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == truth
    strange = np.zeros(len(top), bool) if unfamiliar is None else unfamiliar
    if rule == "review_budget":
        known = np.sort(top[~strange])
        allowed = int(target * len(known) + 1e-9)
        below = float(known[allowed]) if len(known) else 0.0  # so many lie below it, or fewer
    else:
        ill = np.isin(truth, positive)
        missed = top[ill & ~strange & ~np.isin(probabilities.argmax(axis=1), positive)]
        spared = int((1 - target) * ill.sum() + 1e-9)  # ill images that may be missed without anybody looking
        surest = np.sort(missed)[::-1]
        below = float(np.nextafter(surest[spared], 2.0)) if len(surest) > spared else 0.0
    reviewed = strange | (top < below)
    rest = right[~reviewed]
    return {
        "review_below": below,
        "rule": rule,
        "target": target,
        "reviewed": float(reviewed.mean()),
        "accuracy_of_the_rest": float(rest.mean()) if len(rest) else None,
    }


def wanted_rule(
    positive: Sequence[int], target_sensitivity: float | None, review_budget: float | None
) -> tuple[str, float]:
    """The rule's name and target, 0 for none. Raises UsageError for one that can't be meant; see `review_rule`."""
    if target_sensitivity is not None and review_budget is not None:
        raise UsageError("--target-sensitivity and --review-budget: one decides", hint="leave out the other")
    if target_sensitivity is None:
        budget = REVIEW_BUDGET if review_budget is None else review_budget
        if not 0 <= budget < 1:
            raise UsageError(f"--review-budget must be in [0, 1), got {budget:g}", hint="0 sets no rule")
        return "review_budget", budget
    if not 0 < target_sensitivity < 1:
        raise UsageError(f"--target-sensitivity must be in (0, 1), got {target_sensitivity:g}", hint="as in 0.98")
    if not positive:
        raise UsageError("--target-sensitivity: no class counts as ill", hint="train with --positive, or give a budget")
    return "target_sensitivity", target_sensitivity
