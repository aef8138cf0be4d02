"""The content of ``run.json``, of ``data.json`` and of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .. import __version__
from ..edge_runtime.preprocess import InputSpec
from ..edge_runtime.results import OPTIONAL, Result, from_json
from ..edge_runtime.tools.device import Device
from .data.samples import Problem
from .evaluation.metrics import Metrics
from .run_settings import RunSettings
from .segmentation.results import MaskMetrics

SCHEMA = 1


@dataclass(frozen=True)
class DataInfo(Result):
    """The data set of a run. ``left_out`` counts images that are in no subset."""

    root: str
    layout: str
    synthetic: bool
    dataset_sha256: str
    images: int
    left_out: int
    problems: list[Problem]
    exact_duplicates: int
    near_duplicates: int


@dataclass(frozen=True, kw_only=True)
class TeacherInfo(Result):
    """A teacher of a run. ``accuracy`` is by subset; ``dice`` instead of a segmentation network."""

    run: str
    run_sha256: str
    model: str
    alpha: float | None
    input_size: int
    accuracy: dict[str, float]
    dice: dict[str, float] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class TransferInfo(Result):
    """The run whose backbone a run started from: folder, digests of its ``run.json`` and of its data set, labels."""

    run: str
    run_sha256: str
    dataset_sha256: str
    labels: list[str]


@dataclass(frozen=True)
class Facts(Result):
    """``data.json``: what is known before the training. ``unit`` is the content of one image, ``field`` or ``cell``."""

    unit: str
    data: DataInfo
    teachers: list[TeacherInfo] | None = field(default=None, metadata=OPTIONAL)
    transfer: TransferInfo | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class SplitInfo(Result):
    """The split of a run: digest, level, images of each subset, and images in no subset by reason."""

    sha256: str
    level: str
    fold: str | None
    embargo: int | None
    left_out: dict[str, int]
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class ImportedInfo(Result):
    """Where the network of an imported run came from.

    Attributes:
        file: as given, with ``sha256`` its digest and ``keras`` the version that wrote it.
        normalization: its name, see `edgeall.train.imports.conventions`; ``normalization_from`` is how it is known:
            ``named``, ``inside`` or ``measured``.
        mean: as given, like ``std``; None unless the normalization was given in this way.
        first_layers: layers that map the channels of the input.
        channels: of its own input.
        end: what it ended in: ``softmax``, ``sigmoid`` or ``linear``.
        labels_named: whether the order of the labels was given.
        trials: every normalization that was tried on ``tried_images``.
    """

    file: str
    sha256: str
    keras: str
    normalization: str
    normalization_from: str
    mean: str | None
    std: str | None
    first_layers: list[str]
    channels: int
    end: str
    labels_named: bool
    tried_images: int
    trials: list[dict[str, Any]]


@dataclass(frozen=True)
class ModelInfo(Result):
    """The network. ``channels`` are those of a pruned network, by the name of the layer that computes them; ``members``
    are the networks of an ensemble.
    """

    name: str
    alpha: float | None
    parameters: int
    macs: int
    input: InputSpec
    channels: dict[str, int] | None = field(default=None, metadata=OPTIONAL)
    members: list[MemberNetwork] | None = field(default=None, metadata=OPTIONAL)
    imported: ImportedInfo | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class MemberNetwork(Result):
    """What the network of an ensemble's member is rebuilt from: ``settings`` and ``model`` of its run."""

    settings: RunSettings
    model: ModelInfo


@dataclass(frozen=True, kw_only=True)
class MemberInfo(TeacherInfo):
    """A run in an ensemble. ``latency_ms``: median of one image in float32 on one thread."""

    latency_ms: float


@dataclass(frozen=True)
class EnsembleInfo(Result):
    """The runs of an ensemble. ``latency_ms`` is measured in turn with theirs."""

    members: list[MemberInfo]
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class PrunedInfo(Result):
    """How a run was pruned.

    Attributes:
        kind: ``sparsity`` or ``macs``.
        asked: the target; ``found`` is measured on the result. Both 0..1.
        parent: folder of the parent run, with ``run_sha256`` its `edgeall.train.runs.run_digest`.
        parent_accuracy: of each subset; ``parent_dice`` instead of a segmentation network.
        channels: of kind ``macs``: ``[before, after]`` by the name of the layer that computes them.
        size: bytes of the float32 flatbuffer of both networks, plain and compressed.
        latency: milliseconds of one image on one thread, measured in turn.
        verdict: the gain in sentences.
    """

    kind: str
    asked: float
    found: float
    parent: str = field(metadata={"key": "from"})
    run_sha256: str
    parent_accuracy: dict[str, float]
    parent_dice: dict[str, float] | None = field(default=None, metadata=OPTIONAL)
    parameters: int
    parent_parameters: int
    macs: int
    parent_macs: int
    channels: dict[str, list[int]] | None = field(default=None, metadata=OPTIONAL)
    size: dict[str, int]
    latency: dict[str, float]
    verdict: list[str]


@dataclass(frozen=True, kw_only=True)
class RunInfo(Result):
    """``run.json``: everything about a run. `edgeall.train.runs.complete_run` fills in the fields with a default.

    Attributes:
        task: None in runs of older versions, which are classifiers.
        metrics: by subset.
        settings: with the resolved number of epochs; of a pruned run also those of the pruning.
        timing: seconds (suffix ``_s``) and images/s of the stages; ``resumed``: whether a killed run was resumed:
            ``total_s`` is then of the last process only.
        workers: processes that trained together, with ``replicas`` their devices.
    """

    schema: int = SCHEMA
    edgeall_version: str = __version__
    created: str = ""
    task: str | None = field(default=None, metadata=OPTIONAL)
    labels: list[str] = field(default_factory=list)
    positive_labels: list[str] = field(default_factory=list)
    split: SplitInfo = SplitInfo("", "", None, None, {}, 0, 0, 0)
    metrics: Mapping[str, Metrics | MaskMetrics] = field(default_factory=dict)
    settings: RunSettings
    unit: str
    data: DataInfo
    teachers: list[TeacherInfo] | None = field(default=None, metadata=OPTIONAL)
    transfer: TransferInfo | None = field(default=None, metadata=OPTIONAL)
    model: ModelInfo
    pruned: PrunedInfo | None = field(default=None, metadata=OPTIONAL)
    ensemble: EnsembleInfo | None = field(default=None, metadata=OPTIONAL)
    timing: dict[str, float | None]
    workers: int | None = field(default=None, metadata=OPTIONAL)
    replicas: int
    versions: dict[str, str | None]
    source_revision: str | None
    device: Device

    @property
    def total_s(self) -> float:
        """Seconds of the whole run."""
        return self.timing["total_s"] or 0.0

    @property
    def classified(self) -> dict[str, Metrics]:
        """``metrics`` of a classifier; empty for another task."""
        return {name: found for name, found in self.metrics.items() if isinstance(found, Metrics)}

    @property
    def segmented(self) -> dict[str, MaskMetrics]:
        """``metrics`` of a segmentation network; empty for another task."""
        return {name: found for name, found in self.metrics.items() if isinstance(found, MaskMetrics)}


def read_run(found: Mapping[str, Any]) -> RunInfo:
    """A run from the content of its ``run.json``."""
    kind: type[Metrics | MaskMetrics] = (
        MaskMetrics if RunSettings.read(found["settings"]).task == "segmentation" else Metrics
    )
    metrics = {name: from_json(kind, each) for name, each in found["metrics"].items()}
    return replace(from_json(RunInfo, found), metrics=metrics)
