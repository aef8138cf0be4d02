"""The content of ``compare.json`` and of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from ...edge_runtime.preprocess import InputSpec
from ...edge_runtime.results import OPTIONAL, Result
from ...edge_runtime.tools.device import Device
from ...train.evaluation.mcnemar import mcnemar
from ...train.evaluation.metrics import Metrics
from ...train.run_info import PrunedInfo
from ...train.segmentation.paired import signed_ranks
from ...train.segmentation.results import MaskMetrics
from .latency import Latency


@dataclass(frozen=True)
class Failure(Result):
    """What could not be made. ``scheme`` is None if it is the model itself; unexpected errors have a ``traceback``."""

    model: str
    scheme: str | None
    error: str
    hint: str
    traceback: str | None = field(default=None, metadata=OPTIONAL)

    def __str__(self) -> str:
        """One line of text."""
        return f"{self.model}{f' {self.scheme}' if self.scheme else ''}: {self.error}"


@dataclass(frozen=True, kw_only=True)
class FoldMetrics(Metrics):
    """Metrics of all test subsets together, which do not overlap, and the accuracy of each of them.

    Attributes:
        accuracies: one for each fold.
        balanced_accuracy: mean recall of the classes that have test images.
    """

    accuracies: list[float]
    balanced_accuracy: float


@dataclass(frozen=True)
class SubsetFigures(Result):
    """Means of one subset over the folds, and each fold's accuracy."""

    accuracy: float
    log_loss: float
    macro_f1: float
    accuracies: list[float]


@dataclass(frozen=True)
class MaskSubset(Result):
    """One subset of a segmentation network."""

    dice: float


@dataclass(frozen=True)
class SchemeFigures(Result):
    """One model in one scheme.

    Attributes:
        files: one for each fold, like ``sha256``, the digest of its flatbuffer.
        file_bytes: mean over the folds, like ``flatbuffer_bytes``, ``compressed_bytes`` and ``latency``.
        sparsity_frac: share of weights that are zero; None where the file does not say it, like ``float_layers``, the
            layers left in float.
        drop_points: test accuracy lost to the Keras network, in percentage points; of masks hundredths of Dice.
        agreement: share of test images with the same predicted class as the Keras network; None for masks.
        max_abs_difference: of the probabilities from those of the Keras network; None for masks.
    """

    files: list[str]
    sha256: list[str]
    file_bytes: int
    flatbuffer_bytes: int
    compressed_bytes: int
    sparsity_frac: float | None
    float_layers: list[str] | None
    drop_points: float
    agreement: float | None
    max_abs_difference: float | None
    metrics: FoldMetrics | MaskMetrics
    latency: Latency


@dataclass(frozen=True)
class ComparedData(Result):
    """The data set of the first run of a model."""

    root: str
    images: int
    left_out: int
    synthetic: bool
    dataset_sha256: str


@dataclass(frozen=True)
class ComparedModel(Result):
    """One model; its runs are the folds of a cross-validation.

    Attributes:
        runs: folders, with ``run_sha256`` and ``split_sha256`` their digests.
        test_sha256: equal for models with the same test images.
        sides: images of each subset, by fold.
        training_s: seconds of all runs together; ``epoch_s``: median of an epoch, None if no epoch was trained.
        resumed: whether a killed run was resumed; ``training_s`` then counts its last process only.
        by_side: by subset, of the Keras network, like ``keras``, its test metrics.
    """

    name: str
    runs: list[str]
    labels: list[str]
    backbone: str
    alpha: float | None
    weights: str
    augment: str
    seed: int
    input: InputSpec
    parameters: int
    macs: int
    pruned: PrunedInfo | None
    split_level: str
    optimistic: bool
    run_sha256: list[str]
    split_sha256: list[str]
    test_sha256: str
    data: ComparedData
    sides: dict[str, list[int]]
    training_s: float
    epoch_s: float | None
    resumed: bool
    by_side: dict[str, SubsetFigures | MaskSubset]
    keras: FoldMetrics | MaskMetrics = field(metadata={"key": "float"})
    schemes: dict[str, SchemeFigures]


