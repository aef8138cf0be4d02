"""Splits numbered files into contiguous ranges (blocks) with an embargo between the subsets, if no subject is known.

Files numbered in the order of taking follow slide by slide. Slide and patient are unknown, so the distance in the
numbering is a proxy for both: images that are far apart come from different slides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import UsageError
from ...edge_runtime.vision.cells import field_stem
from .subsets import NOWHERE, TEST, TRAIN, VALIDATION

EMBARGO = 37
"""Default distance between two subsets in file numbers: the images of one patient. The four-class data set has 3,256
images of 89 patients, about 37 each."""

_BLOCK_HINT = "block requires files numbered in the order of taking; use --split-by image"
_SLACK = 0.02
"""A range may be longer or shorter by this share of all images to end at an existing gap."""

_EQUAL = 0.01
"""Placements whose costs differ by at most this value are equally good. The seed chooses one."""

_PIECE = 0.01
"""Cost of each additional range, in units of the share of images left out."""

_FAR = 3.0
"""Weight of the mean distance to the nearest training image, as a share of all images. Lamp, stain and operator change
over time, and numbers follow time: a network trained on one end only is worse at the other."""

_RANDOM_STARTS = 8
_MOST_MARKS = 16
_MOST_PARTS = 8
_HIGHEST = 2**62  # numbers in names may have any length
_NUMBER = re.compile(r"[0-9]+")
_GOOD = 0.15  # cost at which no finer parts are tried
_MISSING = 10.0  # cost of a class that is missing from a subset

Indices = NDArray[np.intp]
Series = tuple[Indices, NDArray[np.int64]]
"""Image indices of a numbered series in order, and their file numbers."""


@dataclass(frozen=True)
class Line:
    """All series with the same classes, concatenated, each in the order of its numbers.

    Attributes:
        images: their indices, (n,).
        place: file numbers, (n,), not decreasing. Gaps larger than the embargo and steps to the next series are
            shortened to the embargo plus one.
        target: their classes, (n,).
    """

    images: Indices
    place: NDArray[np.int64]
    target: Indices

    def part(self, start: int, stop: int) -> Line:
        """A range of the line."""
        return Line(self.images[start:stop], self.place[start:stop], self.target[start:stop])


def series(paths: Sequence[str]) -> list[Series]:
    """The numbered series among ``paths``.

    A series consists of the files of one folder whose names differ only in the counter. The counter is the last number
    that differs between these files: not the 40 of ``12-40x``. Crops have the counter of their field.

    Raises:
        UsageError: a file without a number.
    """
    alike: dict[tuple[str, str], list[int]] = {}
    for index, path in enumerate(paths):
        pure = PurePosixPath(path)
        alike.setdefault((pure.parent.as_posix(), _NUMBER.sub("#", field_stem(pure.stem))), []).append(index)
    found: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for key, members in alike.items():
        stems = [field_stem(PurePosixPath(paths[index]).stem) for index in members]
        rows = [[int(text) for text in _NUMBER.findall(stem)] for stem in stems]
        if not rows[0]:
            raise UsageError(f"--split-by block: no number in the file name {paths[members[0]]}", hint=_BLOCK_HINT)
        varying = [place for place in range(len(rows[0])) if any(row[place] != rows[0][place] for row in rows)]
        counter = varying[-1] if varying else len(rows[0]) - 1
        for index, row in zip(members, rows, strict=True):
            others = (*row[:counter], *row[counter + 1 :])
            found.setdefault((*key, others), []).append((min(row[counter], _HIGHEST), index))
    ordered = [sorted(found[key]) for key in sorted(found)]
    return [
        (np.array([index for _, index in own], np.intp), np.array([number for number, _ in own], np.int64))
        for own in ordered
    ]


def is_numbered(paths: Sequence[str]) -> NDArray[np.bool_]:
    """Which images have a neighbour in their series at most `EMBARGO` numbers away, (paths,).

    Raises:
        UsageError: a file without a number.
    """
    return _near(series(paths), len(paths))


def _near(every: list[Series], count: int) -> NDArray[np.bool_]:
    near = np.zeros(count, dtype=np.bool_)
    for images, number in every:
        close = np.diff(number) <= EMBARGO
        near[images] = np.append(close, False) | np.append(False, close)
    return near


def place_blocks(
    paths: Sequence[str],
    target: Indices,
    fractions: tuple[float, float],
    embargo: int,
    seed: int,
    fold: tuple[int, int] | None = None,
) -> Indices:
    """Assign contiguous ranges of the numbering to subsets that are more than the embargo apart.

    Args:
        paths: of the images, relative to the data's root.
        target: class index of each image, (paths,).
        fractions: wanted shares of validation and test. The test share is not used with ``fold``; 0 means no test
            subset.
        embargo: images of one series in different subsets differ by more than this many file numbers.
        seed: chooses among equally good placements; not used with ``fold``.
        fold: (i, k): the test subset is the i-th of k equal ranges of each class's images in the order of their
            numbers. The k test subsets cover everything.

    Returns:
        `TRAIN`, `VALIDATION`, `TEST` or `NOWHERE` for each image, (paths,). Images within the embargo of a border are
        taken from train; between validation and test, from validation. Without enough room a class is missing from a
        subset.

    Raises:
        UsageError: a file without a number, or no two images with neighbouring numbers.
    """
    every = series(paths)
    if not _near(every, len(paths)).any():
        raise UsageError("--split-by block: no two images have neighbouring numbers", hint=_BLOCK_HINT)
    rng = np.random.default_rng(seed)
    subset = np.full(len(paths), TRAIN)
    for line in _lines(every, target, embargo):
        subset[line.images] = _place_line(line, fractions, embargo, rng, fold)
    return subset


def _lines(every: list[Series], target: Indices, embargo: int) -> list[Line]:
    """One line for each set of classes that occurs in a series: usually the series of one class."""
    alike: dict[tuple[int, ...], list[Series]] = {}
    for images, number in every:
        alike.setdefault(tuple(np.unique(target[images]).tolist()), []).append((images, number))
    lines = []
    for classes in sorted(alike):
        steps = [np.append(embargo + 1, np.minimum(np.diff(number), embargo + 1)) for _, number in alike[classes]]
        images = np.concatenate([images for images, _ in alike[classes]])
        lines.append(Line(images, np.cumsum(np.concatenate(steps)), target[images]))
    return lines


def _place_line(
    line: Line,
    fractions: tuple[float, float],
    embargo: int,
    rng: np.random.Generator,
    fold: tuple[int, int] | None,
) -> Indices:
    """The subset of each image of a line. A line of several classes is cut into the fewest parts that give every subset
    every class.
    """
    ways = _partitions(line)
    # The parts must not depend on the fold: the test subsets of all folds must fit together.
    folds: Sequence[tuple[int, int] | None] = [fold]
    if fold is not None:
        fractions = (fractions[0], 1.0 / fold[1])
        folds = [(i, fold[1]) for i in range(1, fold[1] + 1)] if len(ways) > 1 else [fold]
    best, lowest = np.full(len(line.images), TRAIN), np.inf
    for edges in ways:
        placed = [_place_parts(line, edges, fractions, embargo, rng, one) for one in folds]
        cost = np.mean([_cost(line, subset, fractions) for subset in placed]) + _PIECE * len(edges)
        if cost < lowest:
            best, lowest = placed[folds.index(fold)], cost
        if lowest < _GOOD:
            break
    return best


def _partitions(line: Line) -> list[list[int]]:
    """Ways to cut a line into parts with ranges of their own, each given by the edges of the parts: [0, ..., n]."""
    n, kinds = len(line.images), len(np.unique(line.target))
    ways = [[0, n]]
    if kinds > 1:
        changes = [0, *(np.flatnonzero(np.diff(line.target)) + 1).tolist(), n]
        if len(changes) - 1 <= _MOST_PARTS * kinds:
            ways.append(changes)
        for count in range(2, _MOST_PARTS + 1):
            ways.append(np.unique(np.linspace(0, n, count + 1).round().astype(int)).tolist())
    return ways


def _place_parts(
    line: Line,
    edges: list[int],
    fractions: tuple[float, float],
    embargo: int,
    rng: np.random.Generator,
    fold: tuple[int, int] | None,
) -> Indices:
    subset = np.full(len(line.images), TRAIN)
    for start, stop in itertools.pairwise(edges):
        part = line.part(start, stop)
        test, validation = _ranges(part, fractions, embargo, rng, fold)
        subset[start + test[0] : start + test[1]] = TEST
        subset[start + validation[0] : start + validation[1]] = VALIDATION
    return _keep_apart(line, subset, embargo)


def _keep_apart(line: Line, subset: Indices, embargo: int) -> Indices:
    """Leave out images within the embargo of another subset: from train, or from validation next to test."""
    subset = subset.copy()
    for kept in (TEST, VALIDATION):
        fixed = line.place[subset == kept]
        if len(fixed):
            given = np.flatnonzero(np.isin(subset, (TRAIN, VALIDATION) if kept == TEST else (TRAIN,)))
            place = line.place[given]
            after = np.searchsorted(fixed, place)
            below = np.abs(place - fixed[np.maximum(after - 1, 0)])
            above = np.abs(place - fixed[np.minimum(after, len(fixed) - 1)])
            subset[given[np.minimum(below, above) <= embargo]] = NOWHERE
    return subset


def _cost(line: Line, subset: Indices, fractions: tuple[float, float]) -> float:
    """Share left out, plus deviation of each class from the wanted shares, plus a penalty for missing classes."""
    kinds = np.unique(line.target)
    held = np.array([[np.mean(subset[line.target == kind] == which) for kind in kinds] for which in (TRAIN, 1, 2)])
    away = np.abs(held[1:] - np.array(fractions)[:, None]).max(axis=1).sum()
    missing = (held[: 3 if fractions[1] else 2] == 0).sum()
    return float((subset == NOWHERE).mean() + away + _MISSING * missing)


def _ranges(
    line: Line,
    fractions: tuple[float, float],
    embargo: int,
    rng: np.random.Generator,
    fold: tuple[int, int] | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and stop of the test and the validation range of a line.

    Candidates are pairs of ranges that begin or end at an end of the line, at an existing gap, or directly behind the
    embargo of the other range; and some at random. The cheapest pair is used.
    """
    n = len(line.images)
    first = np.searchsorted(
        line.place, line.place - embargo, side="left"
    )  # of the images within the embargo of each one
    beyond = np.searchsorted(line.place, line.place + embargo, side="right")  # the next image beyond the embargo
    marks = np.concatenate([[0], np.flatnonzero(np.diff(line.place) > embargo) + 1, [n]])
    wanted = [max(1, round(share * n)) for share in fractions]
    slack = int(_SLACK * n)
    sizes = [np.unique(np.clip([size, size - slack, size + slack], 1, n)) for size in wanted]
    validation = _candidates(n, marks, sizes[0], wanted[0], slack, rng)
    if not fractions[1]:
        return (0, 0), _alone(line, validation, first, beyond, fractions[0], rng)
    if fold is None:
        test = _candidates(n, marks, sizes[1], wanted[1], slack, rng)
    else:
        test = np.array([[round(n * (fold[0] - 1) / fold[1]), round(n * fold[0] / fold[1])]])
    test, validation = test[test[:, 0] < test[:, 1]], validation[validation[:, 0] < validation[:, 1]]
    if not len(test):
        return (0, 0), (n - wanted[0], n)
    pairs = [np.concatenate([_beside(test, sizes[0], first, beyond), _crossed(test, validation)])]
    if fold is None:
        pairs.append(_beside(validation, sizes[1], first, beyond)[:, [2, 3, 0, 1]])
    every = np.concatenate(pairs)
    every = every[(every >= 0).all(axis=1) & (every <= n).all(axis=1)]
    a, b, c, d = every.T
    every = every[(a < b) & (c < d) & ((c >= beyond[b - 1]) | (a >= beyond[d - 1]))]
    if not len(every):
        return (int(test[0, 0]), int(test[0, 1])), (0, 0)
    cost = _pair_costs(line, every, first, beyond, fractions)
    best = int(np.argmin(cost)) if fold else int(rng.choice(np.flatnonzero(cost <= cost.min() + _EQUAL)))
    a, b, c, d = every[best].tolist()
    validation_at = _grown((c, d), (a, b), marks, first, beyond, slack)
    return (a, b) if fold else _grown((a, b), validation_at, marks, first, beyond, slack), validation_at


