"""Results of a segmentation network on images with masks. Without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...edge_runtime.results import OPTIONAL, SPREAD, Result
from ..evaluation.corruptions import WorstCell
from ..evaluation.site import OwnImages
from .paired import PairedMasks


@dataclass(frozen=True)
class Panoptic(Result):
    """Found cells against drawn ones. The shares are 0..1, None if undefined.

    Attributes:
        quality: sum of the overlaps (IoU) of matched cells over the mean number of drawn and found ones.
        segmentation: mean overlap of the matched cells.
        recognition: F1 of the cells.
        cells: number of drawn cells, with ``found`` those found and ``matched`` those of both.

    Source: A. Kirillov et al., Panoptic Segmentation, CVPR 2019.
    """

    quality: float | None
    segmentation: float | None
    recognition: float | None
    cells: int
    found: int
    matched: int


@dataclass(frozen=True)
class MaskClass(Result):
    """Dice and IoU of one class over all pixels, None without such pixels; ``images`` counts images with the class."""

    dice: float | None
    iou: float | None
    images: int


@dataclass(frozen=True)
class Laboratory(Result):
    """Figures of the images of one laboratory, see `MaskMetrics`."""

    images: int
    dice_nucleus: float
    dice_cell: float
    nc_error: float | None


@dataclass(frozen=True)
class MaskMetrics(Result):
    """The figures of a segmentation network on one set of images. Dice and shares are 0..1.

    Attributes:
        split: the subset, for instance ``test``.
        split_level: level of the split.
        images: their number.
        ci_unit: what the intervals resample: ``image``.
        dice: mean over the images of nucleus and whole cell.
        dice_ci95: percentile bootstrap interval of the mean; also of ``dice_nucleus`` and ``dice_cell``.
        dice_nucleus: mean over the images; ``dice_cell`` is that of nuclei and cytoplasm together.
        nc_error: median absolute error of the share of nucleus in the cells' area; None without a cell.
        red_cell_error: median absolute error of the red cells' diameter, octaves; None if no diameter is known.
        panoptic: found cells against drawn ones.
        labels: the classes, in the order of ``confusion``.
        per_class: by label.
        per_laboratory: by name.
        confusion: ``confusion[i][j]`` counts pixels drawn as class i and found as class j.
        mean_iou: mean of the classes' IoU. None, as the following ones, in files of older versions.
        aji: mean aggregated Jaccard index of the images with a cell, see `edgeall.train.segmentation.cells.jaccard`.
        nucleus_outline_um: median distance of the outlines of the nuclei as drawn and as found, micrometres; None if no
            scale is known; ``cell_outline_um`` is that of whole cells.
    """

    split: str
    split_level: str
    images: int
    ci_unit: str
    dice: float
    dice_ci95: list[float]
    dice_nucleus: float
    dice_nucleus_ci95: list[float]
    dice_cell: float
    dice_cell_ci95: list[float]
    nc_error: float | None
    red_cell_error: float | None
    panoptic: Panoptic
    labels: list[str]
    per_class: dict[str, MaskClass]
    per_laboratory: dict[str, Laboratory]
    confusion: list[list[int]]
    mean_iou: float | None = field(default=None, metadata=OPTIONAL)
    aji: float | None = field(default=None, metadata=OPTIONAL)
    nucleus_outline_um: float | None = field(default=None, metadata=OPTIONAL)
    cell_outline_um: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class DiceUnderCorruption(Result):
    """Dice under one corruption: the mean, and a list by severity."""

    mean: float
    by_severity: list[float]


@dataclass(frozen=True)
class MaskRobustness(Result):
    """Mean Dice of nucleus and whole cell under corruptions. A cell is one corruption at one severity.

    Attributes:
        suite: `edgeall.train.evaluation.corruptions.SUITE`.
        metric: ``dice``.
        images: their number in each cell.
        mean: over all cells, 0..1; ``worst``: of the worst cell, ``worst_at``.
    """

    suite: int
    metric: str
    images: int
    mean: float
    worst: float
    worst_at: WorstCell
    by_corruption: dict[str, DiceUnderCorruption]


@dataclass(frozen=True)
class MaskSiteFigures(Result):
    """Figures of a site, or of the network's own test subset, see `MaskMetrics`."""

    images: int
    dice: float
    dice_ci95: list[float]
    dice_nucleus: float
    dice_cell: float
    nc_error: float | None
    aji: float | None


@dataclass(frozen=True)
class ExternalMasks(Result):
    """A site compared with the network's own test subset.

    Attributes:
        folder: of the site.
        repeated: the network's own images at the site.
        here: figures of the site; ``own`` are those of the network's own test subset.
        drop_points: hundredths of Dice lost, and their 95 % interval ``drop_points_ci95``.
    """

    folder: str
    repeated: OwnImages
    here: MaskSiteFigures
    own: MaskSiteFigures
    drop_points: float
    drop_points_ci95: list[float]


@dataclass(frozen=True)
class MaskEvaluation(Result):
    """What `edgeall.train.evaluation.evaluate.evaluate` measured of a segmentation network.

    Attributes:
        model: path of the run or model file.
        robustness: None if it was not requested, like ``against``, the paired comparison with another model, and
            ``site``, the comparison with the own test subset.
        seconds: duration.
    """

    model: str
    metrics: MaskMetrics = field(metadata=SPREAD)
    robustness: MaskRobustness | None = field(default=None, metadata=OPTIONAL)
    against: PairedMasks | None = field(default=None, metadata=OPTIONAL)
    site: ExternalMasks | None = field(default=None, metadata=OPTIONAL)
    seconds: float = 0.0
