"""`QuantizationTask`: what quantization asks of a task. `of_run` finds that of a run."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...train.tasks import registry as training

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...train.batches import Images
    from ..quantization.config import QuantizeConfig
    from ..quantization.job import Converted, Folded, Job
    from ..quantization.result import QuantizationResult, SegmentationResult


class QuantizationTask(ABC):
    """One task. Its methods take the images that `edgeall.train.tasks.registry.Task.load` of the same task returns."""

    name: str

    @abstractmethod
    def check(self, config: QuantizeConfig, facts: Mapping[str, Any]) -> None:
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
    def finish(self, job: Job, network: Folded, converted: Converted) -> QuantizationResult | SegmentationResult:
        """Verify the converted model, check the gate, and pack it.

        Raises:
            GateError: it loses more than ``config.max_drop``; nothing is written.
        """


def of_run(facts: Mapping[str, Any]) -> QuantizationTask:
    """The task of a run, from the content of its ``run.json``."""
    name = training.of_run(facts).name
    task: QuantizationTask = importlib.import_module(f"edgeall.optimize.tasks.{name}").TASK
    return task