def _alone(
    line: Line, ranges: NDArray[np.intp], first: Indices, beyond: Indices, share: float, rng: np.random.Generator
) -> tuple[int, int]:
    """The validation range if there is no test subset."""
    kinds = np.unique(line.target)
    sums = np.concatenate([np.zeros((1, len(kinds))), np.cumsum(line.target[:, None] == kinds, axis=0)])
    start, stop = ranges.T
    held = sums[stop] - sums[start]
    train = sums[first[start]] + sums[-1] - sums[beyond[stop - 1]]
    left_out = 1.0 - (held + train).sum(axis=1) / len(line.images)
    away = np.abs(held / sums[-1] - share).max(axis=1)
    cost = left_out + away + _MISSING * ((held == 0).sum(axis=1) + (train == 0).sum(axis=1))
    best = ranges[rng.choice(np.flatnonzero(cost <= cost.min() + _EQUAL))]
    return int(best[0]), int(best[1])


def _grown(
    span: tuple[int, int], other: tuple[int, int], marks: Indices, first: Indices, beyond: Indices, slack: int
) -> tuple[int, int]:
    """Extend a range to the next mark if few images lie between, unless the other range is there."""
    start, stop = span
    left, right = int(marks[marks <= start].max()), int(marks[marks >= stop].min())
    if start - left <= slack and first[start] <= left and not left < other[1] <= start:
        start = left
    if right - stop <= slack and beyond[stop - 1] >= right and not stop <= other[0] < right:
        stop = right
    return start, stop


