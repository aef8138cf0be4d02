"""Where two programs that run the same network may differ: within their rounding, and nowhere else.

How well a network trains inside a test depends on the processor's kernels. What two programs make of one and the same
network doesn't: each probability differs by their rounding at the most, so labels may be swapped only where the two
highest probabilities lie within twice that. No test asks for a share of equal labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import ArrayLike, NDArray

from edgeall.edge_runtime.classifier import Classifier

FLOAT_ROUNDING = 1e-5
"""Of a probability from a float32 network: kernels add in different orders."""
UNITS_ROUNDING = 1
"""Of an output in units, between two builds of the same integer kernels: the softmax may round either way."""


def undecided(probabilities: ArrayLike, rounding: float) -> NDArray[np.bool_]:
    """Whether rounding can swap the labels of ``(images, labels)`` probabilities: ``(images,)``."""
    second, first = np.sort(np.asarray(probabilities, float), axis=1)[:, -2:].T
    return np.asarray(first - second <= 2 * rounding)


def assert_same_answers(ours: ArrayLike, theirs: ArrayLike, rounding: float) -> None:
    """All ``(images, labels)`` probabilities are equal but for ``rounding``, and so the labels that follow."""
    one, other = np.asarray(ours, float), np.asarray(theirs, float)
    assert one.shape == other.shape
    apart = np.abs(one - other)
    assert apart.max() <= rounding, f"image {apart.max(axis=1).argmax()}: {apart.max():.3g}, rounding is {rounding:.3g}"
    assert_same_labels(one, other.argmax(axis=1).tolist(), rounding)


def assert_same_labels(probabilities: ArrayLike, labels: Sequence[int], rounding: float) -> None:
    """``labels`` are those of the highest probabilities, except where ``rounding`` can swap them."""
    differ = np.asarray(probabilities, float).argmax(axis=1) != np.asarray(labels)
    open_ = undecided(probabilities, rounding)
    assert not open_.all(), "rounding decides every label: nothing is compared"
    assert not (differ & ~open_).any(), f"another label for images {np.flatnonzero(differ & ~open_).tolist()}"


def least_agreement(probabilities: ArrayLike, rounding: float) -> float:
    """The share of equal labels that two programs reach at the least when they differ by ``rounding`` each."""
    return float(1 - undecided(probabilities, rounding).mean())


def calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """The expected calibration error by its definition: 15 bins (low, high] of equal width, each weighed by its images.

    Args:
        confidence: the highest probability of each image, ``(images,)``.
        correct: whether its label is right, ``(images,)``.
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct, float)
    bins = [(number / 15 < sure) & (sure <= (number + 1) / 15) for number in range(15)]
    return float(sum(one.mean() * abs(right[one].mean() - sure[one].mean()) for one in bins if one.any()))


def with_builtin_kernels(model: Path) -> Classifier:
    """A packed model on LiteRT's own kernels instead of XNNPACK's.

    tflite-runtime has the same for integer networks. XNNPACK rounds once where they round twice; over fifty layers that
    moved the logits of a MobileNetV2 by up to 11 of their steps, and a probability by 29 units of 1/256.
    """
    classifier = Classifier.open(model, threads=1)
    assert classifier.bundle is not None
    kernels = Interpreter(
        model_content=classifier.bundle.flatbuffer,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    kernels.allocate_tensors()
    classifier.model._interpreter = kernels
    assert not classifier.model.uses_xnnpack()
    return classifier
