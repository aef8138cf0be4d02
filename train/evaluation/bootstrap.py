"""How far the figures of a test side can be trusted: percentile bootstrap intervals, by subject where one is known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
NAMES = ("accuracy", "macro_f1", "sensitivity", "specificity", "auroc_positive")
_CELLS = 1 << 21
"""Numbers that one batch of resamples holds, about."""


def intervals(
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: int,
    positive: Sequence[int],
    positive_score: NDArray[np.float64],
    subjects: Sequence[str | None] | None,
    seed: int,
) -> tuple[dict[str, list[float] | None], str]:
    """95 % intervals of `NAMES`, all of the same resamples.

    Images of one subject are alike, so whole subjects are drawn where every image's subject is known and there are at
    least two; else images. A figure that some resamples don't have (no ill image was drawn) is that of the others.
    Where nothing varies the interval is a point: it says nothing then.

    Args:
        true: class of each image, ``(n,)``.
        predicted: the same, of the model.
        classes: how many there are.
        positive: those that count as ill.
        positive_score: what AUROC ranks by, ``(n,)``.
        subjects: of each image.
        seed: of the resamples.

    Returns:
        To each name its interval, None where there is no such figure; and the unit, ``subject`` or ``image``.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    """
    unit, owner = _units(len(true), subjects)
    counted = _counted(true, predicted, classes, positive)
    table = np.zeros((owner.max() + 1, counted.shape[1]), np.float32)
    np.add.at(table, owner, counted)
    order = np.argsort(positive_score, kind="stable")
    starts = np.flatnonzero(np.diff(positive_score[order], prepend=-np.inf))
    ill, owners = np.isin(true, positive)[order], owner[order]

    def figures(drawn: NDArray[np.float32], axis: int = -1) -> NDArray[np.float64]:
        """Of resamples, ``(resamples, units)`` with the number of a unit in each place: ``(figures, resamples)``."""
        rows, units = drawn.shape
        places = drawn.astype(np.int64) + units * np.arange(rows)[:, None]
        times = np.bincount(places.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float32)
        found = _from_counts((times @ table).astype(np.float64), classes)
        weights = times[:, owners]
        auroc = _weighted_auroc(weights * ill, weights * ~ill, starts) if positive else np.full(rows, np.nan)
        return np.stack([*found, auroc])

    everyone = np.arange(len(table), dtype=np.float32)  # up to 2**24 units, all that is summed is exact
    if len(everyone) == 1:
        spread = figures(everyone[None])
    else:
        with warnings.catch_warnings():
            # scipy says so of every resample without a figure; those are left out below
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            spread = stats.bootstrap(
                (everyone,),
                figures,
                vectorized=True,
                method="percentile",
                n_resamples=RESAMPLES,
                batch=max(1, _CELLS // max(len(true), table.shape[1])),
                rng=np.random.default_rng(seed),
            ).bootstrap_distribution
    return {name: _ends(row) for name, row in zip(NAMES, spread, strict=True)}, unit


def _units(images: int, subjects: Sequence[str | None] | None) -> tuple[str, NDArray[np.int64]]:
    """What is drawn, and the number of it that each image belongs to."""
    known = [name for name in subjects or () if name is not None]
    if len(known) == images and len(set(known)) > 1:
        return "subject", np.unique(known, return_inverse=True)[1].astype(np.int64)
    return "image", np.arange(images)


def _counted(
    true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, positive: Sequence[int]
) -> NDArray[np.float64]:
    """Of each image what figures are sums of: ``(n, 5 + 3 * classes)``."""
    identity = np.eye(classes)
    ill, called = np.isin(true, positive), np.isin(predicted, positive)
    right = true == predicted
    single = np.column_stack([right, ill, ill & called, ~ill, ~ill & ~called]).astype(np.float64)
    return np.hstack([single, identity[true] * right[:, None], identity[true], identity[predicted]])


def _from_counts(sums: NDArray[np.float64], classes: int) -> list[NDArray[np.float64]]:
    """Accuracy, macro F1, sensitivity and specificity of rows of sums of `_counted`; NaN where there is none."""
    right, ill, found, well, cleared = sums[:, :5].T
    both, true, called = (sums[:, 5 + part * classes : 5 + (part + 1) * classes] for part in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * both / (true + called)  # NaN for a class that doesn't occur: it isn't averaged over
        return [right / (ill + well), np.nanmean(f1, axis=1), found / ill, cleared / well]


def _weighted_auroc(
    ill: NDArray[np.float32], well: NDArray[np.float32], starts: NDArray[np.intp]
) -> NDArray[np.float64]:
    """As scikit-learn's `roc_auc_score` with sample weights, of many weightings at once.

    Args:
        ill: weights ``(resamples, images)``, images in rising order of their score; 0 for those that are well.
        well: the same the other way round.
        starts: where a score begins that is higher than the one before.

    Returns:
        ``(resamples,)``; NaN where there are none of one kind.
    """
    ill, well = (np.add.reduceat(weights, starts, axis=1) for weights in (ill, well))
    below = np.cumsum(well, axis=1) - well / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((ill * below).sum(axis=1, dtype=np.float64) / (ill.sum(axis=1) * well.sum(axis=1)))


def _ends(values: NDArray[np.float64]) -> list[float] | None:
    there = values[~np.isnan(values)]
    return [float(end) for end in np.percentile(there, (2.5, 97.5))] if len(there) else None


def difference_interval(
    first: NDArray[np.bool_], second: NDArray[np.bool_], subjects: Sequence[str | None] | None, seed: int
) -> tuple[list[float], str]:
    """95 % interval of how much more often the first of two models is right on the same images, and its unit.

    Args:
        first: whether it is right, by image, ``(n,)``.
        second: the other model, same images in the same order.
        subjects: see `intervals`.
        seed: of the resamples.
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
