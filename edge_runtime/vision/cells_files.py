"""`edgeall cells`: finds the cells in image files; writes a table, crops and overlays."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...console.tables import as_text, table
from ..errors import DISK_FULL, ImageError, UsageError
from ..files import file_name, is_empty, output_lock
from ..images import mark_output, open_rgb
from ..pipeline import expand
from ..preprocess import InputSpec
from .cells import Cell, crop, cut_out
from .colour_rule import find_cells

COLUMNS = ("image", "cell", "left", "top", "right", "bottom", "x", "y", "area_px", "touches_border", "crop")
WHOLE, CUT = (0, 160, 60), (230, 120, 0)
"""Box colours of whole cells and of cells that the border cuts."""
_LONGEST_ENDING = "-9999.png"
"""The longest ending that is added to a name."""


def cells_of_files(
    paths: Iterable[str | os.PathLike[str]],
    out: Path,
    spec: InputSpec | None = None,
    red_cell_px: float | None = None,
    skipped: Callable[[Path, str], None] | None = None,
) -> dict[str, Any]:
    """Find the cells of each image and write ``cells.csv``, ``crops/`` and ``overlays/`` into a new folder.

    Args:
        paths: files and folders. An image that cannot be read, or whose cells cannot be written, gives an error; the
            others are still processed.
        out: a new or empty folder.
        spec: a model's input, which the crops are resized to. None writes square crops at the original scale.
        red_cell_px: see `find_cells`.
        skipped: see `edgeall.edge_runtime.images.find_images`.

    Returns:
        For each image its path and its cells, or an error; the number of cells and of whole cells.

    Raises:
        DataError: a path does not exist.
        UsageError: the folder is not empty, or another process writes to it.
        OSError: the disk is full.
    """
    with output_lock(out, "cells"):
        return _cells_of_files(paths, out, spec, red_cell_px, skipped)


def _cells_of_files(
    paths: Iterable[str | os.PathLike[str]],
    out: Path,
    spec: InputSpec | None,
    red_cell_px: float | None,
    skipped: Callable[[Path, str], None] | None,
) -> dict[str, Any]:
    own = out.resolve()  # may be inside a searched folder
    images = (path for path in expand(paths, skipped) if own not in Path(path).resolve().parents)
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise UsageError(f"{out}: is not an empty folder", hint="choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    for folder in ("crops", "overlays"):
        (out / folder).mkdir()
    results: list[dict[str, Any]] = []
    with open(out / "cells.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, path in enumerate(images, 1):
            try:
                image = open_rgb(path)
            except ImageError as error:
                results.append({"image": path, "error": error.message})
                continue
            found = find_cells(np.asarray(image), red_cell_px)
            # Images in different folders may have the same name; and a name may be too long for an ending.
            name = file_name(f"{number:04d}-", Path(path).stem, _LONGEST_ENDING)[: -len(_LONGEST_ENDING)]
            try:
                rows = _write_crops(image, found, out, name, spec)
                overlay(image, found).save(out / "overlays" / f"{name}.png")
            except OSError as error:
                if error.errno in DISK_FULL:
                    raise
                results.append({"image": path, "error": f"{path}: its cells can't be written ({error.strerror})"})
                continue
            writer.writerows({"image": as_text(path), **row} for row in rows)
            results.append({"image": path, "cells": rows, "overlay": f"overlays/{name}.png"})
    rows = [row for result in results for row in result.get("cells", [])]
    whole = sum(not row["touches_border"] for row in rows)
    return {"out": str(out), "cells": len(rows), "whole_cells": whole, "images": results}


def overlay(image: Image.Image, found: Sequence[Cell]) -> Image.Image:
    """A copy with a numbered box around each cell, in `WHOLE` or `CUT`."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(image.size) / 320))
    for number, cell in enumerate(found, 1):
        colour = CUT if cell.touches_border else WHOLE
        left, top, right, bottom = cell.box
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
        pen.text((left + 2 * width, top + width), str(number), fill=colour, font_size=8 * width + 4)
    return drawn


def cells_text(result: Mapping[str, Any]) -> str:
    """One line per image."""
    rows: list[tuple[object, ...]] = []
    for image in result["images"]:
        if "error" in image:
            rows.append((image["image"], None, None, image["error"]))
        else:
            whole = sum(not row["touches_border"] for row in image["cells"])
            rows.append((image["image"], whole, len(image["cells"]) - whole, ""))
    return table(("image", "cells", "cut by the border", "error"), rows)


def _write_crops(
    image: Image.Image, found: Sequence[Cell], out: Path, name: str, spec: InputSpec | None
) -> list[dict[str, Any]]:
    rows = []
    for number, cell in enumerate(found, 1):
        file = None
        if not cell.touches_border:
            file = f"crops/{name}-{number}.png"
            cut = cut_out(image, cell.box) if spec is None else Image.fromarray(crop(image, cell.box, spec))
            cut.save(out / file)
        values = (number, *cell.box, *(round(at, 1) for at in cell.centre), cell.area_px, cell.touches_border, file)
        rows.append(dict(zip(COLUMNS[1:], values, strict=True)))
    return rows
