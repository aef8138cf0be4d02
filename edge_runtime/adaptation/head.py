"""The last dense layer of a packed classifier: reads it from the flatbuffer, and writes another one in its place.

Only the numbers of the layer change: weights, biases and their scales, and, where the new outputs would not fit, scale
and zero point of its output. Every other byte of the flatbuffer stays as it is, and so does its length.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..classifier import probabilities_index
from ..errors import BundleError
from ..flatbuffer import Graph, Operator, Subgraph, Tensor
from ..messages import N_, message

_PASSING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE"})
_TYPES = {"INT8": np.int8, "INT32": np.int32, "FLOAT16": np.float16, "FLOAT32": np.float32}
_HINT = N_("quantize the run again, or train on the images of both laboratories")
_LEVELS = 127
"""Largest weight of an int8 layer; TFLite quantizes weights symmetrically."""


@dataclass(frozen=True)
class Head:
    """The numbers of a last dense layer: ``logits = features @ weights.T + bias``.

    Attributes:
        weights: float64 ``(labels, features)``, dequantized.
        bias: float64 ``(labels,)``, dequantized.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """The outputs for features ``(..., features)``: ``(..., labels)``."""
        return np.asarray(features @ self.weights.T + self.bias, np.float64)


@dataclass(frozen=True)
class Layer:
    """Where a flatbuffer holds its last dense layer.

    Attributes:
        features: the tensor that it reads.
        weights: ``(labels, features)``, INT8 or float.
        bias: ``(labels,)``, INT32 or float.
        logits: the tensor that it writes.
    """

    features: Tensor
    weights: Tensor
    bias: Tensor
    logits: Tensor


def find_layer(graph: Graph, name: str) -> Layer:
    """The last dense layer: the FULLY_CONNECTED in front of the SOFTMAX of the probabilities.

    Args:
        graph: of a packed classifier.
        name: of the file, for errors.

    Raises:
        BundleError: the model ends in something else, or shares the numbers of the layer with another one.
    """
    main = graph.main
    softmax = _producer(main, probabilities_index(graph, name))
    dense = _producer(main, softmax.inputs[0]) if softmax else None
    if dense is None or dense.name != "FULLY_CONNECTED" or len(dense.inputs) < 3 or dense.inputs[2] < 0:
        found = dense.name if dense else message("nothing")
        text = message(
            "{file}: {found} before its softmax, where a dense layer with a bias is needed", file=name, found=found
        )
        raise BundleError(text, hint=_HINT)
    features, weights, bias = (_stored(main, index) for index in dense.inputs[:3])
    layer = Layer(features, weights, bias, main.tensors[dense.outputs[0]])
    _check(layer, main, name)
    return layer


def read_head(flatbuffer: bytes, layer: Layer) -> Head:
    """The layer's weights and biases as floats."""
    shape = layer.weights.shape
    return Head(_values(flatbuffer, layer.weights).reshape(shape), _values(flatbuffer, layer.bias))


def as_read(features: NDArray[np.float32], layer: Layer) -> NDArray[np.float64]:
    """Features as the layer reads them: rounded to the scale of its input tensor, where that is INT8."""
    if layer.features.type != "INT8":
        return features.astype(np.float64)
    scale, zero_point = layer.features.scale[0], layer.features.zero_point[0]
    units = np.clip(np.rint(features.astype(np.float64) / scale) + zero_point, -128, 127)
    return np.asarray((units - zero_point) * scale)


