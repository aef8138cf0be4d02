"""Finds the cells of a field by a segmentation network: scale, tiles, class map, cells."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BundleError
from ..masks import CLASSES, GREYS
from ..network import cores
from ..segmenter import Segmenter
from . import DEFAULT_MODEL
from .cells import Box, Cell
from .instances import Instance, Labels, find_instances, nuclei, opencv
from .scale import Scale, contradiction, implausible, measure_scale
from .tiles import ClassMap, TileSegmenter, segment_field

_, CYTOPLASM, NUCLEUS = GREYS
MARGIN = 0.1
"""Margin of a cell's box, in red cell diameters."""


@dataclass(frozen=True)
class Found:
    """The cells of a field.

    Attributes:
        cells: from top to bottom, including those that the border cuts.
        scale: of the field.
        warnings: one line each: what makes the result doubtful.
        mask: returns the mask, uint8 of the field's ``(height, width)``: 0, `CYTOPLASM` or `NUCLEUS`, of the cells
            alone.
    """

    cells: tuple[Cell, ...]
    scale: Scale
    warnings: tuple[str, ...]
    mask: Callable[[], NDArray[np.uint8]]


class Finder(Protocol):
    """Finds cells in fields."""

    def find(self, pixels: NDArray[np.uint8], scale: Scale | None = None, /) -> Found:
        """Find the nucleated cells of a field.

        Args:
            pixels: uint8 RGB ``(height, width, 3)``.
            scale: None measures it in the field.
        """
        ...


class CellFinder:
    """Finds cells by a segmentation network. As thread-safe as the network."""

    def __init__(self, segmenter: TileSegmenter) -> None:
        opencv()  # its absence is said at once
        self._segmenter = segmenter

    def find(self, pixels: NDArray[np.uint8], scale: Scale | None = None, /) -> Found:
        """See `Finder`."""
        field = Image.fromarray(pixels)
        if scale is None:
            scale = measure_scale(field, self._segmenter)
        classes = segment_field(field, self._segmenter, scale.red_cell_px)
        unit = self._segmenter.red_cell_px
        labels, instances = find_instances(classes, unit)
        cells = tuple(_cell(each, classes.zoom, field.size, MARGIN * unit) for each in instances)
        doubts = scale.problem(), implausible(scale, field.size), contradiction(scale, classes.red_cells)
        return Found(cells, scale, tuple(filter(None, doubts)), lambda: field_mask(classes, labels, field.size))


class FinderPool:
    """A `Finder` for several threads: each call takes an idle one of ``finders``.

    Attributes:
        count: number of finders, of threads that can find at a time.
    """

    def __init__(self, finders: Iterable[Finder]) -> None:
        self._idle: queue.SimpleQueue[Finder] = queue.SimpleQueue()
        for finder in finders:
            self._idle.put(finder)
        self.count = self._idle.qsize()

    def find(self, pixels: NDArray[np.uint8], scale: Scale | None = None, /) -> Found:
        """See `Finder`."""
        finder = self._idle.get()
        try:
            return finder.find(pixels, scale)
        finally:
            self._idle.put(finder)


def field_mask(classes: ClassMap, labels: Labels, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of the cells in a field of ``size`` (width, height), see `Found`."""
    cv2 = opencv()
    kept = cv2.dilate((labels > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    cell = np.where(kept, np.where(labels > 0, np.maximum(classes.cell, 128), classes.cell), 0).astype(np.uint8)
    nucleus = np.where(kept, classes.nucleus, 0).astype(np.uint8)
    cell, nucleus = (cv2.resize(each, size, interpolation=cv2.INTER_LINEAR) for each in (cell, nucleus))
    mask = np.zeros(cell.shape, np.uint8)
    mask[cell >= 128] = CYTOPLASM
    mask[nuclei(ClassMap(cell, nucleus, (1, 1), ())) > 0] = NUCLEUS
    return mask


def open_finder(model: Path | None = None, threads: int | None = None) -> Finder:
    """The finder with a packed segmentation model; None takes the default one.

    Raises:
        BundleError: the file is damaged, or is a model of another task or of other classes.
        EdgeallError: OpenCV is not installed.
    """
    path = model or DEFAULT_MODEL
    segmenter = Segmenter.open(path, threads=threads)
    if segmenter.labels != CLASSES or segmenter.input.width != segmenter.input.height:
        raise BundleError(
            f"{path}: its classes are {', '.join(segmenter.labels)} in {segmenter.input.width}x{segmenter.input.height}"
            f" pixels; finding cells needs {', '.join(CLASSES)} in a square",
            hint="give a model of cells with --cell-model",
        )
    return CellFinder(segmenter)


def finder_pool(open_one: Callable[[int | None], Finder], images: int | None, threads: int | None = None) -> FinderPool:
    """Finders, one per core for several images, else one with all cores.

    Args:
        open_one: opens a finder whose interpreter has so many threads; None means all cores.
        images: number of images; None if it is unknown.
        threads: of the interpreter; then there is one finder.
    """
    count = 1 if threads else cores() if images is None else min(images, cores())
    return FinderPool([open_one(threads or (None if count == 1 else 1)) for _ in range(count)])


def _cell(found: Instance, zoom: tuple[float, float], size: tuple[int, int], margin: float) -> Cell:
    """A cell in pixels of a field of ``size`` (width, height)."""
    left, top, right, bottom = found.box
    box: Box = (
        max(0, math.floor((left - margin) / zoom[0])),
        max(0, math.floor((top - margin) / zoom[1])),
        min(size[0], math.ceil((right + margin) / zoom[0])),
        min(size[1], math.ceil((bottom + margin) / zoom[1])),
    )
    area = zoom[0] * zoom[1]
    return Cell(
        box=box,
        centre=(found.centre[0] / zoom[0], found.centre[1] / zoom[1]),
        area_px=round(found.nucleus / area),
        touches_border=found.cut,
        cell_area_px=round(found.cell / area),
        roundness=round(found.roundness, 4),
    )
