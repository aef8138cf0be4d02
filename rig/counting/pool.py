"""The pooled verdict on one cell or field: the mean over the sharpest frames that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..record.found import Found

SHARPEST = 8
"""Number of frames that are pooled."""
SHARP = 0.8
"""Minimum sharpness of a pooled frame, relative to the sharpest one."""

Rule = Callable[[float], "str | None"]
"""``rule(probability)``: why a label with this probability needs a review; None if it does not."""


@dataclass(frozen=True)
class Opinion:
    """The model's verdict in one frame: the frame's sharpness, the probability of each label, the review's reason."""

    sharpness: float
    probabilities: Mapping[str, float]
    review_reason: str | None


@dataclass(frozen=True)
class Pooled:
    """A pooled verdict; see `edgeall.edge_runtime.pipeline.Prediction`."""

    label: str
    probability: float
    probabilities: Mapping[str, float]
    review_reason: str | None


class Pool:
    """The sharpest opinions on one cell or field."""

    def __init__(self) -> None:
        self._opinions: list[Opinion] = []

    @staticmethod
    def of(found: Found) -> Pool:
        """A pool that continues a recorded verdict."""
        pool = Pool()
        if found.label is not None:
            opinion = Opinion(found.sharpness, found.probabilities, found.review_reason)
            pool._opinions = [opinion] * min(max(found.frames, 1), SHARPEST)
        return pool

    @property
    def sharpness(self) -> float:
        """Of the sharpest frame; 0 without any."""
        return self._opinions[0].sharpness if self._opinions else 0.0

    def add(self, *opinions: Opinion) -> None:
        """Add opinions; keeps the `SHARPEST`."""
        self._opinions = sorted((*self._opinions, *opinions), key=lambda each: -each.sharpness)[:SHARPEST]

    def absorb(self, other: Pool) -> None:
        """Add the opinions of another pool about the same cell or field."""
        self.add(*other._opinions)

    def verdict(self, rule: Rule) -> Pooled | None:
        """The mean of the sharp opinions; None without any.

        It is ``unfamiliar`` if more than half of them are.
        """
        sharp = [each for each in self._opinions if each.sharpness >= SHARP * self.sharpness]
        if not sharp:
            return None
        labels = sharp[0].probabilities
        mean = {label: sum(each.probabilities[label] for each in sharp) / len(sharp) for label in labels}
        label = max(mean, key=lambda name: mean[name])
        unfamiliar = 2 * sum(each.review_reason == "unfamiliar" for each in sharp) > len(sharp)
        return Pooled(label, mean[label], mean, "unfamiliar" if unfamiliar else rule(mean[label]))
