"""The fields that a model of cells is evaluated on: their subsets are those of the crops that were cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import open_bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.manifest import Manifest
from ...edge_runtime.threads import Threads
from ...edge_runtime.vision.by_cells import classify_by_cells, open_cell_classifier
from ...edge_runtime.vision.cells import field_stem
from ...edge_runtime.vision.finder import finder_pool, open_finder
from ..data.split import Split, SplitEntry
from ..data.subsets import LEFT_OUT
from .config import EvaluateSettings
from .selection import Known, Selection, select


def open_for_fields(path: Path, settings: EvaluateSettings) -> tuple[Classifier, Manifest]:
    """Open a model of cells for the evaluation of fields; with its manifest.

    Raises:
        UsageError: a run, or a model of something else; or settings that are not for fields.
    """
    if path.is_dir():
        raise UsageError(f"{path}: --by-cells requires a model file", hint="quantize the run, then give the model file")
    others = {
        "--robustness": settings.robust,
        "--context": settings.context,
        "--against": settings.against,
        "--site": settings.site,
        "--explain": settings.explain,
        "--labels": settings.labels_file,
        "--mean": settings.mean,
        "--std": settings.std,
        "--input-size": settings.input_size,
    }
    given = [name for name, value in others.items() if value is not None and value is not False]
    if given:
        raise UsageError(f"{path}: {given[0]} is not used with --by-cells", hint=f"leave {given[0]} out")
    if settings.data is None:
        raise UsageError(f"{path}: nothing to evaluate on", hint="name a folder of labelled fields with --data")
    bundle = open_bundle(path)
    classifier = open_cell_classifier(bundle, 1)
    assert bundle.manifest is not None
    return classifier, bundle.manifest


def select_fields(known: Known, settings: EvaluateSettings, progress: Progress) -> Selection:
    """Choose the fields of a subset. All of them, if no crop of the model's split was cut from them.

    Args:
        known: the model, with the split of its crops.
        settings: with ``data``, and perhaps ``side``.
        progress: receives notes.

    Raises:
        UsageError: a subset of fields without a split.
        DataError: the fields have classes that the model does not have.
    """
    assert settings.data is not None
    split = known.split
    # The split has crops, and `select` finds none among the fields: it takes all of them.
    every = select(known, settings.data, None, progress)
    subset_of = {} if split is None else _subsets(split)
    found = [entry for entry in every.entries if _field(entry.path) in subset_of]
    if split is None or not found:
        if settings.side not in (None, "all"):
            raise UsageError(
                f"--side {settings.side}: no split says which fields those are", hint="give --split RUN/split.json"
            )
        if split is not None:
            progress.note(f"all images of {settings.data}: none is a field that crops of the split were cut from")
        return every
    wanted = settings.side or "test"
    chosen = [entry for entry in found if wanted in ("all", subset_of[_field(entry.path)])]
    if not chosen:
        raise DataError(f"{settings.data}: no field of the {wanted} subset", hint="give the fields of the crops")
    return replace(every, entries=chosen, subset=wanted, level=split.level)


def classify_fields(
    classifier: Classifier, selected: Selection, cell_model: Path | None, progress: Progress
) -> tuple[Sequence[SplitEntry], NDArray[np.float32], NDArray[np.bool_] | None]:
    """Classify fields by their cells.

    Returns:
        The fields with a whole cell, the others being noted; their calibrated probabilities ``(fields, labels)``; and
        ``(fields,)`` which are out of distribution, None without a detector.

    Raises:
        DataError: a field cannot be read, or none has a whole cell.
    """
    files = [str(selected.folder / entry.path) for entry in selected.entries]
    labels = classifier.labels
    finder = finder_pool(partial(open_finder, cell_model), len(files))
    entries, rows, unfamiliar = [], [], []
    with Threads(finder.count) as threads, progress.task("evaluating", len(files)) as advance:
        predictions = classify_by_cells(classifier, finder, files, None, None, threads)
        for done, (entry, found) in enumerate(zip(selected.entries, predictions, strict=True), 1):
            if found.error is not None and found.cells is None:
                raise DataError(found.error, hint="remove the image, or copy it again")
            if found.error is None:
                entries.append(entry)
                rows.append([found.probabilities[label] for label in labels])
                unfamiliar.append(found.novelty is not None and found.novelty > 1)
            advance(done, "")
    if len(entries) < len(files):
        progress.note(f"{len(files) - len(entries)} of {len(files)} fields have no whole cell and are left out")
    if not entries:
        raise DataError(f"{selected.folder}: no field with a whole cell", hint="are these fields of a smear?")
    detects = classifier.ood_detector is not None
    return entries, np.array(rows, np.float32), np.array(unfamiliar) if detects else None


def _subsets(split: Split) -> dict[str, str]:
    """The subset of each field that crops of a split were cut from. A crop that was left out says nothing of it."""
    found: dict[str, str] = {}
    for entry in split.entries:
        if entry.side != LEFT_OUT:
            found[_field(entry.path)] = entry.side
        found.setdefault(_field(entry.path), entry.side)
    return found


def _field(path: str) -> str:
    """The path of an image, or of the field that a crop was cut from, without its suffix."""
    pure = PurePosixPath(path)
    return str(pure.with_name(field_stem(pure.stem)))
