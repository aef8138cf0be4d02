"""`Task`: what training, evaluation and later commands ask of a task. `get` finds one by its name.

A further task is a module of this package with a subclass and its one object ``TASK``, an entry in `NAMES`, and its
counterparts `edgeall.edge_runtime.tasks`, `edgeall.optimize.packaging.outputs`, `edgeall.optimize.tasks`,
`edgeall.optimize.pruning.tasks` and `edgeall.optimize.experiments.tasks`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...edge_runtime.errors import UsageError
from ...edge_runtime.manifest import TASKS as NAMES

if TYPE_CHECKING:
    from ...console.progress import Progress
    from ...edge_runtime.preprocess import InputSpec
    from ..config import TrainSettings
    from ..data.samples import Dataset
    from ..data.split import Split
    from ..evaluation.metrics import Metrics
    from ..run_info import MemberNetwork, RunInfo
    from ..run_settings import RunSettings
    from ..segmentation.results import MaskMetrics
    from ..stage import Objective, Stage
    from ..teacher import Teacher


@dataclass(frozen=True)
class Epochs:
    """The amount of fine-tuning: ``epochs`` of ``images`` each."""

    epochs: int
    images: int


@dataclass(frozen=True)
class Trained:
    """A trained network and what it was made from.

    Attributes:
        model: float32 Keras model.
        split: of the run.
        images: of every subset, from `Task.load`.
        history: every epoch of every stage, see `edgeall.train.stage.Row`.
    """

    model: Any
    split: Split
    images: Mapping[str, Any]
    history: list[dict[str, Any]]


class Task(ABC):
    """One task. Its methods take the images that its own `load` returns."""

    name: str

    @abstractmethod
    def resolve(self, settings: TrainSettings) -> TrainSettings:
        """Fill in the defaults of the task. Raises UsageError for a setting that the task does not take."""

    @abstractmethod
    def list_data(self, path: Path) -> Dataset:
        """List a data folder or manifest. Raises DataError."""

    @abstractmethod
    def labels(self, split: Split) -> tuple[str, ...]:
        """The classes that the model tells apart."""

    @abstractmethod
    def add_head(self, backbone: Any, settings: RunSettings, classes: int) -> Any:
        """The whole network: a flat functional Keras model on top of a backbone; ``settings`` are those of the run."""

    @abstractmethod
    def load(self, split: Split, root: Path, spec: InputSpec, cache_dir: Path, progress: Progress) -> dict[str, Any]:
        """The images of every subset; ``root`` is the data folder or manifest."""

    @abstractmethod
    def epochs(self, settings: TrainSettings, images: Any) -> Epochs:
        """The fine-tuning on these training images."""

    @abstractmethod
    def batches(self, images: Any, settings: TrainSettings, stage: Stage, classes: int) -> Callable[[int], Any]:
        """For each epoch, counted from 0, the tf.data that Keras' ``fit`` takes."""

    @abstractmethod
    def validation(self, images: Any) -> Any:
        """tf.data of ``(images, targets)`` for `Objective.validate`."""

    @abstractmethod
    def teach(self, teachers: Sequence[Teacher], spec: InputSpec) -> Callable[[Any], Any]:
        """The mean of the teachers' outputs as a function of a batch for the student, whose contract is ``spec``.

        Call this in the scope that the student is trained in. Raises DataError for a missing or damaged model.
        """

    @abstractmethod
    def student(self, model: Any, teach: Callable[[Any], Any], weight: float) -> Any:
        """A model for `edgeall.train.fit.fit` with the layers of ``model``, which learns from ``teach`` as well.

        Args:
            model: training the result trains it in place.
            teach: from `teach`.
            weight: share of the teachers in the loss, in (0, 1].
        """

    def changed(self, images: Any, settings: TrainSettings) -> Any:
        """tf.data for `FitOptions.changed`, or None."""
        return None

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """Losses and metrics of the fine-tuning."""

    @abstractmethod
    def assess(
        self, out: Path, trained: Trained, settings: RunSettings, evaluated: Sequence[str], progress: Progress
    ) -> Mapping[str, Metrics | MaskMetrics]:
        """The metrics of a trained model by subset. Writes ``predictions.csv`` into ``out``."""

    @abstractmethod
    def report(self, out: Path, run: RunInfo, trained: Trained, progress: Progress) -> None:
        """Write ``report.html`` of a run whose test subset was evaluated; ``run`` will be its ``run.json``."""


def get(name: str) -> Task:
    """A task by its name. Raises UsageError for an unknown one."""
    if name not in NAMES:
        raise UsageError(f"no task called {name!r}", hint=f"choose one of {', '.join(NAMES)}")
    task: Task = importlib.import_module(f".{name}", __package__).TASK
    return task


def of_run(facts: RunInfo | MemberNetwork) -> Task:
    """The task of a run. Runs of older versions are classifiers."""
    return get(facts.settings.task)


def only_classification(facts: RunInfo, command: str) -> None:
    """Raise UsageError for a run of another task. ``command`` is its name, as in ``edgeall prune``."""
    name = of_run(facts).name
    if name != NAMES[0]:
        raise UsageError(f"{command} does not take a {name} run yet", hint="give a classification run")
