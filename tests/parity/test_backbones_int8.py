"""Every backbone of the registry in every scheme: fully integer, and each layer of the file computes what was faked.

So deep networks of random weights blow the rounding of a first layer up to the whole range of the last: answers can't
be compared. So every layer is compared by itself, on what the file's own layers before it have made. Then the file is
packed, opened and checked as a device does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from fixtures_models import golden_for, manifest
from fixtures_networks import LABELS, blobs, enliven

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.golden import check_golden
from edgeall.edge_runtime.preprocess import InputSpec, normalize
from edgeall.models import registry
from edgeall.models.graph import sources
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.registry import BuildArgs
from edgeall.optimize.card import model_card
from edgeall.optimize.convert import convert, float_tensors, layers_of
from edgeall.optimize.fold import fold_batch_normalization
from edgeall.optimize.layer_error import Int8Layers
from edgeall.optimize.pack import pack
from edgeall.optimize.placement import INPUT, Placement, Range, extremes, place, ranges, rounded, rounded_input
from edgeall.optimize.placement import input_range as bounds_of
from edgeall.optimize.qat import quantization_aware

layers = keras.layers
LARGE = ("densenet121", "efficientnet_b0", "inception_resnet_v2", "nasnet_large", "resnet101v2")
"""Those that take more than 20 s of one core here."""
TRAINED = ("alexnet", "basic_cnn", "mobilenet_v2")
"""Those whose quantization-aware training and other schemes are tried in `make test` as well."""


@dataclass(frozen=True)
class Backbone:
    """A classifier at the smallest size of its backbone, random but alive, and what quantization needs."""

    model: Any
    folded: Any
    spec: InputSpec
    pixels: Any
    placement: Placement
    measured: dict[str, Range]

    @property
    def images(self) -> Any:
        return normalize(self.pixels, self.spec)


def _named(*quick: str, slow: tuple[str, ...] = ()) -> list[Any]:
    chosen = [name for name in registry.names() if not quick or name in quick]
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in chosen]


@pytest.fixture(scope="module")
def backbone(request: pytest.FixtureRequest) -> Backbone:
    made = registry.get(request.param)
    size = made.sizes[0]
    spec = InputSpec(size, size, mean=made.mean, std=made.std)
    keras.utils.set_random_seed(1)
    alpha = made.alphas[0] if made.alphas else None
    model = add_head(made.build(BuildArgs(size, size, alpha, "none")), len(LABELS), 0.0)
    pixels = blobs(4, size)
    enliven(model, normalize(pixels, spec))
    folded = fold_batch_normalization(model)
    placement = place(folded, bounds_of(spec))
    measured = extremes(folded, placement, [normalize(pixels, spec)])
    return Backbone(model, folded, spec, pixels, placement, measured)


@pytest.mark.parametrize("backbone", _named(slow=LARGE), indirect=True)
def test_ptq_makes_every_layer_an_integer_one_that_computes_what_was_faked(backbone: Backbone, tmp_path: Path) -> None:
    images, folded = backbone.images, backbone.folded
    before, after = (model(images, training=False).numpy() for model in (backbone.model, folded))
    assert before.std(axis=0).min() > 0.02
    assert np.abs(before - after).max() < 2e-3, "folding"
    _check(backbone, folded, backbone.measured, "ptq-int8", tmp_path)


@pytest.mark.parametrize(
    "backbone", _named(slow=tuple(name for name in registry.names() if name not in TRAINED)), indirect=True
)
def test_every_other_scheme_converts_and_qat_stays_integer(backbone: Backbone, tmp_path: Path) -> None:
    images = backbone.images
    for scheme, tolerance in {"float32": 5e-3, "float16": 0.5, "dynamic": 1.0}.items():
        flatbuffer = convert(backbone.folded, scheme, backbone.spec)
        classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, backbone.spec)
        expected = backbone.folded(images[:1], training=False).numpy()[0]
        assert np.abs(classifier.predict(backbone.pixels[0]) - expected).max() < tolerance, scheme
    trained = quantization_aware(backbone.folded, backbone.placement, backbone.measured)
    trained.model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="categorical_crossentropy")
    trained.model.fit(images, np.eye(len(LABELS))[np.arange(len(images))], epochs=1, verbose=0)
    assert trained.measured() != backbone.measured
    _check(backbone, trained.trained(), trained.measured(), "qat-int8", tmp_path)


def _check(backbone: Backbone, network: Any, measured: dict[str, Range], scheme: str, folder: Path) -> None:
    placement, spec = backbone.placement, backbone.spec
    spanned = ranges(placement, measured)
    flatbuffer = convert(rounded(network, placement, spanned), scheme, spec)
    assert float_tensors(flatbuffer) == []
    filled = manifest(labels=LABELS, positive_labels=LABELS[1:], input=spec, quantization={"scheme": scheme})
    pack(flatbuffer, filled, golden_for(flatbuffer, spec, LABELS), model_card(filled), folder / "model.tflite")
    assert [result.ok for result in check_golden(Classifier.open(folder / "model.tflite"))] == [True, True]
    found = _layer_outputs(flatbuffer, backbone.pixels[:1], network, placement)
    assert len(found) > 0.8 * (len(placement.outputs) - 1), "the converter may merge equal layers (ReLUs of one tensor)"
    faked = Int8Layers(network, placement, spanned)
    image, *others = network.layers
    values = {image.name: rounded_input(backbone.images[:1], placement.fixed[INPUT])}
    for layer in others:
        expected = faked.compute(layer, [values[source.name] for source in sources(layer)]).numpy()
        values[layer.name] = expected
        if layer.name in found:
            value, scale = found[layer.name]
            steps = np.abs(value.reshape(expected.shape) - expected) / scale
            assert steps.max() <= 2.1, layer.name
            assert (steps > 0.5).mean() <= (0.5 if expected.size < 4096 else 0.05), layer.name
            values[layer.name] = value.reshape(expected.shape)


def _layer_outputs(flatbuffer: bytes, pixels: Any, network: Any, placement: Placement) -> dict[str, tuple[Any, float]]:
    """What every layer of the file makes of an image, and its scale, by the Keras layer's name."""
    interpreter = Interpreter(
        model_content=flatbuffer,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
    interpreter.invoke()
    order = [layer.name for layer in network.layers if layer.name in placement.outputs]
    graph = read_graph(flatbuffer, "model").main
    found = {}
    for operator in graph.operators:
        if operator.name != "QUANTIZE":
            (index,) = operator.outputs
            tensor = graph.tensors[index]
            made_by = layers_of(tensor.name)
            named = [name for name in order if name in made_by]
            if named:  # fused: the last of them is what is written
                units = interpreter.get_tensor(index).astype(np.float32)
                found[named[-1]] = ((units - tensor.zero_point[0]) * np.float32(tensor.scale[0]), tensor.scale[0])
    return found