def computed(flatbuffer: bytes, layer: Layer, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outputs ``(n, labels)`` of the layer in a flatbuffer, rounded to the scale of its output where that is INT8.

    Args:
        flatbuffer: the model that holds the layer.
        layer: from `find_layer` of this flatbuffer.
        features: ``(n, features)``, from `as_read`.
    """
    outputs = read_head(flatbuffer, layer).logits(features)
    if layer.logits.type != "INT8":
        return outputs
    scale, zero_point = layer.logits.scale[0], layer.logits.zero_point[0]
    return np.asarray((np.clip(np.rint(outputs / scale) + zero_point, -128, 127) - zero_point) * scale)


def patched(
    flatbuffer: bytes, layer: Layer, head: Head, changed: NDArray[np.bool_], logits: tuple[float, float]
) -> bytes:
    """A copy of a flatbuffer with other numbers in its last layer.

    Args:
        flatbuffer: the model.
        layer: from `find_layer`.
        head: the new layer. It is rounded to the types of the old one.
        changed: bool ``(labels,)``: the rows to write. With one scale for each row, all bytes of the others stay.
        logits: smallest and largest output that must be representable.

    Returns:
        As many bytes as before.
    """
    out = bytearray(flatbuffer)
    scales, rows = _new_scales(layer, head, changed)
    _write_rows(out, layer.weights, head.weights / scales[:, None], rows)
    steps = scales * layer.features.scale[0] if layer.bias.type == "INT32" else np.ones_like(scales)
    _write_rows(out, layer.bias, head.bias / steps, rows)
    for tensor, values in ((layer.weights, scales), (layer.bias, steps)):
        count = len(tensor.scale)  # none of a float tensor, one of a whole layer, or one of each row
        struct.pack_into(f"<{count}f", out, tensor.scale_at, *values[:count])
    if layer.logits.type == "INT8":
        _write_range(out, layer.logits, *logits)
    return bytes(out)


def _producer(main: Subgraph, tensor: int) -> Operator | None:
    """The operator that computes a tensor, apart from those that only pass it on."""
    operator = main.producer(tensor)
    for _ in main.operators:
        if operator is None or operator.name not in _PASSING:
            break
        operator = main.producer(operator.inputs[0])
    return operator


def _stored(main: Subgraph, index: int) -> Tensor:
    """A tensor; of an unpacked float16 constant the one that is stored."""
    producer = main.producer(index)
    if producer is not None and producer.name == "DEQUANTIZE" and main.tensors[producer.inputs[0]].constant_bytes:
        index = producer.inputs[0]
    return main.tensors[index]


def _check(layer: Layer, main: Subgraph, name: str) -> None:
    weights, bias, logits = layer.weights, layer.bias, layer.logits
    labels = weights.shape[0] if len(weights.shape) == 2 else 0
    known = {"INT8", "FLOAT16", "FLOAT32"}, {"INT32", "FLOAT16", "FLOAT32"}, {"INT8", "FLOAT32"}
    fits = all(tensor.type in types for tensor, types in zip((weights, bias, logits), known, strict=True))
    fits = fits and bias.shape == (labels,) and labels > 1
    sizes = all(
        tensor.constant_bytes == int(np.prod(tensor.shape)) * np.dtype(_TYPES[tensor.type]).itemsize
        for tensor in ((weights, bias) if fits else ())
    )
    if fits and sizes:
        fits = _scales_fit(layer, labels)
    if not fits or not sizes:
        text = message("{file}: the types of its last dense layer are not those of `edgeall quantize`", file=name)
        raise BundleError(text, hint=_HINT)
    places = Counter(tensor.constant_at for tensor in main.tensors if tensor.constant_bytes)
    if places[weights.constant_at] > 1 or places[bias.constant_at] > 1:
        text = message("{file}: its last dense layer shares its weights with another layer", file=name)
        raise BundleError(text, hint=_HINT)


def _scales_fit(layer: Layer, labels: int) -> bool:
    """Whether quantized tensors have scales: one, or for weights and biases one for each row, and no zero points."""
    weights, bias = layer.weights, layer.bias
    if weights.type != "INT8":
        return bias.type != "INT32"
    fits = len(weights.scale) in (1, labels) and not any(weights.zero_point)
    if bias.type == "INT32":
        fits = fits and len(bias.scale) == len(weights.scale) and not any(bias.zero_point)
        fits = fits and len(layer.features.scale) == 1 and layer.features.type == "INT8"
    if layer.logits.type == "INT8":
        fits = fits and len(layer.logits.scale) == len(layer.logits.zero_point) == 1
    return fits


def _values(flatbuffer: bytes, tensor: Tensor) -> NDArray[np.float64]:
    """The values of a constant, dequantized by row; float64."""
    kind = np.dtype(_TYPES[tensor.type]).newbyteorder("<")
    count = tensor.constant_bytes // kind.itemsize
    values = np.frombuffer(flatbuffer, kind, count, tensor.constant_at).astype(np.float64).reshape(tensor.shape)
    if tensor.type in ("INT8", "INT32"):
        scales = np.array(tensor.scale)
        values = values * scales.reshape(-1, *(1,) * (values.ndim - 1))
    return values


def _new_scales(layer: Layer, head: Head, changed: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Scale of the weights of each row, as it will be stored, and the indices of the rows to write.

    One scale for the whole layer only grows; then every row is rounded again.
    """
    old, labels = np.array(layer.weights.scale), len(head.weights)
    if not len(old):
        return np.ones(labels), np.flatnonzero(changed)
    needed = np.abs(head.weights).max(axis=1) / _LEVELS
    if len(old) == 1:
        grown = max(float(old[0]), float(needed.max(initial=0.0, where=changed)))
        changed = changed | (grown > old[0])
        new = np.full(labels, grown)
    else:
        new = np.where(changed & (needed > 0), needed, old)
    return new.astype(np.float32).astype(np.float64), np.flatnonzero(changed)


def _write_rows(out: bytearray, tensor: Tensor, values: NDArray[np.float64], rows: NDArray[np.intp]) -> None:
    """Write the rows of a constant. Values of an integer tensor are in units of its new scales."""
    kind = np.dtype(_TYPES[tensor.type]).newbyteorder("<")
    if kind.kind == "i":
        most = _LEVELS if tensor.type == "INT8" else np.iinfo(np.int32).max
        values = np.clip(np.rint(values), -most, most)
    stored = np.frombuffer(out, kind, values.size, tensor.constant_at).reshape(values.shape)
    stored[rows] = values[rows]


def _write_range(out: bytearray, tensor: Tensor, lowest: float, highest: float) -> None:
    """Widen the range of the outputs to hold ``lowest`` to ``highest``; a range that holds them stays."""
    scale, zero_point = tensor.scale[0], tensor.zero_point[0]
    if (-128.5 - zero_point) * scale <= lowest and highest <= (127.5 - zero_point) * scale:
        return
    lowest = min(lowest, (-128 - zero_point) * scale, 0.0)
    highest = max(highest, (127 - zero_point) * scale, 0.0)
    scale = float(np.float32((highest - lowest) / 255))
    struct.pack_into("<f", out, tensor.scale_at, scale)
    struct.pack_into("<q", out, tensor.zero_point_at, round(-128 - lowest / scale))
