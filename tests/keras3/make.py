"""Makes the files of this folder, with plain Keras 3: ``python tests/keras3/make.py``.

``tiny.keras`` has a nested model, a sequential one within it, ``preprocess_input`` of ResNet inside, and layers whose
definition differs between Keras 2 and 3. ``sigmoid.h5`` takes grey images and ends in one sigmoid. ``expected.npz``
holds pixels and the probabilities that Keras 3 gives for them.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

HERE = Path(__file__).parent
layers = keras.layers


def scattered(model: keras.Model) -> keras.Model:
    """The model with random weights, so that no layer can be left out unnoticed."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        if hasattr(layer, "layers"):
            scattered(layer)
        elif layer.weights:
            values = [random.normal(0, 0.4, value.shape) for value in layer.get_weights()]
            names = [weight.name for weight in layer.weights]
            layer.set_weights([np.abs(v) + 0.5 if "variance" in n else v for v, n in zip(values, names, strict=False)])
    return model


def base() -> keras.Model:
    inputs = keras.Input((16, 16, 3), name="base_input")
    x = layers.ZeroPadding2D(1, name="block_pad")(inputs)
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="block_conv")(x)
    x = layers.BatchNormalization(name="block_bn")(x)
    x = layers.Activation("hard_silu", name="block_act")(x)
    y = layers.SeparableConv2D(6, 3, padding="same", activation="swish", name="separable")(x)
    y = keras.Sequential([layers.Conv2D(6, 1, activation="relu6"), layers.BatchNormalization()], name="inner")(y)
    z = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    z = layers.Conv2D(6, 1, activation="hard_sigmoid", name="gate")(z)
    y = layers.Multiply(name="excite")([y, z])
    x = layers.Add(name="sum")([x, y, layers.LeakyReLU(0.1, name="leaky")(x)])
    return keras.Model(inputs, layers.DepthwiseConv2D(3, name="depthwise")(x), name="base")


def main() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    inputs = keras.Input((16, 16, 3))
    x = layers.RandomFlip("horizontal")(inputs)
    x = keras.applications.resnet.preprocess_input(x)
    x = base()(x / 64.0, training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    tiny = scattered(keras.Model(inputs, layers.Dense(3, activation="softmax")(x), name="tiny"))
    tiny.save(HERE / "tiny.keras")
    grey = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ],
        name="grey",
    )
    grey.layers[-1].set_weights([random.normal(0, 0.1, value.shape) for value in grey.layers[-1].get_weights()])
    grey.save(HERE / "sigmoid.h5")
    luma = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None].astype(np.float32)
    np.savez_compressed(
        HERE / "expected.npz",
        pixels=pixels,
        tiny=tiny.predict(pixels.astype(np.float32), verbose=0),
        sigmoid=grey.predict(luma, verbose=0),
    )


if __name__ == "__main__":
    main()
