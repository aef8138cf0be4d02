"""Builds a Keras 2 model from a `graph.Network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...edge_runtime.errors import DataError
from ..graph import call
from ..keras_compat import keras, quiet
from ..rewrite import IMAGE
from .activations import LINEAR, activation_name, apply_activation
from .graph import AFFINE, CHANNEL, CHANNELS, GREY, Network, Node
from .refusal import no_twin
from .twins import IDENTITIES, KEPT, RESIZING, settings_of

layers = keras.layers

PAIRWISE = ("Add", "Multiply")
"""Layers whose further inputs are combined one after another: TFLite has an operator for two."""


def build(network: Network, size: tuple[int, int] | None = None) -> Any:
    """A flat functional Keras 2 model with the weights of a network.

    Args:
        network: see `Network`.
        size: height and width where the network leaves them open.

    Raises:
        DataError: a layer in a place where it has no twin, or weights that do not fit; the layer is named.
    """
    height, width, channels = network.input.config["shape"]
    height, width = size or (height, width)
    inputs = layers.Input((height, width, channels), name=IMAGE)
    tensors = {network.input.name: inputs}
    with quiet():
        for node in network.nodes[1:]:
            taken = [tensors[name] for name in node.inputs]
            try:
                tensors[node.name] = _place(node, taken, network.keras3)
            except DataError:
                raise
            except Exception as error:  # Keras raises many types for settings and shapes that do not fit
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DataError(f"layer {node.origin or node.name}: can't be rebuilt ({reason})") from error
        return keras.Model(inputs, tensors[network.output], name=_plain_name(network.name))


def _plain_name(name: str) -> str:
    """A name that Keras and TensorFlow's scopes take."""
    kept = "".join(sign if (sign.isalnum() and sign.isascii()) or sign in "_.-" else "_" for sign in name)
    return kept if kept[:1].isalnum() else f"model_{kept}"


def _place(node: Node, taken: list[Any], keras3: bool) -> Any:
    kind, config = node.kind, node.config
    if kind in IDENTITIES:
        return _dropout(node, taken) if kind == "Dropout" else taken[0]
    if kind in _SPECIAL:
        return _SPECIAL[kind](node, taken, keras3)
    if kind in (CHANNELS, CHANNEL, GREY, *RESIZING, "Stack"):
        raise no_twin(f"layer {node.origin}", kind, "is supported at the input alone")
    if kind in PAIRWISE and len(taken) > 2:
        return _pairwise(node, taken)
    function = activation_name(config.get("activation"))
    fused = function == "relu" and kind in ("Conv2D", "DepthwiseConv2D", "Dense")
    bare = fused or function == LINEAR
    settings = settings_of(kind, config) | ({"activation": "relu"} if fused else {})
    layer = getattr(layers, kind)(**settings, name=node.name if bare else f"{node.name}_linear")
    output = call(layer, taken)
    _set_weights(layer, node)
    return output if bare else apply_activation(function, node.name, output, keras3)


def _set_weights(layer: Any, node: Node) -> None:
    values = [np.asarray(value, np.float32) for value in node.variables.values()]
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if shapes != [value.shape for value in values]:
        found = ", ".join(str(value.shape) for value in values)
        raise DataError(f"layer {node.origin}: its weights have the shapes {found}, expected {shapes}")
    layer.set_weights(values)


def _dropout(node: Node, taken: list[Any]) -> Any:
    """Kept for training on; it does nothing at inference."""
    return layers.Dropout(float(node.config.get("rate", 0.0)), name=node.name)(taken[0])


def _pairwise(node: Node, taken: list[Any]) -> Any:
    output = taken[0]
    for index, other in enumerate(taken[1:], start=1):
        name = node.name if index == len(taken) - 1 else f"{node.name}_{index}"
        output = getattr(layers, node.kind)(name=name)([output, other])
    return output


def _affine(node: Node, taken: list[Any], keras3: bool) -> Any:
    return layers.Rescaling(node.config["scale"], node.config["offset"], name=node.name)(taken[0])


def _rescaling(node: Node, taken: list[Any], keras3: bool) -> Any:
    scale, offset = node.config["scale"], node.config.get("offset", 0.0)
    return layers.Rescaling(scale, offset, name=node.name)(taken[0])


def _normalization(node: Node, taken: list[Any], keras3: bool) -> Any:
    mean, variance = normalization_of(node)
    return layers.Normalization(mean=mean, variance=variance, name=node.name)(taken[0])


def normalization_of(node: Node) -> tuple[list[float], list[float]]:
    """Mean and variance of a ``Normalization`` node, given or adapted."""
    values: list[Any] = [node.variables.get(key, node.config.get(key)) for key in ("mean", "variance")]
    return np.ravel(values[0]).tolist(), np.ravel(values[1]).tolist()


def _activation(node: Node, taken: list[Any], keras3: bool) -> Any:
    return apply_activation(activation_name(node.config["activation"]), node.name, taken[0], keras3)


def _leaky_relu(node: Node, taken: list[Any], keras3: bool) -> Any:
    slope = node.config.get("negative_slope", node.config.get("alpha", 0.3))
    return layers.LeakyReLU(slope, name=node.name)(taken[0])


def _separable(node: Node, taken: list[Any], keras3: bool) -> Any:
    """A depthwise convolution and one of 1 x 1."""
    settings = settings_of(node.kind, node.config)
    filters, use_bias = settings.pop("filters"), settings.pop("use_bias", True)
    values = dict(node.variables)
    depthwise = layers.DepthwiseConv2D(**settings, use_bias=False, name=f"{node.name}_depthwise")
    x = depthwise(taken[0])
    depthwise.set_weights([values.pop("depthwise_kernel")])
    function = activation_name(node.config.get("activation"))
    bare = function == LINEAR
    pointwise = layers.Conv2D(filters, 1, use_bias=use_bias, name=node.name if bare else f"{node.name}_pointwise")
    x = pointwise(x)
    pointwise.set_weights(list(values.values()))
    return x if bare else apply_activation(function, node.name, x, keras3)


_SPECIAL: dict[str, Callable[[Node, list[Any], bool], Any]] = {
    AFFINE: _affine,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "Activation": _activation,
    "LeakyReLU": _leaky_relu,
    "SeparableConv2D": _separable,
}
assert not set(_SPECIAL) - {*KEPT, AFFINE, "Activation", "LeakyReLU"}
