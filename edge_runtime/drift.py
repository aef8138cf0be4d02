"""Drift alarm: whether the images of a slide have moved away from those that a model was fitted on, and how.

Two groups of numbers describe an image: six facts about light, stain and focus, and its features along the axes of the
out-of-distribution detector. The packed model holds their means for each predicted label, so that a slide with other
shares of the labels raises no alarm, and their scatter: between runs of successive images, which stand for slides, and
within them. The mean over a slide is compared with what the home laboratory's own slides do. In an adapted file the
means are those of the other laboratory, see `edgeall.edge_runtime.adaptation.drift`.

Source: H. Hotelling 1931, "The generalization of Student's ratio", with the covariance of a random-effects model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .ood import OodDetector, distance, roots

if TYPE_CHECKING:
    from .classifier import Classifier

F = NDArray[np.float64]
FACTS = ("brightness", "warmth", "tint", "stain", "stain colour", "sharpness")
"""Facts about an image, in their order; the first three are about its background, logarithms all of them."""
IMAGE, FEATURES = "image", "features"
"""The two groups of numbers."""
LEAST = 15
"""Images at the first look at a slide. At each further look they are twice as many."""
LEVEL = {IMAGE: 1e-3, FEATURES: 1e-4}
"""Probability of an alarm by chance at one look at each group. Runs of home's images differ more in their features than
their distribution says."""
CLIP = 4.0
"""Standard deviations of an image from the mean of its label at which it is cut off, so that one odd image raises no
alarm."""
NAMED = 3.0
"""Shift of a fact that is named, in standard deviations of the home laboratory's slides."""
_TAIL, _STEP = 25, 2


def image_facts(pixels: NDArray[np.uint8]) -> F:
    """The `FACTS` of an image, float64 ``(6,)``, from the model's input, uint8 ``(height, width, 3)``, RGB.

    Its background is the brightest quarter of its pixels, its stain the darkest quarter relative to the background.
    """
    small = pixels[::_STEP, ::_STEP].astype(np.float32)
    # Sums of three channels, as integers: this is on the path of every image of `edgeall run`.
    total = (small @ np.ones(3, np.float32)).astype(np.int16)
    dark, bright = _percentiles(total, (_TAIL, 100 - _TAIL))
    light = np.log1p(_mean_colour(small, total >= bright))
    density = light - np.log1p(_mean_colour(small, total <= dark))
    edges = np.abs(np.diff(total, axis=0)).mean() + np.abs(np.diff(total, axis=1)).mean()
    red, green, blue = light
    return np.array(
        [
            light.mean(),
            red - blue,
            green - (red + blue) / 2,
            density.mean(),
            density[0] - density[2],
            math.log(edges / max(bright - dark, 3.0) + 1e-3),
        ]
    )


def _percentiles(values: NDArray[np.int16], percents: tuple[int, ...]) -> list[float]:
    """`numpy.percentile` of small numbers from 0, by counting: in a tenth of the time."""
    below = np.cumsum(np.bincount(values.ravel()))
    places = [(values.size - 1) * percent / 100 for percent in percents]
    low, high = (np.searchsorted(below, [int(place) + more for place in places], side="right") for more in (0, 1))
    return [float(a + (b - a) * (place % 1)) for a, b, place in zip(low, high, places, strict=True)]


def _mean_colour(small: NDArray[np.float32], chosen: NDArray[np.bool_]) -> F:
    """Mean of the chosen pixels, float64 ``(3,)``. A product with the mask is ten times as fast as an index."""
    weights = chosen.ravel().astype(np.float32)
    return np.asarray((weights @ small.reshape(-1, 3)) / weights.sum(), np.float64)


def coordinates(features: NDArray[np.float32], detector: OodDetector) -> F:
    """Pooled features ``(features,)`` along axes of a detector, and the logarithm of their distance from its plane.

    Their number is even, as `by_chance` needs it.
    """
    along = (roots(features) - detector.mean) @ detector.axes[: (len(detector.axes) - 1) // 2 * 2 + 1].T
    beside = np.maximum(distance(features, detector), 0.0)  # rounding can make a distance of 0 negative
    return np.append(along, np.log(beside + 1e-6)).astype(np.float64)


@dataclass(frozen=True)
class Group:
    """What one group of numbers does at home.

    Attributes:
        means: float64 ``(labels, numbers)``, for each predicted label.
        between: covariance of the means of runs, ``(numbers, numbers)``.
        within: covariance of images within a run.
        run: images of a run.
        runs: number of runs.
        site: images of another laboratory that the means are of, as if of one slide; None: the means are of the runs.
    """

    means: F
    between: F
    within: F
    run: int
    runs: int
    site: int | None = None

    @property
    def deviations(self) -> F:
        """Standard deviations of single images, ``(numbers,)``."""
        return np.asarray(np.sqrt(np.diag(self.between) + np.diag(self.within)))

    def residual(self, numbers: F, label: int) -> F:
        """An image's difference from the mean of its label, cut off at `CLIP` standard deviations."""
        most = CLIP * self.deviations
        return np.asarray(np.clip(numbers - self.means[label], -most, most))

    def by_chance(self, mean: F, images: int) -> float:
        """Probability that a slide of the laboratory has a mean residual as far from 0."""
        covariance = self._of_means(images)
        if self.site is not None:  # the means are those of a slide too
            covariance = covariance + self._of_means(self.site)
        distance = float(mean @ np.linalg.solve(covariance, mean))
        free, count = self.runs - len(self.means), len(mean)
        return by_chance(count, free - count + 1, distance * (free - count + 1) / (free * count))

    @property
    def spread(self) -> F:
        """Standard deviations of the mean residuals of slides of many images, ``(numbers,)``."""
        return np.asarray(np.sqrt(np.diag(self.between) * (1 if self.site is None else 2)))

    def _of_means(self, images: int) -> F:
        """Covariance of the mean of a slide of so many images."""
        return np.asarray(self.between + self.within * max(1 / images - 1 / self.run, 0.0))

    def to_json(self) -> dict[str, Any]:
        """The object in the manifest, with six digits."""
        tables = {name: _rounded(getattr(self, name)) for name in ("means", "between", "within")}
        site = {} if self.site is None else {"site": self.site}
        return {**tables, "run": self.run, "runs": self.runs, **site}


@dataclass(frozen=True)
class Finding:
    """What has moved on a slide.

    Attributes:
        images: looked at.
        probability: of as large a shift at home, by group; an alarm has one below `LEVEL`.
        shifts: of facts, those of at least `NAMED` standard deviations of home's slides, the largest first.
    """

    images: int
    probability: Mapping[str, float]
    shifts: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"images": self.images, "probability": dict(self.probability), "shifts": dict(self.shifts)}

    def describe(self) -> str:
        """The finding as one sentence."""
        moved = ", ".join(f"{name} {shift:+.0f} SD" for name, shift in self.shifts.items())
        what = f"moved: {moved}" if moved else "not the light but the cells look different"
        return f"after {self.images} images: they differ from those that the model was fitted on ({what})"


