"""Percentile bootstrap intervals of the figures of a test subset, by subject if the subjects are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
NAMES = ("accuracy", "macro_f1", "sensitivity", "specificity", "auroc_positive")
_CELLS = 1 << 21
"""Approximate number of values in one batch of resamples."""


def intervals(
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: int,
    positive: Sequence[int],
    positive_score: NDArray[np.float64],
    subjects: Sequence[str | None] | None,
    seed: int,
) -> tuple[dict[str, list[float] | None], str]:
    """95 % intervals of the figures in `NAMES`, all from the same resamples.

    Images of one subject are correlated. Whole subjects are resampled if the subject of every image is known and there
    are at least two; otherwise images. Resamples in which a figure is undefined (no positive image was drawn) are
    ignored for that figure. Without variation the interval is a point and carries no information.

    Args:
        true: class of each image, ``(n,)``.
        predicted: predicted class of each image, ``(n,)``.
        classes: number of classes.
        positive: the positive classes.
        positive_score: the score that AUROC ranks by, ``(n,)``.
        subjects: of each image.
        seed: of the resampling.

    Returns:
        The interval of each name, None for an undefined figure; and the unit, ``subject`` or ``image``.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    """
    unit, owner = _units(len(true), subjects)
    counted = _counted(true, predicted, classes, positive)
    table = np.zeros((owner.max() + 1, counted.shape[1]), np.float32)
    np.add.at(table, owner, counted)
    order = np.argsort(positive_score, kind="stable")
    starts = np.flatnonzero(np.diff(positive_score[order], prepend=-np.inf))
    is_positive, owners = np.isin(true, positive)[order], owner[order]

    def figures(drawn: NDArray[np.float32], axis: int = -1) -> NDArray[np.float64]:
        """The figures of resamples, ``(figures, resamples)``. ``drawn`` holds unit numbers, ``(resamples, units)``."""
        rows, units = drawn.shape
        places = drawn.astype(np.int64) + units * np.arange(rows)[:, None]
        times = np.bincount(places.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float32)
        found = _from_counts((times @ table).astype(np.float64), classes)
        weights = times[:, owners]
        auroc = (
            _weighted_auroc(weights * is_positive, weights * ~is_positive, starts)
            if positive
            else np.full(rows, np.nan)
        )
        return np.stack([*found, auroc])

    spread = _resampled(figures, len(table), max(1, _CELLS // max(len(true), table.shape[1])), seed)
    return {name: _ends(row) for name, row in zip(NAMES, spread, strict=True)}, unit


def _resampled(figures: Callable[..., NDArray[np.float64]], units: int, batch: int, seed: int) -> NDArray[np.float64]:
    """The figures of all resamples, ``(figures, resamples)``. One unit cannot be resampled: it is used as it is."""
    everyone = np.arange(units, dtype=np.float32)  # up to 2**24 units, all sums are exact
    if units == 1:
        return figures(everyone[None])
    with warnings.catch_warnings():
        # scipy warns about every resample without a figure; those are ignored later.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found: NDArray[np.float64] = stats.bootstrap(
            (everyone,),
            figures,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=batch,
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    return found


def _units(images: int, subjects: Sequence[str | None] | None) -> tuple[str, NDArray[np.int64]]:
    """The unit that is resampled, and the number of the unit of each image, ``(n,)``."""
    known = [name for name in subjects or () if name is not None]
    if len(known) == images and len(set(known)) > 1:
        return "subject", np.unique(known, return_inverse=True)[1].astype(np.int64)
    return "image", np.arange(images)


def _counted(
    true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, positive: Sequence[int]
) -> NDArray[np.float64]:
    """The terms of each image whose sums give the figures: ``(n, 5 + 3 * classes)``."""
    identity = np.eye(classes)
    is_positive, called = np.isin(true, positive), np.isin(predicted, positive)
    right = true == predicted
    single = np.column_stack([right, is_positive, is_positive & called, ~is_positive, ~is_positive & ~called]).astype(
        np.float64
    )
    return np.hstack([single, identity[true] * right[:, None], identity[true], identity[predicted]])


def _from_counts(sums: NDArray[np.float64], classes: int) -> list[NDArray[np.float64]]:
    """Accuracy, macro F1, sensitivity and specificity from rows of sums of `_counted`; NaN if undefined."""
    right, positive, found, negative, cleared = sums[:, :5].T
    both, true, called = (sums[:, 5 + part * classes : 5 + (part + 1) * classes] for part in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * both / (true + called)  # NaN for a class that does not occur: the mean ignores it
        return [right / (positive + negative), np.nanmean(f1, axis=1), found / positive, cleared / negative]


def _weighted_auroc(
    positive: NDArray[np.float32], negative: NDArray[np.float32], starts: NDArray[np.intp]
) -> NDArray[np.float64]:
    """As scikit-learn's `roc_auc_score` with sample weights, for many weightings at once.

    Args:
        positive: weights ``(resamples, images)``, images in ascending order of their score; 0 for negative images.
        negative: the same for negative images; 0 for positive images.
        starts: positions at which a higher score begins.

    Returns:
        ``(resamples,)``; NaN for a resample without positive or without negative images.
    """
    positive, negative = (np.add.reduceat(weights, starts, axis=1) for weights in (positive, negative))
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return np.asarray((positive * below).sum(axis=1, dtype=np.float64) / pairs)


def _ends(values: NDArray[np.float64]) -> list[float] | None:
    defined = values[~np.isnan(values)]
    return [float(end) for end in np.percentile(defined, (2.5, 97.5))] if len(defined) else None


def difference_interval(
    first: NDArray[Any], second: NDArray[Any], subjects: Sequence[str | None] | None, seed: int
) -> tuple[list[float], str]:
    """95 % interval of the difference in accuracy, or in a mean score, of two models on the same images, and its unit.

    Args:
        first: whether the first model is right, or its score, for each image, ``(n,)``.
        second: the same for the second model.
        subjects: see `intervals`.
        seed: of the resampling.
    """
    unit, owner = _units(len(first), subjects)
    ahead = np.bincount(owner, weights=first.astype(np.float64) - second)
    images = np.bincount(owner).astype(np.float64)
    if len(images) == 1:
        return [float(ahead[0] / images[0])] * 2, unit
    found = stats.bootstrap(
        (ahead, images),
        lambda ahead, images, axis: ahead.sum(axis=axis) / images.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=max(1, _CELLS // len(images)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(found.low), float(found.high)], unit
