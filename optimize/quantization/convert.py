"""Conversion of Keras models to TFLite flatbuffers, and facts read from the result."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from ...edge_runtime.errors import EdgeallError, UsageError
from ...edge_runtime.flatbuffer import Subgraph, read_graph
from ...edge_runtime.preprocess import InputSpec
from ...models.graph import sources
from ...models.head import LOGITS
from ...models.keras_compat import keras, quiet, tf
from .schemes import INTEGER_SCHEMES

_WEIGHED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_BOUNDARY = ("QUANTIZE", "DEQUANTIZE")
_TYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}


def convert(model: Any, scheme: str, spec: InputSpec, float_layers: Collection[str] = ()) -> bytes:
    """Convert a flat Keras model to a flatbuffer with a batch size of one.

    Args:
        model: takes normalized float images. For an integer scheme it comes from
            `edgeall.optimize.quantization.placement.rounded`, for a second output from `with_second_output`.
        scheme: one of `edgeall.optimize.quantization.schemes.SCHEMES`.
        spec: input contract.
        float_layers: layers that may stay in float in an integer scheme.

    Raises:
        EdgeallError: the converter failed, or an integer scheme left another layer in float.
    """
    shape = tf.TensorSpec((1, spec.height, spec.width, 3), tf.float32, name="image")
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(shape)
    module = tf.Module()
    module.weights = model.variables  # the model itself would make the converter trace every layer again
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in INTEGER_SCHEMES:
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    try:
        with quiet():
            flatbuffer: bytes = converter.convert()
    except Exception as error:  # the converter wraps MLIR's errors in many exception types
        raise EdgeallError(f"conversion to {scheme} failed: {str(error).strip().splitlines()[0]}") from error
    if scheme in INTEGER_SCHEMES:
        found = layers_in_float(flatbuffer, [layer.name for layer in model.layers], model.output_names[0])
        left = [name for name in found if name not in float_layers]
        if left or (float_tensors(flatbuffer) and not float_layers):
            named = left or float_tensors(flatbuffer)
            raise EdgeallError(f"conversion to {scheme} left {len(named)} layers in float: {', '.join(named[:5])}")
    return flatbuffer


def with_second_output(network: Any, explain: bool) -> Any:
    """A network with a second output: the pooled features, or the feature map that they are the mean of.

    Args:
        network: flat, ending in global average pooling, a dense layer and a softmax.
        explain: give the feature map.

    Returns:
        A model of two outputs, in the order that makes `convert` give the probabilities first: the converter
        (TensorFlow 2.21) reverses the order.

    Raises:
        UsageError: ``explain``, and the network does not end in global average pooling.
    """
    pooling = sources(network.get_layer(LOGITS))[0]
    while not pooling.get_weights() and not isinstance(pooling, keras.layers.GlobalAveragePooling2D):
        pooling = sources(pooling)[0]  # dropout or rounding
    if not explain:
        return keras.Model(network.input, [network.get_layer(LOGITS).input, network.output])
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D):
        raise UsageError(
            f"{network.name} does not end in global average pooling, so it has no feature map", hint="omit --explain"
        )
    return keras.Model(network.input, [pooling.input, network.output])


def float_tensors(flatbuffer: bytes) -> list[str]:
    """Names of the float tensors; a fully integer model has none."""
    graph = read_graph(flatbuffer, "model")
    return [tensor.name for part in graph.subgraphs for tensor in part.tensors if tensor.type.startswith("FLOAT")]


def layers_in_float(flatbuffer: bytes, names: Collection[str], second: str = "") -> list[str]:
    """The layers that compute in float, in execution order.

    Args:
        flatbuffer: a converted model.
        names: names of the Keras model's layers. The converter names a tensor after the layers that it comes from;
            where it does not, the tensor's own name is returned.
        second: layer of the second output, whose name the converter does not keep.
    """
    found: dict[str, None] = {}
    graph = read_graph(flatbuffer, "model").main
    unnamed = {graph.tensors[index].name: second for index in graph.outputs[1:]}
    for operator in graph.operators:
        written = [graph.tensors[index] for index in operator.outputs]
        if operator.name in _BOUNDARY or not any(tensor.type.startswith("FLOAT") for tensor in written):
            continue
        made_by = {layer for tensor in written for layer in layers_of(tensor.name)}
        made_by |= {unnamed[tensor.name] for tensor in written if tensor.name in unnamed}
        named = [name for name in names if name in made_by]
        found |= dict.fromkeys(named or [tensor.name for tensor in written])
    return list(found)


def layers_of(tensor: str) -> list[str]:
    """The Keras layers in a tensor's name, as in ``model/layer/Op;model/other/Op``."""
    return [parts[1] for parts in (section.split("/") for section in tensor.split(";")) if len(parts) > 2]


def sparsity(flatbuffer: bytes) -> float:
    """Share of zeros among the weights of convolutions and dense layers in the file, 0..1."""
    graph = read_graph(flatbuffer, "model").main
    zeros = weights = 0
    for operator in graph.operators:
        if operator.name in _WEIGHED:
            values = _constant(flatbuffer, graph, operator.inputs[1])
            zeros += values.size - np.count_nonzero(values)
            weights += values.size
    return zeros / weights if weights else 0.0


def compressed_bytes(flatbuffer: bytes) -> int:
    """Size after zlib compression, as in a zip. Zeros reduce this size alone."""
    return len(zlib.compress(flatbuffer))


def _constant(flatbuffer: bytes, graph: Subgraph, index: int) -> Any:
    """Values of a constant tensor; a float16 one is read as stored, before it is unpacked."""
    producer = graph.producer(index)
    tensor = graph.tensors[producer.inputs[0] if producer else index]
    kind = np.dtype(_TYPES[tensor.type])
    return np.frombuffer(flatbuffer, kind, tensor.constant_bytes // kind.itemsize, tensor.constant_at)
