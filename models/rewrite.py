"""Rewrites a ``tf_keras.applications`` graph into the few kinds of layers that folding, quantization and pruning take.

What a backbone may consist of is `vocabulary`. The rewritten network computes what the original computes of
the original's own preprocessing, but takes the input that all backbones take: pixels normalized with mean and standard
deviation 127.5. Layers that Keras named by counting (``conv2d_12``) get the names that they have in a fresh process,
however many networks were built before.
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
"""``rule(layer, name, tensors)``: the tensor that stands for a layer's output, or None to leave it to `rewrite`."""


@dataclass(frozen=True)
class Preprocessing:
    """What an application does to pixels of 0 to 255: ``(pixels - mean) / std``, per channel in the order R, G, B.

    Attributes:
        mean: of each channel.
        std: of each channel.
        bgr: whether the first convolution takes the channels in the order B, G, R.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


CAFFE = Preprocessing((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), bgr=True)
TORCH = Preprocessing((255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225))


def vocabulary() -> tuple[Any, ...]:
    """The classes of layers (exactly these, not what derives from them) that a backbone consists of."""
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
        layers.Flatten,
        layers.Reshape,
        layers.Dropout,
        layers.Rescaling,
    )


def image_input(height: int, width: int) -> Any:
    """The input that every backbone is built on, float32 ``(height, width, 3)``."""
    return layers.Input((height, width, 3), name=IMAGE)


def rewrite(original: Any, preprocessing: Preprocessing | None = None, rule: Rule | None = None) -> Any:
    """The same network in the vocabulary, with the same weights.

    Args:
        original: flat functional, built on `image_input`.
        preprocessing: what the original expects to be done to pixels; None for what the contract does already.
        rule: places the layers that only this family has.

    Raises:
        TypeError: a layer that is not in the vocabulary and that no rule places.
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
    """Apply a new layer, then give it its weights."""
    output = call(layer, tensors)
    layer.set_weights(weights)
    return output


def activation(function: Any, name: str, x: Any) -> Any:
    """An activation as layers of the vocabulary; the last of them is called ``name``."""
    if function is keras.activations.relu:
        return layers.ReLU(name=name)(x)
    if function is keras.activations.sigmoid:
        return layers.Activation("sigmoid", name=name)(x)
    if function is keras.activations.swish:
        return layers.Multiply(name=name)([x, layers.Activation("sigmoid", name=f"{name}_sigmoid")(x)])
    raise TypeError(f"{name}: activation {function.__name__} is not in the vocabulary")


def _normalization(preprocessing: Preprocessing) -> Any:
    """The original's preprocessing, of pixels that were normalized with mean and standard deviation 127.5."""
    return layers.Normalization(
        mean=[(mean - 127.5) / 127.5 for mean in preprocessing.mean],
        variance=[(std / 127.5) ** 2 for std in preprocessing.std],
        name="normalization",
    )


def _stable_names(model: Any) -> dict[str, str]:
    """New names of all layers: those that Keras numbered count from none again, and no name has a slash."""
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
