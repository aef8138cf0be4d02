"""Quantizes a trained run to one verified, packed ``model.tflite``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .quantization.auto_float import leave_in_float
from .quantization.config import QuantizeConfig
from .quantization.job import convert_network, fold, measure_layers, open_job
from .quantization.node_data import write_node_data
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
        GateError: the accuracy drops by more than ``config.max_drop``, with ``config.auto_float`` with every set of
            float layers that was tried; nothing is written.
    """
    config.check()
    job = open_job(config, progress)
    network = fold(job)
    converted = convert_network(job, network)
    if config.auto_float:
        job, network, converted = leave_in_float(job, network, converted)
    if config.layer_report:
        assert network.placement is not None and converted.integer is not None, "checked: an integer scheme"
        converted = replace(converted, layers=measure_layers(job, converted.integer, network.placement))
    result = job.task.finish(job, network, converted)
    if isinstance(config.layer_report, Path) and converted.layers is not None:
        write_node_data(config.layer_report, converted.layers, converted.flatbuffer)
        progress.note(f"{config.layer_report}: node data for Model Explorer")
    return result


def quantize_classifier(config: QuantizeConfig, progress: Progress) -> QuantizationResult:
    """`quantize` of a classification run."""
    result = quantize(config, progress)
    assert isinstance(result, QuantizationResult), "the run is of another task"
    return result
