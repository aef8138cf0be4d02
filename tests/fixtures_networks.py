"""Small networks by hand, one for every pattern that a backbone may hold and stock tools can't quantize."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fixture_seed import SEED
from PIL import Image

from edgeall.edge_runtime.preprocess import InputSpec, normalize
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras

layers = keras.layers
SIZE = 24
SPEC = InputSpec(SIZE, SIZE)
LABELS = ("a", "b", "c", "d")


def _conv(
    x: Any, name: str, filters: int = 8, size: int = 3, norm: bool = True, relu: bool = True, **words: Any
) -> Any:
    x = layers.Conv2D(filters, size, padding="same", use_bias=not norm, name=name, **words)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x) if norm else x
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def input_maps(x: Any) -> Any:
    """EfficientNet: several maps at the input, then a convolution that pads by itself."""
    x = layers.Rescaling(0.5, offset=0.1, name="rescaling")(x)
    x = layers.Normalization(mean=[0.1, -0.2, 0.3], variance=[0.2, 0.5, 1.5], name="normalization")(x)
    x = layers.Rescaling([1.2, 0.7, 0.9], name="rescaling_1")(x)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x)
    return layers.ReLU(6.0, name="relu6")(layers.Conv2D(8, 3, strides=2, padding="valid", name="stem")(x))


def equal_offsets(x: Any) -> Any:
    """A map whose bias is the same for all channels while the convolution's scales are not."""
    x = _conv(x, "stem", norm=False)
    x = layers.BatchNormalization(name="map", center=False)(_conv(layers.Rescaling(1.0, 0.4, name="equal")(x), "mix"))
    x = layers.Conv2D(8, 1, bias_initializer=keras.initializers.Constant(0.4), name="constant_bias")(x)
    return x


def pre_activation(x: Any) -> Any:
    """ResNetV2: BatchNormalization behind a sum that other layers take too."""
    x = _conv(x, "stem", norm=False, relu=False)
    for block in ("one", "two"):
        y = layers.ReLU(name=f"{block}_pre_relu")(layers.BatchNormalization(name=f"{block}_pre")(x))
        y = _conv(y, f"{block}_a")
        x = layers.Add(name=f"{block}_add")([x, _conv(y, f"{block}_b", norm=False, relu=False)])
    return layers.ReLU(name="post_relu")(layers.BatchNormalization(name="post")(x))


def dense_block(x: Any) -> Any:
    """DenseNet: BatchNormalization behind concatenations that grow out of each other."""
    x = layers.MaxPooling2D(3, 2, padding="same", name="pool")(_conv(x, "stem"))
    for block in ("one", "two", "three"):
        y = layers.ReLU(name=f"{block}_relu")(layers.BatchNormalization(name=f"{block}_bn")(x))
        x = layers.Concatenate(name=f"{block}_concat")([x, _conv(y, f"{block}_grow", 4, norm=False, relu=False)])
    x = layers.ReLU(name="end_relu")(layers.BatchNormalization(name="end_bn")(x))
    x = layers.Conv2D(10, 1, use_bias=False, name="transition")(x)
    return layers.AveragePooling2D(2, name="transition_pool")(x)


def squeeze_excite(x: Any) -> Any:
    """EfficientNet: swish as sigmoid and product, and channels weighed by a squeeze-and-excite branch."""

    def swish(x: Any, name: str) -> Any:
        return layers.Multiply(name=f"{name}_swish")([x, layers.Activation("sigmoid", name=f"{name}_sigmoid")(x)])

    x = swish(_conv(x, "stem", relu=False), "stem")
    x = swish(layers.BatchNormalization(name="dw_bn")(layers.DepthwiseConv2D(3, padding="same", name="dw")(x)), "dw")
    y = layers.Reshape((1, 1, 8), name="squeeze")(layers.GlobalAveragePooling2D(name="mean")(x))
    y = swish(layers.Conv2D(4, 1, name="reduce")(y), "reduce")
    y = layers.Activation("sigmoid", name="gate")(layers.Conv2D(8, 1, name="expand")(y))
    x = layers.Multiply(name="excite")([x, y])
    return _conv(x, "project", 12, 1, relu=False)


def separable(x: Any) -> Any:
    """NASNet: ReLU on what others take too, separable convolutions."""
    x = first = _conv(x, "stem", relu=False)
    for name in ("one", "two"):
        x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.DepthwiseConv2D(5, padding="same", use_bias=False, name=f"{name}_dw")(x)
        x = _conv(x, f"{name}_pw", 8, 1, relu=False)
    return layers.Concatenate(name="concat")([layers.Add(name="add")([x, first]), x])


def factorized_reduction(x: Any) -> Any:
    """NASNet's adjust block: two shifted halves, concatenated, then BatchNormalization; pooling of one pixel."""
    x = layers.ReLU(name="adjust_relu")(_conv(x, "stem", relu=False))
    one = layers.Conv2D(5, 1, use_bias=False, name="one")(layers.AveragePooling2D(1, 2, name="pool_one")(x))
    shifted = layers.Cropping2D(((1, 0), (1, 0)), name="crop")(layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x))
    two = layers.Conv2D(5, 1, use_bias=False, name="two")(layers.AveragePooling2D(1, 2, name="pool_two")(shifted))
    x = layers.BatchNormalization(name="adjust_bn")(layers.Concatenate(name="concat")([one, two]))
    return layers.AveragePooling2D(3, 1, padding="same", name="pool")(x)


