"""Folding, PTQ and QAT: the same function, every weight and activation quantized as the converter does it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from fixtures_networks import LABELS, NETWORKS, SPEC, blobs, network, spread_logits
from layerwise import assert_layers_compute_what_was_faked

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import EdgeallError, UsageError
from edgeall.edge_runtime.flatbuffer import Graph, read_graph
from edgeall.edge_runtime.preprocess import InputSpec, load_input, normalize
from edgeall.models import registry
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.registry import BuildArgs
from edgeall.optimize.pruning.cluster import codebook
from edgeall.optimize.pruning.sparsity import prunable
from edgeall.optimize.quantization import qat
from edgeall.optimize.quantization.convert import (
    compressed_bytes,
    convert,
    float_tensors,
    layers_in_float,
    layers_of,
    sparsity,
)
from edgeall.optimize.quantization.fold import fold_batch_normalization
from edgeall.optimize.quantization.placement import (
    WITH_WEIGHTS,
    extremes,
    fake_kernel,
    input_range,
    place,
    ptq,
    ranges,
    rounded,
)

layers = keras.layers
PIXELS = blobs(8)
IMAGES = normalize(PIXELS, SPEC)
BOUNDS = input_range(SPEC)
AFFINE = (layers.BatchNormalization, layers.Normalization, layers.Rescaling)


def _aware(folded: Any, images: Any = IMAGES, float_layers: Any = (), masks: Any = None) -> qat.QuantizationAware:
    placement = place(folded, BOUNDS, float_layers)
    return qat.quantization_aware(folded, placement, extremes(folded, placement, [images]), masks)


def _one_step(trained: qat.QuantizationAware, rate: float = 1e-3) -> None:
    trained.model.compile(optimizer=keras.optimizers.Adam(rate), loss="categorical_crossentropy")
    trained.model.fit(IMAGES, np.eye(len(LABELS))[np.arange(8) % len(LABELS)], epochs=1, verbose=0)


def _converted(trained: qat.QuantizationAware, float_layers: tuple[str, ...] = (), spec: InputSpec = SPEC) -> bytes:
    spanned = ranges(trained.placement, trained.measured())
    return convert(rounded(trained.trained(), trained.placement, spanned), "qat-int8", spec, float_layers)


def _answers(flatbuffer: bytes, pixels: Any = PIXELS, spec: InputSpec = SPEC) -> np.ndarray:
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, spec)  # refuses a wrong input scale
    return np.stack([classifier.predict(image) for image in pixels])


def _assert_as_faked(flatbuffer: bytes, trained: qat.QuantizationAware) -> None:
    """Layer by layer; and the whole of it is nearer to what was faked in training than that is to the float network."""
    placement, spanned = trained.placement, ranges(trained.placement, trained.measured())
    for image in PIXELS[:2]:
        assert_layers_compute_what_was_faked(flatbuffer, image[None], SPEC, trained.trained(), placement, spanned)
    _assert_nearer_to_faked(flatbuffer, trained)


def _assert_nearer_to_faked(flatbuffer: bytes, trained: qat.QuantizationAware) -> None:
    """But for the rounding of the answer: at most half a step of 1/256."""
    faked, exact = (model(IMAGES, training=False).numpy() for model in (trained.model, trained.trained()))
    assert np.abs(_answers(flatbuffer) - faked).mean() <= 0.5 / 256 + np.abs(faked - exact).mean()


def _graph(flatbuffer: bytes) -> Graph:
    return read_graph(flatbuffer, "model")


@pytest.fixture(scope="module", params=NETWORKS)
def built(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A classifier with an awkward pattern, and what folding makes of it."""
    model = network(request.param)
    return model, fold_batch_normalization(model)


@pytest.fixture(scope="module")
def integers(built: tuple[Any, Any]) -> bytes:
    """Its flatbuffer after post-training quantization."""
    return convert(ptq(built[1], SPEC, [IMAGES]), "ptq-int8", SPEC)


def test_folding_leaves_the_answers_and_no_map_of_channels(built: tuple[Any, Any]) -> None:
    model, folded = built
    before, after = model(IMAGES, training=False).numpy(), folded(IMAGES, training=False).numpy()
    assert before.std(axis=0).min() > 0.02, "a constant output would agree with anything"
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert not any(isinstance(layer, AFFINE) for layer in folded.layers)


def test_ptq_is_fully_integer_and_computes_what_was_faked(built: tuple[Any, Any], integers: bytes) -> None:
    assert float_tensors(integers) == []
    _assert_as_faked(integers, _aware(built[1]))


