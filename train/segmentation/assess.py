"""The figures of a segmentation network on whole images, at the images' own size."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...console.progress import Progress
from ...edge_runtime.images import open_rgb
from ...edge_runtime.masks import CLASSES, GREYS, open_mask
from ...edge_runtime.preprocess import InputSpec, normalize
from ...edge_runtime.segmenter import STEPS, Segmentation
from ...edge_runtime.tools import atomic
from ...edge_runtime.vision.finder import field_mask
from ...edge_runtime.vision.instances import find_instances
from ...edge_runtime.vision.scale import RED_CELL_UM
from ...edge_runtime.vision.tiles import ClassMap, TileSegmenter, segment_field
from ..data.split import SplitEntry
from .cells import jaccard, matches, outline_distance
from .images import NUCLEUS, RED_CELL_PX, MaskedImages, red_cell_of, resized_classes
from .results import Laboratory, MaskClass, MaskMetrics, Panoptic

RESAMPLES = 1000
"""Resamples of the images for a 95 % interval."""


@dataclass(frozen=True)
class Score:
    """The figures of one image.

    Attributes:
        path: of the image.
        laboratory: it comes from.
        dice_nucleus: of the nuclei; 1 if there are none and none are found; likewise the others.
        dice_cell: of nuclei and cytoplasm together.
        dice_cytoplasm: of the cytoplasm alone.
        iou_background: intersection over union of the background.
        nc_error: absolute error of the share of nucleus in the cells' area; None without a cell.
        red_cell_octaves: log2 of the network's red cell's diameter over the known one; None if that is unknown.
        cells: number of drawn cells.
        found: number of found cells.
        matched: number of those that match.
        overlap: sum of the overlaps (IoU) of the matched ones.
        aji: see `edgeall.train.segmentation.cells.jaccard`.
        nucleus_outline_um: see `edgeall.train.segmentation.cells.outline_distance`, micrometres; None without nuclei,
            or if the scale is unknown; ``cell_outline_um`` is that of whole cells.
        pixels: counts of pixels, drawn class by found class, row by row.
    """

    path: str
    laboratory: str
    dice_nucleus: float
    dice_cell: float
    dice_cytoplasm: float
    iou_background: float
    nc_error: float | None
    red_cell_octaves: float | None
    cells: int
    found: int
    matched: int
    overlap: float
    aji: float | None
    nucleus_outline_um: float | None
    cell_outline_um: float | None
    pixels: tuple[int, ...]

    @property
    def dice(self) -> float:
        """Mean of nucleus and whole cell."""
        return (self.dice_nucleus + self.dice_cell) / 2


class KerasSegmenter:
    """A Keras model as a `TileSegmenter`: its probabilities are rounded as those of a float TFLite model."""

    def __init__(self, model: Any, spec: InputSpec) -> None:
        self.model = model
        self.input = spec
        self.red_cell_px = float(RED_CELL_PX)

    def infer(self, pixels: NDArray[np.uint8]) -> Segmentation:
        mask, red_cell = self.model.predict_on_batch(normalize(pixels, self.input)[np.newaxis])
        units = np.clip(np.rint(mask[0] * np.float32(STEPS)), 0, STEPS - 1).astype(np.uint8)
        return Segmentation(units, float(red_cell[0, 0]))


@dataclass(frozen=True)
class Answer:
    """What the device makes of an image.

    Attributes:
        classes: of the pixels of its cells, uint8 ``(height, width)``; components that are no cells are background.
        cells: number of the cell of each pixel from 1, else 0, int32, at the network's scale.
        octaves: median of the network's answers for the size of its red cells.
    """

    classes: NDArray[np.uint8]
    cells: NDArray[np.int32]
    octaves: float


def answer_of(segmenter: TileSegmenter, entry: SplitEntry, image: Image.Image, spec: InputSpec) -> Answer:
    """Segment an image at its known scale, and find its cells."""
    found = segment_field(image, segmenter, red_cell_of(entry, image.size, spec))
    cells, _ = find_instances(found, segmenter.red_cell_px)
    mask = field_mask(found, cells, image.size)
    classes: NDArray[np.uint8] = np.searchsorted(GREYS, mask).astype(np.uint8)
    return Answer(classes, cells, float(np.median(found.red_cells)))


def drawn_cells(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The cells of a drawn mask, numbered as in `Answer.cells`, at a scale with this shape."""
    classes = resized_classes(truth, (shape[1], shape[0]))
    cell, nucleus = (np.uint8(255) * part for part in (classes > 0, classes == NUCLEUS))
    return find_instances(ClassMap(cell, nucleus, (1.0, 1.0), ()), float(RED_CELL_PX))[0]


def assess_images(segmenter: TileSegmenter, images: MaskedImages, title: str, progress: Progress) -> list[Score]:
    """The figures of every image, under a progress bar with this title.

    Raises:
        ImageError: one cannot be read any more.
    """
    scores: list[Score] = []
    with progress.task(title, len(images.entries)) as advance:
        for entry in images.entries:
            image = open_rgb(images.root / entry.path)
            truth = open_mask(images.root / str(entry.mask), image.size)
            scores.append(score(entry, truth, answer_of(segmenter, entry, image, images.spec)))
            advance(len(scores), "")
    return scores


