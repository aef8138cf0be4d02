"""What a classifier of fields looks at: its accuracy on cells alone, on the background alone, and with it swapped.

The cells come from a segmentation model. A classifier that rests on cells keeps its accuracy with the background
blanked or taken from a field of another class, and falls to chance with the cells blanked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ...console.progress import Progress
from ...console.tables import percent, table
from ...edge_runtime.errors import DataError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.preprocess import InputSpec, preprocess
from ...edge_runtime.results import Result
from ...edge_runtime.vision.finder import Finder
from ..data.probes import CORNER
from ..data.split import SplitEntry

RIM = 0.1
"""Width of the rim around the cells that belongs to them, in red cell diameters."""
FEATHER = 0.04
"""Standard deviation of the soft edge of pasted cells, in red cell diameters."""

Pixels = NDArray[np.uint8]
Predict = Callable[[Pixels], NDArray[np.float32]]
"""Probabilities ``(images, labels)`` of preprocessed images, uint8 ``(images, height, width, 3)``."""


@dataclass(frozen=True)
class Field:
    """A field, as a classifier's input, and where its cells are.

    Attributes:
        pixels: uint8 ``(height, width, 3)``.
        cells: float32 ``(height, width)``: 1 in cells, 0 in the background, between them at the soft edge.
        glass: median colour of the background's brighter half, ``(3,)``.
    """

    pixels: Pixels
    cells: NDArray[np.float32]
    glass: NDArray[np.float32]

    def background(self) -> Pixels:
        """The field with its cells replaced by `glass`."""
        return _mixed(self.pixels, np.broadcast_to(self.glass, self.pixels.shape), 1 - self.cells)


@dataclass(frozen=True)
class Context(Result):
    """What a classifier looks at.

    Attributes:
        images: their number.
        without_cells: images in which no cell was found.
        chance: 1 over the number of classes.
        whole: accuracy, like the next four.
        cells: with the background of one colour for all images.
        background: with the cells blanked.
        without_corners: with the corners blanked.
        swapped: with the background of a random image of another class.
        follows_background: share of the swapped images that are given the class of their background.
    """

    images: int
    without_cells: int
    chance: float
    whole: float
    cells: float
    background: float
    without_corners: float
    swapped: float
    follows_background: float


def read_field(path: Path, finder: Finder, spec: InputSpec) -> Field:
    """Read an image and find its cells. Raises ImageError as `open_rgb` and the finder do."""
    image = open_rgb(path)
    found = finder.find(np.asarray(image))
    unit = found.scale.red_cell_px
    grown = Image.fromarray((found.mask() > 0).astype(np.uint8) * 255)
    for _ in range(max(1, round(RIM * unit))):
        grown = grown.filter(ImageFilter.MaxFilter(3))
    pixels = preprocess(image, spec)
    soft = preprocess(grown.filter(ImageFilter.GaussianBlur(FEATHER * unit)).convert("RGB"), spec)[..., 0]
    soft = (soft / np.float32(255)).astype(np.float32)
    outside = pixels[soft == 0].astype(np.float32)
    if not len(outside):
        return Field(pixels, soft, np.full(3, 255, np.float32))
    light = outside.sum(axis=1)
    return Field(pixels, soft, np.median(outside[light >= np.median(light)], axis=0).astype(np.float32))


def context(
    predict: Predict,
    spec: InputSpec,
    folder: Path,
    entries: Sequence[SplitEntry],
    labels: Sequence[str],
    finder: Finder,
    progress: Progress,
    seed: int = 0,
) -> Context:
    """Measure what a classifier looks at.

    Args:
        predict: of the classifier.
        spec: its preprocessing contract.
        folder: the paths of the entries are relative to it.
        entries: labelled images that it was not trained on.
        labels: its classes.
        finder: finds the cells.
        progress: receives the progress bar.
        seed: of the choice of backgrounds.

    Raises:
        DataError: there is one class only.
        ImageError: an image cannot be read.
    """
    truth = np.array([labels.index(entry.label) for entry in entries])
    donors = _of_other_classes(truth, seed)
    fields = []
    with progress.task("finding cells", len(entries)) as advance:
        for entry in entries:
            fields.append(read_field(folder / entry.path, finder, spec))
            advance(len(fields), "")
    glass = np.median([field.glass for field in fields], axis=0)
    views: dict[str, list[Pixels]] = {
        "whole": [field.pixels for field in fields],
        "cells": [_mixed(field.pixels, np.broadcast_to(glass, field.pixels.shape), field.cells) for field in fields],
        "background": [field.background() for field in fields],
        "without_corners": [_without_corners(field) for field in fields],
        "swapped": [_swapped(field, fields[donor]) for field, donor in zip(fields, donors, strict=True)],
    }
    said = {}
    for name, images in views.items():
        said[name] = predict(np.stack(images)).argmax(axis=1)
    return Context(
        images=len(entries),
        without_cells=sum(not (field.cells > 0.5).any() for field in fields),
        chance=1 / len(labels),
        **{name: float((answers == truth).mean()) for name, answers in said.items()},
        follows_background=float((said["swapped"] == truth[donors]).mean()),
    )


def context_text(found: Context) -> str:
    """The result as a table."""
    rows = [(text, percent(getattr(found, name))) for name, text in _NAMES.items()]
    said = f"What the classifier looks at ({found.images:,} images, chance {percent(found.chance)}"
    if found.without_cells:
        said += f"; no cell found in {found.without_cells:,}"
    return f"{said}):\n\n" + table(("image", "accuracy"), rows)


_NAMES = {
    "whole": "as it is",
    "cells": "cells alone, background blanked",
    "background": "background alone, cells blanked",
    "without_corners": "corners blanked",
    "swapped": "background of another class",
    "follows_background": "  of these, given the class of the background",
}


def _of_other_classes(truth: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each image a random one of another class. Raises DataError if there is none."""
    if len(np.unique(truth)) < 2:
        raise DataError("--context needs images of at least two classes", hint="evaluate on other images")
    generator = np.random.default_rng(seed)
    return np.array([generator.choice(np.flatnonzero(truth != kind)) for kind in truth])


def _mixed(inside: Pixels, outside: NDArray[Any], share: NDArray[np.float32]) -> Pixels:
    """``inside`` where ``share`` is 1, ``outside`` where it is 0."""
    weight = share[..., None]
    return np.rint(inside * weight + outside * (1 - weight)).astype(np.uint8)


def _without_corners(field: Field) -> Pixels:
    pixels = field.pixels.copy()
    down, across = (max(1, round(CORNER * side)) for side in pixels.shape[:2])
    for rows in (slice(0, down), slice(-down, None)):
        for columns in (slice(0, across), slice(-across, None)):
            pixels[rows, columns] = np.rint(field.glass)
    return pixels


def _swapped(field: Field, donor: Field) -> Pixels:
    """The cells of a field on the background of another one."""
    return _mixed(field.pixels, donor.background(), field.cells)
