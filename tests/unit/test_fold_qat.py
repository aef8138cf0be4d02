"""Folding and quantization-aware training: the same function, every weight quantized as the converter does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.preprocess import InputSpec, normalize
from edgeall.models import registry
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras, tf
from edgeall.models.registry import BuildArgs
from edgeall.optimize import qat
from edgeall.optimize.convert import convert, float_tensors
from edgeall.optimize.fold import fold_batch_normalization

LABELS = ("a", "b", "c", "d")


def _model(name: str) -> tuple[Any, InputSpec]:
    """An untrained classifier whose BatchNormalization statistics are far from their initial 0 and 1."""
    spec = registry.get(name)
    size = spec.sizes[0]
    keras.utils.set_random_seed(1)
    args = BuildArgs(size, size, spec.alphas[0] if spec.alphas else None, "none")
    model = add_head(spec.build(args), len(LABELS), 0.2)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            drawn = [generator.uniform(low, high, shape) for low, high in ((0.5, 2), (-1, 1), (-1, 1), (0.3, 3))]
            layer.set_weights(drawn)
    contract = InputSpec(size, size, mean=spec.mean, std=spec.std)
    _tell_images_apart(model, contract)
    return model, contract


def _tell_images_apart(model: Any, spec: InputSpec) -> None:
    """Centre and spread the logits over the test's images: an untrained network says nearly the same of all."""
    head = model.get_layer("logits")
    kernel, _ = head.get_weights()
    features = keras.Model(model.input, head.input)(normalize(_pixels(spec, 8), spec), training=False).numpy()
    logits = features @ kernel
    kernel = kernel / logits.std(axis=0)
    head.set_weights([kernel, -(features @ kernel).mean(axis=0)])


def _pixels(spec: InputSpec, count: int) -> np.ndarray:
    """Images of blobs, each with colours and contrasts of its own; the first ``count`` of one series."""
    generator = np.random.default_rng(2)
    images = []
    for _ in range(count):
        small = generator.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        blobs = Image.fromarray(small).resize((spec.width, spec.height), Image.Resampling.BICUBIC)
        low, high = np.sort(generator.integers(0, 256, 2))
        images.append((low + np.asarray(blobs) / 255.0 * (high - low)).astype(np.uint8))
    return np.stack(images)


@pytest.fixture(scope="module", params=registry.names())
def built(request: pytest.FixtureRequest) -> tuple[Any, InputSpec, np.ndarray]:
    model, spec = _model(request.param)
    return model, spec, _pixels(spec, 8)


def test_the_folded_model_gives_the_original_outputs_and_has_no_batch_normalization(built: Any) -> None:
    model, spec, pixels = built
    folded = fold_batch_normalization(model)
    images = normalize(pixels, spec)
    before, after = model(images, training=False).numpy(), folded(images, training=False).numpy()
    assert before.std(axis=0).min() > 0.05, "a constant output would agree with anything"
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)


def test_every_kernel_is_quantized_in_training_per_output_channel(built: Any) -> None:
    model, spec, pixels = built
    folded = fold_batch_normalization(model)
    trained = qat.quantization_aware(folded, [normalize(pixels, spec)], qat.input_range(spec))
    kernels = [layer.name for layer in folded.layers if isinstance(layer, tuple(qat.WITH_WEIGHTS))]
    wrapped = {layer.layer.name: layer for layer in trained.model.layers if hasattr(layer, "quantize_config")}
    for name in kernels:
        assert wrapped[name].quantize_config.weight is not None, name
    assert len(trained.model.trainable_variables) == len(folded.trainable_variables)


def test_fake_quantized_kernels_are_those_the_converter_stores() -> None:
    model, spec = _model("mobilenet_v2")
    folded = fold_batch_normalization(model)
    trained = qat.quantization_aware(folded, [normalize(_pixels(spec, 4), spec)], qat.input_range(spec))
    flatbuffer = convert(qat.for_conversion(trained, folded, qat.input_range(spec)), "qat-int8", spec)
    stored = tf.lite.Interpreter(model_content=flatbuffer)
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


def test_quantization_aware_training_converts_to_integers_that_agree_with_it(built: Any) -> None:
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
    # Both round every activation; where a value lies on the edge they may go different ways.
    assert np.abs(integers - faked).mean() <= 4 * classifier.model.output.scale
    assert np.abs(integers - plain).mean() <= 0.1


def test_activation_ranges_start_where_they_were_measured() -> None:
    model, spec = _model("basic_cnn")
    folded = fold_batch_normalization(model)
    images = normalize(_pixels(spec, 8), spec)
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
    model, spec = _model("basic_cnn")
    pixels = _pixels(spec, 16) // 4 + 60  # a narrow range: the input's scale must not follow it
    flatbuffer = convert(fold_batch_normalization(model), scheme, spec, list(pixels))
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, spec)  # refuses a wrong input scale
    expected = model(normalize(pixels, spec), training=False).numpy()
    found = np.stack([classifier.predict(image) for image in pixels])
    tolerance = {"float32": 1e-5, "float16": 5e-3, "dynamic": 0.05, "ptq-int8": 0.1}[scheme]
    assert np.abs(found - expected).max() <= tolerance
    assert (float_tensors(flatbuffer) == []) == (scheme == "ptq-int8")
