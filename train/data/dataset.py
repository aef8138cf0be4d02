"""Finds the labelled images of a data folder: one folder per class, C-NMC 2019 as distributed, or a CSV manifest.

A set may come split: in folders called train, validation and test, or with a column ``side`` in its manifest.

Only names are looked at here; `scan` opens the files. Nothing that can't be used is dropped in silence: it becomes
a `Problem` that every command counts and names.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import SUFFIXES, is_output, is_system, not_an_image, walk

HEALTHY = frozenset({"benign", "hem", "healthy", "normal", "negative"})
CELL_NAME = re.compile(r"UID_([Hh]?\d+)_\d+_\d+_(all|hem)")
"""C-NMC's file names, without the suffix: ``UID_<subject>_<image>_<cell>_<all|hem>``."""

_FOLD_NAME = re.compile(r"fold_\d+", re.IGNORECASE)
_CNMC_LABELS = ("all", "hem")
_CNMC_COLUMNS = {"Patient_ID", "new_names", "labels"}
_PRELIMINARY = re.compile(r"test_prelim", re.IGNORECASE)
_FINAL = re.compile(r"test_final", re.IGNORECASE)
_VARIANT_NAMES = frozenset(
    {"original", "segmented", "raw", "images", "augmented"}
    | {"train", "training", "test", "testing", "val", "valid", "validation"}
)
GIVEN_SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a set that comes split calls a side, in lower case, and what edgeall calls it."""

_COLUMNS = ("path", "label", "subject", "side")
_NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, bytes that are no text, and separators of lines and paragraphs."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        path: relative to the data set's root, with ``/`` on every system.
        label: the class name.
        subject: the person the image was taken from, where the data says so.
        side: ``train``, ``validation`` or ``test`` where the set comes split: then every sample has one.
    """

    path: str
    label: str
    subject: str | None = None
    side: str | None = None


@dataclass(frozen=True)
class Problem:
    """A file or folder that was skipped, and why, in one line. ``path`` is relative to the root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """What a data folder holds.

    Attributes:
        root: the folder that every path is relative to.
        layout: ``folders``, ``cnmc`` or ``manifest``.
        labels: sorted class names, one or more; `split.make_split` is where two are asked for.
        samples: sorted by path.
        problems: sorted by path.
        independent: labelled images that are kept out of any split because they were published as a test set of their
            own (the preliminary test set of C-NMC); sorted by path.
    """

    root: Path
    layout: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()
    independent: tuple[Sample, ...] = ()


def load_dataset(path: Path) -> Dataset:
    """List the labelled images below ``path``.

    Args:
        path: a folder with one folder per class (images anywhere below it), the same below ``train``, ``test`` and,
            if there is one, ``validation``, a copy of C-NMC 2019, or a ``.csv`` manifest with the columns
            ``path,label`` and optionally ``subject`` and ``side``. What is looked at:
            see `walk`.

    Returns:
        A data set with at least one sample. No image has been opened yet.

    Raises:
        DataError: nothing there, no class folders, the class folders are one level further down, a class whose name
            can't be a label, or a bad manifest.
    """
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise DataError(
                f"{path}: neither a folder nor a .csv manifest", hint="give the folder that holds the classes"
            )
        return _load_manifest(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder", hint="check the path given to --data")
    first, reason = next(walk(path), (None, ""))
    if first == path:
        raise DataError(f"{path}: {reason}", hint="check its owner and mode")
    if is_output(path):
        raise DataError(f"{path}: written by edgeall, no data", hint="give the folder that the images are in")
    dataset = _load_cnmc(path)
    return dataset if dataset is not None else _load_folders(path)


def independent_notes(dataset: Dataset) -> list[str]:
    """For each test set that is kept out of the split how many images it has, and how to evaluate on it."""
    folders = Counter(PurePosixPath(sample.path).parent.as_posix() for sample in dataset.independent)
    return [
        f"{folder}: {count:,} labelled images kept out of the split, as an independent test set: "
        f"edgeall evaluate RUN --data {shlex.quote(str(dataset.root / folder))}"
        for folder, count in sorted(folders.items())
    ]


def positive_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that mean disease: all but the one healthy label, or none where it isn't plain which that is."""
    healthy = [label for label in labels if label.lower() in HEALTHY]
    return tuple(label for label in labels if label != healthy[0]) if len(healthy) == 1 else ()


def unit(dataset: Dataset) -> str:
    """What one image shows: a ``cell`` (C-NMC) or a ``field`` of a smear."""
    return "cell" if dataset.layout == "cnmc" else "field"