def inception(x: Any) -> Any:
    """Branches of unlike ranges, pooled ones among them, and concatenations that feed concatenations."""
    x = _conv(x, "stem")
    for name in ("one", "two"):
        wide = _conv(x, f"{name}_wide", 6)
        pooled = _conv(layers.AveragePooling2D(3, 1, padding="same", name=f"{name}_average")(x), f"{name}_pooled", 4)
        largest = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_max")(x)
        x = layers.Concatenate(name=f"{name}_mixed")([wide, pooled, largest])
    return layers.ReLU(name="mixed_relu")(x)


def residual_scaling(x: Any) -> Any:
    """InceptionResNetV2: a linear convolution, scaled, added."""
    x = _conv(x, "stem")
    y = layers.Concatenate(name="mixed")([_conv(x, "left", 4), _conv(x, "right", 4)])
    y = layers.Rescaling(0.17, name="scale")(layers.Conv2D(8, 1, name="up")(y))
    return layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))


def activation_inside(x: Any) -> Any:
    """VGG and AlexNet: ReLU inside the layer, BatchNormalization behind it, dense layers on all pixels."""
    x = layers.Conv2D(8, 5, strides=2, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.Dense(16, activation="relu", name="fc1")(layers.Flatten(name="flatten")(x))
    x = layers.Dropout(0.5, name="drop")(x)
    return layers.ReLU(name="fc2_relu")(layers.BatchNormalization(name="fc2_bn")(layers.Dense(12, name="fc2")(x)))


def pooled_then_rectified(x: Any) -> Any:
    """The converter fuses a ReLU into pooling and into a product as well."""
    x = _conv(x, "stem", relu=False)
    one = layers.ReLU(name="average_relu")(layers.AveragePooling2D(2, name="average")(x))
    two = layers.ReLU(name="max_relu")(layers.MaxPooling2D(2, name="max")(x))
    return layers.ReLU(name="product_relu")(layers.Multiply(name="product")([one, _conv(two, "last", relu=False)]))


def dead(x: Any) -> Any:
    """Channels, and a whole layer, that are always zero; and one whose kernel is zero but whose bias isn't."""
    x = _conv(x, "stem")
    silent = layers.Conv2D(
        4,
        1,
        activation="relu",
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(-1),
        name="silent",
    )(x)
    constant = layers.Conv2D(
        4, 1, kernel_initializer="zeros", bias_initializer=keras.initializers.RandomUniform(0.2, 0.9), name="constant"
    )(x)
    silent = layers.DepthwiseConv2D(3, padding="same", name="silent_dw")(silent)
    return layers.Concatenate(name="concat")([layers.Add(name="add")([silent, constant]), x])


NETWORKS: dict[str, Callable[[Any], Any]] = {
    make.__name__: make
    for make in (
        input_maps,
        equal_offsets,
        pre_activation,
        dense_block,
        squeeze_excite,
        separable,
        factorized_reduction,
        inception,
        residual_scaling,
        activation_inside,
        pooled_then_rectified,
        dead,
    )
}


def blobs(count: int, size: int = SIZE) -> Any:
    """Images that differ in brightness, colour and place: uint8 ``(count, size, size, 3)``."""

    def one(seed: int) -> Any:
        generator = np.random.default_rng(seed)
        small = Image.fromarray(generator.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        low, high = np.sort(generator.integers(0, 256, 2))
        large = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)) / 255.0
        return (low + large * (high - low)).astype(np.uint8)

    return np.stack([one(seed) for seed in range(count)])


def network(name: str) -> Any:
    """One of `NETWORKS` as a classifier that has seen `blobs`: statistics as after training, answers that differ."""
    keras.utils.set_random_seed(1 + SEED)
    inputs = layers.Input((SIZE, SIZE, 3))
    features = NETWORKS[name](inputs)
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D(name="features")(features)
    model = add_head(keras.Model(inputs, features, name=name), len(LABELS), 0.2)
    enliven(model, normalize(blobs(8), SPEC))
    return model


def enliven(model: Any, images: Any) -> None:
    """Give an untrained classifier the statistics of a trained one, and answers that differ from image to image."""
    generator = np.random.default_rng(SEED)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        if layer.scale:
            layer.gamma.assign(generator.uniform(0.5, 1.5, layer.gamma.shape))
        if layer.center:
            layer.beta.assign(generator.uniform(-0.5, 0.5, layer.beta.shape))
        layer.momentum = 0.0  # one pass in training mode makes the statistics those of the images
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    spread_logits(model, images)


def spread_logits(model: Any, images: Any) -> None:
    """Make the answers of an untrained head differ from image to image."""
    head = model.get_layer("logits")
    kernel = np.random.default_rng(5 + SEED).normal(size=head.get_weights()[0].shape)
    features = keras.Model(model.input, head.input)(images, training=False).numpy()
    kernel = kernel / (features @ kernel).std(axis=0)
    head.set_weights([kernel, -(features @ kernel).mean(axis=0)])
