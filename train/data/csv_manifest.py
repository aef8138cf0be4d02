"""Lists the images that a CSV manifest names, with label and optionally subject and subset."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import not_an_image
from .samples import Dataset, Problem, Sample, is_image, make_dataset
from .subsets import GIVEN_SUBSETS

_COLUMNS = ("path", "label", "subject", "side")


def load_manifest(table: Path) -> Dataset:
    """List the images of a ``.csv`` manifest. Its paths are relative to its own folder.

    Raises:
        DataError: an invalid line (with its number), no image that exists, or no train or test image in a manifest
            with a column ``side``.
    """
    root = table.parent
    samples: list[Sample] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, row in read_rows(table, required={"path", "label"}, allowed=_COLUMNS):
        where = f"{table}, line {line}"
        raw, label, subject, subset = _checked_fields(row, where)
        relative = relative_path(raw, root, where)
        if relative in seen:
            raise DataError(
                f"{where}: {relative} is already on line {seen[relative]}", hint="remove one of the two lines"
            )
        seen[relative] = line
        file = root / relative
        if not is_existing_file(file, where):
            broken = ", and its path holds a line break" if "\n" in raw or "\r" in raw else ""
            problems.append(Problem(relative, f"no such file (line {line}{broken})"))
        elif not is_image(file):
            problems.append(Problem(relative, not_an_image(file)))
        else:
            samples.append(Sample(relative, label, subject or None, GIVEN_SUBSETS.get(subset.lower())))
    if not samples:
        first = f" ({problems[0].path!r}: {problems[0].reason})" if problems else ""
        raise DataError(
            f"{table}: none of its {len(seen)} lines names an image that exists{first}",
            hint=f"paths are relative to the folder of the manifest, {root}",
        )
    for name in ("train", "test"):
        if samples[0].side and all(sample.side != name for sample in samples):
            raise DataError(
                f"{table}: the column side names no {name} image",
                hint="add some, or remove the column to have the images split again",
            )
    return make_dataset(root, "manifest", samples, problems)


def read_rows(
    table: Path, *, required: set[str], allowed: tuple[str, ...] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with a header line.

    Args:
        table: the file.
        required: columns that it must have.
        allowed: the only columns that it may have; None allows any.

    Raises:
        DataError: anything malformed, with the line.
    """
    try:
        with open(table, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            header = reader.fieldnames or []
            missing, unknown = required - set(header), set(header) - set(allowed or header)
            if missing or unknown or len(set(header)) < len(header):
                what = f"no column {', '.join(sorted(missing))}" if missing else "unknown or repeated columns"
                raise DataError(
                    f"{table}, line 1: {what} (found {','.join(header) or 'nothing'})",
                    hint=f"the columns are {','.join(allowed or sorted(required))}",
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


def _checked_fields(row: dict[str, str], where: str) -> tuple[str, str, str, str]:
    """Path, label, subject and subset of a row, without surrounding blanks."""
    raw, label, subject, subset = (row.get(key, "").strip() for key in _COLUMNS)
    for name, value in (("path", raw), ("label", label), *((("side", subset),) if "side" in row else ())):
        if not value:
            raise DataError(f"{where}: empty {name}", hint="fill it in or remove the line")
    for name, value in (("label", label), ("subject", subject), ("side", subset)):
        if "\n" in value or "\r" in value:
            raise DataError(f"{where}: a line break in the {name} {value!r}", hint="check the quotes of the line")
    if subset and subset.lower() not in GIVEN_SUBSETS:
        raise DataError(f"{where}: unknown side {subset!r}", hint="write train, validation or test")
    return raw, label, subject, subset


def relative_path(raw: str, root: Path, where: str) -> str:
    """``raw`` as a normalized relative path. A path outside of the manifest's folder would break if the data moves.

    A backslash separates folders, unless a file of that very name exists. An absolute path inside the folder is valid.
    """
    path = raw
    if "\\" in raw and not _exists(root / raw):
        path = raw.replace("\\", "/")
    # A folder may have several names: as it was given, or with its links resolved.
    for normalize in (os.path.abspath, os.path.realpath):
        if os.path.isabs(path) and _exists(Path(path)) and Path(normalize(path)).is_relative_to(normalize(root)):
            path = os.path.relpath(normalize(path), normalize(root))
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
    except (OSError, ValueError):  # an impossible file name
        return False


def is_existing_file(file: Path, where: str) -> bool:
    """Whether a path of the line ``where`` is a file. Raises DataError for an impossible name."""
    try:
        return file.is_file()
    except OSError as error:  # an impossible file name
        raise DataError(f"{where}: invalid path ({error.strerror})", hint="check the quotes of the line") from error
