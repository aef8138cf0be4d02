"""The metrics that every report, gate and manifest quotes, from true classes and predicted probabilities.

The predicted class is the most probable one; on a tie, the first of them. Probabilities are used as the model returns
them (an 8-bit output may sum to 0.99); only `log_loss` divides each row by its sum.

Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (ECE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from ...edge_runtime.errors import DataError
from ...edge_runtime.results import OPTIONAL, SPREAD, Result
from .bootstrap import intervals

AVERAGES = ("macro", "weighted")
ECE_BINS = 15
POSITIVE_INTERVALS = ("sensitivity", "specificity", "auroc_positive")
LOG_FLOOR = 1e-7
"""Lowest probability in `log_loss`. Keras clips at the same value, so both agree. An 8-bit output contains exact zeros:
without a floor one wrong image would make the loss infinite."""


@dataclass(frozen=True)
class ClassMetrics(Result):
    """One class against the rest. ``auroc`` is None if one of the two is absent."""

    precision: float
    recall: float
    f1: float
    support: int
    auroc: float | None


@dataclass(frozen=True)
class AverageMetrics(Result):
    """Precision, recall and F1 averaged over the classes that occur among the true or the predicted ones."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class SubjectRow(Result):
    """One subject: ``label`` is None if its images have several; ``accuracy`` is that of its images."""

    subject: str
    label: str | None
    predicted: str
    images: int
    accuracy: float


@dataclass(frozen=True)
class SubjectFigures(Result):
    """Figures over subjects, each by the mean probability of its images; see `Metrics`."""

    accuracy: float
    accuracy_ci95: list[float] | None
    macro_f1: float
    macro_f1_ci95: list[float] | None
    sensitivity: float | None
    sensitivity_ci95: list[float] | None
    specificity: float | None
    specificity_ci95: list[float] | None
    auroc_positive: float | None
    auroc_positive_ci95: list[float] | None
    confusion: list[list[int]]


@dataclass(frozen=True)
class SubjectMetrics(Result):
    """Figures by subject. Each subject counts once.

    Attributes:
        subjects: number of subjects in the figures.
        several_classes: subjects with images of several labels, excluded from all figures.
        figures: None if all subjects have several labels.
        per_subject: every subject, lowest accuracy first.
    """

    subjects: int
    several_classes: int
    figures: SubjectFigures | None = field(metadata=SPREAD)
    per_subject: list[SubjectRow]


@dataclass(frozen=True)
class Metrics(Result):
    """All metrics of one model on one set of images, never NaN. An undefined figure is None.

    Attributes:
        split: the subset, for instance ``test``.
        split_level: ``subject``, ``block`` or ``image``.
        images: their number.
        accuracy: share of images whose predicted class is true.
        accuracy_ci95: percentile bootstrap interval, see `edgeall.train.evaluation.bootstrap.intervals`; also of macro
            F1, sensitivity, specificity and ``auroc_positive``. If every image is right it collapses to [1, 1].
        ci_unit: what the intervals resample: ``subject`` if every image has one and there are at least two, else
            ``image``.
        macro_f1: mean over the classes that occur among the true or the predicted ones, so that a folder without some
            class does not lower it.
        log_loss: with every row of probabilities divided by its sum.
        ece: expected calibration error over `ECE_BINS` equal-width bins of the top probability: the mean of
            |accuracy - confidence| of the bins, weighted by their images.
        brier: mean over images of the squared distance between probabilities and truth, 0 to 2.
        labels: the class names, in the model's output order.
        confusion: ``confusion[i][j]`` counts images of class i predicted as class j.
        per_class: by label. Undefined precision, recall and F1 are 0.0; ``support`` explains them.
        positive_labels: the positive classes.
        sensitivity: like specificity for *any* positive class against the others: a prediction is positive if its class
            is one of ``positive_labels``.
        auroc_positive: ranks by the summed probability of the positive classes, like ``auprc_positive`` (average
            precision).
        sensitivity_at_specificity_95: highest sensitivity of a threshold on that sum with a specificity of at least
            95 %.
        subjects: the figures for subjects instead of images; None if a subject is unknown or there is only one.
        averages: ``macro``: every class counts the same; ``weighted``: by its number of true images. None in runs of
            older versions.
    """

    split: str
    split_level: str
    images: int
    accuracy: float
    accuracy_ci95: list[float] | None
    ci_unit: str
    macro_f1: float
    macro_f1_ci95: list[float] | None
    log_loss: float
    ece: float
    brier: float
    labels: list[str]
    confusion: list[list[int]]
    per_class: dict[str, ClassMetrics]
    positive_labels: list[str]
    sensitivity: float | None
    specificity: float | None
    auroc_positive: float | None
    auprc_positive: float | None
    sensitivity_at_specificity_95: float | None
    sensitivity_ci95: list[float] | None
    specificity_ci95: list[float] | None
    auroc_positive_ci95: list[float] | None
    subjects: SubjectMetrics | None
    averages: dict[str, AverageMetrics] | None = field(default=None, metadata=OPTIONAL)


