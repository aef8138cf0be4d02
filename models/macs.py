"""Multiply-accumulate operations (MACs) of a network for one image."""

from __future__ import annotations

import math
from typing import Any

from .keras_compat import keras

layers = keras.layers


def layer_macs(model: Any) -> dict[str, int]:
    """MACs of every convolution and dense layer by name. As usual, without biases, activations and pooling."""
    return {layer.name: _macs(layer) for layer in model.layers if type(layer) in _COUNTED}


def macs(model: Any) -> int:
    """Total MACs of a model."""
    return sum(layer_macs(model).values())


_COUNTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)


def _macs(layer: Any) -> int:
    """Each weight of the kernel is used once per output position."""
    kernel = layer.depthwise_kernel if type(layer) is layers.DepthwiseConv2D else layer.kernel
    return int(math.prod(layer.output_shape[1:-1]) * math.prod(kernel.shape))
