"""Chooses the images that a model is evaluated on, and finds the split that the model was made with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, UsageError
from ..data.dataset import independent_notes, load_dataset
from ..data.samples import Dataset
from ..data.scan import hash_files, scan
from ..data.split import Split, SplitEntry, check_split, load_split


@dataclass(frozen=True)
class Selection:
    """The images to evaluate on.

    Attributes:
        folder: the paths of the entries are relative to it.
        entries: the labelled images.
        subset: ``train``, ``validation``, ``test``, ``all`` or ``site``.
        level: of the split; ``none`` for data without a split, ``site`` for external validation.
    """

    folder: Path
    entries: Sequence[SplitEntry]
    subset: str
    level: str


@dataclass(frozen=True)
class Known:
    """What is known about a model before it is evaluated.

    Attributes:
        path: of the model file or run folder.
        labels: its classes, in output order.
        split: the split that it was made with, if known.
        must_match: whether the data must be that of the split.
    """

    path: Path
    labels: tuple[str, ...]
    split: Split | None
    must_match: bool


def select(known: Known, root: Path, subset: str | None, progress: Progress) -> Selection:
    """Choose the images of a data folder or manifest.

    Data that holds an image of the model's split must be the data of that split; then a subset is selected. All images
    of other data are selected.

    Args:
        known: the model.
        root: data folder or manifest.
        subset: of the split; None is ``test``.
        progress: receives notes.

    Raises:
        UsageError: a subset of data without a split.
        DataError: the data changed since the split, or has classes that the model does not have.
    """
    dataset = load_dataset(root)
    split = known.split
    if split is not None and (known.must_match or _holds_some_of(dataset, split)):
        check_split(split, root)
        _check_labels(split.labels, known)
        subset = subset or "test"
        return Selection(dataset.root, split.subset(subset), subset, split.level)
    if subset not in (None, "all"):
        raise UsageError(f"--side {subset}: no split says which images those are", hint="give --split RUN/split.json")
    scanned = scan(dataset)
    for text in independent_notes(dataset):
        progress.note(text)
    for problem in scanned.dataset.problems:
        progress.note(f"skipped {problem.path}: {problem.reason}")
    _check_labels(scanned.dataset.labels, known)
    if split is None:
        progress.note(f"all images of {root}: if the model was trained on any of them, the figures are too good")
    entries = [SplitEntry(f.sample.path, f.sample.label, f.sample.subject, f.sha256, "all") for f in scanned.facts]
    return Selection(dataset.root, entries, "all", "none")


def model_split(model: Path, sha256: str | None, given: Path | None) -> Split | None:
    """The split that a model file was made with: ``given``, or ``split.json`` beside the model if its digest matches.

    Raises:
        DataError: ``given`` is another split.
    """
    if given is not None:
        split = load_split(given)
        if sha256 is not None and split.sha256 != sha256:
            raise DataError(
                f"{given}: not the split that {model} was made with",
                hint="another split would count training images as unseen; give the model's own split.json",
            )
        return split
    beside = model.with_name("split.json")
    if sha256 is None or not beside.exists():
        return None
    split = load_split(beside)
    return split if split.sha256 == sha256 else None


def model_images(model: Path, data: Path | None, split: Split | None) -> Path | None:
    """The folder with the images of a model's split: from ``--data``, or from a matching ``run.json`` beside it."""
    if data is not None:
        return data if data.is_dir() else data.parent
    try:
        run = json.loads(model.with_name("run.json").read_text(encoding="utf-8"))
        root = Path(run["data"]["root"]) if split and run["split"]["sha256"] == split.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return root.parent if root and root.is_file() else root


def _holds_some_of(dataset: Dataset, split: Split) -> bool:
    """Whether any image is in the split, by content."""
    known = {entry.sha256 for entry in split.entries}
    return any(digest in known for digest in hash_files([dataset.root / sample.path for sample in dataset.samples]))


def _check_labels(found: tuple[str, ...], known: Known) -> None:
    unknown = [label for label in found if label not in known.labels]
    if unknown:
        raise DataError(
            f"the data's classes ({', '.join(found)}) are not those of {known.path} ({', '.join(known.labels)})",
            hint="evaluate on a folder with classes the model was trained on",
        )
