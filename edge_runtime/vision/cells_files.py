"""`edgeall cells`: finds the cells in image files; writes a table, crops and overlays."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...console.progress import QUIET, Progress
from ...console.tables import as_text, table
from ..errors import DISK_FULL, ImageError
from ..files import file_name, output_lock
from ..images import open_rgb
from ..pipeline import expand
from ..preprocess import InputSpec
from ..threads import Threads
from .cells import Box, Cell, crop, crop_stem, cut_out
from .finder import Finder, Found, finder_pool, open_finder
from .journal import Journal
from .quality import looks_stained
from .scale import Scale
from .scale_bar import draw_scale_bar

COLUMNS = (
    *("image", "cell", "left", "top", "right", "bottom", "x", "y", "area_px", "touches_border", "crop"),
    *("cell_area_px", "nc_ratio", "roundness", "red_cell_px", "um_per_px"),
)
WHOLE, CUT = (0, 160, 60), (230, 120, 0)
"""Box colours of whole cells and of cells that the border cuts."""
NEAR = 0.25
"""Largest distance of a central cell's nucleus from the centre, as a share of the shorter side of the image."""
NO_CENTRAL = "no cell found at the centre; the crop is the whole image"
NOT_A_SMEAR = "does not look like a stained smear in a bright field"
_LONGEST_ENDING = ".cell9999.png"
"""The longest ending that is added to a name."""


@dataclass(frozen=True)
class Wanted:
    """What `cells_of_files` finds, and what it writes beside the table and the overlays.

    Attributes:
        cell_model: packed segmentation model that finds the cells; None takes the one in the package.
        scale: of all images; None measures it in each.
        masks: whether to write ``masks/``.
        crops: whether to write ``crops/`` of the whole cells, each under its image's path in its folder with the
            cell's number: a training set, see `edgeall.edge_runtime.vision.cells.field_stem`.
        central: whether each image gives one crop instead, around the cell at its centre, under the image's path in its
            folder: a training set of cells. An image without such a cell is taken whole.
        spec: a model's input, which the crops are resized to. None writes square crops at the original scale.
    """

    cell_model: Path | None = None
    scale: Scale | None = None
    masks: bool = False
    crops: bool = False
    central: bool = False
    spec: InputSpec | None = None


