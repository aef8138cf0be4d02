"""Two model files on the same images: is one better, or is it chance? `edgeall evaluate MODEL --against OTHER`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.tables import percent, record
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import DataError
from ..data.split import SplitEntry
from .bootstrap import difference_interval
from .metrics import mcnemar


def open_other(path: Path, model: Path, labels: Sequence[str], split_sha256: str | None) -> Classifier:
    """The other model.

    Raises:
        DataError: it has other classes, or was made with another split than ``split_sha256``: the images of the first
            one's test side are then not unseen to it.
    """
    other = Classifier.open(path, threads=1)
    if other.labels != tuple(labels):
        raise DataError(
            f"{path} tells {', '.join(other.labels)} apart, {model} {', '.join(labels)}",
            hint="compare models of the same classes in the same order",
        )
    manifest = other.bundle.manifest if other.bundle else None
    found = manifest.training.get("split_sha256") if manifest else None
    if split_sha256 is not None and found != split_sha256:
        raise DataError(
            f"{path}: was not made with the split of {model}: it may have been trained on these images",
            hint="train it with --split, or compare both on images that neither knows, as with --site",
        )
    return other


def held_against(
    path: Path,
    entries: Sequence[SplitEntry],
    labels: Sequence[str],
    probabilities: NDArray[np.float32],
    others: NDArray[np.float32],
    seed: int,
) -> dict[str, Any]:
    """What the comparison says.

    Args:
        path: of the other model.
        entries: the images.
        labels: of both.
        probabilities: of the first model, ``(images, labels)``.
        others: of the other.
        seed: of the bootstrap.

    Returns:
        ``model``, its ``accuracy``; ``gain_points``: percentage points by which the first is better, their 95 %
        interval ``gain_points_ci95``, paired, and ``ci_unit``; and what `edgeall.train.evaluation.metrics.mcnemar`
        returns, the model that was named first being the first.
    """
    truth = np.array([labels.index(entry.label) for entry in entries])
    right, other = probabilities.argmax(axis=1) == truth, others.argmax(axis=1) == truth
    ends, unit = difference_interval(right, other, [entry.subject for entry in entries], seed)
    return {
        "model": str(path),
        "accuracy": float(other.mean()),
        "gain_points": 100 * float(right.mean() - other.mean()),
        "gain_points_ci95": [100 * end for end in ends],
        "ci_unit": unit,
        **mcnemar(right, other),
    }


def against_text(found: Mapping[str, Any]) -> str:
    """For people."""
    low, high = found["gain_points_ci95"]
    test = "McNemar's exact test" + (
        "" if found["ci_unit"] == "image" else ", which takes a subject's images for independent"
    )
    return record(
        {
            "against": f"{found['model']}: {percent(found['accuracy'])}",
            "gained": f"{found['gain_points']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, paired, "
            f"by {found['ci_unit']})",
            "right alone": f"{found['only_first']:,} images, the other {found['only_second']:,}",
            "p": f"{found['p_value']:.4f}: that chance divides them so unevenly or more ({test})",
        }
    )