def cell_subject(stem: str) -> tuple[str, str] | None:
    """Subject and label in a C-NMC file name without its suffix, or None where it isn't such a name.

    Healthy subjects are written ``H7`` in some files and ``h7`` in others. Nothing says whether these are one
    person; they are taken as one, because parting one person over two sides of a split is the worse mistake.
    """
    match = CELL_NAME.fullmatch(stem)
    return (match.group(1).upper(), match.group(2)) if match else None


# --- one folder per class ---------------------------------------------------------------------------------------------


def _load_folders(root: Path) -> Dataset:
    sides = _side_folders(root)
    if not sides:
        _refuse_wrong_level(root, _visible_folders(root))
    samples: list[Sample] = []
    problems = [
        Problem(item.relative_to(root).as_posix(), "lies in no class folder")
        for place in (root, *sides)
        for item in _children(place)
        if item.suffix.lower() in SUFFIXES and item.is_file()
    ]
    problems += [
        Problem(item.relative_to(root).as_posix(), "written by edgeall: no data")
        for place in (root, *sides)
        for item in _children(place)
        if item.is_dir() and is_output(item)
    ]
    classes = [(folder, sides.get(place)) for place in sides or {root: ""} for folder in _visible_folders(place)]
    for folder, side in classes:
        found = 0
        for file in _files(folder, root, problems):
            relative = file.relative_to(root).as_posix()
            if file.suffix.lower() in SUFFIXES:
                samples.append(Sample(relative, folder.name, side=side))
                found += 1
            else:
                problems.append(Problem(relative, not_an_image(file)))
        where = folder.relative_to(root).as_posix()
        if not found and not any(problem.path == where for problem in problems):
            problems.append(Problem(where, "no image in this folder: not taken as a class"))
    if not samples:
        raise DataError(
            f"{root}: no class folder with images in it",
            hint="the layout is ROOT/<class>/<images>; see `edgeall data ls --help`",
        )
    return _dataset(root, "folders", samples, problems)


def _side_folders(root: Path) -> dict[Path, str]:
    """The folders that the set comes split into, each with its side; none where it doesn't come split.

    It does where all folders with images are called like sides, one of them is train, and each holds class folders.

    Raises:
        DataError: two folders of one side, or no test side.
    """
    filled = [folder for folder in _visible_folders(root) if any(_is_image(file) for file in _files(folder))]
    sides = {folder: GIVEN_SIDES.get(folder.name.lower(), "") for folder in filled}
    held = set(sides.values())
    nested = all(any(_holds_images(child) for child in _visible_folders(folder)) for folder in filled)
    if len(filled) < 2 or "" in held or "train" not in held or not nested:
        return {}
    if len(held) < len(sides):
        names = ", ".join(folder.name for folder in filled)
        raise DataError(f"{root}: two folders of one side ({names})", hint="keep one of them")
    if "test" not in held:
        raise DataError(
            f"{root}: comes split into {' and '.join(folder.name for folder in filled)}, without a test side",
            hint="add a folder test, or put the classes of both into one folder to have them split anew",
        )
    return sides


def _holds_images(folder: Path) -> bool:
    return any(_is_image(file) for file in _files(folder))


def _refuse_wrong_level(root: Path, folders: list[Path]) -> None:
    """Stop where `folders` hold variants or sides of one data set (Original/, train/) and not classes."""
    inner = {folder: _image_folders(folder) for folder in folders}
    nested = {folder: names for folder, names in inner.items() if len(names) > 1}
    if not nested:
        return
    filled = [folder for folder in folders if inner[folder] or _has_image(folder)]
    # The same folders inside of each are classes, unless they are numbered: slides or patients of each class.
    alike = len(filled) == len(nested) and len(set(nested.values())) == 1
    numbered = len(nested) > 1 and all(re.search(r"\d", name) for names in nested.values() for name in names)
    named = [folder for folder in nested if folder.name.lower() in _VARIANT_NAMES]
    if named or (alike and not numbered):
        best = named[0] if named else next(iter(nested))
        raise DataError(
            f"{root}: the classes seem to lie one level further down (it holds "
            f"{', '.join(folder.name for folder in filled)}; {best.name} holds {', '.join(nested[best][:6])})",
            hint=f"point at one of them, as in --data {best}; if they are the classes, list the images in a manifest",
        )


def _image_folders(folder: Path) -> tuple[str, ...]:
    """Names of the visible folders in `folder` with images somewhere below; () where it has images of its own."""
    if _has_image(folder):
        return ()
    return tuple(child.name for child in _visible_folders(folder) if any(_is_image(file) for file in _files(child)))


# --- C-NMC 2019 -------------------------------------------------------------------------------------------------------


