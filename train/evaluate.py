"""Metrics of a Keras run or of a ``model.tflite``: same images, same figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.edge_runtime.preprocess import load_input
from edgeall.train import cache
from edgeall.train.dataset import load_dataset, positive_labels
from edgeall.train.metrics import compute_metrics
from edgeall.train.progress import Progress
from edgeall.train.scan import scan
from edgeall.train.split import Split, check_split, load_split


class Labelled(Protocol):
    """What evaluation needs of an image: a sample of a data set, or an entry of a split."""

    @property
    def path(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def subject(self) -> str | None: ...


def evaluate(
    target: Path,
    *,
    data: Path | None = None,
    side: str = "test",
    split: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Classify labelled images and count.

    Args:
        target: a run folder (its Keras model), or a model file (through the device's own code path).
        data: folder or manifest; a run knows its own.
        side: which side of the split.
        split: the ``split.json`` to take the side from. A run uses its own; so does a model that lies beside
            the split it was made with; any other model is evaluated on all of ``data``.

    Returns:
        `compute_metrics`'s dictionary with ``model`` and ``seconds``.

    Raises:
        UsageError: what can't be combined.
        DataError: the images aren't those of the split, or their labels aren't the model's.
    """
    started = time.perf_counter()
    if target.is_dir():
        if split is not None:
            raise UsageError("a run is evaluated on its own split", hint="leave --split out")
        metrics = _run(target, data, side, progress)
    else:
        metrics = _model(target, data, side, split, progress)
    return {"model": str(target), **metrics, "seconds": time.perf_counter() - started}


def _run(run: Path, data: Path | None, side: str, progress: Progress) -> dict[str, Any]:
    from edgeall.train import runs
    from edgeall.train.batches import plain

    facts = runs.load_run(run)
    root = data or runs.data_root(facts)
    if data is not None:
        _check_labels(load_dataset(data).labels, tuple(facts["labels"]), run)
    split = runs.load_verified_split(run, root)
    entries = split.side(side)
    sides = runs.load_sides(split, root, runs.input_spec(facts["settings"]), cache.default_cache_dir(), progress)
    chosen = list(sides.values()) if side == "all" else [sides[side]]
    order = np.argsort(np.concatenate([images.rows for images in chosen]))
    images = replace(
        chosen[0],
        rows=np.concatenate([images.rows for images in chosen])[order],
        labels=np.concatenate([images.labels for images in chosen])[order],
    )
    probabilities = runs.load_model(run, facts).predict(plain(images, 64), verbose=0)
    positive = tuple(facts["positive_labels"])
    return _metrics(entries, split.labels, probabilities, positive, side, split.level, facts["settings"]["seed"])


def _model(path: Path, data: Path | None, side: str, split: Path | None, progress: Progress) -> dict[str, Any]:
    if data is None:
        raise UsageError(f"{path}: nothing to evaluate on", hint="name a folder of labelled images with --data")
    classifier = Classifier.open(path)
    dataset = load_dataset(data)
    _check_labels(dataset.labels, classifier.labels, path)
    known = _split(path, classifier, split)
    if known is not None:
        check_split(known, data)
        entries: Sequence[Labelled] = known.side(side)
        level = known.level
    else:
        scanned = scan(dataset)
        for problem in scanned.dataset.problems:
            progress.note(f"skipped {problem.path}: {problem.reason}")
        entries, side, level = scanned.dataset.samples, "all", "none"
        manifest = classifier.bundle.manifest if classifier.bundle else None
        if manifest is not None and manifest.training.get("dataset_sha256") == scanned.digest:
            progress.note("these images include those the model was trained on: give --split RUN/split.json")
    rows = []
    with progress.task("evaluating", len(entries)) as advance:
        for done, entry in enumerate(entries, start=1):
            rows.append(classifier.predict(load_input(dataset.root / entry.path, classifier.input)))
            advance(done, "")
    manifest = classifier.bundle.manifest if classifier.bundle else None
    positive = manifest.positive_labels if manifest else positive_labels(classifier.labels)
    return _metrics(entries, classifier.labels, np.stack(rows), positive, side, level, 0)


def _split(path: Path, classifier: Classifier, given: Path | None) -> Split | None:
    """The split asked for, or the one beside the model if it is the very one the model was made with."""
    if given is not None:
        return load_split(given)
    beside = path.with_name("split.json")
    manifest = classifier.bundle.manifest if classifier.bundle else None
    if manifest is None or not beside.exists():
        return None
    split = load_split(beside)
    return split if split.sha256 == manifest.training.get("split_sha256") else None


def _check_labels(found: tuple[str, ...], wanted: tuple[str, ...], model: Path) -> None:
    if found != wanted:
        raise DataError(
            f"the data's classes ({', '.join(found)}) are not those of {model} ({', '.join(wanted)})",
            hint="evaluate on a folder with the classes the model was trained on",
        )


def _metrics(
    entries: Sequence[Labelled],
    labels: tuple[str, ...],
    probabilities: NDArray[np.float32],
    positive: tuple[str, ...],
    side: str,
    level: str,
    seed: int,
) -> dict[str, Any]:
    index = {label: number for number, label in enumerate(labels)}
    truth = np.array([index[entry.label] for entry in entries], np.int64)
    subjects = [entry.subject for entry in entries]
    return compute_metrics(
        labels,
        truth,
        probabilities,
        positive,
        split=side,
        split_level=level,
        seed=seed,
        subjects=None if None in subjects else subjects,
    )