class Drift:
    """The images of one slide so far. Keeps sums alone.

    Args:
        groups: of the model, see `read_drift`.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups
        self._sums = {name: np.zeros(group.means.shape[1]) for name, group in groups.items()}
        self._look = LEAST
        self.images = 0
        self.finding: Finding | None = None
        """Of the last look, if it was an alarm."""

    def add(self, facts: F, features: NDArray[np.float32], detector: OodDetector, label: int) -> None:
        """Add an image: its `image_facts`, its pooled features, and the index of its label."""
        numbers = {IMAGE: facts, FEATURES: coordinates(features, detector)}
        for name, group in self._groups.items():
            self._sums[name] += group.residual(numbers[name], label)
        self.images += 1
        if self.images == self._look:
            self._look *= 2
            self.finding = self._looked()

    def _looked(self) -> Finding | None:
        means = {name: total / self.images for name, total in self._sums.items()}
        probability = {name: group.by_chance(means[name], self.images) for name, group in self._groups.items()}
        if all(probability[name] > LEVEL[name] for name in probability):
            return None
        group = self._groups[IMAGE]
        shifts = dict(zip(FACTS, means[IMAGE] / group.spread, strict=True))
        moved = sorted((name for name in FACTS if abs(shifts[name]) >= NAMED), key=lambda name: -abs(shifts[name]))
        return Finding(self.images, probability, {name: round(float(shifts[name]), 1) for name in moved})


def read_drift(facts: Mapping[str, Any], labels: int, name: str) -> dict[str, Group]:
    """The groups of a manifest's ``drift``; none if it is empty.

    Raises:
        BundleError: not written by `edgeall quantize`.
    """
    try:
        groups = {each: _group(facts[each], labels) for each in (IMAGE, FEATURES)} if facts else {}
        if groups and groups[IMAGE].means.shape[1] != len(FACTS):
            raise ValueError("other facts")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise BundleError(
            f"{name}: its drift reference is not what `edgeall quantize` writes", hint="quantize the run again"
        ) from error
    return groups


def drift_groups(classifier: Classifier) -> dict[str, Group]:
    """The groups of an open model's file; none without a reference or an out-of-distribution detector.

    Raises:
        BundleError: as `read_drift`.
    """
    manifest = classifier.bundle.manifest if classifier.bundle else None
    if manifest is None or classifier.ood_detector is None:
        return {}
    return read_drift(manifest.drift, len(classifier.labels), classifier.model.name)


def by_chance(numbers: int, free: int, ratio: float) -> float:
    """Probability that an F-distributed variable with ``numbers`` (even) and ``free`` degrees exceeds ``ratio``."""
    share = numbers * ratio / (free + numbers * ratio)
    if share <= 0:
        return 1.0
    base, half = free / 2 * math.log1p(-share), free / 2
    return sum(
        math.exp(base + math.lgamma(half + j) - math.lgamma(half) - math.lgamma(j + 1) + j * math.log(share))
        for j in range(numbers // 2)
    )


def _group(facts: Mapping[str, Any], labels: int) -> Group:
    means, between, within = (np.array(facts[name], float) for name in ("means", "between", "within"))
    run, runs, count = int(facts["run"]), int(facts["runs"]), means.shape[1]
    site = None if facts.get("site") is None else int(facts["site"])
    square = (count, count)
    fits = means.shape == (labels, count) and between.shape == within.shape == square and count % 2 == 0
    if not fits or run < 1 or runs - labels - count < 1 or (site is not None and site < 1):
        raise ValueError("invalid numbers")
    if not all(np.isfinite(table).all() for table in (means, between, within)):
        raise ValueError("not finite")
    if np.linalg.eigvalsh(between).min() <= 0 or np.diag(within).min() < 0:
        raise ValueError("no covariance")
    return Group(means, between, within, run, runs, site)


def _rounded(table: F) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in row] for row in table]
