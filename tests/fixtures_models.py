"""Fixtures that make small models: random but fixed weights, outputs far from saturation, a second to convert."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_seed import SEED
from PIL import Image
from shared import once

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.images import decode_rgb
from edgeall.edge_runtime.manifest import Manifest
from edgeall.edge_runtime.masks import CLASSES
from edgeall.edge_runtime.preprocess import InputSpec, preprocess
from edgeall.edge_runtime.segmenter import Segmenter

LABELS = ("Benign", "Early", "Pre", "Pro")
SPEC = InputSpec(32, 48)
PER_CLASS = 12
"""Images of a class that `smear_bundle` sees."""


def grainy_image(seed: int, size: tuple[int, int] = (75, 60)) -> Image.Image:
    """Blobs of colour under grain, ``size`` (width, height): every channel, place and resize filter matters."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(0, 256, (6, 7, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.integers(-90, 91, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(blobs).astype(int) + grain, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def manifest(**changes: Any) -> Manifest:
    """A manifest for the tiny models."""
    values: dict[str, Any] = {
        "name": "tiny",
        "created": "2026-11-21T10:00:00Z",
        "unit": "field",
        "labels": LABELS,
        "positive_labels": LABELS[1:],
        "input": SPEC,
        "quantization": {"scheme": "ptq-int8"},
        "training": {"backbone": "tiny", "split_level": "image", "seed": 0},
        "metrics": {"split": "test", "images": 4, "accuracy": 0.75},
        "golden": {"source": "synthetic"},
    }
    return Manifest(**(values | changes))


def golden_for(
    flatbuffer: bytes, spec: InputSpec = SPEC, labels: tuple[str, ...] = LABELS
) -> list[tuple[str, bytes, np.ndarray]]:
    """Two golden images with what the model makes of them here."""
    classifier = Classifier.from_flatbuffer(flatbuffer, labels, spec)
    files = [png(grainy_image(seed)) for seed in (3, 9)]
    return [
        (f"{index}.png", file, classifier.predict(preprocess(decode_rgb(file, "golden"), spec)))
        for index, file in enumerate(files)
    ]


def convert(model: Any, scheme: str, representative: np.ndarray) -> bytes:
    """A Keras model as a flatbuffer: ``float32``, ``dynamic``, or ``uint8``/``int8`` for full-integer ones.

    Args:
        model: a Keras 2 model.
        scheme: see above.
        representative: float32 images as the model takes them, ``(n, height, width, 3)``.
    """
    from edgeall.models.keras_compat import tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme in ("uint8", "int8"):
        converter.representative_dataset = lambda: ([image[None]] for image in representative)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own
        flatbuffer: bytes = converter.convert()
    return flatbuffer


@pytest.fixture(scope="session")
def tiny_flatbuffers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Converted models by kind: uint8, int8, float32, dynamic; logits and sigmoid (float32) end in those."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for kind, flatbuffer in _converted().items():
            (folder / kind).write_bytes(flatbuffer)

    return {path.name: path.read_bytes() for path in once(tmp_path_factory, "flatbuffers", make).iterdir()}


