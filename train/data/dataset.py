"""Lists the labelled images of a data folder. The layout is one folder per class, C-NMC 2019, or a CSV manifest.

A data set may come split: into folders called train, validation and test, or by a manifest column ``side``.

Only file names are read here; `scan` opens the files. Whatever cannot be used becomes a `Problem`, and every command
reports the count and the names.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path, PurePosixPath

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import is_output, walk
from .cnmc import load_cnmc
from .csv_manifest import load_manifest
from .folders import load_folders
from .samples import Dataset

NEGATIVE_LABELS = frozenset({"benign", "hem", "healthy", "normal", "negative"})
"""Class names, in lower case, that mean healthy."""


def load_dataset(path: Path) -> Dataset:
    """List the labelled images below ``path``.

    Args:
        path: one of four. A folder with one folder per class (images at any depth). The same below ``train``, ``test``
            and optionally ``validation``. A copy of C-NMC 2019. A ``.csv`` manifest with the columns ``path,label``
            and optionally ``subject`` and ``side``. `walk` says which files are listed.

    Returns:
        A data set with at least one sample. No image has been opened.

    Raises:
        DataError: the path does not exist, there are no class folders, the class folders are one level further down,
            a class name cannot be a label, or the manifest is invalid.
    """
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise DataError(
                f"{path}: neither a folder nor a .csv manifest", hint="give the folder that holds the classes"
            )
        return load_manifest(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder", hint="check the path given to --data")
    first, reason = next(walk(path), (None, ""))
    if first == path:
        raise DataError(f"{path}: {reason}", hint="check its owner and mode")
    if is_output(path):
        raise DataError(f"{path}: written by edgeall, not a data folder", hint="give the folder with the images")
    return load_cnmc(path) or load_folders(path)


def independent_notes(dataset: Dataset) -> list[str]:
    """One note for each test set that is kept out of the split: its image count and how to evaluate on it."""
    folders = Counter(PurePosixPath(sample.path).parent.as_posix() for sample in dataset.independent)
    return [
        f"{folder}: {count:,} labelled images kept out of the split, as an independent test set: "
        f"edgeall evaluate RUN --data {shlex.quote(str(dataset.root / folder))}"
        for folder, count in sorted(folders.items())
    ]


def positive_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that mean disease: all except the one in `NEGATIVE_LABELS`. Empty unless exactly one is in there."""
    negative = [label for label in labels if label.lower() in NEGATIVE_LABELS]
    return tuple(label for label in labels if label != negative[0]) if len(negative) == 1 else ()


def unit(dataset: Dataset) -> str:
    """What one image shows: a ``cell`` (C-NMC, and crops that `edgeall cells` wrote) or a ``field`` of a smear."""
    crops = dataset.root.name == "crops" and is_output(dataset.root.resolve().parent)
    return "cell" if crops or dataset.layout == "cnmc" else "field"
