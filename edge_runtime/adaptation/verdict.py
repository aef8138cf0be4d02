"""Figures of labelled images before and after an adaptation, and whether it is better by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
"""Resamplings of an interval and of the test."""
LEVEL = 0.05
"""Largest probability of as large a gain by chance."""
_Z = 1.959964
_ENUMERATED = 12
"""Differences of which every combination of signs is tried."""


@dataclass(frozen=True)
class Figures:
    """How well a classifier does on labelled images.

    Attributes:
        images: their number.
        accuracy: 0..1.
        accuracy_ci95: Wilson's interval.
        balanced_accuracy: mean recall of the classes that occur.
        balanced_accuracy_ci95: by resampling the images of each class.
        recall: by label; None for a class that does not occur.
    """

    images: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    balanced_accuracy: float
    balanced_accuracy_ci95: tuple[float, float]
    recall: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """How one figure differs between two classifiers on the same images.

    Attributes:
        points: gained, percentage points.
        points_ci95: by resampling the images of each class.
        p: probability of as large a gain by chance.
        p_loss: probability of as large a loss by chance.
    """

    points: float
    points_ci95: tuple[float, float]
    p: float
    p_loss: float

    def describe(self) -> str:
        """The change as part of a sentence."""
        interval = " to ".join(f"{end:.1f}" for end in self.points_ci95)
        return f"{self.points:+.1f} points (95 % interval {interval}, p = {self.p:.2g})"


@dataclass(frozen=True)
class Gain:
    """A paired comparison of two classifiers on the same images.

    Attributes:
        balanced_accuracy: its change.
        accuracy: its change.
        gained: images that only the second one classifies correctly.
        lost: images that only the first one classifies correctly.
    """

    balanced_accuracy: Change
    accuracy: Change
    gained: int
    lost: int

    @property
    def is_better(self) -> bool:
        """Whether one of both figures gains by more than chance, and none loses by more than chance.

        As either may gain, each has half of `LEVEL`.
        """
        both = (self.balanced_accuracy, self.accuracy)
        return any(one.p <= LEVEL / 2 for one in both) and not any(one.p_loss <= LEVEL / 2 for one in both)

    def describe(self) -> str:
        """The gain as part of a sentence."""
        return f"balanced accuracy {self.balanced_accuracy.describe()}, accuracy {self.accuracy.describe()}"

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def figures(predicted: NDArray[np.int64], truth: NDArray[np.int64], labels: Sequence[str]) -> Figures:
    """The figures of predictions ``(n,)``, n at least 1."""
    right = predicted == truth
    recall = {label: _recall(right, truth, index) for index, label in enumerate(labels)}
    found = [value for value in recall.values() if value is not None]
    return Figures(
        images=len(truth),
        accuracy=float(right.mean()),
        accuracy_ci95=wilson(int(right.sum()), len(truth)),
        balanced_accuracy=float(np.mean(found)),
        balanced_accuracy_ci95=_ci95(right, truth, _weights(truth)),
        recall=recall,
    )


def gain(before: NDArray[np.int64], after: NDArray[np.int64], truth: NDArray[np.int64]) -> Gain:
    """Compare two predictions ``(n,)`` of the same images.

    Source: the test is R. A. Fisher's randomization test for pairs, in which the signs of the differences are drawn at
    random. With equal weights it is McNemar's exact test.
    """
    difference = (after == truth).astype(np.int64) - (before == truth)
    even = np.full(len(truth), 1 / len(truth))
    return Gain(
        balanced_accuracy=_change(difference, truth, _weights(truth)),
        accuracy=_change(difference, truth, even),
        gained=int((difference > 0).sum()),
        lost=int((difference < 0).sum()),
    )


def _change(difference: NDArray[np.int64], truth: NDArray[np.int64], weights: NDArray[np.float64]) -> Change:
    points, sizes = float(weights @ difference), weights[difference != 0]
    low, high = _ci95(difference, truth, weights)
    return Change(100 * points, (100 * low, 100 * high), _by_chance(points, sizes), _by_chance(-points, sizes))


def _by_chance(points: float, sizes: NDArray[np.float64]) -> float:
    """Share of all signs of the differences that give at least ``points``; of drawn ones if there are too many."""
    if len(sizes) <= _ENUMERATED:
        signs = 1 - 2 * (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1)
        return float((signs @ sizes >= points - 1e-12).mean())
    signs = np.random.default_rng(0).integers(0, 2, (DRAWS, len(sizes))) * 2 - 1
    return (1 + int((signs @ sizes >= points - 1e-12).sum())) / (1 + DRAWS)


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a share. Source: E. B. Wilson 1927."""
    share, spread = right / images, _Z**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = float(_Z * np.sqrt(share * (1 - share) / images + spread / images / 4) / (1 + spread))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _weights(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of the images in a mean over classes; their sum is 1."""
    counts = np.bincount(truth)
    return np.asarray(1 / counts[truth] / np.count_nonzero(counts))


def _ci95(values: NDArray[np.int64], truth: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of the sum of whole ``values``, weighted by class."""
    generator = np.random.default_rng(0)
    sums = np.zeros(DRAWS)
    for label in np.unique(truth):
        own = truth == label
        found, counts = np.unique(values[own], return_counts=True)
        drawn = generator.multinomial(int(own.sum()), counts / own.sum(), DRAWS)
        sums += drawn @ found * weights[own][0]
    low, high = np.quantile(sums, (0.025, 0.975))
    return float(low), float(high)


def _recall(right: NDArray[np.bool_], truth: NDArray[np.int64], label: int) -> float | None:
    own = right[truth == label]
    return float(own.mean()) if len(own) else None
