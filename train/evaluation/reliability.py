"""Calibration of probabilities, risk-coverage curve, and the effect of sending images to review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.calibration import apply_temperature
from .metrics import ECE_BINS, brier_score, expected_calibration_error, in_bins

POINTS = 200
"""Maximum number of points of a risk-coverage curve, to keep the JSON small."""
COVERAGES = (1.0, 0.99, 0.95, 0.9, 0.8)
"""Coverages whose error is shown in tables: shares of the images with the highest top probability."""


def reliability_report(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    positive: Sequence[int],
    temperature: float | None = None,
    review_below: float | None = None,
    unfamiliar: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Calibration, risk-coverage curve and review of a model's predictions.

    Args:
        probabilities: uncalibrated output of the model, ``(n, labels)``.
        truth: class index of each image, ``(n,)``.
        positive: the positive classes.
        temperature: of the model's calibration; None without calibration.
        review_below: images with a lower top probability are sent to review; None without a threshold.
        unfamiliar: which images are out-of-distribution, ``(n,)``; None without a detector.

    Returns:
        - ``reliability``: temperature, and `reliability` ``before`` and ``after`` calibration; after is None without
          calibration;
        - ``risk_coverage``: `risk_coverage` of the calibrated probabilities;
        - ``review``: see `review`; None for a model that sends no image to review.
    """
    final = probabilities if temperature is None else apply_temperature(probabilities, temperature)
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
    """The reliability diagram of probabilities.

    Returns:
        ``ece`` and ``brier`` as in `compute_metrics`; and ``bins``: for each of the `ECE_BINS` that is not empty its
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
    """The error among the images with the highest top probability, as a function of their share.

    Images with equal top probability, which are frequent with 8 bits, are included together or not at all.

    Returns:
        - aurc: area under the curve: the mean over all images of the error among the images with at least the same top
          probability. 0 if every image is right; equal to the error if the top probability carries no information;
        - error_at: the error at each of `COVERAGES`, by share; ties may include a few more images;
        - coverage, risk and threshold of up to `POINTS` points, highest top probability first.

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
    """Which images are sent to review, ``(...)`` from ``(..., labels)``; None for a model that sends no image."""
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
    """The effect of review on these images; None for a model that sends no image to review.

    Returns:
        below; reviewed: share of images sent to review; unfamiliar: share of out-of-distribution images, None without a
        detector; wrong: number of wrong predictions; wrong_reviewed: how many of those are sent to review;
        wrong_not_reviewed: the others, as a share of all images; accuracy_of_the_rest: of the images that are not sent,
        None if all are; sensitivity_with_review: share of the positive images that are predicted positive or sent to
        review, None without positive images.
    """
    sent = sent_to_review(probabilities, below, unfamiliar)
    if sent is None:
        return None
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != truth
    is_positive = np.isin(truth, positive)
    found = sent | np.isin(predicted, positive)
    return {
        "below": below,
        "reviewed": float(sent.mean()),
        "unfamiliar": None if unfamiliar is None else float(unfamiliar.mean()),
        "wrong": int(wrong.sum()),
        "wrong_reviewed": int((wrong & sent).sum()),
        "wrong_not_reviewed": float((wrong & ~sent).mean()),
        "accuracy_of_the_rest": float(1 - wrong[~sent].mean()) if not sent.all() else None,
        "sensitivity_with_review": float(found[is_positive].mean()) if is_positive.any() else None,
    }
