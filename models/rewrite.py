"""Rewrites a ``tf_keras.applications`` graph with the few layer types that folding, quantization and pruning support.

`vocabulary` lists these types. The rewritten network computes the same as the original with its own preprocessing, but
takes the common input of all backbones: pixels normalized with mean and standard deviation 127.5. Layers that Keras
numbers (``conv2d_12``) get the names of a fresh process, independent of the networks built before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .graph import call, copy_of, rebuild
from .keras_compat import keras

layers = keras.layers

IMAGE = "image"
"""Name of the input layer."""

Rule = Callable[[Any, str, list[Any]], Any]
"""``rule(layer, name, tensors)``: the new tensor of a layer's output, or None to let `rewrite` handle the layer."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an application for pixels in 0..255: ``(pixels - mean) / std``, per channel, in RGB order.

    Attributes:
        mean: of each channel.
        std: of each channel.
        bgr: whether the first convolution takes the channels in BGR order.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


CAFFE = Preprocessing((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), bgr=True)
TORCH = Preprocessing((255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225))


def vocabulary() -> tuple[Any, ...]:
    """The layer classes that a backbone consists of; exactly these, no subclasses."""
    return (
        layers.InputLayer,
        layers.Normalization,
        layers.Conv2D,
        layers.DepthwiseConv2D,
        layers.Dense,
        layers.BatchNormalization,
        layers.ReLU,
        layers.Activation,
        layers.Multiply,
        layers.Add,
        layers.Concatenate,
        layers.MaxPooling2D,
        layers.AveragePooling2D,
        layers.GlobalAveragePooling2D,
        layers.ZeroPadding2D,
        layers.Cropping2D,
        layers.UpSampling2D,
        layers.Flatten,
        layers.Reshape,
        layers.Dropout,
        layers.Rescaling,
    )


def image_input(height: int, width: int) -> Any:
    """The input layer of every backbone, float32 ``(height, width, 3)``."""
    return layers.Input((height, width, 3), name=IMAGE)


def rewrite(original: Any, preprocessing: Preprocessing | None = None, rule: Rule | None = None) -> Any:
    """The same network with layers of the vocabulary and the same weights.

    Args:
        original: flat functional, built on `image_input`.
        preprocessing: of the original; None if it is the common normalization with 127.5.
        rule: handles the layers that only this family has.

    Raises:
        TypeError: a layer that is not in the vocabulary and that the rule does not handle.
    """
    names = _stable_names(original)
    first = next(layer for layer in original.layers if type(layer) is layers.Conv2D)
    allowed = vocabulary()

    def place(layer: Any, tensors: list[Any]) -> Any:
        name = names[layer.name]
        placed = rule(layer, name, tensors) if rule else None
        if placed is not None:
            return placed
        if type(layer) is layers.InputLayer:
            return tensors[0] if preprocessing is None else _normalization(preprocessing)(tensors[0])
        if type(layer) is layers.Activation:
            return activation(layer.activation, name, tensors[0])
        if type(layer) not in allowed:
            raise TypeError(f"{layer.name}: {type(layer).__name__} is not in the vocabulary")
        weights = layer.get_weights()
        if layer is first and preprocessing is not None and preprocessing.bgr:
            weights[0] = weights[0][:, :, ::-1]
        if type(layer) is layers.Conv2D and layer.activation not in (keras.activations.linear, keras.activations.relu):
            x = put(copy_of(layer, name=name, activation="linear"), tensors, weights)
            return activation(layer.activation, f"{name}_{layer.activation.__name__}", x)
        return put(copy_of(layer, name=name), tensors, weights)

    return rebuild(original, place)


def put(layer: Any, tensors: list[Any], weights: list[Any]) -> Any:
    """Apply a new layer, then set its weights."""
    output = call(layer, tensors)
    layer.set_weights(weights)
    return output


def activation(function: Any, name: str, x: Any) -> Any:
    """An activation as layers of the vocabulary; the last one has the name ``name``."""
    if function is keras.activations.relu:
        return layers.ReLU(name=name)(x)
    if function is keras.activations.sigmoid:
        return layers.Activation("sigmoid", name=name)(x)
    if function is keras.activations.swish:
        return layers.Multiply(name=name)([x, layers.Activation("sigmoid", name=f"{name}_sigmoid")(x)])
    raise TypeError(f"{name}: activation {function.__name__} is not in the vocabulary")


def _normalization(preprocessing: Preprocessing) -> Any:
    """The original's preprocessing, for pixels normalized with mean and standard deviation 127.5."""
    return layers.Normalization(
        mean=[(mean - 127.5) / 127.5 for mean in preprocessing.mean],
        variance=[(std / 127.5) ** 2 for std in preprocessing.std],
        name="normalization",
    )


def _stable_names(model: Any) -> dict[str, str]:
    """New names of all layers: Keras' numbers start again, and slashes are replaced."""
    names = {layer.name: layer.name.replace("/", "_") for layer in model.layers}
    counted: dict[str, list[tuple[int, str]]] = {}
    for layer in model.layers:
        stem, number = re.fullmatch(r"(.*?)(?:_(\d+))?", layer.name).groups()  # type: ignore[union-attr]
        if stem.replace("_", "") == type(layer).__name__.lower():
            counted.setdefault(stem, []).append((int(number or 0), layer.name))
    for stem, found in counted.items():
        for index, (_, name) in enumerate(sorted(found)):
            names[name] = f"{stem}_{index}" if index else stem
    return names