def _candidates(
    n: int, marks: Indices, sizes: Indices, wanted: int, slack: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Ranges (start, stop) that begin or end at a mark or lie between two, and some at random: (ranges, 2)."""
    if len(marks) > _MOST_MARKS:
        marks = np.sort(np.concatenate([[0, n], rng.choice(marks[1:-1], _MOST_MARKS - 2, replace=False)]))
    starts = np.concatenate([np.add.outer(marks, 0 * sizes), np.subtract.outer(marks, sizes)]).ravel()
    stops = np.concatenate([np.add.outer(marks, sizes), np.add.outer(marks, 0 * sizes)]).ravel()
    left, right = (grid.ravel() for grid in np.meshgrid(marks, marks, indexing="ij"))
    fits = (right - left >= wanted - slack) & (right - left <= wanted + slack) & (right > left)
    anywhere = rng.integers(0, max(n - wanted, 0) + 1, _RANDOM_STARTS)
    found = np.stack(
        [np.concatenate([starts, left[fits], anywhere]), np.concatenate([stops, right[fits], anywhere + wanted])],
        axis=1,
    )
    return np.unique(found[(found[:, 0] >= 0) & (found[:, 1] <= n)], axis=0)


def _crossed(test: NDArray[np.intp], validation: NDArray[np.intp]) -> NDArray[np.intp]:
    """Every test range with every validation range: (pairs, 4)."""
    return np.concatenate([np.repeat(test, len(validation), axis=0), np.tile(validation, (len(test), 1))], axis=1)


def _beside(fixed: NDArray[np.intp], sizes: Indices, first: Indices, beyond: Indices) -> NDArray[np.intp]:
    """Each of ``fixed`` with ranges directly behind and before its embargo: (pairs, 4), ``fixed`` first."""
    found = []
    for size in sizes:
        behind, before = beyond[fixed[:, 1] - 1], first[fixed[:, 0]]
        found += [np.column_stack([fixed, behind, behind + size]), np.column_stack([fixed, before - size, before])]
    return np.concatenate(found)


def _pair_costs(
    line: Line, pairs: NDArray[np.intp], first: Indices, beyond: Indices, fractions: tuple[float, float]
) -> NDArray[np.float64]:
    """`_cost` of pairs of test and validation ranges, plus distance and number of the training ranges: (pairs,)."""
    n = len(line.images)
    kinds = np.unique(line.target)
    sums = np.concatenate([np.zeros((1, len(kinds))), np.cumsum(line.target[:, None] == kinds, axis=0)])
    a, b, c, d = pairs.T
    ahead = np.where((a < c)[:, None], pairs, pairs[:, [2, 3, 0, 1]])  # the earlier range first
    train = [
        (np.zeros(len(pairs), np.intp), first[ahead[:, 0]]),
        (beyond[ahead[:, 1] - 1], np.maximum(first[ahead[:, 2]], beyond[ahead[:, 1] - 1])),
        (beyond[ahead[:, 3] - 1], np.full(len(pairs), n)),
    ]
    held = np.stack([sum(sums[stop] - sums[start] for start, stop in train), sums[d] - sums[c], sums[b] - sums[a]])
    away = np.abs(held[1:] / sums[-1] - np.array(fractions)[:, None, None]).max(axis=2).sum(axis=0)
    left_out = 1.0 - held.sum(axis=(0, 2)) / n
    pieces = sum((stop > start).astype(float) for start, stop in train)
    shape = _FAR * _distance(train, n) + _PIECE * pieces
    return np.asarray(left_out + away + _MISSING * (held == 0).sum(axis=(0, 2)) + shape)


def _distance(train: Sequence[tuple[Indices, Indices]], n: int) -> NDArray[np.float64]:
    """Mean distance of ``n`` images to the nearest one in the ``train`` ranges, as a share of ``n``.

    A gap of g images between two ranges adds g * g / 4; a gap before the first or behind the last adds g * g / 2.
    """
    total, reached = np.zeros(len(train[0][0])), np.zeros(len(train[0][0]), np.intp)
    for start, stop in train:
        some = stop > start
        gap = np.where(some, start - reached, 0)
        total += gap**2 / np.where(reached > 0, 4.0, 2.0)
        reached = np.where(some, stop, reached)
    return (total + (n - reached) ** 2 / 2.0) / n**2
