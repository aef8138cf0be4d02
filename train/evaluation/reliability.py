"""Whether a probability can be believed, and what is gained by not believing the low ones: calibration and review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.calibration import calibrated
from .metrics import ECE_BINS, brier_score, expected_calibration_error, in_bins

POINTS = 200
"""Of a risk-coverage curve, at most, so that what is printed as JSON stays small."""
COVERAGES = (1.0, 0.99, 0.95, 0.9, 0.8)
"""Shares of the images, the surest ones, whose error is named in tables."""


def trust(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    positive: Sequence[int],
    temperature: float | None,
    review_below: float | None,
    unfamiliar: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """What metrics say of a model's probabilities besides its labels.

    Args:
        probabilities: as the model gives them, ``(n, labels)``.
        truth: ``(n,)``.
        positive: the classes that count as ill.
        temperature: of its calibration; None where it has none.
        review_below: of its decision; None where it has none.
        unfamiliar: ``(n,)``, what its novelty score says; None where it has none.

    Returns:
        - ``reliability``: temperature; ``before`` calibration and ``after``, see `reliability`; after is None without;
        - ``risk_coverage`` of the calibrated probabilities, see `risk_coverage`;
        - ``review``, see `review`; None of a model that never asks for it.
    """
    final = probabilities if temperature is None else calibrated(probabilities, temperature)
    return {
        "reliability": {
            "temperature": temperature,
            "before": reliability(probabilities, truth),
            "after": None if temperature is None else reliability(final, truth),
        },
        "risk_coverage": risk_coverage(final, truth),
        "review": review(final, truth, positive, review_below, unfamiliar),
    }


def reliability(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, Any]:
    """How often the model is right where it says how sure it is.

    Returns:
        ``ece`` and ``brier`` as `compute_metrics` has them, and ``bins``: of each of `ECE_BINS` that isn't empty its
        ``low`` and ``high`` end, ``images``, their mean ``confidence`` (the top probability) and ``accuracy``.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    place = in_bins(confidence)
    bins = [
        {
            "low": number / ECE_BINS,
            "high": (number + 1) / ECE_BINS,
            "images": int((place == number).sum()),
            "confidence": float(confidence[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
        }
        for number in np.unique(place)
    ]
    return {
        "ece": expected_calibration_error(confidence, right),
        "brier": brier_score(probabilities, truth),
        "bins": bins,
    }


def risk_coverage(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, Any]:
    """The error that is left when only the surest images are answered.

    Images of equal top probability, of which 8 bits have many, are answered together or not at all.

    Returns:
        - aurc: area under the curve: the mean, over the images, of the error among all that are at least as sure; 0
          where every image is right, the whole error where sureness says nothing;
        - error_at: the error of the surest `COVERAGES`, by share; of a few more where a tie is cut;
        - coverage, risk and threshold of up to `POINTS` points, the surest first.

    Source: Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    wrong = probabilities.argmax(axis=1) != truth
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.diff(confidence[order], append=-1.0))  # the last image of each tie
    answered = ends + 1
    risk = np.cumsum(wrong[order])[ends] / answered
    shown = np.unique(np.linspace(0, len(ends) - 1, min(POINTS, len(ends))).round().astype(int))
    needed = [int(np.searchsorted(answered, np.ceil(share * len(order) - 1e-9))) for share in COVERAGES]
    return {
        "aurc": float((risk * np.diff(answered, prepend=0)).sum() / len(order)),
        "error_at": {f"{share:g}": float(risk[place]) for share, place in zip(COVERAGES, needed, strict=True)},
        "coverage": (answered[shown] / len(order)).tolist(),
        "risk": risk[shown].tolist(),
        "threshold": confidence[order][ends][shown].tolist(),
    }


def sent_to_review(
    probabilities: NDArray[np.float32], below: float | None, unfamiliar: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Which images somebody should look at, ``(...)`` of ``(..., labels)``; None of a model that never asks for it."""
    if below is None:
        return unfamiliar
    uncertain = probabilities.max(axis=-1).astype(np.float64) < below
    return uncertain if unfamiliar is None else uncertain | unfamiliar


def review(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    positive: Sequence[int],
    below: float | None,
    unfamiliar: NDArray[np.bool_] | None = None,
) -> dict[str, Any] | None:
    """What review does to these images; None of a model that never asks for it.

    Returns:
        below; reviewed: share of images sent to review; unfamiliar: the share that is sent for that, None where nothing
        tells; wrong: how many images are given a wrong label; wrong_reviewed: how many of those are sent to review;
        wrong_not_reviewed: those that are not, as a share of all images; accuracy_of_the_rest, None where nothing is
        left; sensitivity_with_review: share of the ill that is called ill or sent to review, None where nobody is ill.
    """
    asked = sent_to_review(probabilities, below, unfamiliar)
    if asked is None:
        return None
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != truth
    ill = np.isin(truth, positive)
    found = asked | np.isin(predicted, positive)
    return {
        "below": below,
        "reviewed": float(asked.mean()),
        "unfamiliar": None if unfamiliar is None else float(unfamiliar.mean()),
        "wrong": int(wrong.sum()),
        "wrong_reviewed": int((wrong & asked).sum()),
        "wrong_not_reviewed": float((wrong & ~asked).mean()),
        "accuracy_of_the_rest": float(1 - wrong[~asked].mean()) if not asked.all() else None,
        "sensitivity_with_review": float(found[ill].mean()) if ill.any() else None,
    }
