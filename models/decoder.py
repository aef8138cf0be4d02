"""The segmentation head of a backbone: a light U-Net decoder for the mask, and a dense layer for the red cells' size.

The encoder is the backbone up to its layer at stride 16; the deeper layers have few pixels left of a cell at the scale
of the input, and most of the weights. The decoder uses separable convolutions, as the backbone does, and ends at half
of the input's resolution: a bilinear resize of the scores does the rest.
Source: Ronneberger et al. 2015, "U-Net: convolutional networks for biomedical image segmentation".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..edge_runtime.errors import UsageError
from .registry import ModelSpec

MASK = "mask"
"""Name of the layer with the probabilities of the classes, ``(height, width, classes)``."""
SCORES = "mask_scores"
"""Name of the layer with the scores of the classes, at half of the input's resolution."""
RED_CELL = "red_cell"
"""Name of the layer with log2 of the red cells' diameter over the one that the network is trained for, ``(1,)``."""
WIDTHS = (64, 48, 32, 24)
"""Channels of the decoder at strides 16, 8, 4 and 2."""
DENSE = 32
"""Width of the layer between the pooled features and the red cells' size."""


def check_decoder(spec: ModelSpec) -> None:
    """Raise UsageError for a backbone without layers for a decoder."""
    if not spec.skips:
        raise UsageError(
            f"{spec.name} has no layers for a segmentation decoder", hint="use mobilenet_v2 with --task segmentation"
        )


def add_decoder(backbone: Any, skips: Sequence[str], classes: int, dropout: float = 0.0) -> Any:
    """One flat functional graph: the encoder, the decoder, and both outputs in float32.

    Args:
        backbone: from the registry; what lies behind the last of ``skips`` is left out.
        skips: names of its layers at strides 2, 4, 8 and 16.
        classes: number of classes of a pixel.
        dropout: before the dense layers of the red cells' size.

    Returns:
        A model with the outputs `MASK`, ``(height, width, classes)``, and `RED_CELL`, ``(1,)``.
    """
    from .keras_compat import keras

    layers = keras.layers
    *shallow, deep = (backbone.get_layer(name).output for name in skips)
    x = _separable(_mixed(deep, WIDTHS[0], "decoder16_reduce"), WIDTHS[0], "decoder16")
    for stride, skip, width in zip((8, 4, 2), shallow[::-1], WIDTHS[1:], strict=True):
        name = f"decoder{stride}"
        x = layers.UpSampling2D(interpolation="bilinear", name=f"{name}_up")(x)
        x = layers.Concatenate(name=f"{name}_join")([x, _mixed(skip, width, f"{name}_skip")])
        x = _separable(x, width, name)
    x = layers.Conv2D(classes, 1, name=SCORES)(x)
    x = layers.UpSampling2D(interpolation="bilinear", name="mask_up", dtype="float32")(x)
    mask = layers.Softmax(name=MASK, dtype="float32")(x)
    y = layers.GlobalAveragePooling2D(name="features")(deep)
    y = layers.Dropout(dropout, name="features_dropout")(y)
    y = layers.Dense(DENSE, activation="relu", name="red_cell_hidden")(y)
    red_cell = layers.Dense(1, name=RED_CELL, dtype="float32")(y)
    return keras.Model(backbone.input, [mask, red_cell], name=f"{backbone.name}_segmenter")


def _separable(x: Any, channels: int, name: str) -> Any:
    """A depthwise 3x3 convolution, then a pointwise one."""
    from .keras_compat import keras

    layers = keras.layers
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.BatchNormalization(name=f"{name}_depthwise_bn")(x)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    return _mixed(x, channels, f"{name}_project")


def _mixed(x: Any, channels: int, name: str) -> Any:
    """A pointwise convolution, BatchNormalization and ReLU6."""
    from .keras_compat import keras

    x = keras.layers.Conv2D(channels, 1, use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x)
