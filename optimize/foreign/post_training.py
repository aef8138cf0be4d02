"""Quantizes a float flatbuffer after training: ranges by TensorFlow's calibrator, then its quantizer of flatbuffers.

With an allowed drop and ``auto_float``, as few layers as it takes stay in float, the worst of TensorFlow's
QuantizationDebugger first, as `edgeall.optimize.quantization.auto_float` does for Keras models.
Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_debugger.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import EdgeallError, GateError, UsageError
from ...edge_runtime.flatbuffer import read_graph
from ...edge_runtime.interpreter import load
from ...edge_runtime.preprocess import normalize
from ...models.keras_compat import load_quantizer, quiet, tf
from ..quantization.auto_float import fewest
from ..quantization.result import DROP_UNITS, AutoFloat, Trial
from .config import PackConfig
from .data import Images

REPRESENTATIVE = 128
"""Images on which the activation ranges are measured."""
DEBUGGED = 16
"""Images on which the error of each layer is measured."""
Batches = Callable[[], Iterable[list[Any]]]
_TASK = "classification"


def quantized(
    config: PackConfig, bundle: Bundle, own: Classifier, subsets: dict[str, Images], progress: Progress
) -> tuple[Classifier, AutoFloat | None]:
    """The int8 twin of a float classifier; inputs and outputs stay float.

    Args:
        config: with the scheme ``ptq-int8``.
        bundle: the float model, see `require_float`.
        own: opened from it.
        subsets: ranges are measured on ``train``, or on ``test`` if that is empty; float layers are found on
            ``validation``.
        progress: told about every candidate.

    Returns:
        The classifier, and the search for float layers if there was one.

    Raises:
        EdgeallError: TensorFlow cannot quantize it.
        GateError: with ``auto_float``, every candidate loses more than ``max_drop`` of the validation subset.
    """
    spread = subsets["train"] if len(subsets["train"]) else subsets["test"]
    progress.note(f"quantizing to {config.scheme}")
    ranges = _calibrated(bundle, _batches(spread, REPRESENTATIVE))

    def made(names: Collection[str]) -> Classifier:
        return _opened(own, bundle, _converted(ranges, names, bundle.path))

    integer = made(())
    if not config.auto_float:
        return integer, None
    assert config.max_drop is not None
    validation, limit = subsets["validation"], config.max_drop
    before = accuracy(own, validation)
    trials = [_trial(0, before - accuracy(integer, validation), progress)]
    if trials[0].within(limit):
        return integer, AutoFloat([], trials)
    names = _worst(ranges, _batches(spread, DEBUGGED), bundle.path)

    def meets(count: int) -> bool:
        trials.append(_trial(count, before - accuracy(made(names[:count]), validation), progress))
        return trials[-1].within(limit)

    count = fewest(len(names), meets)
    found = AutoFloat(names[: count or 0], trials)
    if count is None:
        least = min(trial.drop_points for trial in trials if trial.drop_points is not None)
        raise gate_error(config, f"{least:.2f} {DROP_UNITS[_TASK]} at best", found)
    return made(found.layers), found


def gate_error(config: PackConfig, lost: str, found: AutoFloat | None) -> GateError:
    """The error of a gate that was not met; ``lost`` as in "2.50 points of test accuracy"."""
    tried = "" if found is None else f" ({found.tried(_TASK)})"
    return GateError(
        f"{config.scheme} loses {lost}, more than --max-drop {config.max_drop:g}{tried}; {config.out} was not written",
        hint="try a larger --max-drop" if found else "try --auto-float, or a larger --max-drop",
    )


def accuracy(classifier: Classifier, images: Images) -> float:
    """Percent of the images with their own label."""
    own = [int(np.argmax(classifier.predict(images.pixels[row]))) for row in images.rows]
    return 100 * float(np.mean(np.array(own) == images.labels))


def _trial(count: int, drop: float, progress: Progress) -> Trial:
    progress.note(f"layers in float: {count}; drop of {drop:.2f} {DROP_UNITS[_TASK]}")
    return Trial(count, drop)


def require_float(bundle: Bundle) -> None:
    """Raise UsageError for a model that is not float32 throughout."""
    kinds = {tensor.type for part in bundle.graph.subgraphs for tensor in part.tensors}
    other = sorted(kinds & {"INT8", "UINT8", "INT16", "FLOAT16"})
    if other:
        raise UsageError(
            f"{bundle.path}: has tensors of type {other[0]}; only a float32 model can be quantized",
            hint="leave --scheme out to pack it as it is",
        )


def _batches(images: Images, most: int) -> Batches:
    """Some images of a subset, evenly, one by one as the model takes them."""
    rows = images.rows[:: max(len(images) // most, 1)][:most]

    def each() -> Iterable[list[NDArray[np.float32]]]:
        for row in rows:
            yield [normalize(images.pixels[row], images.spec)[np.newaxis]]

    return each


def _calibrated(bundle: Bundle, batches: Batches) -> bytes:
    calibrator, _ = load_quantizer()
    try:
        with quiet():
            found: bytes = calibrator(bundle.flatbuffer).calibrate(batches)
    except Exception as error:  # the calibrator raises errors of many types
        raise _failed(bundle.path, error) from error
    return found


def _converted(ranges: bytes, names: Collection[str], path: str) -> bytes:
    """The flatbuffer in int8, but for the layers that write the tensors of these names."""
    _, quantize = load_quantizer()
    try:
        with quiet():
            # Fully quantized, its input would be int8 in steps of the measured range, which are not the pixels' steps.
            found: bytes = quantize(ranges, denylisted_nodes=list(names))
    except Exception as error:  # the quantizer wraps MLIR's errors in many exception types
        raise _failed(path, error) from error
    return found


def _worst(ranges: bytes, batches: Batches, path: str) -> list[str]:
    """The layers by the tensor that they write, by falling root mean square error in steps of each layer alone."""
    _, quantize = load_quantizer()
    table = io.StringIO()
    try:
        with quiet():
            verified = quantize(ranges, enable_numeric_verify=True)
            debugger = tf.lite.experimental.QuantizationDebugger(
                quant_debug_model_content=verified, debug_dataset=batches
            )
            debugger.run()
            debugger.layer_statistics_dump(table)
    except Exception as error:  # as above
        raise _failed(path, error) from error
    rows = list(csv.DictReader(io.StringIO(table.getvalue())))
    rows.sort(key=lambda row: -(float(row["mean_squared_error"]) ** 0.5) / float(row["scale"]))
    return list(dict.fromkeys(row["tensor_name"] for row in rows))


def _opened(own: Classifier, bundle: Bundle, flatbuffer: bytes) -> Classifier:
    graph = read_graph(flatbuffer, bundle.path)
    model = load(flatbuffer, own.threads, bundle.path, graph.main.outputs[0], own.model.input.shape)
    changed = replace(bundle, flatbuffer=flatbuffer, graph=graph)
    return Classifier(
        model, own.labels, own.input, threads=own.threads, logits=own.logits, sigmoid=own.sigmoid, bundle=changed
    )


def _failed(path: str, error: Exception) -> EdgeallError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return EdgeallError(
        f"{path}: TensorFlow can't quantize it: {reason}", hint="leave --scheme out to pack it in float"
    )
