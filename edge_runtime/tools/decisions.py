"""Fits the temperature and the review rule of a classifier.

The temperature calibrates the probabilities; the review rule sends images below a probability to a person. Both travel
in the manifest as `calibration` and `decision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..calibration import FLOOR
from ..errors import UsageError
from ..results import EMPTY, OPTIONAL, Result
from .novelty import Novelty

TEMPERATURES = (0.2, 10.0)
REVIEW_BUDGET = 0.05
"""Default of the largest share of images sent to review."""
MARGIN = 1e-5
"""Largest distance of a review threshold from the probability that it is taken from. Integer outputs give many images
exactly this probability, and processors differ in its last digit: a threshold equal to it would send such an image to
review on one device and not on another."""
_HALVINGS = 40
"""Of the interval of 1 / temperature; far below the rounding of float32."""


@dataclass(frozen=True)
class Calibration(Result):
    """The manifest's ``calibration``.

    Attributes:
        fitted_on: ``validation``, or ``site`` after an adaptation, which measures no errors.
        images: number of different images.
        ece_before: calibration error on these and the changed images, before the temperature.
        changed_images: number of mildly changed images, with ``changed_strength`` how much.
    """

    temperature: float
    fitted_on: str
    images: int
    ece_before: float | None = field(default=None, metadata=OPTIONAL)
    brier_before: float | None = field(default=None, metadata=OPTIONAL)
    ece_after: float | None = field(default=None, metadata=OPTIONAL)
    brier_after: float | None = field(default=None, metadata=OPTIONAL)
    changed_images: int | None = field(default=None, metadata=OPTIONAL)
    changed_strength: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class ReviewRule(Result):
    """The manifest's ``decision``: the top probability below which an image goes to review.

    Attributes:
        rule: ``review_budget`` or ``target_sensitivity``.
        target: of the rule.
        reviewed: share of the images sent to review, as uncertain or as out of distribution.
        accuracy_of_the_rest: of the images not sent to review; None if all were sent.
        reviewed_unchanged: share of the unchanged validation images sent to review.
    """

    review_below: float
    rule: str
    target: float
    reviewed: float
    accuracy_of_the_rest: float | None
    reviewed_unchanged: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Decisions(Result):
    """The fitted sections of a manifest. Those that were not fitted are None."""

    calibration: Calibration | None = field(default=None, metadata=EMPTY)
    decision: ReviewRule | None = field(default=None, metadata=EMPTY)
    novelty: Novelty | None = field(default=None, metadata=EMPTY)


def fit_temperature(probabilities: NDArray[np.float32], truth: NDArray[np.int64], images: int | None = None) -> float:
    """The temperature that minimizes the log loss of the probabilities against a softened truth.

    Where nearly all of some hundred images are right, the most likely temperature is far below 1, and the model would
    be certain of everything. The truth is therefore softened as in Platt scaling: one more image of each other class
    is assumed.

    Args:
        probabilities: ``(n, labels)``, not calibrated.
        truth: class indices ``(n,)``.
        images: number of different images; None: n. Copies of an image do not add evidence.

    Returns:
        Within `TEMPERATURES`.

    Source: Guo et al. 2017 (temperature); J. Platt 1999, "Probabilistic outputs for support vector machines", 2.2.
    """
    rows, labels = probabilities.shape
    count = rows if images is None else images
    wanted = np.full((rows, labels), 1 / (count + labels))
    wanted[np.arange(rows), truth] = 1 - (labels - 1) / (count + labels)
    logits = np.log(np.maximum(probabilities.astype(np.float64), FLOOR))

    def slope(inverse: float) -> float:
        """Derivative of the log loss by 1 / temperature, in which the log loss is convex."""
        scaled = logits * inverse
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(((powers / powers.sum(axis=1, keepdims=True) - wanted) * logits).sum())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def review_rule(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    positive: Sequence[int],
    target_sensitivity: float | None,
    review_budget: float | None,
    unfamiliar: NDArray[np.bool_] | None = None,
) -> ReviewRule | None:
    """The top probability below which an image goes to review; None for no rule.

    Images of equal top probability, which are frequent in 8 bits, go to review together or not at all. A model that is
    certain of nearly everything therefore uses less than the budget.

    Args:
        probabilities: calibrated, of validation images, ``(n, labels)``.
        truth: class indices ``(n,)``.
        positive: indices of the positive classes.
        target_sensitivity: smallest share of positive images that is predicted positive or sent to review.
        review_budget: largest share of the in-distribution images sent to review; None: `REVIEW_BUDGET` unless a
            sensitivity is given; 0: no rule.
        unfamiliar: bool ``(n,)``, images that the OOD detector sends to review. They do not count against the budget,
            because among changed images they could use all of it.

    Raises:
        UsageError: both are given, a share is out of range, or a sensitivity is given without a positive class.
    """
    rule, target = wanted_rule(positive, target_sensitivity, review_budget)
    if target == 0:
        return None
    top, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == truth
    ood = np.zeros(len(top), bool) if unfamiliar is None else unfamiliar
    if rule == "review_budget":
        known = np.sort(top[~ood])
        allowed = int(target * len(known) + 1e-9)
        below = _just_below(known, known[allowed]) if len(known) else 0.0  # at most ``allowed`` lie below it
    else:
        is_positive = np.isin(truth, positive)
        missed = top[is_positive & ~ood & ~np.isin(probabilities.argmax(axis=1), positive)]
        accepted = int((1 - target) * is_positive.sum() + 1e-9)  # positive images that may be missed without review
        surest = np.sort(missed)[::-1]
        below = _just_above(top, surest[accepted]) if len(surest) > accepted else 0.0
    reviewed = ood | (top < below)
    rest = right[~reviewed]
    return ReviewRule(
        review_below=below,
        rule=rule,
        target=target,
        reviewed=float(reviewed.mean()),
        accuracy_of_the_rest=float(rest.mean()) if len(rest) else None,
    )


def _just_below(values: NDArray[np.float64], value: float) -> float:
    lower = values[values < value]
    return float(value - min(MARGIN, (value - lower.max(initial=0.0)) / 2))


def _just_above(values: NDArray[np.float64], value: float) -> float:
    higher = values[values > value]
    return float(max(value + min(MARGIN, (higher.min(initial=1.0) - value) / 2), np.nextafter(value, 2.0)))


def wanted_rule(
    positive: Sequence[int], target_sensitivity: float | None, review_budget: float | None
) -> tuple[str, float]:
    """Name and target of the rule, target 0 for no rule. Raises UsageError for invalid arguments; see `review_rule`."""
    if target_sensitivity is not None and review_budget is not None:
        raise UsageError("--target-sensitivity and --review-budget exclude each other", hint="give one of them")
    if target_sensitivity is None:
        budget = REVIEW_BUDGET if review_budget is None else review_budget
        if not 0 <= budget < 1:
            raise UsageError(f"--review-budget must be in [0, 1), got {budget:g}", hint="0 sets no rule")
        return "review_budget", budget
    if not 0 < target_sensitivity < 1:
        raise UsageError(f"--target-sensitivity must be in (0, 1), got {target_sensitivity:g}", hint="as in 0.98")
    if not positive:
        raise UsageError(
            "--target-sensitivity requires a positive class", hint="train with --positive, or give a budget"
        )
    return "target_sensitivity", target_sensitivity
