"""`ComparisonTask`: what a comparison asks of a task. `get` finds one by its name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ....train.segmentation.results import MaskMetrics
from ....train.tasks import registry as training

if TYPE_CHECKING:
    from ....console.progress import Progress
    from ....edge_runtime.bundle import Bundle
    from ....edge_runtime.network import Network
    from ....train.data.split import Split, SplitEntry
    from ....train.run_info import RunInfo
    from ..compare_config import CompareOptions
    from ..compare_result import ComparedModel, Comparison, FoldMetrics, MaskSubset, Row, SchemeFigures, SubsetFigures


@dataclass(frozen=True)
class OpenRun:
    """A finished run, and what every scheme is compared with.

    Attributes:
        model: name in the report; the folds of one model share it.
        folder: run folder.
        facts: its ``run.json``.
        split: its split.
        images: its images, from `ComparisonTask.load`.
        reference: what the float32 Keras model gives for the test subset, from `ComparisonTask.load`.
    """

    model: str
    folder: Path
    facts: RunInfo
    split: Split
    images: Any
    reference: Any

    @property
    def test(self) -> tuple[SplitEntry, ...]:
        return self.split.subset("test")


@dataclass(frozen=True)
class Measured:
    """What a model reaches on its test subset in one scheme.

    Attributes:
        drop_points: see `SchemeFigures`, also ``agreement``, ``max_abs_difference`` and ``metrics``.
        timed: the open models, each with one preprocessed input.
        scores: of every test image, in the order of the images' digests; for the paired comparison of rows.
    """

    drop_points: float
    agreement: float | None
    max_abs_difference: float | None
    metrics: FoldMetrics | MaskMetrics
    timed: list[tuple[Network[Any], NDArray[Any]]]
    scores: NDArray[Any]


class ComparisonTask(ABC):
    """One task."""

    name: str
    csv_columns: tuple[str, ...]
    """Columns of ``compare.csv``."""
    heads: tuple[str, ...]
    """Heads of the task's own columns in the printed table, see `cells`."""
    explained: tuple[str, ...]
    """Lines below the table."""

    @abstractmethod
    def load(
        self, folder: Path, facts: RunInfo, split: Split, options: CompareOptions, progress: Progress
    ) -> tuple[Any, Any]:
        """`OpenRun.images` and `OpenRun.reference`. Raises DataError if a file is missing or damaged."""

    @abstractmethod
    def figures(
        self, runs: Sequence[OpenRun]
    ) -> tuple[dict[str, SubsetFigures | MaskSubset], FoldMetrics | MaskMetrics]:
        """`ComparedModel.by_side` and `ComparedModel.keras`."""

    @abstractmethod
    def measure(self, runs: Sequence[OpenRun], bundles: Sequence[Bundle], out: Path, progress: Progress) -> Measured:
        """Run the models on the test subset by the device's code. What takes long is kept in ``out/predictions``."""

    @abstractmethod
    def row(self, model: ComparedModel, scheme: str, figures: SchemeFigures) -> Row:
        """The row of a model in one scheme, before it is compared with the others."""

    @abstractmethod
    def csv_of_model(self, model: ComparedModel) -> dict[str, Any]:
        """Values of ``compare.csv`` that are equal in all rows of a model."""

    @abstractmethod
    def cells(self, row: Any, p_value: str) -> tuple[str, ...]:
        """The cells of a row below `heads`."""

    @abstractmethod
    def drawn(self, runs: Sequence[OpenRun]) -> Any:
        """What `write_report` draws of the runs of one model, beside its figures."""

    @abstractmethod
    def write_report(self, path: Path, result: Comparison, drawn: Mapping[str, Any]) -> None:
        """Write ``compare.html``; ``drawn`` is by model."""


def get(name: str) -> ComparisonTask:
    """A task by its name. Raises UsageError for an unknown one."""
    training.get(name)
    task: ComparisonTask = importlib.import_module(f".{name}", __package__).TASK
    return task


def of_run(facts: RunInfo) -> ComparisonTask:
    """The task of a run."""
    return get(training.of_run(facts).name)


def of_model(model: ComparedModel) -> ComparisonTask:
    """The task of a compared model."""
    return get("segmentation" if isinstance(model.keras, MaskMetrics) else "classification")


def of_result(result: Comparison) -> ComparisonTask:
    """The task of a comparison."""
    return get(result.task or "classification")


def shared(model: ComparedModel, scheme: str, figures: SchemeFigures) -> dict[str, Any]:
    """The fields of a row that all tasks have."""
    of_model = ("split_level", "optimistic", "parameters", "macs", "epoch_s")
    of_scheme = ("drop_points", "float_layers", "file_bytes", "flatbuffer_bytes", "compressed_bytes")
    return {
        "model": model.name,
        "scheme": scheme,
        "runs": len(model.runs),
        "pruned": model.pruned is not None,
        "test_images": figures.metrics.images,
        "latency_p50_ms": figures.latency.p50_ms,
        "latency_p90_ms": figures.latency.p90_ms,
        **{name: getattr(model, name) for name in of_model},
        **{name: getattr(figures, name) for name in of_scheme},
    }