def _converted() -> dict[str, bytes]:
    from edgeall.models.keras_compat import keras

    layers = keras.layers
    random = np.random.default_rng(SEED)
    inputs = layers.Input((SPEC.height, SPEC.width, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = layers.Dense(len(LABELS), name="logits")(layers.Flatten()(x))  # not averaged: places matter too
    ends = {"softmax": layers.Softmax()(x), "logits": x, "sigmoid": layers.Activation("sigmoid")(x)}
    models = {name: keras.Model(inputs, end) for name, end in ends.items()}
    images = np.stack([preprocess(grainy_image(seed), SPEC) for seed in range(20)]).astype(np.float32) / 127.5 - 1
    images[0, 0, 0], images[0, 0, 1] = -1, 1  # the whole range of pixels, as the contract says
    logits = models["logits"]
    logits.set_weights([random.normal(0, 0.3, weights.shape) for weights in logits.get_weights()])
    # Centred and scaled, so that probabilities are far from 0 and 1, where nothing would show.
    raw = logits.predict(images, verbose=0)
    kernel, bias = logits.get_layer("logits").get_weights()
    logits.get_layer("logits").set_weights([kernel / raw.std(0), (bias - raw.mean(0)) / raw.std(0)])
    kinds = {kind: convert(models["softmax"], kind, images) for kind in ("uint8", "int8", "float32", "dynamic")}
    return kinds | {kind: convert(models[kind], "float32", images) for kind in ("logits", "sigmoid")}


@pytest.fixture(scope="session")
def pack_tiny(tiny_flatbuffers: dict[str, bytes]) -> Callable[..., Path]:
    """``pack_tiny(kind, out, **manifest changes)`` packs one of `tiny_flatbuffers`."""
    from edgeall.optimize.packaging.card import model_card
    from edgeall.optimize.packaging.pack import pack

    def make(kind: str, out: Path, **changes: Any) -> Path:
        filled = manifest(**changes)
        flatbuffer = tiny_flatbuffers[kind]
        return pack(flatbuffer, filled, golden_for(flatbuffer), model_card(filled), out)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(pack_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed full-integer model."""
    return pack_tiny("uint8", tmp_path_factory.mktemp("tiny") / "model.tflite")


@pytest.fixture(scope="session")
def tiny_masks() -> dict[str, bytes]:
    """Converted segmentation models by kind, uint8 and float32: random weights, every class somewhere."""
    from edgeall.models.keras_compat import keras

    layers = keras.layers
    random = np.random.default_rng(SEED)
    inputs = layers.Input((SPEC.height, SPEC.width, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="seen")(inputs)
    scores = layers.Conv2D(len(CLASSES), 3, padding="same", name="scores")(x)
    mask = layers.Softmax(name="mask")(layers.UpSampling2D(2, interpolation="bilinear", name="enlarged")(scores))
    red_cell = layers.Dense(1, name="red_cell")(layers.GlobalAveragePooling2D()(x))
    images = np.stack([preprocess(grainy_image(seed), SPEC) for seed in range(20)]).astype(np.float32) / 127.5 - 1
    images[0, 0, 0], images[0, 0, 1] = -1, 1
    raw = keras.Model(inputs, [scores, red_cell])
    raw.set_weights([random.normal(0, 0.3, weights.shape) for weights in raw.get_weights()])
    for layer, found in zip(("scores", "red_cell"), raw.predict(images, verbose=0), strict=True):
        kernel, bias = raw.get_layer(layer).get_weights()
        axes = tuple(range(found.ndim - 1))
        spread, mean = found.std(axes), found.mean(axes)
        raw.get_layer(layer).set_weights([kernel / spread, (bias - mean) / spread])
    model = keras.Model(inputs, [red_cell, mask])  # the converter reverses them
    return {kind: convert(model, kind, images) for kind in ("uint8", "float32")}


@pytest.fixture(scope="session")
def pack_masks(tiny_masks: dict[str, bytes]) -> Callable[..., Path]:
    """``pack_masks(kind, out, **manifest changes)`` packs one of `tiny_masks`."""
    from edgeall.optimize.packaging.card import model_card
    from edgeall.optimize.packaging.pack import pack

    def make(kind: str, out: Path, **changes: Any) -> Path:
        task = {"task": "segmentation", "labels": CLASSES, "positive_labels": (), "segmentation": {"red_cell_px": 28}}
        filled = manifest(**task | changes)
        segmenter = Segmenter.from_flatbuffer(tiny_masks[kind], CLASSES, SPEC, red_cell_px=28)
        files = [png(grainy_image(seed)) for seed in (3, 9)]
        golden = [
            (f"{index}.png", file, segmenter.infer(preprocess(decode_rgb(file, "golden"), SPEC)))
            for index, file in enumerate(files)
        ]
        return pack(tiny_masks[kind], filled, golden, model_card(filled), out)

    return make


@pytest.fixture(scope="session")
def tiny_segmenter(pack_masks: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed full-integer segmentation model."""
    return pack_masks("uint8", tmp_path_factory.mktemp("masks") / "cells.tflite")


@pytest.fixture(scope="session")
def smear_bundle(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed int8 MobileNetV2 0.35 at 224 that knows the four classes tolerably.

    A linear head on the pretrained backbone's features of `PER_CLASS` images a class, then post-training quantization;
    or the packed model that EDGEALL_TEST_MODEL names, such as one that `benchmarks/all4.py` has made.
    """
    if given := os.environ.get("EDGEALL_TEST_MODEL"):
        return Path(given)
    return once(tmp_path_factory, "smear", lambda folder: _smear_model(test_data, folder)) / "model.tflite"


def _smear_model(data: Path, folder: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from edgeall.edge_runtime.preprocess import load_input, normalize
    from edgeall.edge_runtime.tools.golden_images import choose_golden
    from edgeall.models import registry
    from edgeall.models.head import add_head
    from edgeall.models.keras_compat import keras
    from edgeall.optimize.packaging.card import model_card
    from edgeall.optimize.packaging.pack import pack

    spec = InputSpec(224, 224)
    files = [(file, index) for index, label in enumerate(LABELS) for file in _every(data / "all4" / label, PER_CLASS)]
    pixels = np.stack([load_input(file, spec) for file, _ in files])
    weights = str(data / "weights" / "mobilenet_v2_0.35_no_top.h5")
    backbone = registry.get("mobilenet_v2").build(registry.BuildArgs(224, 224, 0.35, weights))
    images = normalize(pixels, spec)
    features = backbone.predict(images, batch_size=32, verbose=0)
    probe = LogisticRegression(C=0.1, max_iter=2000).fit(features, [index for _, index in files])
    model = add_head(backbone, len(LABELS), 0.0)
    model.get_layer("logits").set_weights([probe.coef_.T, probe.intercept_])
    flatbuffer = convert(model, "uint8", images[::6])
    keras.backend.clear_session()

    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, spec)
    golden = choose_golden(classifier, (Image.fromarray(image) for image in pixels[::5]))
    filled = manifest(name="smear", input=spec, golden={"source": "train side of all4"})
    folder.mkdir()
    pack(flatbuffer, filled, golden, model_card(filled), folder / "model.tflite")


def _every(folder: Path, count: int) -> list[Path]:
    files = sorted(folder.iterdir())
    step = len(files) // count
    return files[SEED % step :: step][:count]
