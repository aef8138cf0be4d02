"""Quantizes a trained run to one verified, packed ``model.tflite``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .quantization.config import QuantizeConfig
from .quantization.job import convert_network, fold, open_job
from .quantization.result import QuantizationResult

if TYPE_CHECKING:
    from ..console.progress import Progress
    from .quantization.result import SegmentationResult


def quantize(config: QuantizeConfig, progress: Progress) -> QuantizationResult | SegmentationResult:
    """Convert a run, verify the result, check the gate and pack the model.

    The packed model is at ``config.out``. Where the test subset was verified, an HTML report is written beside it.

    Raises:
        UsageError: invalid settings, or ``out`` exists.
        DataError: the run is not complete, or the data is not what it was trained on.
        GateError: the accuracy drops by more than ``config.max_drop``; nothing is written.
    """
    config.check()
    job = open_job(config, progress)
    network = fold(job)
    converted = convert_network(job, network)
    return job.task.finish(job, network, converted)


def quantize_classifier(config: QuantizeConfig, progress: Progress) -> QuantizationResult:
    """`quantize` of a classification run."""
    result = quantize(config, progress)
    assert isinstance(result, QuantizationResult), "the run is of another task"
    return result
