"""Plain chains of convolutions: the basic three-layer CNN of the comparison studies."""

from __future__ import annotations

from typing import Any

from edgeall.models.registry import BuildArgs, ModelSpec, register


def build_basic_cnn(args: BuildArgs) -> Any:
    """Three convolutions (32, 64, 128 filters), each with BatchNormalization, ReLU and 2x2 max pooling.

    Ends in global average pooling, ``(batch, 128)``, instead of the studies' Flatten: at 224 pixels that
    would put 6.4 million weights into one dense layer.
    """
    from edgeall.models.keras_compat import keras
    from edgeall.models.weights import load_weights

    def backbone(height: int, width: int, weights: str | None) -> Any:
        layers = keras.layers
        inputs = layers.Input((height, width, 3))
        x = inputs
        for index, filters in enumerate((32, 64, 128), start=1):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{index}")(x)
            x = layers.BatchNormalization(name=f"conv{index}_bn")(x)
            x = layers.ReLU(name=f"conv{index}_relu")(x)
            x = layers.MaxPooling2D(2, name=f"pool{index}")(x)
        x = layers.GlobalAveragePooling2D(name="features")(x)
        return keras.Model(inputs, x, name="basic_cnn")

    return load_weights(backbone, args, "basic_cnn")


register(
    ModelSpec(
        name="basic_cnn",
        build=build_basic_cnn,
        input_hw=(128, 128),
        sizes=(32, 512),
        mean=127.5,
        std=127.5,
        pretrained=False,
    )
)
