"""Rebuilds a flat functional Keras model layer by layer, and helpers for its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .keras_compat import keras


def rebuild(model: Any, place: Callable[[Any, list[Any]], Any]) -> Any:
    """Build a new functional model from another one.

    Args:
        model: flat, one input; its outputs are outputs of different layers.
        place: called for every layer in topological order as ``place(layer, tensors)`` with the new tensors of its
            inputs (for the input layer: the new input); returns the new tensor of its output.
    """
    tensors: dict[str, Any] = {}
    inputs = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            inputs = keras.layers.Input(layer.input_shape[0][1:], name=layer.name)
            tensors[layer.name] = place(layer, [inputs])
        else:
            tensors[layer.name] = place(layer, [tensors[source.name] for source in sources(layer)])
    outputs = [tensors[name] for name in model.output_names]
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)


def copy_of(layer: Any, **changes: Any) -> Any:
    """An unbuilt layer with the same configuration, except ``changes``."""
    return type(layer).from_config({**layer.get_config(), **changes})


def call(layer: Any, tensors: list[Any]) -> Any:
    """Apply a layer to its inputs."""
    return layer(tensors if len(tensors) > 1 else tensors[0])


def sources(layer: Any) -> list[Any]:
    """The layers whose outputs are the inputs of this layer."""
    found = layer.inbound_nodes[0].inbound_layers
    return found if isinstance(found, list) else [found]


def targets(layer: Any) -> list[Any]:
    """The layers that consume the output of this layer."""
    return [node.outbound_layer for node in layer.outbound_nodes]