def compute_metrics(
    labels: Sequence[str],
    y_true: ArrayLike,
    probabilities: ArrayLike,
    positive_labels: Sequence[str],
    *,
    split: str,
    split_level: str,
    seed: int = 0,
    subjects: Sequence[str | None] | None = None,
) -> Metrics:
    """All metrics of one model on one set of images.

    Args:
        labels: the k class names, in the model's output order.
        y_true: int, shape (n,), each in 0..k-1.
        probabilities: float, shape (n, k), not negative.
        positive_labels: the positive classes; may be empty.
        split: the subset, for instance ``test``.
        split_level: ``subject``, ``block`` or ``image``.
        seed: of the bootstrap.
        subjects: one per image, None if unknown.

    Raises:
        DataError: no images; shapes that do not match; a probability that is not finite; an unknown positive label.
    """
    true = np.asarray(y_true, dtype=np.int64)
    scores = np.asarray(probabilities, dtype=np.float64)
    _check(labels, true, scores, positive_labels, subjects)
    classes = np.arange(len(labels))
    predicted = scores.argmax(axis=1)
    correct = predicted == true
    positive = [labels.index(name) for name in positive_labels]
    summed = scores[:, positive].sum(axis=1)
    ends, unit = intervals(true, predicted, len(labels), positive, summed, subjects, seed)
    against_rest = _positive_against_rest(positive, true, predicted, summed)
    against_rest |= {f"{name}_ci95": ends[name] if positive else None for name in POSITIVE_INTERVALS}
    return Metrics(
        split=split,
        split_level=split_level,
        images=len(true),
        accuracy=float(correct.mean()),
        ci_unit=unit,
        macro_f1=float(f1_score(true, predicted, average="macro", zero_division=0.0)),
        log_loss=_log_loss(true, scores),
        ece=expected_calibration_error(scores.max(axis=1), correct),
        brier=brier_score(scores, true),
        labels=list(labels),
        confusion=confusion_matrix(true, predicted, labels=classes).tolist(),
        per_class=_per_class(labels, true, predicted, scores),
        positive_labels=list(positive_labels),
        accuracy_ci95=ends["accuracy"],
        macro_f1_ci95=ends["macro_f1"],
        **against_rest,
        subjects=_by_subject(labels, true, scores, positive_labels, subjects, seed),
        averages={name: _average(name, true, predicted) for name in AVERAGES},
    )


def _average(name: str, true: NDArray[np.int64], predicted: NDArray[np.int64]) -> AverageMetrics:
    found = precision_recall_fscore_support(true, predicted, average=name, zero_division=0.0)
    return AverageMetrics(*map(float, found[:3]))


def _by_subject(
    labels: Sequence[str],
    true: NDArray[np.int64],
    scores: NDArray[np.float64],
    positive_labels: Sequence[str],
    subjects: Sequence[str | None] | None,
    seed: int,
) -> SubjectMetrics | None:
    """The figures by subject. The prediction is the mean probability over a subject's images."""
    known = [name for name in subjects or () if name is not None]
    if len(known) != len(true) or len(set(known)) < 2:
        return None
    names, owner = np.unique(known, return_inverse=True)
    images = np.bincount(owner)
    means = np.stack([np.bincount(owner, weights=column) for column in scores.T], axis=1) / images[:, None]
    of_label = np.zeros((len(names), len(labels)), np.int64)
    np.add.at(of_label, (owner, true), 1)
    right = np.bincount(owner, weights=scores.argmax(axis=1) == true)
    whole = (of_label > 0).sum(axis=1) == 1
    per_subject = [
        SubjectRow(
            subject=str(names[i]),
            label=labels[int(of_label[i].argmax())] if whole[i] else None,
            predicted=labels[int(means[i].argmax())],
            images=int(images[i]),
            accuracy=float(right[i] / images[i]),
        )
        for i in range(len(names))
    ]
    figures = None
    if whole.any():
        every = compute_metrics(
            labels, of_label[whole].argmax(axis=1), means[whole], positive_labels, split="", split_level="", seed=seed
        )
        figures = SubjectFigures(**{item.name: getattr(every, item.name) for item in fields(SubjectFigures)})
    per_subject.sort(key=lambda row: (row.accuracy, row.subject))
    return SubjectMetrics(int(whole.sum()), int((~whole).sum()), figures, per_subject)