def cells_of_files(
    paths: Iterable[str | os.PathLike[str]],
    out: Path,
    wanted: Wanted = Wanted(),
    skipped: Callable[[Path, str], None] | None = None,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Find the cells of each image and write ``cells.csv``, ``overlays/`` and what is wanted into a folder.

    Works on one image per core. The same call goes on where an interrupted one stopped, see `Journal`.

    Args:
        paths: files and folders. An image that cannot be read, or whose cells cannot be written, gives an error; the
            others are still processed.
        out: a new or empty folder, or that of the interrupted call.
        wanted: what is found and written.
        skipped: see `edgeall.edge_runtime.images.find_images`.
        progress: told how many images are done.

    Returns:
        For each image its path, and its cells, scale and warnings, or an error; the number of cells and of whole cells.

    Raises:
        BundleError: see `edgeall.edge_runtime.vision.finder.open_finder`.
        DataError: a path does not exist.
        UsageError: the folder holds something else, or another process writes to it.
        OSError: the disk is full.
    """
    with output_lock(out, "cells"):
        own = out.resolve()  # may be inside a searched folder
        given = list(paths)
        images = [path for path in expand(given, skipped) if own not in Path(path).resolve().parents]
        finder = finder_pool(partial(open_finder, wanted.cell_model), len(images))
        with Journal(out, images, wanted) as journal, Threads(finder.count) as threads:
            writer = _Writer(out, finder, wanted, [Path(path) for path in given])
            return writer.write(images, journal, threads, progress)


@dataclass(frozen=True)
class _Task:
    """An image, and where its files go.

    Attributes:
        path: of the image.
        name: of its overlay.
        mask: path of its mask below the folder.
        place: path of its central crop below ``crops/``, without a suffix. Those of its cells begin like it.
    """

    path: str
    name: str
    mask: str
    place: str


class _Writer:
    """Writes the results of one command into its folder."""

    def __init__(self, out: Path, finder: Finder, wanted: Wanted, roots: Sequence[Path]) -> None:
        self._out, self._finder, self._wanted, self._roots = out, finder, wanted, roots
        self._masks: set[str] = set()
        self._places: set[str] = set()

    def write(self, images: Sequence[str], journal: Journal, threads: Threads, progress: Progress) -> dict[str, Any]:
        """Find and write the cells of all images; see `cells_of_files`."""
        for folder, made in (("crops", self._wanted.crops), ("overlays", True), ("masks", self._wanted.masks)):
            if made:
                (self._out / folder).mkdir(exist_ok=True)
        tasks = [self._task(path, number) for number, path in enumerate(images, 1)]
        done = journal.done
        if done:
            progress.note(f"{self._out}: {len(done)} of {len(tasks)} images are done, going on with the others")
        found = dict(done)
        with progress.task("finding cells", len(tasks), len(done)) as advance:
            for result in threads.map(self._one, (task for task in tasks if task.path not in done)):
                journal.add(result)
                found[result["image"]] = result
                advance(len(found), "")
        results = [found[task.path] for task in tasks]
        with open(self._out / "cells.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table_file = csv.DictWriter(file, COLUMNS)
            table_file.writeheader()
            for result in results:
                image = as_text(result["image"])
                table_file.writerows({"image": image, **row} for row in result.get("cells", ()))
        rows = [row for result in results for row in result.get("cells", ())]
        whole = sum(not row["touches_border"] for row in rows)
        return {"out": str(self._out), "cells": len(rows), "whole_cells": whole, "images": results}

    def _task(self, path: str, number: int) -> _Task:
        # Images in different folders may have the same name; and a name may be too long for an ending.
        name = file_name(f"{number:04d}-", Path(path).stem, _LONGEST_ENDING)[: -len(_LONGEST_ENDING)]
        own = file_name("", Path(path).stem, ".png")
        mask = f"{name}.png" if own.casefold() in self._masks else own
        self._masks.add(mask.casefold())
        return _Task(path, name, f"masks/{mask}", self._own_place(path))

    def _one(self, task: _Task) -> dict[str, Any]:
        """Find and write the cells of one image. Raises OSError if the disk is full."""
        path = task.path
        try:
            image = open_rgb(path)
            pixels = np.asarray(image)
            found = self._finder.find(pixels, self._wanted.scale)
        except ImageError as error:
            return {"image": path, "error": error.message}
        try:
            rows, note = self._write_crops(image, found, task)
            overlay(image, found).save(self._out / "overlays" / f"{task.name}.png")
            if self._wanted.masks:
                Image.fromarray(found.mask()).save(self._out / task.mask)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            return {"image": path, "error": f"{path}: its cells can't be written ({error.strerror})"}
        warnings = [*found.warnings, *([] if looks_stained(pixels) else [NOT_A_SMEAR]), *note]
        return {
            "image": path,
            "cells": rows,
            "overlay": f"overlays/{task.name}.png",
            "mask": task.mask if self._wanted.masks else None,
            "scale": found.scale.to_json(),
            "warnings": warnings,
        }

    def _write_crops(
        self, image: Image.Image, found: Found, task: _Task
    ) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """The rows of `COLUMNS` without the image, and a warning if no cell was found at its centre."""
        wanted, rows = self._wanted, cell_rows(found)
        middle = central(found.cells, image.size) if wanted.central else None
        for row, cell in zip(rows, found.cells, strict=True):
            if cell is middle:
                row["crop"] = self._write_crop(image, cell.box, task.place)
            elif wanted.crops and not wanted.central and not cell.touches_border:
                row["crop"] = self._write_crop(image, cell.box, crop_stem(task.place, row["cell"]))
        if not wanted.central or middle is not None:
            return rows, ()
        self._write_crop(image, (0, 0, *image.size), task.place)
        return rows, (NO_CENTRAL,)

    def _write_crop(self, image: Image.Image, box: Box, name: str) -> str:
        """Write the crop around a box, at the original scale or in the size of a model's input; returns its path."""
        file, spec = f"crops/{name}.png", self._wanted.spec
        cut = cut_out(image, box) if spec is None else Image.fromarray(crop(image, box, spec))
        (self._out / file).parent.mkdir(parents=True, exist_ok=True)
        cut.save(self._out / file)
        return file

    def _own_place(self, path: str) -> str:
        """The path of an image in the folder that was given, without its suffix; numbered if it is taken."""
        given = next((root for root in self._roots if Path(path).is_relative_to(root) and Path(path) != root), None)
        inside = Path(path).relative_to(given) if given else Path(Path(path).name)
        stem = file_name("", inside.stem, _LONGEST_ENDING)[: -len(_LONGEST_ENDING)]
        own = place = inside.with_name(stem).as_posix()
        number = 1
        while place.casefold() in self._places:
            number += 1
            place = f"{own}-{number}"
        self._places.add(place.casefold())
        return place


def cell_rows(found: Found) -> list[dict[str, Any]]:
    """The rows of `COLUMNS` without the image and without crops."""
    rows, scale = [], found.scale.to_json()
    for number, cell in enumerate(found.cells, 1):
        values: tuple[Any, ...] = (number, *cell.box, *(round(at, 1) for at in cell.centre), cell.area_px)
        values += (cell.touches_border, None, cell.cell_area_px, round(cell.nc_ratio, 3), round(cell.roundness, 3))
        rows.append(dict(zip(COLUMNS[1:], (*values, scale["red_cell_px"], scale["um_per_px"]), strict=True)))
    return rows


def central(cells: Iterable[Cell], size: tuple[int, int]) -> Cell | None:
    """The cell whose nucleus is nearest to the centre of an image of ``size`` (width, height), if it is near."""

    def away(cell: Cell) -> float:
        return math.hypot(cell.centre[0] - size[0] / 2, cell.centre[1] - size[1] / 2)

    nearest = min(cells, key=away, default=None)
    return nearest if nearest is not None and away(nearest) <= NEAR * min(size) else None


def overlay(image: Image.Image, found: Found) -> Image.Image:
    """A copy with a numbered box around each cell, in `WHOLE` or `CUT`, and a scale bar."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(image.size) / 320))
    for number, cell in enumerate(found.cells, 1):
        colour = CUT if cell.touches_border else WHOLE
        left, top, right, bottom = cell.box
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
        pen.text((left + 2 * width, top + width), str(number), fill=colour, font_size=8 * width + 4)
    draw_scale_bar(drawn, found.scale)
    return drawn


def cells_text(result: Mapping[str, Any]) -> str:
    """One line per image."""
    rows: list[tuple[object, ...]] = []
    for image in result["images"]:
        if "error" in image:
            rows.append((image["image"], None, None, None, image["error"]))
            continue
        whole = sum(not row["touches_border"] for row in image["cells"])
        notes = [*image["warnings"], *([] if image["cells"] else ["no nucleated cell found"])]
        red_cell = f"{image['scale']['red_cell_px']:.0f} px"
        rows.append((image["image"], whole, len(image["cells"]) - whole, red_cell, "; ".join(notes)))
    return table(("image", "cells", "cut by the border", "red cell", "notes"), rows)
