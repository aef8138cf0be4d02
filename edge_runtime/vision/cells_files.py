"""``edgeall cells``: image files in; a table, crops and images with the cells drawn over them out."""

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
from .cells import Cell, crop, cut_out, find_cells

COLUMNS = ("image", "cell", "left", "top", "right", "bottom", "x", "y", "area_px", "touches_border", "crop")
WHOLE, CUT = (0, 160, 60), (230, 120, 0)
"""Colours of boxes: of whole cells, and of those that the border cuts."""
_ROOM = "-9999.png"
"""What is added to a name at most."""


def cells_of_files(
    paths: Iterable[str | os.PathLike[str]],
    out: Path,
    spec: InputSpec | None = None,
    red_cell_px: float | None = None,
    skipped: Callable[[Path, str], None] | None = None,
) -> dict[str, Any]:
    """Find the cells of each image and write ``cells.csv``, ``crops/`` and ``overlays/`` into a new folder.

    Args:
        paths: files and folders; an image that can't be read, or whose cells can't be written, gives an error and the
            rest goes on.
        out: a new or empty folder.
        spec: what crops must be: a model's input. None cuts squares out as they are.
        red_cell_px: see `find_cells`.
        skipped: see `edgeall.edge_runtime.images.find_images`.

    Returns:
        For each image its path and its cells, or an error; the numbers of cells and of whole ones.

    Raises:
        DataError: a path doesn't exist.
        UsageError: the folder holds something already, or another process writes it.
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
    own = out.resolve()  # may lie in a folder that is looked through
    images = (path for path in expand(paths, skipped) if own not in Path(path).resolve().parents)
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise UsageError(f"{out}: holds something already", hint="choose a new folder")
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
            # Several folders may hold images of one name; and a name may be so long that nothing can be added to it.
            name = file_name(f"{number:04d}-", Path(path).stem, _ROOM)[: -len(_ROOM)]
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
    """A line for each image."""
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