def _load_cnmc(root: Path) -> Dataset | None:
    """C-NMC 2019 in any of the ways it is unpacked, or None where `root` is something else.

    Training cells lie in ``fold_<n>/{all,hem}``, at the root or below folders of any name. The preliminary test
    set is a folder of numbered files whose original names and labels come in a CSV; the final one has no labels.
    Beside training cells the preliminary test set is independent: it was published to be tested on.
    """
    problems: list[Problem] = []
    folders: dict[Path, list[Path]] = {}
    for file in _files(root, root, problems):
        folders.setdefault(file.parent, []).append(file)
    cells = {folder for folder in folders if _is_cell_folder(folder, root, folders[folder])}
    preliminary = {
        folder
        for folder, files in folders.items()
        if folder not in cells and _named(folder, root, _PRELIMINARY) and any(map(_is_image, files))
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
        elif count := sum(map(_is_image, files)):
            why = "the final test set comes without labels" if _named(folder, root, _FINAL) else "no labels known"
            problems.append(Problem(folder.relative_to(root).as_posix(), f"{count} images ignored: {why}"))
    if not samples:
        reasons = "; ".join(f"{problem.path}: {problem.reason}" for problem in problems[:3])
        raise DataError(f"{root}: looks like C-NMC but holds no labelled cell ({reasons})")
    dataset = _dataset(root, "cnmc", samples, problems)
    return replace(dataset, independent=tuple(sorted(independent, key=lambda sample: sample.path)))


def _is_cell_folder(folder: Path, root: Path, files: list[Path]) -> bool:
    if folder.name not in _CNMC_LABELS or folder == root:
        return False
    if _FOLD_NAME.fullmatch(folder.parent.name):
        return True
    # One fold given by itself, or the folds poured together: the names tell.
    return any(cell_subject(file.stem) for file in files)


def _add_cells(root: Path, folder: Path, files: list[Path], samples: list[Sample], problems: list[Problem]) -> None:
    for file in files:
        relative = file.relative_to(root).as_posix()
        parsed = cell_subject(file.stem)
        if not _is_image(file):
            problems.append(Problem(relative, not_an_image(file)))
        elif parsed is None:
            # Without a subject the whole set would fall back to an image-level split.
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
        count = sum(map(_is_image, files))
        reason = f"{count} images ignored: no CSV with the columns {','.join(sorted(_CNMC_COLUMNS))} beside the folder"
        problems.append(Problem(folder.relative_to(root).as_posix(), reason))
        return
    originals = _read_preliminary(table)
    for file in files:
        relative = file.relative_to(root).as_posix()
        if file.suffix.lower() == ".csv":
            continue
        if not _is_image(file):
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
            if set(_header(table)) >= _CNMC_COLUMNS:
                return table
    return None


def _header(table: Path) -> list[str]:
    """The first line of somebody's CSV; nothing where it can't be read as one."""
    try:
        with open(table, encoding="utf-8-sig", errors="replace", newline="") as lines:
            return next(csv.reader(lines), [])
    except (csv.Error, OSError):
        return []


def _read_preliminary(table: Path) -> dict[str, tuple[str, str]]:
    """New file name -> (subject, label)."""
    found: dict[str, tuple[str, str]] = {}
    for line, row in _rows(table):
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


# --- CSV manifest -----------------------------------------------------------------------------------------------------


def _load_manifest(table: Path) -> Dataset:
    root = table.parent
    samples: list[Sample] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, row in _rows(table, required={"path", "label"}, allowed=set(_COLUMNS)):
        where = f"{table}, line {line}"
        raw, label, subject, side = (row.get(key, "").strip() for key in _COLUMNS)
        for name, value in (("path", raw), ("label", label), *((("side", side),) if "side" in row else ())):
            if not value:
                raise DataError(f"{where}: empty {name}", hint="fill it in or remove the line")
        for name, value in (("label", label), ("subject", subject), ("side", side)):
            if "\n" in value or "\r" in value:
                raise DataError(f"{where}: a line break in the {name} {value!r}", hint="check the quotes of the line")
        if side and side.lower() not in GIVEN_SIDES:
            raise DataError(f"{where}: no side called {side!r}", hint="write train, validation or test")
        relative = _inside(raw, root, where)
        if relative in seen:
            raise DataError(
                f"{where}: {relative} is already on line {seen[relative]}", hint="remove one of the two lines"
            )
        seen[relative] = line
        file = root / relative
        if not _is_file(file, where):
            broken = ", and its path holds a line break" if "\n" in raw or "\r" in raw else ""
            problems.append(Problem(relative, f"no such file (line {line}{broken})"))
        elif not _is_image(file):
            problems.append(Problem(relative, not_an_image(file)))
        else:
            samples.append(Sample(relative, label, subject or None, GIVEN_SIDES.get(side.lower())))
    if not samples:
        first = f" ({problems[0].path!r}: {problems[0].reason})" if problems else ""
        raise DataError(
            f"{table}: none of its {len(seen)} lines names an image that exists{first}",
            hint=f"paths are relative to the manifest's own folder, {root}",
        )
    for side in ("train", "test"):
        if samples[0].side and all(sample.side != side for sample in samples):
            raise DataError(
                f"{table}: the column side names no image {side}",
                hint="add some, or leave the column out to have the images split anew",
            )
    return _dataset(root, "manifest", samples, problems)


def _inside(raw: str, root: Path, where: str) -> str:
    """`raw` as a clean relative path; one that leaves the manifest's folder would not survive a move of the data.

    A backslash parts folders, unless there is a file whose name has it. An absolute path is taken if it lies inside.
    """
    path = raw
    if "\\" in raw and not _exists(root / raw):
        path = raw.replace("\\", "/")
    # A folder may be reached by several names: as it was given, or with its links followed.
    for clean in (os.path.abspath, os.path.realpath):
        if os.path.isabs(path) and _exists(Path(path)) and Path(clean(path)).is_relative_to(clean(root)):
            path = os.path.relpath(clean(path), clean(root))
    pure = PurePosixPath(os.path.normpath(path))
    drive = PureWindowsPath(raw).drive
    if pure.is_absolute() or drive or ".." in pure.parts:
        why = f": it names the drive {drive}" if drive and not pure.is_absolute() else ""
        shown = raw if raw.isprintable() else repr(raw)
        raise DataError(
            f"{where}: {shown} lies outside the manifest's folder {root}{why}",
            hint="keep the manifest in a folder above the images (a link to them will do) and the paths relative to it",
        )
    return pure.as_posix()


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_file(file: Path, where: str) -> bool:
    try:
        return file.is_file()
    except OSError as error:  # a name that no file can have
        raise DataError(f"{where}: no usable path ({error.strerror})", hint="check the quotes of the line") from error


def _rows(
    table: Path, required: set[str] = _CNMC_COLUMNS, allowed: set[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV with a header line. Raises `DataError` with the line for anything malformed."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            header = reader.fieldnames or []
            missing, unknown = required - set(header), set(header) - (allowed or set(header))
            if missing or unknown or len(set(header)) < len(header):
                what = f"no column {', '.join(sorted(missing))}" if missing else "unknown or repeated columns"
                raise DataError(
                    f"{table}, line 1: {what} (found {','.join(header) or 'nothing'})",
                    hint=f"the columns are {','.join(_COLUMNS if allowed else sorted(required))}",
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{table}, line {reader.line_num}: not {len(header)} fields",
                        hint="quote a field that holds a comma",
                    )
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{table}: can't be read as CSV ({error})", hint="save it as CSV in UTF-8, every quote closed"
        ) from error


# --- files ------------------------------------------------------------------------------------------------------------


def _dataset(root: Path, layout: str, samples: list[Sample], problems: list[Problem]) -> Dataset:
    labels = tuple(sorted({sample.label for sample in samples}))
    for label in labels:
        # A label ends up as a line of labels.txt in the model.
        if label != label.strip() or any(unicodedata.category(sign) in _NO_TEXT for sign in label):
            raise DataError(
                f"{root}: class {label!r} has blanks around its name, or a line break or other control character in it",
                hint="change the label" if layout == "manifest" else "rename the folder",
            )
    by_path = sorted(samples, key=lambda sample: sample.path)
    return Dataset(root, layout, labels, tuple(by_path), tuple(sorted(problems, key=lambda problem: problem.path)))


def _files(folder: Path, root: Path | None = None, problems: list[Problem] | None = None) -> Iterator[Path]:
    """Files below `folder`, sorted; what `walk` doesn't look at is noted in `problems`."""
    for path, reason in walk(folder, links=folder == root):
        if not reason:
            yield path
        elif root is not None and problems is not None:
            problems.append(Problem(path.relative_to(root).as_posix(), reason))


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(child for child in _children(folder) if child.is_dir() and not is_output(child))


def _children(folder: Path) -> list[Path]:
    """What isn't hidden in a folder; nothing where it can't be listed, which `walk` says."""
    try:
        return [child for child in folder.iterdir() if not is_system(child.name)]
    except OSError:
        return []


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _has_image(folder: Path) -> bool:
    return any(_is_image(child) and child.is_file() for child in _children(folder))


def _named(folder: Path, root: Path, name: re.Pattern[str]) -> bool:
    parts = folder.relative_to(root).parts or (root.resolve().name,)
    return any(name.search(part) for part in parts)
