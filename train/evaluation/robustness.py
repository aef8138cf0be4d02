"""How accurate a model stays when the microscope changes: the `corruptions` suite through the device's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...console.tables import percent, table
from ...edge_runtime.calibration import calibrated
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.parallel import Layout, Pool
from ...edge_runtime.preprocess import InputSpec, preprocess
from ..data.split import SplitEntry
from .corruptions import CORRUPTIONS, SEVERITIES, SUITE, corrupted
from .metrics import expected_calibration_error
from .reliability import sent_to_review

Cell = tuple[SplitEntry, str, int]
"""An image, what is done to it, and how severely."""


def robustness(
    classifier: Classifier,
    layout: Layout,
    folder: Path,
    entries: Sequence[SplitEntry],
    progress: Progress,
    kinds: Sequence[str] = tuple(CORRUPTIONS),
    *,
    temperature: float = 1.0,
    review_below: float | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration and review under every corruption at every severity.

    Each image is decoded, corrupted at its own size, and then goes the way of any other. What is drawn depends on the
    corruption, the severity and the file's digest, so two models see the same pixels.

    Args:
        classifier: of the file that the device will run.
        layout: how to spread it over the cores.
        folder: where the entries' paths start.
        entries: labelled images, none of which it was trained on.
        kinds: of `CORRUPTIONS`.
        temperature: of the model's calibration.
        review_below: of its decision; None where it has none.

    Returns:
        - suite: `SUITE`; images: how many of each;
        - mean: of all cells, a cell being one corruption at one severity, 0..1;
        - worst: the lowest cell; worst_at: its corruption and severity;
        - ece_mean and ece_worst: expected calibration error, mean and highest of all cells;
        - reviewed_mean: share of images sent to review, mean of all cells; wrong_not_reviewed_mean: share of images
          that are given a wrong label and not sent there, mean of all cells; accuracy_of_the_rest: of all that are not
          sent; all three None of a model with neither a decision nor a novelty score;
        - by_corruption: to each its mean and, by severity, accuracy, worst class recall, ``ece_by_severity`` and, where
          there is review, ``reviewed_by_severity``.

    Raises:
        ImageError: an image that can't be read.
    """
    cells: list[Cell] = [(entry, kind, severity) for kind in kinds for severity in SEVERITIES for entry in entries]
    rows: list[NDArray[np.float32]] = []
    unfamiliar: list[bool] = []
    with progress.task("robustness", len(cells)) as advance, Pool(classifier, layout) as pool:
        for (_, kind, severity), outcome in pool.map(partial(_load, folder, classifier.input), cells):
            if isinstance(outcome, ImageError):
                raise outcome
            rows.append(outcome.probabilities)
            unfamiliar.append(outcome.novelty is not None and outcome.novelty > 1)
            advance(len(rows), f"{kind} {severity}")
    index = {label: number for number, label in enumerate(classifier.labels)}
    truth = np.array([index[entry.label] for entry in entries])
    probabilities = calibrated(np.stack(rows), temperature).reshape(len(kinds), len(SEVERITIES), len(entries), -1)
    right = probabilities.argmax(axis=-1) == truth
    strange = np.array(unfamiliar).reshape(right.shape) if classifier.familiar else None
    asked = sent_to_review(probabilities, review_below, strange)
    accuracy = right.mean(axis=-1)
    recalls = np.stack([right[..., truth == label].mean(axis=-1) for label in np.unique(truth)])
    row, column = (int(place) for place in np.unravel_index(int(accuracy.argmin()), accuracy.shape))
    confidence = probabilities.max(axis=-1).astype(np.float64)
    ece = np.array(
        [list(map(expected_calibration_error, sure, correct)) for sure, correct in zip(confidence, right, strict=True)]
    )
    return {
        "suite": SUITE,
        "images": len(entries),
        "mean": float(accuracy.mean()),
        "worst": float(accuracy.min()),
        "worst_at": {"corruption": kinds[row], "severity": SEVERITIES[column]},
        "ece_mean": float(ece.mean()),
        "ece_worst": float(ece.max()),
        "reviewed_mean": None if asked is None else float(asked.mean()),
        "wrong_not_reviewed_mean": None if asked is None else float((~right & ~asked).mean()),
        "accuracy_of_the_rest": None if asked is None or asked.all() else float(right[~asked].mean()),
        "by_corruption": {
            kind: {
                "mean": float(accuracy[number].mean()),
                "by_severity": accuracy[number].tolist(),
                "worst_recall_by_severity": recalls[:, number].min(axis=0).tolist(),
                "ece_by_severity": ece[number].tolist(),
                **({} if asked is None else {"reviewed_by_severity": asked[number].mean(axis=-1).tolist()}),
            }
            for number, kind in enumerate(kinds)
        },
    }


def robustness_text(found: Mapping[str, Any]) -> str:
    """The table for people."""
    asked = found["reviewed_mean"] is not None
    rows = [
        [
            kind,
            *(percent(value) for value in cells["by_severity"]),
            percent(cells["mean"]),
            *(f"{cells['ece_by_severity'][place]:.3f}" for place in (0, -1)),
            *([percent(cells["reviewed_by_severity"][place]) for place in (0, -1)] if asked else []),
        ]
        for kind, cells in found["by_corruption"].items()
    ]
    ends = (SEVERITIES[0], SEVERITIES[-1])
    heads = ["corruption", *map(str, SEVERITIES), "mean", *(f"ECE {end}" for end in ends)]
    heads += [f"review {end}" for end in ends] if asked else []
    at = found["worst_at"]
    said = (
        f"under {len(rows)} corruptions at {len(SEVERITIES)} severities: mean {percent(found['mean'])}, worst "
        f"{percent(found['worst'])} ({at['corruption']} at {at['severity']}); {found['images']:,} images each\n"
        f"calibration error: mean {found['ece_mean']:.4f}, worst {found['ece_worst']:.4f}"
    )
    if asked:
        said += f"; sent to review: {percent(found['reviewed_mean'])} on average"
        said += f", of the others {percent(found['accuracy_of_the_rest']) or '-'} are right"
        said += f"; wrong and not sent: {percent(found['wrong_not_reviewed_mean'])} of the images on average"
    return f"{table(heads, rows)}\n\n{said}"


def _load(folder: Path, spec: InputSpec, cell: Cell) -> NDArray[np.uint8]:
    entry, kind, severity = cell
    return preprocess(corrupted(open_rgb(folder / entry.path), kind, severity, entry.sha256), spec)
