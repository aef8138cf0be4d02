"""Lists C-NMC 2019 as it is distributed: training cells in folds, the preliminary and the final test set."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import not_an_image
from .csv_manifest import read_rows
from .samples import Dataset, Problem, Sample, is_image, list_files, make_dataset

CELL_NAME = re.compile(r"UID_([Hh]?\d+)_\d+_\d+_(all|hem)")
"""C-NMC's file names, without the suffix: ``UID_<subject>_<image>_<cell>_<all|hem>``."""

_FOLD_NAME = re.compile(r"fold_\d+", re.IGNORECASE)
_LABELS = ("all", "hem")
_COLUMNS = {"Patient_ID", "new_names", "labels"}
"""Columns of the CSV file of the preliminary test set."""
_PRELIMINARY = re.compile(r"test_prelim", re.IGNORECASE)
_FINAL = re.compile(r"test_final", re.IGNORECASE)


def load_cnmc(root: Path) -> Dataset | None:
    """List C-NMC 2019 in any way it may be unpacked. None if ``root`` is another data set.

    Training cells are in ``fold_<n>/{all,hem}``, at the root or below other folders. The preliminary test set is a
    folder of numbered files; a CSV file gives their original names and labels. The final test set has no labels.
    Next to training cells the preliminary test set is independent, because it was published for testing.

    Raises:
        DataError: no labelled cell, or an invalid CSV file.
    """
    problems: list[Problem] = []
    folders: dict[Path, list[Path]] = {}
    for file in list_files(root, root, problems):
        folders.setdefault(file.parent, []).append(file)
    cells = {folder for folder in folders if _is_cell_folder(folder, root, folders[folder])}
    preliminary = {
        folder
        for folder, files in folders.items()
        if folder not in cells and _is_named(folder, root, _PRELIMINARY) and any(map(is_image, files))
    }
    if not cells and not preliminary:
        return None

    samples: list[Sample] = []
    independent: list[Sample] = []
    for folder, files in folders.items():
        if folder in cells:
            _add_cells(root, folder, files, samples, problems)
        elif folder in preliminary:
            _add_preliminary(root, folder, files, independent if cells else samples, problems)
        elif count := sum(map(is_image, files)):
            why = "the final test set comes without labels" if _is_named(folder, root, _FINAL) else "no labels known"
            problems.append(Problem(folder.relative_to(root).as_posix(), f"{count} images ignored: {why}"))
    if not samples:
        reasons = "; ".join(f"{problem.path}: {problem.reason}" for problem in problems[:3])
        raise DataError(f"{root}: looks like C-NMC but holds no labelled cell ({reasons})")
    dataset = make_dataset(root, "cnmc", samples, problems)
    return replace(dataset, independent=tuple(sorted(independent, key=lambda sample: sample.path)))


def cell_subject(stem: str) -> tuple[str, str] | None:
    """Subject and label of a C-NMC file name without its suffix; None for another name.

    Healthy subjects are written ``H7`` in some files and ``h7`` in others. It is not documented whether these are one
    person. They are treated as one, because one person in two subsets would be the worse error.
    """
    match = CELL_NAME.fullmatch(stem)
    return (match.group(1).upper(), match.group(2)) if match else None


def _is_cell_folder(folder: Path, root: Path, files: list[Path]) -> bool:
    if folder.name not in _LABELS or folder == root:
        return False
    if _FOLD_NAME.fullmatch(folder.parent.name):
        return True
    # The root may be one fold, or all folds merged: then the file names decide.
    return any(cell_subject(file.stem) for file in files)


def _is_named(folder: Path, root: Path, name: re.Pattern[str]) -> bool:
    parts = folder.relative_to(root).parts or (root.resolve().name,)
    return any(name.search(part) for part in parts)


def _add_cells(root: Path, folder: Path, files: list[Path], samples: list[Sample], problems: list[Problem]) -> None:
    for file in files:
        relative = file.relative_to(root).as_posix()
        parsed = cell_subject(file.stem)
        if not is_image(file):
            problems.append(Problem(relative, not_an_image(file)))
        elif parsed is None:
            # One sample without a subject would make the whole split an image-level split.
            problems.append(Problem(relative, "no subject in the name (UID_<subject>_<image>_<cell>_<all|hem>)"))
        elif parsed[1] != folder.name:
            problems.append(Problem(relative, f"the name says {parsed[1]}, the folder says {folder.name}"))
        else:
            samples.append(Sample(relative, folder.name, parsed[0]))


def _add_preliminary(
    root: Path, folder: Path, files: list[Path], samples: list[Sample], problems: list[Problem]
) -> None:
    table = _preliminary_table(folder)
    if table is None:
        count = sum(map(is_image, files))
        reason = f"{count} images ignored: no CSV with the columns {','.join(sorted(_COLUMNS))} beside the folder"
        problems.append(Problem(folder.relative_to(root).as_posix(), reason))
        return
    originals = _read_preliminary(table)
    for file in files:
        relative = file.relative_to(root).as_posix()
        if file.suffix.lower() == ".csv":
            continue
        if not is_image(file):
            problems.append(Problem(relative, not_an_image(file)))
        elif file.name not in originals:
            problems.append(Problem(relative, f"not listed in {table.name}"))
        else:
            subject, label = originals.pop(file.name)
            samples.append(Sample(relative, label, subject))
    problems += [
        Problem((folder / name).relative_to(root).as_posix(), f"listed in {table.name}, but not there")
        for name in originals
    ]


def _preliminary_table(folder: Path) -> Path | None:
    parent = folder.parent
    for pattern_root, pattern in ((folder, "*.csv"), (parent, "*.csv"), (parent, "*/*.csv"), (parent.parent, "*.csv")):
        for table in sorted(pattern_root.glob(pattern)):
            if set(_header(table)) >= _COLUMNS:
                return table
    return None


def _header(table: Path) -> list[str]:
    """The first line of any CSV file; empty if it cannot be read as CSV."""
    try:
        with open(table, encoding="utf-8-sig", errors="replace", newline="") as lines:
            return next(csv.reader(lines), [])
    except (csv.Error, OSError):
        return []


def _read_preliminary(table: Path) -> dict[str, tuple[str, str]]:
    """New file name -> (subject, label)."""
    found: dict[str, tuple[str, str]] = {}
    for line, row in read_rows(table, required=_COLUMNS):
        name, original, number = row["new_names"].strip(), row["Patient_ID"].strip(), row["labels"].strip()
        parsed = cell_subject(PurePosixPath(original).stem)
        if parsed is None or number not in {"0", "1"} or parsed[1] != ("all" if number == "1" else "hem"):
            raise DataError(
                f"{table}, line {line}: Patient_ID {original!r} and labels {number!r} do not fit together",
                hint="Patient_ID is UID_<subject>_<image>_<cell>_<all|hem>.bmp; labels is 1 for all, 0 for hem",
            )
        if name in found:
            raise DataError(f"{table}, line {line}: {name} is listed twice", hint="remove one of the two lines")
        found[name] = parsed
    return found
