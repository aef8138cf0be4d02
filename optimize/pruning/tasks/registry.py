"""`PruningTask`: what pruning asks of a task. `of_run` finds that of a run."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ....train.tasks import registry as training

if TYPE_CHECKING:
    from ....edge_runtime.network import Network
    from ....edge_runtime.preprocess import InputSpec
    from ....train.run_info import RunInfo
    from ....train.run_settings import RunSettings
    from ....train.stage import Objective, Stage


class PruningTask(ABC):
    """One task. Its methods take the images that `edgeall.train.tasks.registry.Task.load` of the same task returns."""

    name: str
    scores: tuple[str, ...]
    """Names of the layers whose change ranks the channels: the network's outputs before their last activation."""
    figure: str
    """Name of the figure by which the network is compared with its parent, in `prune_text`."""

    @abstractmethod
    def ranking(self, images: Any, settings: RunSettings, batch_size: int) -> Any:
        """tf.data of augmented training images, float32 ``(batch, h, w, 3)``, the same each time."""

    @abstractmethod
    def epoch_images(self, images: Any) -> int:
        """Number of inputs in one epoch on these training images."""

    @abstractmethod
    def batches(
        self, images: Any, settings: RunSettings, stage: Stage, teacher: Any, classes: int
    ) -> Callable[[int], Any]:
        """For each epoch, what `edgeall.train.fit.fit` takes: targets halfway between the labels and the teacher's
        outputs.
        """

    @abstractmethod
    def validation(self, images: Any, classes: int) -> Any:
        """tf.data of ``(images, targets)`` for `Objective.validate`."""

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """Losses and metrics of the training."""

    @abstractmethod
    def open(self, flatbuffer: bytes, run: RunInfo, spec: InputSpec, name: str) -> Network[Any]:
        """Open a converted network."""

    @abstractmethod
    def example(self, images: Any) -> NDArray[Any]:
        """One input of the network, to time it."""

    @abstractmethod
    def figures(self, run: RunInfo) -> dict[str, float]:
        """`figure` of a run by subset."""

    @abstractmethod
    def shown(self, value: float | None) -> str:
        """`figure` as text."""


def of_run(run: RunInfo) -> PruningTask:
    """The task of a run."""
    task: PruningTask = importlib.import_module(f".{training.of_run(run).name}", __package__).TASK
    return task
