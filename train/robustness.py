"""How accurate a model stays when the microscope changes: `edgeall.train.corruptions` through the device's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.calibration import calibrated
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import ImageError
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.parallel import Layout, Pool
from edgeall.edge_runtime.preprocess import InputSpec, preprocess
from edgeall.edge_runtime.tools.tables import percent, table
from edgeall.train.corruptions import CORRUPTIONS, SEVERITIES, SUITE, corrupted
from edgeall.train.metrics import expected_calibration_error
from edgeall.train.progress import Progress
from edgeall.train.split import SplitEntry

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
    review_below: float = 0.0,
) -> dict[str, Any]:
    """Accuracy under every corruption at every severity.

    Each image is decoded, corrupted at its own size, and then goes the way of any other. What is drawn depends on the
    corruption, the severity and the file's digest, so two models see the same pixels.

    Args:
        classifier: of the file that the device will run.
        layout: how to spread it over the cores.
        folder: where the entries' paths start.
        entries: labelled images, none of which it was trained on.
        kinds: of `CORRUPTIONS`.
        temperature: of the model's calibration.
        review_below: of its decision.

    Returns:
        - suite: `SUITE`; images: how many of each;
        - mean: of all cells, a cell being one corruption at one severity, 0..1;
        - worst: the lowest cell; worst_at: its corruption and severity;
        - ece_mean: expected calibration error, mean of all cells;
        - by_corruption: to each its mean, accuracy by severity and worst class recall by severity, and
          ``reviewed_by_severity``, the share sent to review;
        - reviewed_mean: of all cells; accuracy_of_the_rest: of all images that are not sent to review, None where all
          are. Of a model without a novelty score and a review rule, nothing is reviewed.

    Raises:
        ImageError: an image that can't be read.
    """
    cells: list[Cell] = [(entry, kind, severity) for kind in kinds for severity in SEVERITIES for entry in entries]
    rows: list[NDArray[np.float32]] = []
    strange: list[bool] = []
    with progress.task("robustness", len(cells)) as advance, Pool(classifier, layout) as pool:
        for (_, kind, severity), outcome in pool.map(partial(_load, folder, classifier.input), cells):
            if isinstance(outcome, ImageError):
                raise outcome
            rows.append(outcome.probabilities)
            strange.append(outcome.novelty is not None and outcome.novelty > 1)
            advance(len(rows), f"{kind} {severity}")
    index = {label: number for number, label in enumerate(classifier.labels)}
    truth = np.array([index[entry.label] for entry in entries])
    probabilities = calibrated(np.stack(rows), temperature).reshape(len(kinds), len(SEVERITIES), len(entries), -1)
    right = probabilities.argmax(axis=-1) == truth
    reviewed = (probabilities.max(axis=-1) < review_below) | np.array(strange).reshape(right.shape)
    rest = right[~reviewed]
    accuracy = right.mean(axis=-1)
    recalls = np.stack([right[..., truth == label].mean(axis=-1) for label in np.unique(truth)])
    row, column = (int(place) for place in np.unravel_index(int(accuracy.argmin()), accuracy.shape))
    calibration = [
        expected_calibration_error(cell.max(axis=-1).astype(np.float64), correct)
        for cell, correct in zip(
            probabilities.reshape(-1, *probabilities.shape[2:]), right.reshape(-1, len(entries)), strict=True
        )
    ]
    return {
        "suite": SUITE,
        "images": len(entries),
        "mean": float(accuracy.mean()),
        "worst": float(accuracy.min()),
        "worst_at": {"corruption": kinds[row], "severity": SEVERITIES[column]},
        "ece_mean": float(np.mean(calibration)),
        "reviewed_mean": float(reviewed.mean()),
        "accuracy_of_the_rest": float(rest.mean()) if len(rest) else None,
        "by_corruption": {
            kind: {
                "mean": float(accuracy[number].mean()),
                "by_severity": accuracy[number].tolist(),
                "worst_recall_by_severity": recalls[:, number].min(axis=0).tolist(),
                "reviewed_by_severity": reviewed[number].mean(axis=-1).tolist(),
            }
            for number, kind in enumerate(kinds)
        },
    }


def robustness_text(found: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = [
        [kind, *(percent(value) for value in cells["by_severity"]), percent(cells["mean"])]
        for kind, cells in found["by_corruption"].items()
    ]
    at = found["worst_at"]
    said = (
        f"under {len(rows)} corruptions at {len(SEVERITIES)} severities: mean {percent(found['mean'])}, worst "
        f"{percent(found['worst'])} ({at['corruption']} at {at['severity']}); {found['images']:,} images each"
    )
    if found["reviewed_mean"] > 0:
        said += (
            f"\nreview is asked for {percent(found['reviewed_mean'])} of them; of the others "
            f"{percent(found['accuracy_of_the_rest'])} are right"
        )
    return f"{table(['corruption', *map(str, SEVERITIES), 'mean'], rows)}\n\n{said}"


def _load(folder: Path, spec: InputSpec, cell: Cell) -> NDArray[np.uint8]:
    entry, kind, severity = cell
    return preprocess(corrupted(open_rgb(folder / entry.path), kind, severity, entry.sha256), spec)
