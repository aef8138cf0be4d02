"""The settings of `edgeall.train.evaluation.evaluate.evaluate`. Imports nothing heavy: the command line takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..data.subsets import SUBSETS


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate on, and what else to measure.

    Attributes:
        data: folder or manifest. A run knows its own.
        side: subset of the split; None is ``test``.
        split: the ``split.json`` that the model was made with. A run uses its own. A model file uses the one beside it
            if the digest matches. If the data holds no image of the split, all of its images are used.
        labels_file: of a foreign model, see `Classifier.open`; also ``mean``, ``std`` and ``input_size`` (pixels).
        cache_dir: of preprocessed images, for a run.
        robust: also measure a model file under corruptions, see `edgeall.train.evaluation.robustness.robustness`.
        site: external validation: folder or manifest of another laboratory, evaluated instead of ``data``. ``data``
            then only tells where the model's own images are; they are searched for among the images of the site.
        against: a second model file for a paired comparison on the same images.
        explain: folder for Grad-CAM overlays of a run's wrong and least certain images, see
            `edgeall.train.evaluation.gradcam`; of masks for those that differ most, see
            `edgeall.train.segmentation.explain`.
        html: page to write about a segmentation network; that of a classifier is written by the command line.
        context: also measure what the classifier looks at, see `edgeall.train.evaluation.context.context`.
        by_cells: the model file is one of cells: classify the fields of ``data`` by their cells.
        cell_model: packed segmentation model for ``context`` and ``by_cells``; None takes the default one.
    """

    data: Path | None = None
    side: str | None = field(default=None, metadata={"choices": (*SUBSETS, "all")})
    split: Path | None = None
    labels_file: Path | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    input_size: int | None = None
    cache_dir: Path | None = None
    robust: bool = False
    site: Path | None = None
    against: Path | None = None
    explain: Path | None = None
    html: Path | None = None
    context: bool = False
    by_cells: bool = False
    cell_model: Path | None = None
