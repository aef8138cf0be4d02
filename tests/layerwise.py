"""An integer file against the network with faked rounding that it was made from, layer by layer.

Answers can't be compared: a value on the edge between two steps goes one way here and the other there, and how far that
moves the last layer depends on the weights. So each layer is given what the file's own layers before it have made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.preprocess import InputSpec, normalize
from edgeall.models.graph import sources
from edgeall.optimize.quantization.convert import layers_of
from edgeall.optimize.quantization.layer_error import Int8Layers
from edgeall.optimize.quantization.placement import INPUT, Placement, Range, rounded_input

FEW = 64
"""Of fewer values no share is asked for: a pooling kernel may round all eight of a layer the same way."""


def assert_layers_compute_what_was_faked(
    flatbuffer: bytes, pixels: Any, spec: InputSpec, network: Any, placement: Placement, spanned: dict[str, Range]
) -> None:
    """Each layer that the file shows is within two steps, one for its rounding and one for the kernels', seldom off.

    Args:
        flatbuffer: fully integer.
        pixels: one image, uint8 ``(1, height, width, 3)``.
        spec: the input contract.
        network: folded, with its kernels as they were rounded.
        placement: of ``network``.
        spanned: its ranges.
    """
    found, (answer, step) = layer_outputs(flatbuffer, pixels, network, placement)
    assert len(found) > 0.8 * (len(placement.outputs) - 1), "the converter may merge equal layers (ReLUs of one tensor)"
    faked = Int8Layers(network, placement, spanned)
    image, *others = network.layers
    values = {image.name: rounded_input(normalize(pixels, spec), placement.fixed[INPUT])}
    for layer in others:
        expected = faked.compute(layer, [values[source.name] for source in sources(layer)]).numpy()
        values[layer.name] = expected
        if layer.name in found:
            value, scale = found[layer.name]
            steps = np.abs(value.reshape(expected.shape) - expected) / scale
            assert steps.max() <= 2.1, layer.name
            if expected.size >= FEW:
                assert (steps > 0.5).mean() <= (0.5 if expected.size < 4096 else 0.05), layer.name
            values[layer.name] = value.reshape(expected.shape)
    assert np.abs(answer - values[others[-1].name]).max() <= 1.6 * step, "half a step and one of the softmax's table"


def layer_outputs(
    flatbuffer: bytes, pixels: Any, network: Any, placement: Placement
) -> tuple[dict[str, tuple[Any, float]], tuple[Any, float]]:
    """What each layer of the file makes of an image, dequantized, and its scale, by the Keras layer's name; the answer.

    Of layers that the converter fused the last.
    """
    interpreter = Interpreter(
        model_content=flatbuffer,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
    interpreter.invoke()
    order = [layer.name for layer in network.layers if layer.name in placement.outputs]
    graph = read_graph(flatbuffer, "model").main
    found = {}
    for operator in graph.operators:
        if operator.name != "QUANTIZE":
            (index,) = operator.outputs
            tensor = graph.tensors[index]
            made_by = layers_of(tensor.name)
            named = [name for name in order if name in made_by]
            if named:
                units = interpreter.get_tensor(index).astype(np.float32)
                found[named[-1]] = ((units - tensor.zero_point[0]) * np.float32(tensor.scale[0]), tensor.scale[0])
    (detail,) = interpreter.get_output_details()
    scale, zero_point = detail["quantization"]
    return found, ((interpreter.get_tensor(detail["index"]).astype(np.float32) - zero_point) * scale, scale)
