"""Accuracy of a model file under changes of the microscope: the `corruptions` suite, with the device's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...console.tables import four, percent, table
from ...edge_runtime.calibration import apply_temperature
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.parallel import Layout, Pool
from ...edge_runtime.preprocess import InputSpec, preprocess
from ...edge_runtime.results import OPTIONAL, Result
from ..data.split import SplitEntry
from ..segmentation.results import MaskRobustness
from .corruptions import CORRUPTIONS, SEVERITIES, SUITE, WorstCell, corrupted
from .metrics import expected_calibration_error
from .reliability import sent_to_review

Cell = tuple[SplitEntry, str, int]
"""An image, a corruption and a severity."""


@dataclass(frozen=True)
class UnderCorruption(Result):
    """Figures under one corruption: mean accuracy, and lists by severity. The last is None without review."""

    mean: float
    by_severity: list[float]
    worst_recall_by_severity: list[float]
    ece_by_severity: list[float]
    reviewed_by_severity: list[float] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Robustness(Result):
    """Accuracy, calibration and review under corruptions. A cell is one corruption at one severity.

    Attributes:
        suite: `SUITE`.
        images: their number in each cell.
        mean: accuracy over all cells, 0..1; ``worst``: of the worst cell, ``worst_at``.
        ece_mean: expected calibration error of all cells; ``ece_worst``: the highest.
        reviewed_mean: share of images sent to review. None for a model that sends no image to review, like the next
            two.
        wrong_not_reviewed_mean: share of images that are wrong and not sent.
        accuracy_of_the_rest: of all images that are not sent.
        by_corruption: see `UnderCorruption`.
    """

    suite: int
    images: int
    mean: float
    worst: float
    worst_at: WorstCell
    ece_mean: float
    ece_worst: float
    reviewed_mean: float | None
    wrong_not_reviewed_mean: float | None
    accuracy_of_the_rest: float | None
    by_corruption: dict[str, UnderCorruption]


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
) -> Robustness:
    """Accuracy, calibration and review under every corruption at every severity.

    Each image is decoded, corrupted at its own size, and then processed as usual. The random numbers depend on the
    corruption, the severity and the digest of the file, so two models get the same pixels.

    Args:
        classifier: of the model file.
        layout: how to spread the work over the cores.
        folder: the paths of the entries are relative to it.
        entries: labelled images that the model was not trained on.
        progress: receives the progress bar.
        kinds: of `CORRUPTIONS`.
        temperature: of the model's calibration.
        review_below: images with a lower top probability are sent to review; None without a threshold.

    Raises:
        ImageError: an image cannot be read.
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
    shape = (len(kinds), len(SEVERITIES), len(entries))
    probabilities = apply_temperature(np.stack(rows), temperature).reshape(*shape, -1)
    new = np.array(unfamiliar).reshape(shape) if classifier.ood_detector else None
    return _summary(kinds, truth, probabilities, sent_to_review(probabilities, review_below, new))


def _summary(
    kinds: Sequence[str], truth: NDArray[np.int64], probabilities: NDArray[Any], sent: NDArray[np.bool_] | None
) -> Robustness:
    """The result of `robustness`.

    Args:
        kinds: the corruptions.
        truth: ``(images,)``.
        probabilities: ``(kinds, severities, images, labels)``.
        sent: which images are sent to review, ``(kinds, severities, images)``; None without review.
    """
    right = probabilities.argmax(axis=-1) == truth
    accuracy = right.mean(axis=-1)
    recalls = np.stack([right[..., truth == label].mean(axis=-1) for label in np.unique(truth)])
    row, column = (int(place) for place in np.unravel_index(int(accuracy.argmin()), accuracy.shape))
    confidence = probabilities.max(axis=-1).astype(np.float64)
    ece = np.array(
        [list(map(expected_calibration_error, sure, correct)) for sure, correct in zip(confidence, right, strict=True)]
    )
    return Robustness(
        suite=SUITE,
        images=len(truth),
        mean=float(accuracy.mean()),
        worst=float(accuracy.min()),
        worst_at=WorstCell(kinds[row], SEVERITIES[column]),
        ece_mean=float(ece.mean()),
        ece_worst=float(ece.max()),
        reviewed_mean=None if sent is None else float(sent.mean()),
        wrong_not_reviewed_mean=None if sent is None else float((~right & ~sent).mean()),
        accuracy_of_the_rest=None if sent is None or sent.all() else float(right[~sent].mean()),
        by_corruption={
            kind: UnderCorruption(
                mean=float(accuracy[number].mean()),
                by_severity=accuracy[number].tolist(),
                worst_recall_by_severity=recalls[:, number].min(axis=0).tolist(),
                ece_by_severity=ece[number].tolist(),
                reviewed_by_severity=None if sent is None else sent[number].mean(axis=-1).tolist(),
            )
            for number, kind in enumerate(kinds)
        },
    )


def robustness_text(found: Robustness | MaskRobustness) -> str:
    """The result of `robustness`, or that of masks, as a table."""
    if isinstance(found, MaskRobustness):
        return _dice_text(found)
    has_review = found.reviewed_mean is not None
    rows = [
        [
            kind,
            *map(percent, cells.by_severity),
            percent(cells.mean),
            *(f"{cells.ece_by_severity[place]:.3f}" for place in (0, -1)),
            *(percent(cells.reviewed_by_severity[place]) for place in (0, -1) if cells.reviewed_by_severity),
        ]
        for kind, cells in found.by_corruption.items()
    ]
    ends = (SEVERITIES[0], SEVERITIES[-1])
    heads = ["corruption", *map(str, SEVERITIES), "mean", *(f"ECE {end}" for end in ends)]
    heads += [f"review {end}" for end in ends] if has_review else []
    text = (
        f"under {len(rows)} corruptions at {len(SEVERITIES)} severities: mean {percent(found.mean)}, worst "
        f"{percent(found.worst)} ({found.worst_at.corruption} at {found.worst_at.severity}); "
        f"{found.images:,} images each\n"
        f"calibration error: mean {found.ece_mean:.4f}, worst {found.ece_worst:.4f}"
    )
    if has_review:
        text += f"; sent to review: {percent(found.reviewed_mean)} on average"
        text += f", accuracy of the rest {percent(found.accuracy_of_the_rest) or '-'}"
        text += f"; wrong and not sent: {percent(found.wrong_not_reviewed_mean)} of the images on average"
    return f"{table(heads, rows)}\n\n{text}"


def _dice_text(found: MaskRobustness) -> str:
    rows = [[kind, *map(four, cells.by_severity), four(cells.mean)] for kind, cells in found.by_corruption.items()]
    at = found.worst_at
    return (
        f"{table(['corruption', *map(str, SEVERITIES), 'mean'], rows)}\n\nDice of nucleus and whole cell under "
        f"{len(rows)} corruptions at {len(SEVERITIES)} severities: mean {found.mean:.4f}, worst "
        f"{found.worst:.4f} ({at.corruption} at {at.severity}); {found.images:,} images each"
    )


def _load(folder: Path, spec: InputSpec, cell: Cell) -> NDArray[np.uint8]:
    entry, kind, severity = cell
    return preprocess(corrupted(open_rgb(folder / entry.path), kind, severity, entry.sha256), spec)