def test_nothing_is_requantized_on_the_way(integers: bytes) -> None:
    """Concatenation, pooling and padding work in one scale: chosen beforehand, not patched up by the converter."""
    operators = _graph(integers).main.operators
    assert [operator.name for operator in operators].count("QUANTIZE") == 2, "uint8 in, uint8 out"


@pytest.mark.parametrize("name", ["dense_block", "squeeze_excite"])
def test_qat_moves_weights_and_ranges_and_stays_integer(name: str) -> None:
    folded = fold_batch_normalization(network(name))
    trained = _aware(folded)
    before, start = trained.measured(), trained.model.get_weights()
    _one_step(trained)
    assert any((one != other).any() for one, other in zip(start, trained.model.get_weights(), strict=True))
    assert trained.measured() != before
    shared = ranges(trained.placement, trained.measured())
    for span, spanned in trained.placement.spans.items():
        lows, highs = zip(*(trained.measured()[one] for one in spanned), strict=True)
        assert shared[span] == (min(0.0, *lows), max(0.0, *highs))
    flatbuffer = _converted(trained)
    assert float_tensors(flatbuffer) == []
    _assert_as_faked(flatbuffer, trained)


def test_every_kernel_is_quantized_in_training() -> None:
    folded = fold_batch_normalization(network("squeeze_excite"))
    trained = _aware(folded)
    kernels = [layer.name for layer in folded.layers if type(layer) in WITH_WEIGHTS]
    wrapped = {layer.layer.name: layer for layer in trained.model.layers if hasattr(layer, "quantize_config")}
    assert all(wrapped[name].quantize_config.weight is not None for name in kernels)
    assert len(trained.model.trainable_variables) == len(folded.trainable_variables)
    assert len(trained.model.get_weights()) > len(folded.get_weights()), "the ranges are part of a checkpoint"


def test_masked_weights_stay_zero_from_training_into_the_file() -> None:
    folded = fold_batch_normalization(network("pre_activation"))
    generator = np.random.default_rng(0)
    masks = {}
    for name in ("one_a", "two_b"):
        kernel, *bias = folded.get_layer(name).get_weights()
        masks[name] = (generator.random(kernel.shape) > 0.75).astype(np.float32)
        folded.get_layer(name).set_weights([kernel * masks[name], *bias])
    trained = _aware(folded, masks=masks)
    for name in masks:
        kernel = trained.variables[name][0]
        kernel.assign(kernel + 0.01 * (1 - masks[name]))  # as if something had moved them
    _one_step(trained, 1e-2)
    for name, mask in masks.items():
        kernel = trained.trained().get_layer(name).get_weights()[0]
        assert (kernel[mask == 0] == 0).all()
        assert (kernel[mask == 1] != folded.get_layer(name).get_weights()[0][mask == 1]).any()
    flatbuffer = _converted(trained)
    _assert_as_faked(flatbuffer, trained)
    asked = sum((mask == 0).sum() for mask in masks.values())
    weights = sum(layer.get_weights()[0].size for layer in folded.layers if type(layer) in WITH_WEIGHTS)
    assert asked / weights <= sparsity(flatbuffer) <= asked / weights + 0.05, "rounding makes a few more"


@pytest.mark.long
def test_clusters_hold_from_training_into_the_file() -> None:
    folded = fold_batch_normalization(network("pre_activation"))
    placement = place(folded, BOUNDS)
    measured = extremes(folded, placement, [IMAGES])
    masks = {"one_a": np.ones(folded.get_layer("one_a").kernel.shape, np.float32)}
    masks["one_a"][:, :, ::2] = 0
    trained = qat.quantization_aware(folded, placement, measured, masks, clusters=8)
    clustered = {layer.name for layer in prunable(folded)}
    assert set(trained.codebooks) == clustered, "neither the first convolution nor the logits"
    _one_step(trained, 1e-2)
    flatbuffer = _converted(trained)
    _assert_as_faked(flatbuffer, trained)
    moved = False
    for name, kernel in _stored_kernels(flatbuffer, placement.kernels).items():
        assert (len(np.unique(kernel)) <= 8) == (name in clustered), name
        if name in clustered:
            assert set(np.unique(kernel)) <= set(trained.codebooks[name])
        if name == "one_a":
            assert (np.moveaxis(kernel, 0, -1)[:, :, ::2] == 0).all()
    for name in clustered:  # a weight may change its cluster
        before, after = (model.get_layer(name).get_weights()[0] for model in (folded, trained.trained()))
        moved = moved or bool((np.sign(before) != np.sign(after)).any())
    assert moved


