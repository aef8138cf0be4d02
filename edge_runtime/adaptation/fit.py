"""Refits a last dense layer to a few labelled images: multinomial logistic regression, regularized towards the old one.

The objective is the weighted log loss of the images plus ``strength / 2`` times the squared distance from the old
weights. Every class has the same total weight, so that the layer does not learn how often the classes occur among the
labelled images. As there are fewer images than features, it is solved in the space of the images.

Source: D. Boehning, Multinomial logistic regression algorithm, 1992 (the bound on the Hessian); B. O'Donoghue and
E. Candes, Adaptive restart for accelerated gradient schemes, 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .head import Head

STRENGTHS = tuple(float(value) for value in np.geomspace(10.0, 0.001, 9))
"""Strengths of the regularization to choose from, for images of mean squared length 1."""
MOST_FOLDS = 64
"""Leave-one-out up to this number of images; of more images this number of parts is left out in turn."""
MOST_DIRECTIONS = 256
"""Directions in feature space in which the layer can move; those in which the images differ most."""
STEPS = 400
TOLERANCE = 3e-4
"""Largest derivative of the mean log loss at the end."""
F = NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Labelled images of the site.

    Attributes:
        features: float64 ``(n, features)``, as the layer reads them.
        truth: class indices ``(n,)``.
    """

    features: F
    truth: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Refit:
    """A refitted layer.

    Attributes:
        head: the new layer.
        strength: of the regularization, chosen by the log loss of the images that were left out.
        left_out: float64 ``(n, labels)``, the outputs for each image from a layer that was fitted without it.
        folds: number of parts that were left out in turn; the number of images for leave-one-out.
    """

    head: Head
    strength: float
    left_out: F
    folds: int


@dataclass(frozen=True)
class _Problem:
    """The refit in the space of the images, in which the layer has moved by ``steps`` ``(directions, labels)``.

    Attributes:
        offsets: outputs of the old layer for all images, ``(n, labels)``.
        places: all images along the directions, ``(n, directions)``.
        energies: weighted sum of squares of the images along each direction, ``(directions,)``.
        targets: ``(n, labels)``, 1 for the true class.
        weights: of the log loss of each image in each fold, ``(folds + 1, n)``: 0 where it is left out. The last row
            leaves out none.
        free: bool ``(labels,)``, the classes whose rows move.
    """

    offsets: F
    places: F
    energies: F
    targets: F
    weights: F
    free: NDArray[np.bool_]


def refit(head: Head, examples: Examples, free: NDArray[np.bool_], strengths: Sequence[float] = STRENGTHS) -> Refit:
    """Fit the rows of the ``free`` classes to the labelled images of these classes; the other rows stay.

    Args:
        head: the old layer.
        examples: images of the site, of any class.
        free: bool ``(labels,)``, at least one class with two images.
        strengths: of the regularization, in descending order.
    """
    used = free[examples.truth]
    weight = _balanced(examples.truth, used)
    fold = _folds(examples.truth, used)
    middle = weight @ examples.features / weight.sum()
    scale = float(np.sqrt(weight @ np.square(examples.features - middle).sum(axis=1) / weight.sum())) or 1.0
    placed = np.hstack([(examples.features - middle) / scale, np.ones((len(examples), 1))])
    values, axes = np.linalg.svd(np.sqrt(weight)[:, None] * placed, full_matrices=False)[1:]
    kept = min(int((values > 1e-6 * values[0]).sum()), MOST_DIRECTIONS)
    axes = axes[:kept]
    left_in = fold != np.arange(fold.max() + 2)[:, None]
    problem = _Problem(
        offsets=head.logits(examples.features),
        places=placed @ axes.T,
        energies=np.square(values[:kept]),
        targets=np.eye(len(free))[examples.truth],
        weights=weight * left_in,
        free=free,
    )
    found = []
    steps = np.zeros((kept, len(problem.weights), len(free)))
    rows, images = np.where(used, fold, len(problem.weights) - 1), np.arange(len(examples))
    for strength in strengths:
        steps = _solved(problem, strength, steps)
        outputs = _outputs(problem, steps)[images, rows]
        loss = -float(weight @ (_log_softmax(outputs) * problem.targets).sum(axis=1))
        found.append((loss, strength, outputs, steps[:, -1]))
    _, strength, outputs, best = min(found, key=lambda item: item[0])
    moved = best.T @ axes  # along the features, and the bias
    weights = head.weights + moved[:, :-1] / scale
    bias = head.bias + moved[:, -1] - moved[:, :-1] @ middle / scale
    return Refit(Head(weights, bias), strength, outputs, int(fold.max()) + 1)


def _balanced(truth: NDArray[np.int64], used: NDArray[np.bool_]) -> F:
    """Weights of the images: the same sum for each class that is used, mean 1, and 0 for images that are not used."""
    counts = np.bincount(truth[used])
    shares = used.sum() / np.count_nonzero(counts) / np.maximum(counts, 1)
    weights = np.zeros(len(truth))
    weights[used] = shares[truth[used]]
    return weights


def _folds(truth: NDArray[np.int64], used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The fold of each image, the classes spread evenly; -1 for images that are not used."""
    fold = np.full(len(truth), -1)
    order = np.flatnonzero(used)[np.argsort(truth[used], kind="stable")]
    fold[order] = np.arange(len(order)) % MOST_FOLDS
    return fold


def _outputs(problem: _Problem, steps: F) -> F:
    """Outputs for each image in each fold, ``(n, folds + 1, labels)``."""
    flat = problem.places @ steps.reshape(len(steps), -1)
    return problem.offsets[:, None] + flat.reshape(len(flat), *steps.shape[1:])


def _solved(problem: _Problem, strength: float, steps: F) -> F:
    """The minimum for one strength in every fold at once, from given steps ``(directions, folds + 1, labels)``."""
    curvature = (problem.energies / 2 + strength)[:, None, None]
    here, momentum = steps, 1.0
    weights = problem.weights.T[:, :, None] * problem.free
    enough = TOLERANCE * problem.weights[-1].sum()
    for _ in range(STEPS):
        outputs = _outputs(problem, here)
        slopes = (np.exp(_log_softmax(outputs)) - problem.targets[:, None]) * weights
        slope = problem.places.T @ slopes.reshape(len(slopes), -1)
        slope = slope.reshape(steps.shape) + strength * here
        if np.abs(slope).max() <= enough:
            break
        after = here - slope / curvature
        if (slope * (after - steps)).sum() > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        here = after + (momentum - 1) / following * (after - steps)
        steps, momentum = after, following
    return here


def _log_softmax(outputs: F) -> F:
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
