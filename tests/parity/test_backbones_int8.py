"""Every backbone in every scheme: fully integer, and each layer of the file matches its fake quantization.

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
from fixtures_models import golden_for, manifest
from fixtures_networks import LABELS, blobs, enliven
from layerwise import assert_layers_compute_what_was_faked

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.preprocess import InputSpec, normalize
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.models import registry
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.registry import BuildArgs
from edgeall.optimize.packaging.card import model_card
from edgeall.optimize.packaging.pack import pack
from edgeall.optimize.quantization.convert import convert, float_tensors
from edgeall.optimize.quantization.fold import fold_batch_normalization
from edgeall.optimize.quantization.placement import Placement, Range, extremes, place, ranges, rounded
from edgeall.optimize.quantization.placement import input_range as bounds_of
from edgeall.optimize.quantization.qat import quantization_aware

layers = keras.layers
NAMES = registry.names()
LARGE = ("densenet121", "efficientnet_b0", "inception_resnet_v2", "nasnet_large", "resnet101v2")
"""Those that take more than 20 s of one core here."""
QUICK = ("basic_cnn", "mobilenet_v2")
"""Those that `make test` converts; tests/integration/test_fold_qat.py has a small network of every pattern."""
TRAINED = (*QUICK, "alexnet")
"""Those whose quantization-aware training and other schemes are not slow."""


@dataclass(frozen=True)
class Backbone:
    """A classifier at the smallest size of its backbone with random weights, and the inputs of quantization."""

    model: Any
    folded: Any
    spec: InputSpec
    pixels: Any
    placement: Placement
    measured: dict[str, Range]

    @property
    def images(self) -> Any:
        return normalize(self.pixels, self.spec)


def _named(quick: tuple[str, ...], slow: tuple[str, ...]) -> list[Any]:
    """Every backbone: the quick ones in `make test`, the slow ones not even in `make test-long`."""
    marks = {name: [] if name in quick else [pytest.mark.slow if name in slow else pytest.mark.long] for name in NAMES}
    return [pytest.param(name, marks=marks[name]) for name in NAMES]


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


@pytest.mark.parametrize("backbone", _named(QUICK, slow=LARGE), indirect=True)
def test_ptq_makes_every_layer_an_integer_one_that_computes_what_was_faked(backbone: Backbone, tmp_path: Path) -> None:
    images, folded = backbone.images, backbone.folded
    before, after = (model(images, training=False).numpy() for model in (backbone.model, folded))
    assert before.std(axis=0).min() > 0.02
    assert np.abs(before - after).max() < 2e-3, "folding"
    _check(backbone, folded, backbone.measured, "ptq-int8", tmp_path)


@pytest.mark.parametrize(
    "backbone",
    _named(QUICK[:1], slow=tuple(name for name in NAMES if name not in TRAINED)),
    indirect=True,
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
    assert_layers_compute_what_was_faked(flatbuffer, backbone.pixels[:1], spec, network, placement, spanned)