@pytest.mark.parametrize("clusters", [8, 16])
def test_a_codebook_is_close_to_the_weights_that_it_stands_for(clusters: int) -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 16)).astype(np.float32)
    integers = codebook(kernel, 3, clusters)
    assert len(integers) == clusters and {-127, 0, 127} <= set(integers.tolist())
    units = 127 * kernel / np.abs(kernel).max(axis=(0, 1, 2))
    error = np.abs(units[..., np.newaxis] - integers).min(axis=-1)
    evenly = np.abs(units[..., np.newaxis] - np.linspace(-127, 127, clusters - 1)).min(axis=-1)
    assert (error**2).mean() < (evenly**2).mean()
    few = codebook(np.array([[1.0, 0.5], [0.5, 0.25]], np.float32), 1, 16)
    assert few.tolist() == [-127, 0, 64, 127], "fewer weights than clusters"


def _stored_kernels(flatbuffer: bytes, kernels: Collection[str]) -> dict[str, np.ndarray]:
    """The int8 kernels in the file, output channels first, by layer name."""
    interpreter = Interpreter(model_content=flatbuffer)
    interpreter.allocate_tensors()
    found = {}
    for operator in _graph(flatbuffer).main.operators:
        if operator.name in ("CONV_2D", "FULLY_CONNECTED"):
            made_by = layers_of(_graph(flatbuffer).main.tensors[operator.outputs[0]].name)
            found[next(name for name in made_by if name in kernels)] = interpreter.get_tensor(operator.inputs[1])
    return found


def test_zeros_are_found_in_every_scheme_and_compress() -> None:
    folded = fold_batch_normalization(network("activation_inside"))
    for scheme in ("float32", "float16", "dynamic"):
        dense = convert(folded, scheme, SPEC)
        assert sparsity(dense) < 0.05
    kernel, bias = folded.get_layer("fc1").get_weights()
    folded.get_layer("fc1").set_weights([kernel * (np.arange(kernel.size).reshape(kernel.shape) % 4 == 0), bias])
    share = 0.75 * kernel.size / sum(layer.get_weights()[0].size for layer in folded.layers if layer.get_weights())
    for scheme in ("float32", "float16", "dynamic"):
        sparse = convert(folded, scheme, SPEC)
        assert share <= sparsity(sparse) < share + 0.05
        assert compressed_bytes(sparse) < compressed_bytes(convert(network("activation_inside"), scheme, SPEC))


@pytest.mark.parametrize(
    ("name", "asked", "reached"),
    [
        ("residual_scaling", "up", ["up", "add", "relu"]),
        ("residual_scaling", "left", ["left", "left_relu", "right", "right_relu", "mixed", "up"]),
        ("residual_scaling", "logits", ["logits", "probabilities"]),
        ("squeeze_excite", "gate", ["expand", "gate"]),
    ],
)
def test_layers_left_in_float_are_those_asked_for_and_what_is_bound_to_them(
    name: str, asked: str, reached: list[str]
) -> None:
    folded = fold_batch_normalization(network(name))
    trained = _aware(folded, float_layers=[asked])
    assert sorted(trained.placement.floats) == sorted(reached)
    with pytest.raises(EdgeallError, match=f"left .* in float: .*{reached[0]}"):
        _converted(trained)
    flatbuffer = _converted(trained, trained.placement.floats)
    found = layers_in_float(flatbuffer, [layer.name for layer in folded.layers])
    assert sorted(found) == sorted(reached)
    _assert_nearer_to_faked(flatbuffer, trained)


