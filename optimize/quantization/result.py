"""Result of one quantization."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...edge_runtime.results import OPTIONAL, SPREAD, Result
from ...edge_runtime.tools.decisions import Decisions
from ...train.evaluation.reliability import ReliabilityReport
from ...train.evaluation.robustness import Robustness
from ...train.segmentation.results import MaskMetrics, MaskRobustness
from .convert import compressed_bytes, layers_in_float, sparsity
from .layer_error import LayerError
from .verify import ClassRecall

if TYPE_CHECKING:
    from .job import Converted, Folded, Job


def conversion_facts(job: Job, network: Folded, converted: Converted) -> dict[str, Any]:
    """The fields of a result that describe the conversion, for every task."""
    flatbuffer = converted.flatbuffer
    in_float = None
    if network.placement:
        in_float = layers_in_float(flatbuffer, [layer.name for layer in network.folded.layers], converted.output)
    return {
        "scheme": job.config.scheme,
        "synthetic": job.facts.data.synthetic,
        "split_level": job.split.level,
        "flatbuffer_bytes": len(flatbuffer),
        "compressed_bytes": compressed_bytes(flatbuffer),
        "float_flatbuffer_bytes": len(converted.float32),
        "float_layers": in_float,
        "sparsity_frac": sparsity(flatbuffer),
        "clusters": job.config.clusters,
        "layers": converted.layers,
        "auto_float": converted.auto_float,
    }


DROP_UNITS = {"classification": "points of validation accuracy", "segmentation": "hundredths of validation Dice"}
"""What `Trial.drop_points` counts, by task."""


@dataclass(frozen=True)
class Trial(Result):
    """One candidate of `AutoFloat`.

    Attributes:
        layers: number of layers left in float, besides those that the user named.
        drop_points: what it loses on the validation subset, see `DROP_UNITS`; None: it could not be converted.
    """

    layers: int
    drop_points: float | None

    def within(self, limit: float) -> bool:
        """Whether it loses no more than ``limit``."""
        return self.drop_points is not None and self.drop_points <= limit


@dataclass(frozen=True)
class AutoFloat(Result):
    """The search for float layers, see `edgeall.optimize.quantization.auto_float`.

    Attributes:
        layers: the layers of ``--float-layers`` that give the same file: those that the user named, then those that
            were found, the worst first.
        trials: in the order in which they were measured; the first one without further float layers.
    """

    layers: list[str]
    trials: list[Trial]

    @property
    def argument(self) -> str:
        """The option that repeats it without a search."""
        return f"--float-layers {shlex.quote(','.join(self.layers))}"

    def tried(self, task: str) -> str:
        """Every trial in one line."""
        drops = [
            f"{trial.layers}: " + ("not converted" if trial.drop_points is None else f"{trial.drop_points:.2f}")
            for trial in self.trials
        ]
        return f"drop in {DROP_UNITS[task]} by number of layers in float: {', '.join(drops)}"


@dataclass(frozen=True)
class Agreement(Result):
    """Share of images (of a mask: of pixels) with the label of Keras; largest difference of a probability."""

    agreement: float
    max_abs_difference: float


@dataclass(frozen=True, kw_only=True)
class QuantizationResult(Result):
    """What `edgeall.optimize.quantize.quantize` measured and wrote of a classifier.

    Accuracies and shares are 0..1. Differences are from Keras float32.

    Attributes:
        synthetic: whether the images are drawn.
        test_images: number of images of the verified subset.
        float_accuracy: accuracy of Keras float32; ``accuracy`` is that of the converted model.
        drop_points: lost accuracy, percentage points.
        agreement: share of images with the same label.
        max_abs_difference: largest difference of a probability.
        tflite_float: of the float32 TFLite model.
        per_class: support and recall of both models by class.
        compressed_bytes: size of the flatbuffer after zlib.
        float_layers: layers that compute in float; None: the scheme is not integer.
        sparsity_frac: share of zeros among the weights in the file.
        layers: rounding error of each layer, if it was measured.
        auto_float: the search for float layers, if there was one.
        decided: as in the manifest.
        assessed: calibration and review of the verified images.
        robustness: under corruptions, if it was measured.
        out: path of the packed model, with ``file_bytes`` its size and ``report`` the HTML report beside it.
    """

    scheme: str
    synthetic: bool
    test_images: int
    split_level: str
    float_accuracy: float
    accuracy: float
    drop_points: float
    agreement: float
    max_abs_difference: float
    tflite_float: Agreement
    per_class: dict[str, ClassRecall]
    flatbuffer_bytes: int
    compressed_bytes: int
    float_flatbuffer_bytes: int
    float_layers: list[str] | None
    sparsity_frac: float
    clusters: int | None
    layers: list[LayerError] | None = field(default=None, metadata=OPTIONAL)
    auto_float: AutoFloat | None = field(default=None, metadata=OPTIONAL)
    decided: Decisions = field(metadata=SPREAD)
    assessed: ReliabilityReport = field(metadata=SPREAD)
    robustness: Robustness | None = field(default=None, metadata=OPTIONAL)
    out: str
    file_bytes: int
    report: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class ClassDice(Result):
    """Dice of one class with Keras float32, and its figures with the converted model, see `MaskClass`."""

    reference_dice: float | None
    dice: float | None
    iou: float | None
    images: int


@dataclass(frozen=True, kw_only=True)
class SegmentationResult(Result):
    """What `edgeall.optimize.quantize.quantize` measured and wrote of a segmentation network.

    Figures of Dice are 0..1 and means over the images of nucleus and whole cell; further fields are as in
    `QuantizationResult`.

    Attributes:
        float_dice: of Keras float32; ``dice`` is that of the converted model.
        drop_points: lost Dice, hundredths.
        agreement: share of pixels with the same class, over all tiles.
        max_abs_difference: largest difference of a probability.
        tflite_float: of the float32 TFLite model.
        per_class: by class, over all pixels.
        metrics: of the converted model.
        robustness: under corruptions, if it was measured.
    """

    scheme: str
    synthetic: bool
    test_images: int
    split_level: str
    float_dice: float
    dice: float
    drop_points: float
    agreement: float
    max_abs_difference: float
    tflite_float: Agreement
    per_class: dict[str, ClassDice]
    metrics: MaskMetrics
    flatbuffer_bytes: int
    compressed_bytes: int
    float_flatbuffer_bytes: int
    float_layers: list[str] | None
    sparsity_frac: float
    clusters: int | None
    layers: list[LayerError] | None = field(default=None, metadata=OPTIONAL)
    auto_float: AutoFloat | None = field(default=None, metadata=OPTIONAL)
    robustness: MaskRobustness | None = field(default=None, metadata=OPTIONAL)
    out: str
    file_bytes: int
    report: str | None = field(default=None, metadata=OPTIONAL)
    task: str = "segmentation"
