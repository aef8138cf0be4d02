"""`QuantizationTask`: what quantization asks of a task. `of_run` finds that of a run."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...train.tasks import registry as training

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...train.batches import Images
    from ...train.run_info import RunInfo
    from ...train.stage import Objective, Stage
    from ..quantization.config import QuantizeConfig
    from ..quantization.job import Converted, Folded, Job
    from ..quantization.result import QuantizationResult, SegmentationResult


@dataclass(frozen=True)
class Distillation:
    """The data of a stage of `edgeall.train.fit.fit`: by epoch, for validation, and the objective."""

    batches: Callable[[int], Any]
    validation: Any
    objective: Objective


class QuantizationTask(ABC):
    """One task. Its methods take the images that `edgeall.train.tasks.registry.Task.load` of the same task returns."""

    name: str

    @abstractmethod
    def check(self, config: QuantizeConfig, facts: RunInfo) -> None:
        """Raise UsageError for settings that the task or the run does not take."""

    @abstractmethod
    def predictions(self, model: Any, images: Any) -> NDArray[Any]:
        """The probabilities that a Keras model gives for all images, in order; the first axis counts inputs."""

    @abstractmethod
    def sample(self, images: Any, count: int, seed: int) -> Images:
        """Up to ``count`` inputs of the network in random order, for calibration."""

    @abstractmethod
    def outputs(self, network: Any, explain: bool) -> Any:
        """The network to convert: two outputs, the second one first, because the converter reverses them."""

    @abstractmethod
    def epoch_images(self, images: Any) -> int:
        """Number of inputs in one epoch of quantization-aware training on these training images."""

    @abstractmethod
    def distillation(self, job: Job, stage: Stage, folded: Any) -> Distillation:
        """What quantization-aware training learns from: the outputs of ``folded`` for augmented training images."""

    @abstractmethod
    def validation_drop(self, job: Job, network: Folded) -> Callable[[bytes], float]:
        """A function that gives what a flatbuffer loses on the validation subset against float32, as ``max_drop``."""

    @abstractmethod
    def finish(self, job: Job, network: Folded, converted: Converted) -> QuantizationResult | SegmentationResult:
        """Verify the converted model, check the gate, and pack it.

        Raises:
            GateError: it loses more than ``config.max_drop``; nothing is written.
        """


def of_run(facts: RunInfo) -> QuantizationTask:
    """The task of a run."""
    name = training.of_run(facts).name
    task: QuantizationTask = importlib.import_module(f".{name}", __package__).TASK
    return task
