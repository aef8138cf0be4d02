"""Folds every BatchNormalization that follows a convolution into that convolution.

Quantization then sees the network that the device will run. Quantization-aware training of the unfolded network
(tfmot's default) fakes the quantization of other weights than those that are stored, and lets
BatchNormalization drift.
Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeall.models.graph import call, copy_of, rebuild, sources, targets
from edgeall.models.keras_compat import keras

FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
"""Exactly these: a Conv2DTranspose is a Conv2D whose channels lie on another axis."""


def fold_batch_normalization(model: Any) -> Any:
    """An equivalent model without the BatchNormalization layers that follow a convolution, and without dropout.

    Args:
        model: a flat functional Keras model, trained.

    Returns:
        A new flat functional model. Layers keep their names; folded convolutions have gained a bias.
    """
    weights: dict[str, list[Any]] = {}

    def place(layer: Any, tensors: list[Any]) -> Any:
        if isinstance(layer, (keras.layers.InputLayer, keras.layers.Dropout)):
            return tensors[0]
        if _folds(layer):
            (conv,) = sources(layer)
            weights[conv.name] = _folded(conv, layer)
            return tensors[0]
        weights[layer.name] = layer.get_weights()
        gains_bias = type(layer) in FOLDABLE and any(_folds(after) for after in targets(layer))
        return call(copy_of(layer, use_bias=True) if gains_bias else copy_of(layer), tensors)

    folded = rebuild(model, place)
    for layer in folded.layers[1:]:
        layer.set_weights(weights[layer.name])
    return folded


def _folds(layer: Any) -> bool:
    """Whether this is a BatchNormalization whose source is a linear convolution that feeds nothing else."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return False
    (source,) = sources(layer)
    linear = type(source) in FOLDABLE and source.activation is keras.activations.linear
    return linear and len(targets(source)) == 1


def _folded(conv: Any, norm: Any) -> list[Any]:
    """Kernel and bias of ``conv`` followed by ``norm`` as it is at inference."""
    kernel = conv.get_weights()[0]
    bias = conv.get_weights()[1] if conv.use_bias else 0.0
    gamma = norm.gamma.numpy() if norm.scale else 1.0
    beta = norm.beta.numpy() if norm.center else 0.0
    factor = gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    depthwise = isinstance(conv, keras.layers.DepthwiseConv2D)  # kernel (h, w, channels, 1), else (h, w, in, channels)
    kernel = kernel * (factor.reshape(kernel.shape[2:]) if depthwise else factor)
    return [kernel.astype(np.float32), ((bias - norm.moving_mean.numpy()) * factor + beta).astype(np.float32)]