def score(entry: SplitEntry, truth: NDArray[np.uint8], answer: Answer) -> Score:
    """The figures of one image. ``truth`` has the class of every pixel."""
    found = answer.classes
    pixels = np.bincount(truth.ravel().astype(int) * len(CLASSES) + found.ravel(), minlength=len(CLASSES) ** 2)
    ratios = [_nucleus_share(classes) for classes in (truth, found)]
    outside, called = truth == 0, found == 0
    union = int((outside | called).sum())
    cells = drawn_cells(truth, answer.cells.shape)
    overlaps = matches(cells, answer.cells)
    um_per_px = None if entry.red_cell_px is None else RED_CELL_UM / entry.red_cell_px
    nucleus, cell = (outline_distance(truth >= least, found >= least, um_per_px) for least in (NUCLEUS, 1))
    return Score(
        path=entry.path,
        laboratory=entry.label,
        dice_nucleus=dice_of(truth == NUCLEUS, found == NUCLEUS),
        dice_cell=dice_of(truth > 0, found > 0),
        dice_cytoplasm=dice_of(truth == 1, found == 1),
        iou_background=int((outside & called).sum()) / union if union else 1.0,
        nc_error=None if ratios[0] is None else abs(ratios[0] - (ratios[1] or 0.0)),
        red_cell_octaves=answer.octaves if entry.red_cell_px is not None else None,
        cells=int(cells.max()),
        found=int(answer.cells.max()),
        matched=len(overlaps),
        overlap=float(sum(overlaps)),
        aji=jaccard(cells, answer.cells),
        nucleus_outline_um=nucleus,
        cell_outline_um=cell,
        pixels=tuple(int(count) for count in pixels),
    )


def dice_of(wanted: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Dice of two sets of pixels; 1 if both are empty."""
    total = int(wanted.sum()) + int(found.sum())
    return 2.0 * int((wanted & found).sum()) / total if total else 1.0


def mean_dice(truth: NDArray[np.uint8], found: NDArray[np.uint8]) -> float:
    """`Score.dice` of the classes of an image's pixels, as drawn and as found."""
    return (dice_of(truth == NUCLEUS, found == NUCLEUS) + dice_of(truth > 0, found > 0)) / 2


def _nucleus_share(classes: NDArray[np.uint8]) -> float | None:
    cell = int((classes > 0).sum())
    return int((classes == NUCLEUS).sum()) / cell if cell else None


def figures(scores: Sequence[Score], subset: str, level: str, seed: int) -> MaskMetrics:
    """The figures of a subset.

    Args:
        scores: of its images.
        subset: its name.
        level: of the split.
        seed: of the bootstrap.
    """
    random = np.random.default_rng(seed)
    draws = random.integers(len(scores), size=(RESAMPLES, len(scores)))
    means: dict[str, Any] = {}
    for name in ("dice", "dice_nucleus", "dice_cell"):
        values = np.array([getattr(one, name) for one in scores])
        means[name] = float(values.mean())
        means[f"{name}_ci95"] = [float(end) for end in np.percentile(values[draws].mean(axis=1), (2.5, 97.5))]
    confusion = np.sum([one.pixels for one in scores], axis=0).reshape(len(CLASSES), len(CLASSES))
    classes = {label: _of_class(confusion, index, scores) for index, label in enumerate(CLASSES)}
    names = sorted({one.laboratory for one in scores})
    return MaskMetrics(
        split=subset,
        split_level=level,
        images=len(scores),
        ci_unit="image",
        **means,
        nc_error=_median([one.nc_error for one in scores]),
        red_cell_error=_median([None if (o := one.red_cell_octaves) is None else abs(o) for one in scores]),
        panoptic=_panoptic(scores),
        labels=list(CLASSES),
        per_class=classes,
        per_laboratory={name: _of_laboratory([one for one in scores if one.laboratory == name]) for name in names},
        confusion=confusion.tolist(),
        mean_iou=_mean([row.iou for row in classes.values()]),
        aji=_mean([one.aji for one in scores]),
        nucleus_outline_um=_median([one.nucleus_outline_um for one in scores]),
        cell_outline_um=_median([one.cell_outline_um for one in scores]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _panoptic(scores: Sequence[Score]) -> Panoptic:
    cells, found, matched = (sum(getattr(one, name) for one in scores) for name in ("cells", "found", "matched"))
    overlap, half = sum(one.overlap for one in scores), (cells + found) / 2
    return Panoptic(
        quality=overlap / half if half else None,
        segmentation=overlap / matched if matched else None,
        recognition=matched / half if half else None,
        cells=cells,
        found=found,
        matched=matched,
    )


def _of_class(confusion: NDArray[np.int64], index: int, scores: Sequence[Score]) -> MaskClass:
    both = int(confusion[index, index])
    total = int(confusion[index].sum() + confusion[:, index].sum())
    rows = slice(index * len(CLASSES), (index + 1) * len(CLASSES))
    return MaskClass(
        dice=2 * both / total if total else None,
        iou=both / (total - both) if total else None,
        images=sum(sum(one.pixels[rows]) > 0 for one in scores),
    )


def _of_laboratory(scores: Sequence[Score]) -> Laboratory:
    nucleus, cell = (float(np.mean([getattr(one, name) for one in scores])) for name in ("dice_nucleus", "dice_cell"))
    return Laboratory(len(scores), nucleus, cell, _median([one.nc_error for one in scores]))


def read_dice(path: Path, subset: str) -> list[float]:
    """`Score.dice` of every image of a subset, in order, from the file of `write_figures`."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        rows = [row for row in csv.DictReader(stream) if row["side"] == subset]
    return [(float(row["dice_nucleus"]) + float(row["dice_cell"])) / 2 for row in rows]


def write_figures(path: Path, scores: Mapping[str, Sequence[Score]]) -> None:
    """One row per image of every evaluated subset: path, side, and the fields of `Score` but the counts of pixels."""
    names = [field.name for field in fields(Score) if field.name not in ("path", "pixels")]
    with (
        atomic.atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["path", "side", *names])
        for subset, rows in scores.items():
            for one in rows:
                values = asdict(one)
                writer.writerow([one.path, subset, *("" if values[name] is None else values[name] for name in names)])
