"""Sequential networks: the basic three-layer CNN of the comparison studies, and AlexNet."""

from __future__ import annotations

from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register


def build_basic_cnn(args: BuildArgs) -> Any:
    """Three convolutions (32, 64, 128 filters), each with BatchNormalization, ReLU and 2x2 max pooling.

    Ends in global average pooling, ``(batch, 128)``, instead of the studies' Flatten, which at 224 pixels needs 6.4
    million weights in one dense layer.
    """
    from .keras_compat import keras
    from .rewrite import image_input
    from .weights import load_weights

    def backbone(height: int, width: int, weights: str | None) -> Any:
        layers = keras.layers
        inputs = image_input(height, width)
        x = inputs
        for index, filters in enumerate((32, 64, 128), start=1):
            x = _convolution(x, filters, 3, f"conv{index}", padding="same")
            x = layers.MaxPooling2D(2, name=f"pool{index}")(x)
        x = layers.GlobalAveragePooling2D(name="features")(x)
        return keras.Model(inputs, x, name="basic_cnn")

    return load_weights(backbone, args, "basic_cnn")


def build_alexnet(args: BuildArgs) -> Any:
    """Five convolutions, overlapping max pooling and two dense layers of 4096, ``(batch, 4096)``.

    As published (first convolution 55 x 55 at 224 pixels), with two changes: BatchNormalization before the ReLU of each
    convolution instead of local response normalization (which no interpreter supports in integers, and which trains
    worse), and no split for two GPUs. Dropout of 0.5 between the dense layers; the head adds the dropout after them.
    """
    from .keras_compat import keras
    from .rewrite import image_input
    from .weights import load_weights

    def backbone(height: int, width: int, weights: str | None) -> Any:
        layers = keras.layers
        inputs = image_input(height, width)
        x = layers.ZeroPadding2D(2, name="conv1_pad")(inputs)
        x = _convolution(x, 96, 11, "conv1", strides=4)
        x = layers.MaxPooling2D(3, strides=2, name="pool1")(x)
        x = _convolution(x, 256, 5, "conv2", padding="same")
        x = layers.MaxPooling2D(3, strides=2, name="pool2")(x)
        x = _convolution(x, 384, 3, "conv3", padding="same")
        x = _convolution(x, 384, 3, "conv4", padding="same")
        x = _convolution(x, 256, 3, "conv5", padding="same")
        x = layers.MaxPooling2D(3, strides=2, name="pool5")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(4096, activation="relu", name="fc6")(x)
        x = layers.Dropout(0.5, name="fc6_dropout")(x)
        x = layers.Dense(4096, activation="relu", name="fc7")(x)
        return keras.Model(inputs, x, name="alexnet")

    return load_weights(backbone, args, "alexnet")


def _convolution(x: Any, filters: int, size: int, name: str, **settings: Any) -> Any:
    """Convolution, BatchNormalization, ReLU."""
    from .keras_compat import keras

    x = keras.layers.Conv2D(filters, size, use_bias=False, name=name, **settings)(x)
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


register(
    ModelSpec(
        name="basic_cnn",
        build=build_basic_cnn,
        input_hw=(128, 128),
        reference="the three-layer baseline of the comparison studies",
        pretrained=False,
        facts=Facts(
            parameters=93_920,
            macs=165_150_720,
            features=128,
            layers=14,
            sparsity_weights=92_160,
            channel_groups=3,
        ),
    )
)
register(
    ModelSpec(
        name="alexnet",
        build=build_alexnet,
        input_hw=(224, 224),
        sizes=(64, 512),
        reference="Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks",
        pretrained=False,
        facts=Facts(
            parameters=58_285_472,
            macs=1_131_160_096,
            features=4_096,
            layers=24,
            sparsity_weights=58_236_928,
            channel_groups=7,
        ),
    )
)
