"""Result of one quantization."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .convert import compressed_bytes, layers_in_float, sparsity

if TYPE_CHECKING:
    from .job import Converted, Folded, Job

OPTIONAL = ("layers", "robustness", "report")
"""Fields that the JSON leaves out when they were not measured or written."""


def conversion_facts(job: Job, network: Folded, converted: Converted) -> dict[str, Any]:
    """The fields of a result that describe the conversion, for every task."""
    flatbuffer = converted.flatbuffer
    in_float = None
    if network.placement:
        in_float = layers_in_float(flatbuffer, [layer.name for layer in network.folded.layers], converted.output)
    return {
        "scheme": job.config.scheme,
        "synthetic": job.facts["data"]["synthetic"],
        "split_level": job.split.level,
        "flatbuffer_bytes": len(flatbuffer),
        "compressed_bytes": compressed_bytes(flatbuffer),
        "float_flatbuffer_bytes": len(converted.float32),
        "float_layers": in_float,
        "sparsity_frac": sparsity(flatbuffer),
        "clusters": job.config.clusters,
        "layers": converted.layers,
    }


@dataclass(frozen=True)
class QuantizationResult:
    """What `edgeall.optimize.quantize.quantize` measured and wrote of a classifier.

    Accuracies and shares are 0..1. Differences are from Keras float32.

    Attributes:
        synthetic: whether the images are drawn.
        test_images: number of images of the verified subset.
        float_accuracy: accuracy of Keras float32; ``accuracy`` is that of the converted model.
        drop_points: lost accuracy, percentage points.
        agreement: share of images with the same label.
        max_abs_difference: largest difference of a probability.
        tflite_float: ``agreement`` and ``max_abs_difference`` of the float32 TFLite model.
        per_class: support and recall of both models by class.
        compressed_bytes: size of the flatbuffer after zlib.
        float_layers: layers that compute in float; None: the scheme is not integer.
        sparsity_frac: share of zeros among the weights in the file.
        layers: see `edgeall.optimize.quantization.layer_error.LayerError`.
        calibration: as in the manifest, like ``decision`` and ``novelty``.
        reliability: see `edgeall.train.evaluation.reliability`, like ``risk_coverage`` and ``review``.
        robustness: see `edgeall.train.evaluation.robustness.robustness`.
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
    tflite_float: dict[str, Any]
    per_class: dict[str, Any]
    flatbuffer_bytes: int
    compressed_bytes: int
    float_flatbuffer_bytes: int
    float_layers: list[str] | None
    sparsity_frac: float
    clusters: int | None
    layers: list[dict[str, Any]] | None
    calibration: dict[str, Any]
    decision: dict[str, Any]
    novelty: dict[str, Any]
    reliability: dict[str, Any]
    risk_coverage: dict[str, Any]
    review: dict[str, Any] | None
    robustness: dict[str, Any] | None
    out: str
    file_bytes: int
    report: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON of ``edgeall quantize --json``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL}


@dataclass(frozen=True)
class SegmentationResult:
    """What `edgeall.optimize.quantize.quantize` measured and wrote of a segmentation network.

    Figures of Dice are 0..1 and means over the images of nucleus and whole cell; further fields are as in
    `QuantizationResult`.

    Attributes:
        float_dice: of Keras float32; ``dice`` is that of the converted model.
        drop_points: lost Dice, hundredths.
        agreement: share of pixels with the same class, over all tiles.
        max_abs_difference: largest difference of a probability.
        tflite_float: ``agreement`` and ``max_abs_difference`` of the float32 TFLite model.
        per_class: Dice of both models by class, over all pixels.
        metrics: of the converted model, see `edgeall.train.segmentation.assess.figures`.
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
    tflite_float: dict[str, Any]
    per_class: dict[str, Any]
    metrics: dict[str, Any]
    flatbuffer_bytes: int
    compressed_bytes: int
    float_flatbuffer_bytes: int
    float_layers: list[str] | None
    sparsity_frac: float
    clusters: int | None
    layers: list[dict[str, Any]] | None
    robustness: dict[str, Any] | None
    out: str
    file_bytes: int
    report: str | None = None
    task: str = "segmentation"

    def to_json(self) -> dict[str, Any]:
        """The JSON of ``edgeall quantize --json``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL}