class Labelled(Protocol):
    """An image with its label: a sample of a data set, or an entry of a split."""

    @property
    def label(self) -> str: ...
    @property
    def subject(self) -> str | None: ...


def metrics_of(
    images: Sequence[Labelled],
    labels: Sequence[str],
    probabilities: ArrayLike,
    positive_labels: Sequence[str],
    split: str,
    split_level: str,
    seed: int,
) -> Metrics:
    """`compute_metrics` of labelled images. Intervals are by subject if every image has one."""
    index = {label: number for number, label in enumerate(labels)}
    return compute_metrics(
        labels,
        [index[image.label] for image in images],
        probabilities,
        positive_labels,
        split=split,
        split_level=split_level,
        seed=seed,
        subjects=[image.subject for image in images],
    )


def _check(
    labels: Sequence[str],
    true: NDArray[np.int64],
    scores: NDArray[np.float64],
    positive_labels: Sequence[str],
    subjects: Sequence[str | None] | None,
) -> None:
    if true.size == 0:
        raise DataError("no images to compute metrics of", hint="give a data folder or a subset with images")
    if scores.shape != (len(true), len(labels)) or (subjects is not None and len(subjects) != len(true)):
        raise DataError(
            f"{len(true)} true classes, probabilities of shape {scores.shape} and {len(labels)} labels do not match"
        )
    if true.min() < 0 or true.max() >= len(labels):
        raise DataError(f"true classes {true.min()}..{true.max()} are outside 0..{len(labels) - 1}")
    if not np.isfinite(scores).all() or scores.min() < 0 or scores.sum(axis=1).min() <= 0:
        raise DataError(
            "the model's output holds values that are not probabilities (NaN, infinite, negative or all zero)",
            hint="training has diverged: lower the learning rate",
        )
    unknown = [name for name in positive_labels if name not in labels]
    if unknown:
        raise DataError(f"positive label {', '.join(unknown)} is not one of {', '.join(labels)}")


def _per_class(
    labels: Sequence[str], true: NDArray[np.int64], predicted: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, ClassMetrics]:
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=np.arange(len(labels)), zero_division=0.0
    )
    return {
        label: ClassMetrics(
            float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]), _auroc(true == i, scores[:, i])
        )
        for i, label in enumerate(labels)
    }


def _positive_against_rest(
    positive: list[int], true: NDArray[np.int64], predicted: NDArray[np.int64], summed: NDArray[np.float64]
) -> dict[str, Any]:
    """The figures of the positive classes together, None without any."""
    names = ("sensitivity", "specificity", "auroc_positive", "auprc_positive", "sensitivity_at_specificity_95")
    if not positive:
        return dict.fromkeys(names)
    is_positive = np.isin(true, positive)
    called = np.isin(predicted, positive)
    both = is_positive.any() and not is_positive.all()
    values = (
        float(called[is_positive].mean()) if is_positive.any() else None,
        float((~called[~is_positive]).mean()) if not is_positive.all() else None,
        _auroc(is_positive, summed),
        float(average_precision_score(is_positive, summed)) if both else None,
        _sensitivity_at(0.95, is_positive, summed) if both else None,
    )
    return dict(zip(names, values, strict=True))


def _sensitivity_at(specificity: float, positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    false_positive, found, _ = roc_curve(positive, score, drop_intermediate=False)
    return float(found[1 - false_positive >= specificity - 1e-9].max())


def _auroc(is_class: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    if is_class.all() or not is_class.any():
        return None
    return float(roc_auc_score(is_class, score))


def _log_loss(true: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    of_truth = scores[np.arange(len(true)), true] / scores.sum(axis=1)
    return float(-np.log(np.maximum(of_truth, LOG_FLOOR)).mean())


def brier_score(probabilities: NDArray[Any], truth: NDArray[np.int64]) -> float:
    """Mean over images of the squared distance between probabilities and truth, 0 to 2."""
    wanted = np.eye(probabilities.shape[1])[truth]
    return float(((probabilities - wanted) ** 2).sum(axis=1).mean())


def in_bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each confidence. Bin m is (m / bins, (m + 1) / bins], as in the paper."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """ECE over the bins of `in_bins`: top probability and correctness of each image, ``(n,)``."""
    # sum over bins of images/n * |accuracy - confidence| = sum over bins of |sum of (correct - confidence)| / n
    gaps = np.bincount(in_bins(confidence), weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))
