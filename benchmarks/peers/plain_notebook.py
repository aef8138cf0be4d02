"""Makes classifiers as plain notebooks do, with Keras 2 or Keras 3.

python plain_notebook.py IMAGES.npz ARCHITECTURE FORM=OUT...

All forms are of one version of Keras. IMAGES.npz holds uint8 ``pixels`` and int ``labels``. The base has random
weights, and the statistics of these images in its BatchNormalization; the head is trained on its features. Beside each
OUT, ``OUT.predictions.npy`` are the probabilities that Keras itself gives for all images, and ``OUT.noise.npy`` is the
largest change of one of them if the last bits of all weights change.
"""

from __future__ import annotations

import os
import sys

import numpy as np

images, architecture, *wanted = sys.argv[1:]
KERAS3 = wanted[0].startswith("keras3")
if not KERAS3:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


if KERAS3:
    import keras
else:
    import tf_keras as keras

layers, applications = keras.layers, keras.applications
MODULES = {
    "MobileNetV2": "mobilenet_v2",
    "EfficientNetB0": "efficientnet",
    "ResNet50": "resnet",
    "DenseNet121": "densenet",
}
NESTED = ("keras2-keras", "keras3-keras")
INSIDE = ("keras3-keras", "keras2-savedmodel")
"""Forms whose preprocessing is a part of the model."""


def main() -> None:
    keras.utils.set_random_seed(0)
    found = np.load(images)
    pixels, labels = found["pixels"].astype(np.float32), found["labels"]
    shape, classes = pixels.shape[1:], int(labels.max()) + 1
    base = getattr(applications, architecture)(include_top=False, weights=None, input_shape=shape)
    preprocess = getattr(applications, MODULES[architecture]).preprocess_input
    prepared = np.asarray(preprocess(pixels.copy()))
    settle(base, prepared)
    features = base.predict(prepared, batch_size=32, verbose=0).mean(axis=(1, 2))
    weights = head_weights(features, labels, classes)
    for form, out in (text.split("=") for text in wanted):
        make(form, out, base, weights, pixels if form in INSIDE else prepared)


def make(form, out, base, weights, fed) -> None:
    """Make, save and use one model; its graph shares the layers of the base."""
    preprocess = getattr(applications, MODULES[architecture]).preprocess_input
    if form in NESTED:
        inputs = keras.Input(base.input_shape[1:])
        x = preprocess(inputs) if form in INSIDE else inputs
        x = base(x, training=False)
    elif form in INSIDE and architecture != "EfficientNetB0":  # which has a Rescaling of its own
        inputs = keras.Input(base.input_shape[1:])
        x = base(outside_in(inputs))
    else:
        inputs, x = base.input, base.output
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    head = layers.Dense(weights[1].size, activation="softmax", name="predictions")
    model = keras.Model(inputs, head(x), name=f"{architecture.lower()}_classifier")
    head.set_weights(weights)
    model.save(out, **({"save_format": "tf"} if form == "keras2-savedmodel" else {}))
    predictions = np.asarray(model.predict(fed, batch_size=32, verbose=0))
    np.save(f"{out}.predictions.npy", predictions)
    if KERAS3:  # how much of a difference the last bits of the weights make; the models share the weights of the base
        random = np.random.default_rng(0)
        before = model.get_weights()
        model.set_weights([value * (1 + 2.0**-22 * random.choice([-1, 1], value.shape)) for value in before])
        after = np.asarray(model.predict(fed, batch_size=32, verbose=0))
        model.set_weights(before)
        np.save(f"{out}.noise.npy", np.abs(after - predictions).max())


def outside_in(x):
    """What `preprocess_input` does, as layers."""
    if architecture == "MobileNetV2":
        return layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    if architecture == "DenseNet121":
        x = layers.Rescaling(1 / 255.0)(x)
        return layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.229**2, 0.224**2, 0.225**2])(x)
    return applications.resnet.preprocess_input(x)  # to BGR, minus ImageNet's mean


def settle(base, prepared) -> None:
    """Give BatchNormalization the statistics of the images, as any training does."""
    kinds = [layer for layer in base.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in kinds:
        layer.momentum = 0.5
    for start in 4 * list(range(0, min(len(prepared), 256) - 31, 32)):
        base(prepared[start : start + 32], training=True)
    for layer in kinds:
        layer.momentum = 0.99


def head_weights(features, labels, classes):
    """Kernel and bias of the last layer, fitted to the features."""
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = keras.Input(features.shape[1:])
    own = layers.Dense(classes, activation="softmax")
    trained = keras.Model(inputs, own(inputs))
    trained.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    trained.fit((features - mean) / std, labels, epochs=60, batch_size=64, verbose=0)
    kernel, bias = (np.asarray(value) for value in own.get_weights())
    return [kernel / std[:, None], bias - (mean / std) @ kernel]


main()
