"""Assigns groups of images to subsets in given fractions, stratified by class."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from .subsets import TEST

_MOST_FOLDS = 20
_ATTEMPTS = 8
_GOOD = 0.02
"""Largest deviation from the wanted fractions at which no other seed is tried."""


def partition(
    target: NDArray[np.intp], group: NDArray[np.intp], fractions: tuple[float, ...], seed: int
) -> NDArray[np.intp]:
    """Assign each image to one of the ``fractions``. Groups stay together; class shares match as closely as possible.

    Stratified folds are combined into subsets. Few or large groups give uneven folds, so several seeds are tried and
    the best result is used.

    Args:
        target: class index of each image, (n,).
        group: group number of each image, (n,).
        fractions: wanted share of each subset, sum 1.
        seed: of the shuffling.

    Returns:
        Index into ``fractions`` of each image, (n,).
    """
    wanted = np.array(fractions)
    count = min(_fold_count(wanted), len(np.unique(group)))
    best, best_cost = np.zeros(len(target), dtype=np.intp), np.inf
    for attempt in range(_ATTEMPTS):
        folds = _stratified_folds(target, group, count, seed + 7919 * attempt)
        counts = np.zeros((count, target.max() + 1))
        np.add.at(counts, (folds, target), 1)
        assigned, cost = _combine(counts, wanted)
        if cost < best_cost:
            best, best_cost = assigned[folds], cost
        if cost < _GOOD:
            break
    return best


def _fold_count(fractions: NDArray[np.float64]) -> int:
    """The smallest number of folds that can be divided in these fractions: 10 for 0.7, 0.1, 0.2."""
    counts = np.arange(len(fractions), _MOST_FOLDS + 1)
    parts = fractions[:, None] * counts
    error = np.where(np.rint(parts) > 0, np.abs(parts - np.rint(parts)) / counts, 1.0).max(axis=0)
    return int(counts[np.argmax(error <= max(0.004, error.min()))])


def partition_fold(
    target: NDArray[np.intp], group: NDArray[np.intp], val_frac: float, seed: int, fold: tuple[int, int]
) -> NDArray[np.intp]:
    """As `partition`, with fold i of k, counted from 1, as the test subset. Returns indices into `SUBSETS`, (n,)."""
    number, count = fold
    test = _stratified_folds(target, group, count, seed) == number - 1
    subset = np.full(len(target), TEST)
    share = val_frac / (1.0 - 1.0 / count)
    subset[~test] = partition(target[~test], group[~test], (1.0 - share, share), seed)
    return subset


def _stratified_folds(target: NDArray[np.intp], group: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
    from sklearn.model_selection import StratifiedGroupKFold

    # A class with fewer images than folds is valid: some folds do not get it.
    most = int(np.bincount(target).max())
    folds = np.zeros(len(target), dtype=np.intp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "The least populated class ..."
        splitter = StratifiedGroupKFold(min(count, most), shuffle=True, random_state=seed % 2**32)
        for number, (_, members) in enumerate(splitter.split(target, target, group)):
            folds[members] = number
    return folds


def _combine(counts: NDArray[np.float64], fractions: NDArray[np.float64]) -> tuple[NDArray[np.intp], float]:
    """Assign folds to subsets.

    Args:
        counts: images (folds, classes).
        fractions: (subsets,), sum 1.

    Returns:
        (subset of each fold, cost). The cost is the largest deviation of a class from its wanted share of a subset,
        plus one for each class that is missing from a subset.
    """
    totals = np.maximum(counts.sum(axis=0), 1.0)

    def cost(assigned: NDArray[np.intp]) -> float:
        held = np.zeros((len(fractions), counts.shape[1]))
        np.add.at(held, assigned, counts)
        error = np.abs(held / totals - fractions[:, None])
        return float(error.max() + 0.1 * error.mean() + (held == 0).sum())

    edges = np.cumsum(fractions) * len(counts)
    assigned = np.searchsorted(edges, np.arange(len(counts)) + 0.5).clip(max=len(fractions) - 1)
    lowest = cost(assigned)
    improved = True
    while improved:
        improved = False
        for neighbour in _neighbours(assigned, len(fractions)):
            value = cost(neighbour)
            if value < lowest - 1e-12:
                assigned, lowest, improved = neighbour, value, True
                break
    return assigned, lowest


def _neighbours(assigned: NDArray[np.intp], subsets: int) -> list[NDArray[np.intp]]:
    """Every assignment that differs by one moved fold or by one exchange of two folds."""
    found = []
    for fold in range(len(assigned)):
        for subset in range(subsets):
            if subset != assigned[fold]:
                moved = assigned.copy()
                moved[fold] = subset
                found.append(moved)
        for other in range(fold):
            if assigned[other] != assigned[fold]:
                swapped = assigned.copy()
                swapped[[fold, other]] = assigned[[other, fold]]
                found.append(swapped)
    return found