def test_a_layer_of_unknown_quantization_is_named_and_can_be_left_in_float() -> None:
    inputs = layers.Input((24, 24, 3))
    x = layers.LayerNormalization(name="odd_one")(layers.Conv2D(4, 3, name="conv")(inputs))
    head = add_head(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)), len(LABELS), 0.0)
    model = fold_batch_normalization(head)
    for layer_name in ("odd_one", "logits"):
        assert place(model, BOUNDS, ["odd_one", layer_name]).floats
    with pytest.raises(UsageError, match="cannot be quantized: odd_one") as error:
        place(model, BOUNDS)
    assert "float" in str(error.value.hint)
    with pytest.raises(UsageError, match="no layer called 'convv'") as error:
        place(model, BOUNDS, ["convv"])
    assert "conv" in str(error.value.hint)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, activation="tanh", name="odd_one"),
        layers.Activation("tanh", name="odd_one"),
        layers.ReLU(negative_slope=0.1, name="odd_one"),
        layers.BatchNormalization(axis=1, name="odd_one"),
    ],
)
def test_a_known_layer_in_an_unknown_manner_is_named(layer: Any) -> None:
    inputs = layers.Input((8, 8, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(type(layer).from_config(layer.get_config())(inputs)))
    with pytest.raises(UsageError, match="odd_one"):
        place(fold_batch_normalization(model), BOUNDS)


def test_ranges_are_means_over_batches_of_the_extremes_however_many_images_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folded = fold_batch_normalization(network("inception"))
    placement = place(folded, BOUNDS)
    probe = keras.Model(folded.input, folded.get_layer("stem_relu").output)
    batches = [IMAGES[:5], IMAGES[5:]]
    found = extremes(folded, placement, batches)
    assert found["stem_relu"] == pytest.approx((0.0, np.mean([probe(batch).numpy().max() for batch in batches])))
    monkeypatch.setattr("edgeall.optimize.quantization.placement.ACTIVATIONS_BYTES", 1)
    one_by_one = extremes(folded, placement, batches)
    for name, values in found.items():
        assert one_by_one[name] == pytest.approx(values, rel=1e-5, abs=1e-6)
    shared = placement.outputs["two_wide_relu"]
    assert shared == placement.outputs["stem_relu"], "a pooled branch and a concatenation bind them"
    assert ranges(placement, found)[shared][1] == max(found[one][1] for one in placement.spans[shared])


def test_fake_quantized_kernels_are_those_the_converter_stores(test_data: Path) -> None:
    model, spec, pixels = _mobilenet_v2(test_data)
    folded = fold_batch_normalization(model)
    flatbuffer = convert(ptq(folded, spec, [normalize(pixels, spec)]), "ptq-int8", spec)
    stored = Interpreter(model_content=flatbuffer)
    details = stored.get_tensor_details()
    depthwise = [op for op in _graph(flatbuffer).main.operators if op.name == "DEPTHWISE_CONV_2D"]
    convolutions = [layer for layer in folded.layers if isinstance(layer, layers.DepthwiseConv2D)]
    assert len(convolutions) == len(depthwise) == 17
    for layer, operator in zip(convolutions, depthwise, strict=True):
        index = operator.inputs[1]
        scale = details[index]["quantization_parameters"]["scales"]
        units = stored.get_tensor(index)[0]  # (3, 3, channels)
        assert len(scale) == units.shape[-1], "one scale per channel"
        faked = fake_kernel(layer.get_weights()[0], 2).numpy()[..., 0]
        np.testing.assert_allclose(units * scale, faked, atol=1e-5 * np.abs(faked).max())


@pytest.mark.long
def test_a_deep_pretrained_network_agrees_with_its_faked_one(test_data: Path) -> None:
    model, spec, pixels = _mobilenet_v2(test_data)
    folded, images = fold_batch_normalization(model), normalize(pixels, spec)
    trained = _aware(folded, images)
    faked, plain = trained.model(images, training=False).numpy(), folded(images, training=False).numpy()
    integers = _answers(_converted(trained, spec=spec), pixels, spec)
    # Where a value lies on the edge between two steps they go different ways, which 50 layers add up.
    assert np.abs(integers - faked).mean() <= 2 / 256 + 0.5 * np.abs(faked - plain).mean()
    assert np.abs(integers - plain).mean() <= 0.1


def _mobilenet_v2(test_data: Path) -> tuple[Any, InputSpec, np.ndarray]:
    """Pretrained: so deep a network of random weights blows every rounding up. Real fields to look at."""
    spec = InputSpec(96, 96)
    weights = str(test_data / "weights" / "mobilenet_v2_0.35_no_top.h5")
    model = add_head(registry.get("mobilenet_v2").build(BuildArgs(96, 96, 0.35, weights)), len(LABELS), 0.2)
    files = [sorted(folder.iterdir())[index] for folder in sorted((test_data / "all4").iterdir()) for index in (0, 99)]
    pixels = np.stack([load_input(file, spec) for file in files])
    spread_logits(model, normalize(pixels, spec))
    return model, spec, pixels


@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic", "ptq-int8"])
def test_post_training_schemes_keep_the_contract(scheme: str) -> None:
    model = network("residual_scaling")
    pixels = PIXELS // 4 + 60  # a narrow range: the input's scale must not follow it
    folded = fold_batch_normalization(model)
    prepared = ptq(folded, SPEC, [normalize(pixels, SPEC)]) if scheme == "ptq-int8" else folded
    flatbuffer = convert(prepared, scheme, SPEC)
    expected = model(normalize(pixels, SPEC), training=False).numpy()
    tolerance = {"float32": 1e-5, "float16": 5e-3, "dynamic": 0.05, "ptq-int8": 0.05}[scheme]
    assert np.abs(_answers(flatbuffer, pixels) - expected).max() <= tolerance
    assert (float_tensors(flatbuffer) == []) == (scheme == "ptq-int8")
