"""`edgeall run` with a segmentation model: the classes of each image's pixels, masks and overlays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...console.tables import csv_line, percent, plain
from ..errors import DISK_FULL, ImageError, UsageError
from ..files import file_name, is_empty
from ..images import mark_output, open_rgb
from ..masks import CLASSES, GREYS, class_counts, outlined
from ..pipeline import expand
from ..threads import Threads
from .finder import Finder
from .scale import Scale
from .scale_bar import draw_scale_bar

_ENDING = ".overlay.png"


@dataclass(frozen=True)
class Segmented:
    """The segmentation of one image, or an error.

    Attributes:
        image: path of the image.
        scale: of the image.
        pixels: number of pixels of each class; cells only, see `edgeall.edge_runtime.vision.finder.CellFinder`.
        cells: number of cells, those that the border cuts included.
        warnings: one line each: what makes the result doubtful.
        mask: path of the mask below the folder, with ``overlay`` that of the overlay; None without a folder.
        error: None, or the problem of the image; then the other fields are invalid.
    """

    image: str
    scale: Scale | None = None
    pixels: dict[str, int] = field(default_factory=dict)
    cells: int = 0
    warnings: tuple[str, ...] = ()
    mask: str | None = None
    overlay: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of one line of ``edgeall run --json``."""
        if self.error is not None or self.scale is None:
            return {"image": self.image, "error": self.error}
        return {
            "image": self.image,
            "cells": self.cells,
            "pixels": self.pixels,
            "scale": self.scale.to_json(),
            "warnings": list(self.warnings),
            "mask": self.mask,
            "overlay": self.overlay,
        }


def segment_files(
    finder: Finder,
    paths: Iterable[str | os.PathLike[str]],
    scale: Scale | None = None,
    out: Path | None = None,
    skipped: Callable[[Path, str], None] | None = None,
    threads: Threads | None = None,
) -> Iterator[Segmented]:
    """Segment every image of ``paths``, in order. An image that cannot be read gives an error; the others follow.

    Args:
        finder: with the model; for several threads, a `edgeall.edge_runtime.vision.finder.FinderPool`.
        paths: files and folders.
        scale: of all images; None measures it in each.
        out: a new or empty folder for ``<number>-<name>.png``, the mask, and an overlay; None writes nothing.
        skipped: see `edgeall.edge_runtime.images.find_images`.
        threads: that work on one image each; None uses this one.

    Raises:
        DataError: a path does not exist, or a folder has no image.
        UsageError: the folder is not empty.
        OSError: the disk is full.
    """
    images = expand(paths, skipped)
    if out is not None:
        if out.exists() and (not out.is_dir() or not is_empty(out)):
            raise UsageError(f"{out}: is not an empty folder", hint="choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
        mark_output(out)

    def one(item: tuple[int, str]) -> Segmented:
        return _one(finder, item[1], item[0], scale, out)

    numbered = enumerate(images, 1)
    return map(one, numbered) if threads is None else threads.map(one, numbered)


def _one(finder: Finder, path: str, number: int, scale: Scale | None, out: Path | None) -> Segmented:
    try:
        image = open_rgb(path)
    except ImageError as error:
        return Segmented(path, error=error.message)
    found = finder.find(np.asarray(image), scale)
    mask = found.mask()
    assert mask is not None
    classes = np.searchsorted(GREYS, mask).astype(np.uint8)
    files: dict[str, str] = {}
    if out is not None:
        name = file_name(f"{number:04d}-", Path(path).stem, _ENDING)[: -len(_ENDING)]
        files = {"mask": f"{name}.png", "overlay": f"{name}{_ENDING}"}
        try:
            Image.fromarray(mask).save(out / files["mask"])
            overlay = outlined(image, classes)
            draw_scale_bar(overlay, found.scale)
            overlay.save(out / files["overlay"])
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            return Segmented(path, error=f"{path}: its mask can't be written ({error.strerror})")
    return Segmented(path, found.scale, class_counts(classes), len(found.cells), found.warnings, **files)


def segmented_lines(found: Iterable[Segmented], form: str) -> Iterator[str]:
    """One line per image.

    Args:
        found: from `segment_files`.
        form: ``table``, ``json`` (one object per line) or ``csv`` (with a header).
    """
    if form == "csv":
        yield csv_line(["image", "cells", *(f"{label}_px" for label in CLASSES), "red_cell_px", "mask", "error"])
    for one in found:
        if form == "json":
            yield json.dumps(one.to_json())
        elif form == "csv":
            counts = [one.pixels.get(label, "") for label in CLASSES]
            size = "" if one.scale is None else round(one.scale.red_cell_px, 1)
            cells = one.cells if one.error is None else ""
            yield csv_line([one.image, cells, *counts, size, one.mask or "", one.error or ""])
        elif one.error is not None or one.scale is None:
            yield f"error  {plain(one.error or '')}"
        else:
            whole = sum(one.pixels.values())
            shares = ", ".join(f"{label} {percent(one.pixels[label] / whole)}" for label in CLASSES[1:])
            doubts = "".join(f"; {plain(text)}" for text in one.warnings)
            yield f"{one.cells} cells, {shares}, red cell {one.scale.red_cell_px:.0f} px{doubts}  {plain(one.image)}"
