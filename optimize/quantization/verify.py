"""Cost of a conversion: the same images through Keras float32 and the converted models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.results import Result
from ...train.batches import Images


@dataclass(frozen=True)
class ClassRecall(Result):
    """Recall of one class by both models, None without images of it."""

    support: int
    reference_recall: float | None
    recall: float | None


@dataclass(frozen=True)
class ConversionCost(Result):
    """A model compared with its reference on the same images.

    Attributes:
        reference_accuracy: of the reference; ``accuracy`` is that of the model.
        drop_points: percentage points lost; negative when gained.
        agreement: share of images with the same most probable class.
        max_abs_difference: largest absolute difference of a probability.
        per_class: by label.
    """

    reference_accuracy: float
    accuracy: float
    drop_points: float
    agreement: float
    max_abs_difference: float
    per_class: dict[str, ClassRecall]


def predict(classifier: Classifier, images: Images, title: str, progress: Progress) -> NDArray[np.float32]:
    """Probabilities ``(len(images), labels)``, one image at a time through the device's own code path."""
    rows = []
    with progress.task(title, len(images)) as advance:
        for done, row in enumerate(images.rows, start=1):
            rows.append(classifier.predict(images.pixels[row]))
            advance(done, "")
    return np.stack(rows)


def pixels_of(images: Images) -> Iterator[NDArray[np.uint8]]:
    """The pixels of every image in order: uint8 ``(h, w, 3)``."""
    return (images.pixels[row] for row in images.rows)


def predictions_and_features(
    classifier: Classifier, pixels: Iterable[NDArray[np.uint8]], count: int, title: str, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`predict` of ``count`` images, and their pooled features from the model's second output, if it has one.

    Returns:
        Probabilities ``(count, labels)`` and features ``(count, features)``; no feature without a second output.
    """
    found = []
    with progress.task(title, count) as advance:
        for done, image in enumerate(pixels, start=1):
            answer = classifier.infer(image)
            own = np.zeros(0, np.float32) if answer.units is None else classifier.pooled(answer.units)
            found.append((answer.probabilities, own))
            advance(done, "")
    probabilities, features = zip(*found, strict=True)
    return np.stack(probabilities), np.stack(features)


def compare(
    labels: tuple[str, ...],
    truth: NDArray[np.int64],
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
) -> ConversionCost:
    """Two models on the same images.

    Args:
        labels: class names.
        truth: class indices ``(n,)``.
        reference: probabilities ``(n, classes)``, usually Keras float32.
        candidate: the same of the model under test.
    """
    one, other = reference.argmax(axis=1), candidate.argmax(axis=1)
    before, after = float((one == truth).mean()), float((other == truth).mean())
    return ConversionCost(
        reference_accuracy=before,
        accuracy=after,
        drop_points=100.0 * (before - after),
        agreement=float((one == other).mean()),
        max_abs_difference=float(np.abs(reference - candidate).max()),
        per_class={
            label: ClassRecall(int((truth == index).sum()), _recall(one, truth, index), _recall(other, truth, index))
            for index, label in enumerate(labels)
        },
    )


def _recall(predicted: NDArray[np.int64], truth: NDArray[np.int64], index: int) -> float | None:
    of_class = truth == index
    return float((predicted[of_class] == index).mean()) if of_class.any() else None
