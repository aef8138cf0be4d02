"""Lists images with masks: folders ``images`` and ``masks``, the same for each laboratory, or a CSV manifest.

The class of a sample is its laboratory. The diameter of its red cells in pixels comes from the manifest or from
``scale.json`` beside the folders.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import not_an_image
from .csv_manifest import is_existing_file, read_rows, relative_path
from .samples import Dataset, Problem, Sample, is_image, list_files, make_dataset, visible_folders
from .subsets import GIVEN_SUBSETS

IMAGES, MASKS = "images", "masks"
SCALE = "scale.json"
ONE_LABORATORY = "all"
"""Name of the laboratory of data that names none."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""Lossless formats: a JPEG file would have other values than a mask may have."""
_COLUMNS = ("path", "mask", "laboratory", "subject", "red_cell_px", "subset")
_LAYOUT = "the layout is DIR/images and DIR/masks with the same names, or DIR/<laboratory>/images and .../masks"


def load_masked(path: Path) -> Dataset:
    """List the images below ``path`` that have a mask. No file but ``scale.json`` is opened.

    Args:
        path: a folder with ``images`` and ``masks``; a folder of laboratories with them; or a ``.csv`` manifest with
            the columns ``path,mask`` and optionally ``laboratory``, ``subject``, ``red_cell_px`` and ``subset``.

    Returns:
        A data set with the layout ``masks``. An image without a mask is among its problems, and so is a mask without
        an image.

    Raises:
        DataError: another layout, no image with a mask, or an invalid manifest or ``scale.json``.
    """
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise DataError(f"{path}: neither a folder nor a .csv manifest", hint=_LAYOUT)
        return _from_manifest(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder", hint="check the path given to --data")
    folders = {ONE_LABORATORY: path} if (path / IMAGES).is_dir() else {}
    folders |= {folder.name: folder for folder in visible_folders(path) if (folder / IMAGES).is_dir()}
    if not folders:
        raise DataError(f"{path}: no folder {IMAGES} with images and {MASKS} with their masks", hint=_LAYOUT)
    scales = _read_scales(path / SCALE, folders)
    samples: list[Sample] = []
    problems: list[Problem] = []
    for name, folder in folders.items():
        _list_folder(folder, path, name, scales.get(name), samples, problems)
    return _checked(path, samples, problems)


def _list_folder(
    folder: Path, root: Path, laboratory: str, red_cell_px: float | None, samples: list[Sample], problems: list[Problem]
) -> None:
    masks = {}
    for file in list_files(folder / MASKS, root, problems) if (folder / MASKS).is_dir() else ():
        if file.suffix.lower() in MASK_SUFFIXES:
            masks[file.relative_to(folder / MASKS).with_suffix("")] = file.relative_to(root).as_posix()
    used = set()
    for file in list_files(folder / IMAGES, root, problems):
        relative, stem = file.relative_to(root).as_posix(), file.relative_to(folder / IMAGES).with_suffix("")
        if not is_image(file):
            problems.append(Problem(relative, not_an_image(file)))
        elif stem not in masks:
            problems.append(Problem(relative, f"has no mask ({MASKS}/{stem.as_posix()}.png)"))
        elif stem in used:
            problems.append(Problem(relative, "has the same name as another image, and so the same mask"))
        else:
            used.add(stem)
            samples.append(Sample(relative, laboratory, mask=masks[stem], red_cell_px=red_cell_px))
    unused = [mask for stem, mask in masks.items() if stem not in used]
    problems += [Problem(mask, "a mask without an image") for mask in unused]


def _read_scales(file: Path, folders: dict[str, Path]) -> dict[str, float]:
    """Diameter of a red cell in pixels by laboratory; empty without a file."""
    if not file.is_file():
        return {}
    hint = f'write {{"<folder>": <diameter of a red cell in pixels>}}; folders: {", ".join(folders)}'
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        scales = {str(name): _diameter(value) for name, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: not diameters of red cells by folder ({error})", hint=hint) from error
    unknown = [name for name in scales if name not in folders]
    if unknown:
        raise DataError(f"{file}: there is no folder {unknown[0]} with images", hint=hint)
    return scales


def _diameter(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not 2 <= number <= 4096 or math.isnan(number):
        raise ValueError(f"a red cell of {value} pixels")
    return number


def _from_manifest(table: Path) -> Dataset:
    root = table.parent
    samples: list[Sample] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, row in read_rows(table, required={"path", "mask"}, allowed=_COLUMNS):
        where = f"{table}, line {line}"
        row = {key: value.strip() for key, value in row.items()}
        if not row["path"]:
            raise DataError(f"{where}: empty path", hint="fill it in or remove the line")
        image = relative_path(row["path"], root, where)
        if image in seen:
            raise DataError(f"{where}: {image} is already on line {seen[image]}", hint="remove one of the two lines")
        seen[image] = line
        if not row["mask"]:
            problems.append(Problem(image, f"has no mask (line {line})"))
            continue
        mask = relative_path(row["mask"], root, where)
        missing = [name for name in (image, mask) if not is_existing_file(root / name, where)]
        if missing:
            problems.append(Problem(missing[0], f"no such file (line {line})"))
            continue
        samples.append(_manifest_sample(row, image, mask, where))
    return _checked(table, samples, problems, root)


def _manifest_sample(row: dict[str, str], image: str, mask: str, where: str) -> Sample:
    subset = row.get("subset", "").lower()
    if subset and subset not in GIVEN_SUBSETS:
        raise DataError(f"{where}: unknown subset {subset!r}", hint="write train, validation or test")
    try:
        red_cell_px = _diameter(row["red_cell_px"]) if row.get("red_cell_px") else None
    except ValueError as error:
        raise DataError(f"{where}: {error}", hint="give the diameter of a red cell in pixels, or nothing") from error
    return Sample(
        image,
        row.get("laboratory") or ONE_LABORATORY,
        row.get("subject") or None,
        GIVEN_SUBSETS.get(subset),
        mask=mask,
        red_cell_px=red_cell_px,
    )


def _checked(given: Path, samples: list[Sample], problems: list[Problem], root: Path | None = None) -> Dataset:
    if not samples:
        first = f" ({problems[0].path}: {problems[0].reason})" if problems else ""
        raise DataError(f"{given}: no image with a mask{first}", hint=_LAYOUT)
    sides = {sample.side for sample in samples}
    if len(sides) > 1 and None in sides:
        raise DataError(f"{given}: the column subset is empty on some lines", hint="fill it in, or remove the column")
    for name in ("train", "test"):
        if sides != {None} and name not in sides:
            raise DataError(f"{given}: the column subset names no {name} image", hint="add some, or remove the column")
    return make_dataset(root or given, "masks", samples, problems)
