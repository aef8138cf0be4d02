"""A data set as listed: samples, problems, and the file checks that all layouts share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import SUFFIXES, is_output, is_system, walk

_FORBIDDEN_IN_LABEL = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, bytes that are not text, line and paragraph separators."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        path: relative to the root of the data set, with ``/`` on every system.
        label: the class name; of an image with a mask, the laboratory.
        subject: the person the image was taken from, if known.
        side: ``train``, ``validation`` or ``test`` if the data set comes split. Then every sample has one.
        mask: path of its mask; None in a data set without masks.
        red_cell_px: diameter of a red cell in pixels of the image, if known; only with a mask.
    """

    path: str
    label: str
    subject: str | None = None
    side: str | None = None
    mask: str | None = None
    red_cell_px: float | None = None


@dataclass(frozen=True)
class Problem:
    """A file or folder that was skipped, with the reason in one line. ``path`` is relative to the root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The contents of a data folder.

    Attributes:
        root: the folder that every path is relative to.
        layout: ``folders``, ``cnmc``, ``manifest`` or ``masks``.
        labels: sorted class names, one or more. Only `make_split` requires two.
        samples: sorted by path.
        problems: sorted by path.
        independent: labelled images of a test set that was published separately (the preliminary test set of C-NMC).
            They are kept out of every split. Sorted by path.
    """

    root: Path
    layout: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()
    independent: tuple[Sample, ...] = ()


def make_dataset(root: Path, layout: str, samples: list[Sample], problems: list[Problem]) -> Dataset:
    """Sort the samples and the problems. Raises DataError for a class name that cannot be a label."""
    labels = tuple(sorted({sample.label for sample in samples}))
    for label in labels:
        # The packed model stores each label as one line of labels.txt.
        if label != label.strip() or any(unicodedata.category(sign) in _FORBIDDEN_IN_LABEL for sign in label):
            raise DataError(
                f"{root}: class {label!r} has a blank at an end of its name, or a control character in it",
                hint="rename the folder" if layout in ("folders", "cnmc") else "change the label",
            )
    by_path = sorted(samples, key=lambda sample: sample.path)
    return Dataset(root, layout, labels, tuple(by_path), tuple(sorted(problems, key=lambda problem: problem.path)))


def list_files(folder: Path, root: Path | None = None, problems: list[Problem] | None = None) -> Iterator[Path]:
    """The files below ``folder``, sorted. Whatever `walk` skips is added to ``problems``."""
    for path, reason in walk(folder, links=folder == root):
        if not reason:
            yield path
        elif root is not None and problems is not None:
            problems.append(Problem(path.relative_to(root).as_posix(), reason))


def visible_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are neither hidden nor written by edgeall, sorted."""
    return sorted(child for child in visible_children(folder) if child.is_dir() and not is_output(child))


def visible_children(folder: Path) -> list[Path]:
    """Everything in a folder that is not hidden. Empty if the folder cannot be listed: `walk` reports that."""
    try:
        return [child for child in folder.iterdir() if not is_system(child.name)]
    except OSError:
        return []


def is_image(file: Path) -> bool:
    """Whether the file name has the suffix of an image."""
    return file.suffix.lower() in SUFFIXES
