"""Folding and quantization-aware training: the same function, every weight quantized as the converter does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.preprocess import InputSpec, load_input, normalize
from edgeall.models import registry
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.registry import BuildArgs
from edgeall.optimize import qat
from edgeall.optimize.convert import convert, float_tensors
from edgeall.optimize.fold import fold_batch_normalization

LABELS = ("a", "b", "c", "d")


Built = tuple[Any, InputSpec, np.ndarray]
"""A classifier whose answers differ from image to image, its input contract, and eight images (uint8)."""


def _basic_cnn() -> Built:
    """Untrained, with BatchNormalization statistics as after training; blobs to look at."""
    spec = InputSpec(32, 32)
    keras.utils.set_random_seed(1)
    model = add_head(registry.get("basic_cnn").build(BuildArgs(32, 32, None, "none")), len(LABELS), 0.2)
    pixels = np.stack([_blobs(seed) for seed in range(8)])
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.gamma.assign(generator.uniform(0.5, 1.5, shape))
            layer.beta.assign(generator.uniform(-0.5, 0.5, shape))
            layer.momentum = 0.0  # one pass in training mode makes the statistics those of the images
    model(normalize(pixels, spec), training=True)
    _spread_logits(model, normalize(pixels, spec))
    return model, spec, pixels


def _mobilenet_v2(test_data: Path) -> Built:
    """Pretrained: so deep a network of random weights blows every rounding up. Real fields to look at."""
    spec = InputSpec(96, 96)
    weights = str(test_data / "weights" / "mobilenet_v2_0.35_no_top.h5")
    model = add_head(registry.get("mobilenet_v2").build(BuildArgs(96, 96, 0.35, weights)), len(LABELS), 0.2)
    files = [sorted(folder.iterdir())[index] for folder in sorted((test_data / "all4").iterdir()) for index in (0, 99)]
    pixels = np.stack([load_input(file, spec) for file in files])
    _spread_logits(model, normalize(pixels, spec))
    return model, spec, pixels


def _blobs(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    low, high = np.sort(generator.integers(0, 256, 2))
    blobs = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC)) / 255.0
    return (low + blobs * (high - low)).astype(np.uint8)


def _spread_logits(model: Any, images: np.ndarray) -> None:
    head = model.get_layer("logits")
    kernel = np.random.default_rng(5).normal(size=head.get_weights()[0].shape)
    features = keras.Model(model.input, head.input)(images, training=False).numpy()
    kernel = kernel / (features @ kernel).std(axis=0)
    head.set_weights([kernel, -(features @ kernel).mean(axis=0)])


@pytest.fixture(scope="module", params=registry.names())
def built(request: pytest.FixtureRequest) -> Built:
    if request.param == "mobilenet_v2":
        return _mobilenet_v2(request.getfixturevalue("test_data"))
    return {"basic_cnn": _basic_cnn}[request.param]()


def test_the_folded_model_gives_the_original_outputs_and_has_no_batch_normalization(built: Built) -> None:
    model, spec, pixels = built
    folded = fold_batch_normalization(model)
    images = normalize(pixels, spec)
    before, after = model(images, training=False).numpy(), folded(images, training=False).numpy()
    assert before.std(axis=0).min() > 0.02, "a constant output would agree with anything"
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)


def test_every_kernel_is_quantized_in_training_per_output_channel(built: Built) -> None:
    model, spec, pixels = built
    folded = fold_batch_normalization(model)
    trained = qat.quantization_aware(folded, [normalize(pixels, spec)], qat.input_range(spec))
    kernels = [layer.name for layer in folded.layers if isinstance(layer, tuple(qat.WITH_WEIGHTS))]
    wrapped = {layer.layer.name: layer for layer in trained.model.layers if hasattr(layer, "quantize_config")}
    for name in kernels:
        assert wrapped[name].quantize_config.weight is not None, name
    assert len(trained.model.trainable_variables) == len(folded.trainable_variables)


def test_fake_quantized_kernels_are_those_the_converter_stores(test_data: Path) -> None:
    model, spec, pixels = _mobilenet_v2(test_data)
    folded = fold_batch_normalization(model)
    trained = qat.quantization_aware(folded, [normalize(pixels, spec)], qat.input_range(spec))
    flatbuffer = convert(qat.for_conversion(trained, folded, qat.input_range(spec)), "qat-int8", spec)
    stored = Interpreter(model_content=flatbuffer)
    details = stored.get_tensor_details()
    depthwise = [op for op in read_graph(flatbuffer, "model").main.operators if op.name == "DEPTHWISE_CONV_2D"]
    names = [layer.name for layer in folded.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    assert len(names) == len(depthwise) == 17
    for name, operator in zip(names, depthwise, strict=True):
        index = operator.inputs[1]
        scale = details[index]["quantization_parameters"]["scales"]
        units = stored.get_tensor(index)[0]  # (3, 3, channels)
        assert len(scale) == units.shape[-1], "one scale per channel"
        faked = qat._Weights(2)(trained.weights[name][0], True, {}).numpy()[..., 0]
        np.testing.assert_allclose(units * scale, faked, atol=1e-5 * np.abs(faked).max())


def test_quantization_aware_training_converts_to_integers_that_agree_with_it(built: Built) -> None:
    model, spec, pixels = built
    folded = fold_batch_normalization(model)
    images = normalize(pixels, spec)
    trained = qat.quantization_aware(folded, [images], qat.input_range(spec))
    flatbuffer = convert(qat.for_conversion(trained, folded, qat.input_range(spec)), "qat-int8", spec)
    assert float_tensors(flatbuffer) == []
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, spec)
    faked = trained.model(images, training=False).numpy()
    integers = np.stack([classifier.predict(image) for image in pixels])
    plain = folded(images, training=False).numpy()
    # Both round every activation; where a value lies on the edge they go different ways, which 50 layers add up to
    # about what the rounding itself does.
    assert np.abs(integers - faked).mean() <= 4 * classifier.model.output.scale + np.abs(faked - plain).mean()
    assert np.abs(integers - plain).mean() <= 0.1


def test_activation_ranges_start_where_they_were_measured() -> None:
    model, spec, pixels = _basic_cnn()
    folded = fold_batch_normalization(model)
    images = normalize(pixels, spec)
    trained = qat.quantization_aware(folded, [images], qat.input_range(spec))
    probe = keras.Model(folded.input, folded.get_layer("conv1_relu").output)(images).numpy()
    low, high = trained.outputs["conv1_relu"].output_range()
    assert low == 0.0
    assert high == pytest.approx(probe.max(), rel=1e-5)


def test_a_layer_of_unknown_quantization_is_named() -> None:
    inputs = keras.layers.Input((8, 8, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.LayerNormalization(name="odd_one")(inputs))
    with pytest.raises(UsageError, match="odd_one"):
        qat.quantization_aware(keras.Model(inputs, outputs), [], (-1.0, 1.0))


@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic", "ptq-int8"])
def test_post_training_schemes_keep_the_contract(scheme: str) -> None:
    model, spec, pixels = _basic_cnn()
    pixels = pixels // 4 + 60  # a narrow range: the input's scale must not follow it
    flatbuffer = convert(fold_batch_normalization(model), scheme, spec, list(pixels))
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, spec)  # refuses a wrong input scale
    expected = model(normalize(pixels, spec), training=False).numpy()
    found = np.stack([classifier.predict(image) for image in pixels])
    tolerance = {"float32": 1e-5, "float16": 5e-3, "dynamic": 0.05, "ptq-int8": 0.1}[scheme]
    assert np.abs(found - expected).max() <= tolerance
    assert (float_tensors(flatbuffer) == []) == (scheme == "ptq-int8")
