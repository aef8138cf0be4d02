"""Calibration of probabilities, risk-coverage curve, and the effect of sending images to review."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.calibration import apply_temperature
from ...edge_runtime.results import Result
from .metrics import ECE_BINS, brier_score, expected_calibration_error, in_bins

POINTS = 200
"""Maximum number of points of a risk-coverage curve, to keep the JSON small."""
COVERAGES = (1.0, 0.99, 0.95, 0.9, 0.8)
"""Coverages whose error is shown in tables: shares of the images with the highest top probability."""


@dataclass(frozen=True)
class Bin(Result):
    """The images whose top probability lies in (low, high]: its mean ``confidence``, and their accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability(Result):
    """A reliability diagram: the bins that are not empty; ``ece`` and ``brier`` as in `Metrics`."""

    ece: float
    brier: float
    bins: list[Bin]


@dataclass(frozen=True)
class Calibrated(Result):
    """The diagrams before and after calibration; temperature and ``after`` are None without calibration."""

    temperature: float | None
    before: Reliability
    after: Reliability | None

    def panels(self) -> list[tuple[str, Reliability]]:
        """The diagrams that exist, by name."""
        named = (("before", self.before), ("after", self.after))
        return [(name, panel) for name, panel in named if panel is not None]


@dataclass(frozen=True)
class RiskCoverage(Result):
    """The error among the images with the highest top probability, as a function of their share.

    Attributes:
        aurc: area under the curve: the mean over all images of the error among the images with at least the same top
            probability. 0 if every image is right; equal to the error if the top probability carries no information.
        error_at: the error at each of `COVERAGES`, by share; ties may include a few more images.
        coverage: of up to `POINTS` points, highest top probability first; their ``risk`` and ``threshold``.
    """

    aurc: float
    error_at: dict[str, float]
    coverage: list[float]
    risk: list[float]
    threshold: list[float]


@dataclass(frozen=True)
class Review(Result):
    """The effect of review.

    Attributes:
        below: images with a lower top probability are sent; None without a threshold.
        reviewed: share of images sent to review.
        unfamiliar: share of out-of-distribution images, None without a detector.
        wrong: number of wrong predictions; ``wrong_reviewed``: how many of those are sent to review;
            ``wrong_not_reviewed``: the others, as a share of all images.
        accuracy_of_the_rest: of the images that are not sent, None if all are.
        sensitivity_with_review: share of the positive images that are predicted positive or sent to review, None
            without positive images.
    """

    below: float | None
    reviewed: float
    unfamiliar: float | None
    wrong: int
    wrong_reviewed: int
    wrong_not_reviewed: float
    accuracy_of_the_rest: float | None
    sensitivity_with_review: float | None


@dataclass(frozen=True)
class ReliabilityReport(Result):
    """Calibration, risk-coverage curve of the calibrated probabilities, and review.

    ``review`` is None for a model that sends no image to review.
    """

    reliability: Calibrated
    risk_coverage: RiskCoverage
    review: Review | None


def reliability_report(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    positive: Sequence[int],
    temperature: float | None = None,
    review_below: float | None = None,
    unfamiliar: NDArray[np.bool_] | None = None,
) -> ReliabilityReport:
    """Calibration, risk-coverage curve and review of a model's predictions.

    Args:
        probabilities: uncalibrated output of the model, ``(n, labels)``.
        truth: class index of each image, ``(n,)``.
        positive: the positive classes.
        temperature: of the model's calibration; None without calibration.
        review_below: images with a lower top probability are sent to review; None without a threshold.
        unfamiliar: which images are out-of-distribution, ``(n,)``; None without a detector.
    """
    final = probabilities if temperature is None else apply_temperature(probabilities, temperature)
    after = None if temperature is None else reliability(final, truth)
    return ReliabilityReport(
        Calibrated(temperature, reliability(probabilities, truth), after),
        risk_coverage(final, truth),
        review(final, truth, positive, review_below, unfamiliar),
    )


def reliability(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> Reliability:
    """The reliability diagram of probabilities."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    place = in_bins(confidence)
    bins = [
        Bin(
            low=number / ECE_BINS,
            high=(number + 1) / ECE_BINS,
            images=int((place == number).sum()),
            confidence=float(confidence[place == number].mean()),
            accuracy=float(right[place == number].mean()),
        )
        for number in np.unique(place)
    ]
    return Reliability(expected_calibration_error(confidence, right), brier_score(probabilities, truth), bins)


def risk_coverage(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> RiskCoverage:
    """The risk-coverage curve of probabilities.

    Images with equal top probability, which are frequent with 8 bits, are included together or not at all.

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
    return RiskCoverage(
        aurc=float((risk * np.diff(answered, prepend=0)).sum() / len(order)),
        error_at={f"{share:g}": float(risk[place]) for share, place in zip(COVERAGES, needed, strict=True)},
        coverage=(answered[shown] / len(order)).tolist(),
        risk=risk[shown].tolist(),
        threshold=confidence[order][ends][shown].tolist(),
    )


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
) -> Review | None:
    """The effect of review on these images; None for a model that sends no image to review."""
    sent = sent_to_review(probabilities, below, unfamiliar)
    if sent is None:
        return None
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != truth
    is_positive = np.isin(truth, positive)
    found = sent | np.isin(predicted, positive)
    return Review(
        below=below,
        reviewed=float(sent.mean()),
        unfamiliar=None if unfamiliar is None else float(unfamiliar.mean()),
        wrong=int(wrong.sum()),
        wrong_reviewed=int((wrong & sent).sum()),
        wrong_not_reviewed=float((wrong & ~sent).mean()),
        accuracy_of_the_rest=float(1 - wrong[~sent].mean()) if not sent.all() else None,
        sensitivity_with_review=float(found[is_positive].mean()) if is_positive.any() else None,
    )
