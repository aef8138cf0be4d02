"""Folds every per-channel affine map (BatchNormalization, Normalization, Rescaling) into a convolution.

Quantization then sees the network that the device runs. Quantization-aware training of the unfolded network (tfmot's
default) simulates the quantization of weights that differ from the stored ones, and lets BatchNormalization drift.
Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...models.graph import call, copy_of, rebuild, sources, targets
from ...models.keras_compat import keras

layers = keras.layers

FOLDABLE = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
"""Exact types: a Conv2DTranspose is a Conv2D whose channels lie on another axis."""


def fold_batch_normalization(model: Any) -> Any:
    """An equivalent model without per-channel affine layers, and without dropout.

    An affine layer behind a linear convolution or dense layer that feeds nothing else is folded into that layer. Any
    other one on an image (before an activation, behind a sum or a concatenation, at the input) becomes a 1x1 depthwise
    convolution of the same name, into which following affine layers are folded. It cannot be folded forwards: a padded
    convolution pads with zeros behind the affine map, not before it.

    Args:
        model: trained, flat functional Keras model.

    Returns:
        A new flat functional model. Layers keep their names; folded convolutions have a bias.
    """
    weights: dict[str, list[Any]] = {}
    target: dict[str, str] = {}  # layer with a single successor -> layer into which that successor can be folded

    def place(layer: Any, tensors: list[Any]) -> Any:
        name = layer.name
        if isinstance(layer, (layers.InputLayer, layers.Dropout)):
            return tensors[0]
        single = len(targets(layer)) == 1
        if _is_affine(layer):
            factor, offset = _affine(layer)
            into = target.get(sources(layer)[0].name)
            if into is not None:
                kernel, bias = weights[into]
                weights[into] = [kernel * factor, bias * factor + offset]
                if single:
                    target[name] = into
                return tensors[0]
            if len(tensors[0].shape) == 4:
                weights[name] = [factor, offset]
                if single:
                    target[name] = name
                return layers.DepthwiseConv2D(1, name=name, dtype=layer.get_config()["dtype"])(tensors[0])
        weights[name] = layer.get_weights()
        if not (single and _is_affine(targets(layer)[0]) and _is_linear(layer)):
            return call(copy_of(layer), tensors)
        kernel, *bias = (value.astype(np.float64) for value in layer.get_weights())
        if type(layer) is layers.DepthwiseConv2D:  # (h, w, channels, multiplier)
            kernel = kernel.reshape(*kernel.shape[:2], -1)
        weights[name] = [kernel, *(bias or [np.zeros(kernel.shape[-1])])]
        target[name] = name
        return call(copy_of(layer, use_bias=True), tensors)

    folded = rebuild(model, place)
    for layer in folded.layers[1:]:
        shapes = [variable.shape for variable in layer.weights]
        values = zip(weights[layer.name], shapes, strict=True)
        layer.set_weights([value.astype(np.float32).reshape(shape) for value, shape in values])
    return folded


def _is_linear(layer: Any) -> bool:
    return type(layer) in FOLDABLE and layer.activation is keras.activations.linear


def _is_affine(layer: Any) -> bool:
    """Whether the layer multiplies every channel by a factor and adds an offset at inference."""
    if isinstance(layer, layers.BatchNormalization):
        return list(layer.axis) == [len(layer.input_shape) - 1]
    if isinstance(layer, layers.Normalization):
        return not layer.invert and layer.axis in ((-1,), (len(layer.input_shape) - 1,))
    return isinstance(layer, layers.Rescaling)


def _affine(layer: Any) -> tuple[Any, Any]:
    """Factor and offset of every channel, float64 ``(channels,)``."""
    if isinstance(layer, layers.BatchNormalization):
        gamma = layer.gamma.numpy() if layer.scale else 1.0
        beta = layer.beta.numpy() if layer.center else 0.0
        factor = gamma / np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
        offset = beta - layer.moving_mean.numpy() * factor
    elif isinstance(layer, layers.Normalization):
        deviation = np.sqrt(np.asarray(layer.variance, np.float64)).ravel()
        factor = 1.0 / np.maximum(deviation, keras.backend.epsilon())
        offset = -np.asarray(layer.mean, np.float64).ravel() * factor
    else:
        factor, offset = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    channels = layer.output_shape[-1]
    return np.broadcast_to(factor.ravel(), channels), np.broadcast_to(offset.ravel(), channels)
