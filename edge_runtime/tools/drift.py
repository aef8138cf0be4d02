"""Fits the reference of the drift alarm, and follows predictions with it, see `edgeall.edge_runtime.drift`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..classifier import Classifier
from ..drift import CLIP, FEATURES, IMAGE, Drift, F, Group
from ..pipeline import Prediction

RUN, LEAST_RUN = 30, 5
"""Images of a run: successive images of one class, which stand for a slide. Shorter where there are few images."""
RUNS = 40
"""Runs that the reference is fitted to, at most."""
_SPARE = 4
"""Degrees of freedom that must be left for a reference to be fitted."""


def chosen_runs(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of successive images of one class, ``(runs, images)``: up to `RUNS` of them, evenly from all classes.

    Args:
        truth: class indices ``(n,)`` of images in the order of their files.
    """
    length = int(np.clip(len(truth) // RUNS, LEAST_RUN, RUN))
    found = []
    for label in np.unique(truth):
        rows = np.flatnonzero(truth == label)
        found += [rows[first : first + length] for first in range(0, len(rows) - length + 1, length)]
    if not found:
        return np.zeros((0, length), np.int64)
    return np.asarray(np.stack(found)[np.unique(np.linspace(0, len(found) - 1, RUNS).astype(int))])


def fit_drift(image: F, features: F, predicted: NDArray[np.int64], runs: int, labels: int) -> dict[str, Any]:
    """The manifest's ``drift``; empty if there are too few runs.

    Args:
        image: facts ``(n, numbers)`` of the images, run after run, all of the same length.
        features: coordinates ``(n, numbers)`` of the same.
        predicted: labels ``(n,)``.
        runs: their number.
        labels: number of labels of the model.
    """
    groups = {}
    for name, numbers in ((IMAGE, image), (FEATURES, features)):
        if runs < labels + numbers.shape[1] + _SPARE:
            return {}
        group = _fitted(numbers, predicted, runs, labels)
        if np.linalg.eigvalsh(group.between).min() <= 1e-12:  # such as of images without any scatter
            return {}
        groups[name] = group.to_json()
    return groups


def _fitted(numbers: F, predicted: NDArray[np.int64], runs: int, labels: int) -> Group:
    means = means_of(numbers, predicted, labels)
    rest = numbers - means[predicted]
    most = CLIP * rest.std(axis=0)
    by_run = np.clip(rest, -most, most).reshape(runs, -1, numbers.shape[1])
    middles = by_run.mean(axis=1)
    apart = (by_run - middles[:, None]).reshape(len(rest), -1)
    between = middles.T @ middles / (runs - labels)
    return Group(means, between, apart.T @ apart / (len(rest) - runs), by_run.shape[1], runs)


def means_of(numbers: F, labelled: NDArray[np.int64], labels: int) -> F:
    """Means of the labels ``(labels, numbers)``; of all images for a label without any."""
    known = [numbers[labelled == label] for label in range(labels)]
    return np.stack([(own if len(own) else numbers).mean(axis=0) for own in known])


def followed(
    classifier: Classifier,
    groups: Mapping[str, Group],
    predictions: Iterable[Prediction],
    note: Callable[[str], None],
) -> Iterator[Prediction]:
    """The predictions. An alarm is noted at their end.

    Args:
        classifier: that made them, with an out-of-distribution detector.
        groups: its reference, not empty.
        predictions: with `Prediction.facts`.
        note: receives one line.
    """
    detector = classifier.ood_detector
    assert detector is not None
    drift = Drift(groups)
    for each in predictions:
        yield each
        if each.facts is not None and each.units is not None:
            drift.add(each.facts, classifier.pooled(each.units), detector, classifier.labels.index(each.label))
    if drift.finding is not None:
        note(f"warning: {drift.finding.describe()}")
