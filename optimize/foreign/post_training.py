"""Quantizes a float flatbuffer after training: ranges by TensorFlow's calibrator, then its quantizer of flatbuffers.

With an allowed drop and ``auto_float``, as few layers stay in float as it takes, the worst of TensorFlow's
QuantizationDebugger first, see `edgeall.optimize.quantization.auto_float`.
Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_debugger.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import EdgeallError, UsageError
from ...edge_runtime.preprocess import normalize
from ...models.keras_compat import load_quantizer, quiet, tf
from ..quantization.auto_float import search
from ..quantization.gate import gate_error
from ..quantization.result import AutoFloat
from ..quantization.verify import compare, predict
from .config import PackConfig
from .data import Images
from .features import with_flatbuffer

REPRESENTATIVE = 128
"""Images on which the activation ranges are measured."""
DEBUGGED = 16
"""Images on which the error of each layer is measured."""
Batches = Callable[[], Iterable[list[Any]]]
_TASK = "classification"


def quantized(
    config: PackConfig, bundle: Bundle, own: Classifier, subsets: dict[str, Images], progress: Progress
) -> tuple[Classifier, float, AutoFloat | None]:
    """The int8 twin of a float classifier; inputs and outputs stay float.

    Args:
        config: with the scheme ``ptq-int8``.
        bundle: the float model, see `require_float`.
        own: opened from it.
        subsets: ranges are measured on ``train``, or on ``test`` if that is empty; float layers are found on
            ``validation``.
        progress: told about every candidate.

    Returns:
        The classifier, the test accuracy that it loses in percentage points, and the search for float layers if there
        was one.

    Raises:
        EdgeallError: TensorFlow cannot quantize it.
        GateError: it loses more than ``max_drop`` of the test subset, or every candidate of the validation subset.
    """
    spread = subsets["train"] if len(subsets["train"]) else subsets["test"]
    progress.note(f"quantizing to {config.scheme}")
    ranges = _calibrated(bundle, _batches(spread, REPRESENTATIVE))

    def made(names: Collection[str]) -> Classifier:
        return with_flatbuffer(own, _converted(ranges, names, bundle.path))

    found, auto_float = made(()), None
    if config.auto_float:
        integer = found
        lost = _loss(own, subsets["validation"], progress)
        auto_float = search(
            config,
            lambda: _worst(ranges, _batches(spread, DEBUGGED), bundle.path),
            lambda names: lost(made(names) if names else integer),
            _TASK,
            progress,
        )
        found = made(auto_float.layers) if auto_float.layers else integer
    drop = _loss(own, subsets["test"], progress)(found)
    if config.max_drop is not None and drop > config.max_drop:
        raise gate_error(config, f"{drop:.2f} points of test accuracy", _TASK, auto_float)
    return found, drop, auto_float


def _loss(own: Classifier, images: Images, progress: Progress) -> Callable[[Classifier], float]:
    """What another classifier loses of the accuracy on these images, in percentage points."""
    reference = predict(own, images, "measuring float32", progress)

    def lost(other: Classifier) -> float:
        found = predict(other, images, "measuring int8", progress)
        return compare(own.labels, images.labels, reference, found).drop_points

    return lost


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


def _failed(path: str, error: Exception) -> EdgeallError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return EdgeallError(
        f"{path}: TensorFlow can't quantize it: {reason}", hint="leave --scheme out to pack it in float"
    )
