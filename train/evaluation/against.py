"""Paired comparison of two model files on the same images: `edgeall evaluate MODEL --against OTHER`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...console.tables import percent, record
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import DataError
from ...edge_runtime.results import SPREAD, Result
from ..data.split import SplitEntry
from .bootstrap import difference_interval
from .mcnemar import McNemar, mcnemar


@dataclass(frozen=True)
class PairedComparison(Result):
    """Comparison with another model on the same images.

    Attributes:
        model: path of the other model; ``accuracy`` is its accuracy.
        gain_points: percentage points by which the first model is better, with the paired 95 % interval
            ``gain_points_ci95`` by ``ci_unit``.
        test: see `McNemar`.
    """

    model: str
    accuracy: float
    gain_points: float
    gain_points_ci95: list[float]
    ci_unit: str
    test: McNemar = field(metadata=SPREAD)


def open_other(path: Path, model: Path, labels: Sequence[str], split_sha256: str | None) -> Classifier:
    """Open the other model.

    Args:
        path: of the other model file.
        model: path of the first one, for messages.
        labels: of the first one.
        split_sha256: digest of the first one's split; None if the images are not of that split.

    Raises:
        DataError: it has other classes, or was made with another split. The test images of the first model may then be
            training images of the other.
    """
    other = Classifier.open(path, threads=1)
    if other.labels != tuple(labels):
        raise DataError(
            f"{path} has the classes {', '.join(other.labels)}, {model} has {', '.join(labels)}",
            hint="compare models with the same classes in the same order",
        )
    manifest = other.bundle.manifest if other.bundle else None
    found = manifest.training.get("split_sha256") if manifest else None
    if split_sha256 is not None and found != split_sha256:
        raise DataError(
            f"{path}: was not made with the split of {model}: it may have been trained on these images",
            hint="train it with --split, or compare both on images that neither was trained on, as with --site",
        )
    return other


def paired_comparison(
    path: Path,
    entries: Sequence[SplitEntry],
    labels: Sequence[str],
    probabilities: NDArray[np.float32],
    others: NDArray[np.float32],
    seed: int,
) -> PairedComparison:
    """Compare the predictions of two models.

    Args:
        path: of the other model file.
        entries: the images.
        labels: of both models.
        probabilities: of the first model, ``(images, labels)``.
        others: of the other model, ``(images, labels)``.
        seed: of the bootstrap.
    """
    truth = np.array([labels.index(entry.label) for entry in entries])
    right, other = probabilities.argmax(axis=1) == truth, others.argmax(axis=1) == truth
    ends, unit = difference_interval(right, other, [entry.subject for entry in entries], seed)
    return PairedComparison(
        model=str(path),
        accuracy=float(other.mean()),
        gain_points=100 * float(right.mean() - other.mean()),
        gain_points_ci95=[100 * end for end in ends],
        ci_unit=unit,
        test=mcnemar(right, other),
    )


def against_text(found: PairedComparison) -> str:
    """`paired_comparison` as a table."""
    low, high = found.gain_points_ci95
    test = "McNemar's exact test"
    if found.ci_unit != "image":
        test += ", which treats the images of a subject as independent"
    return record(
        {
            "against": f"{found.model}: {percent(found.accuracy)}",
            "gain": f"{found.gain_points:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, paired, "
            f"by {found.ci_unit})",
            "right alone": f"{found.test.only_first:,} images, the other model {found.test.only_second:,}",
            "p": f"{found.test.p_value:.4f} ({test})",
        }
    )