@dataclass(frozen=True, kw_only=True)
class ComparedRow(Result):
    """One model in one scheme, in the table. Test figures are those of all folds together, see `FoldMetrics`.

    Attributes:
        accuracy: mean of the folds, with ``accuracy_sd`` their standard deviation, None for a single one.
        accuracy_low: lower end of the 95 % interval of all test images, with ``accuracy_high`` the upper one.
        on_front: on the Pareto front of latency and accuracy of the models with the same test images.
        only_this_right: number of images that this model classifies correctly and the best one does not.
        only_best_right: the reverse; None in the best row itself, like ``only_this_right`` and ``mcnemar_p``.
        mcnemar_p: see `edgeall.train.evaluation.mcnemar.mcnemar`.
    """

    model: str
    scheme: str
    runs: int
    split_level: str
    optimistic: bool
    accuracy: float
    accuracy_sd: float | None
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    log_loss: float
    ece: float
    sensitivity: float | None
    specificity: float | None
    test_images: int
    balanced_accuracy: float
    auroc_positive: float | None
    weighted_precision: float
    weighted_recall: float
    weighted_f1: float
    drop_points: float
    agreement: float | None
    parameters: int
    macs: int
    file_bytes: int
    flatbuffer_bytes: int
    compressed_bytes: int
    float_layers: list[str] | None
    latency_p50_ms: float
    latency_p90_ms: float
    pruned: bool
    epoch_s: float | None
    on_front: bool = False
    only_this_right: int | None = None
    only_best_right: int | None = None
    mcnemar_p: float | None = None

    @property
    def figure(self) -> float:
        """The figure that ranks the models."""
        return self.accuracy

    @property
    def p_value(self) -> float | None:
        """Of the paired comparison with the best row; None in the best row itself."""
        return self.mcnemar_p

    def paired(self, scores: NDArray[Any], best: NDArray[Any]) -> ComparedRow:
        """This row compared with the best one, from `Measured.scores`."""
        test = mcnemar(scores, best)
        return replace(self, only_this_right=test.only_first, only_best_right=test.only_second, mcnemar_p=test.p_value)


@dataclass(frozen=True, kw_only=True)
class MaskRow(Result):
    """One segmentation network in one scheme, in the table; see `ComparedRow` and `MaskMetrics`.

    Attributes:
        dice_low: lower end of the 95 % interval of ``dice``, with ``dice_high`` the upper one.
        on_front: on the Pareto front of latency and Dice of the models with the same test images.
        only_this_higher: number of images on which this model has a higher Dice than the best one.
        only_best_higher: the reverse; None in the best row itself, like ``only_this_higher`` and ``wilcoxon_p``.
        wilcoxon_p: see `edgeall.train.segmentation.paired.signed_ranks`.
    """

    model: str
    scheme: str
    runs: int
    split_level: str
    optimistic: bool
    dice: float
    dice_low: float
    dice_high: float
    dice_nucleus: float
    dice_cell: float
    mean_iou: float | None
    aji: float | None
    panoptic_quality: float | None
    nc_error: float | None
    test_images: int
    drop_points: float
    parameters: int
    macs: int
    file_bytes: int
    flatbuffer_bytes: int
    compressed_bytes: int
    float_layers: list[str] | None
    latency_p50_ms: float
    latency_p90_ms: float
    pruned: bool
    epoch_s: float | None
    on_front: bool = False
    only_this_higher: int | None = None
    only_best_higher: int | None = None
    wilcoxon_p: float | None = None

    @property
    def figure(self) -> float:
        """The figure that ranks the models."""
        return self.dice

    @property
    def p_value(self) -> float | None:
        """Of the paired comparison with the best row; None in the best row itself."""
        return self.wilcoxon_p

    def paired(self, scores: NDArray[Any], best: NDArray[Any]) -> MaskRow:
        """This row compared with the best one, from `Measured.scores`."""
        test = signed_ranks(scores, best)
        return replace(
            self, only_this_higher=test.only_first, only_best_higher=test.only_second, wilcoxon_p=test.p_value
        )


Row = ComparedRow | MaskRow


@dataclass(frozen=True)
class ProtocolInfo(Result):
    """The protocol of a comparison of backbones, with the settings that were changed."""

    name: str
    summary: str
    source: str
    folds: int
    per_class: str | None
    split_by: str
    embargo: int | None
    weights: str
    training: Mapping[str, Any]


@dataclass(frozen=True)
class ComparedTiming(Result):
    """How latency was measured. ``load_average_1min``: of the machine at the end; None where there is none."""

    threads: int
    rounds: int
    load_average_1min: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """The content of ``compare.json``.

    Attributes:
        protocol: None for runs that were trained before.
        rows: one for each model and scheme.
        models: by name, with the metrics of all subsets and the test metrics of every scheme.
        failures: what could not be made, and why.
        notes: limits of the comparison that a reader has to know.
        report: path of ``compare.html``.
        task: of the models; None in files of older versions, which are of classifiers.
    """

    schema: int
    created: str
    edgeall_version: str
    source_revision: str | None
    versions: dict[str, str | None]
    device: Device
    labels: list[str]
    synthetic: bool
    protocol: ProtocolInfo | None
    schemes: list[str]
    timing: ComparedTiming
    rows: list[ComparedRow | MaskRow]
    models: dict[str, ComparedModel]
    failures: list[Failure]
    notes: list[str]
    report: str
    task: str | None = field(default=None, metadata=OPTIONAL)
