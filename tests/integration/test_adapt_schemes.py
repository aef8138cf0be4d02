"""Adaptation of models in every scheme: the layer that is written is the one that the interpreter computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_sites import draw_site

from edgeall.edge_runtime.adaptation.adapt import AdaptConfig, adapt
from edgeall.edge_runtime.adaptation.head import as_read, find_layer, read_head
from edgeall.edge_runtime.adaptation.learn import check_agreement, learn, softmax
from edgeall.edge_runtime.adaptation.site import read_site
from edgeall.edge_runtime.adaptation.write import Origin, write_adapted
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.exemplars import MEMBER as EXEMPLARS
from edgeall.edge_runtime.exemplars import MOST_BYTES
from edgeall.optimize.quantization.schemes import SCHEMES

ORIGIN = Origin("0" * 64, "a test", "2026-11-30T10:00:00Z", None, None)
TOLERANCE = {"float32": 1e-5, "float16": 1e-5, "dynamic": 0.03}
"""Of a probability. A dynamic model rounds the features of each image to 8 bits."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_site(tmp_path_factory.mktemp("site"), (8, 8, 8, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_interpreter_computes_what_was_fitted(
    tiny_models: dict[str, Any], site: Path, tmp_path: Path, scheme: str
) -> None:
    bundle = open_bundle(tiny_models[scheme]["out"])
    classifier = Classifier.from_bundle(bundle, threads=1)
    images = read_site(classifier, site, labelled=True)
    learned = dataclasses.replace(learn(classifier, images), is_better=True)
    write_adapted(bundle, classifier, images, learned, ORIGIN, tmp_path / "out.tflite")
    after = open_bundle(tmp_path / "out.tflite")
    found = read_site(Classifier.from_bundle(after, threads=1), site, labelled=True)
    np.testing.assert_array_equal(found.features, images.features)
    layer = find_layer(after.graph, after.path)
    check_agreement(after, layer, found.features, found.probabilities)
    head = read_head(after.flatbuffer, layer)
    logits = head.logits(as_read(found.features, layer))
    if layer.logits.type == "INT8":  # exactly: int32 sums, then one rounding to the output's scale
        scale, zero_point = layer.logits.scale[0], layer.logits.zero_point[0]
        logits = (np.clip(np.rint(logits / scale) + zero_point, -128, 127) - zero_point) * scale
        step = 0.25 * scale + 1 / 128  # a sum that lies between two steps may be rounded to the other one
        assert (np.abs(softmax(logits) - found.probabilities).max(axis=1) < 1 / 128).mean() > 0.9
        np.testing.assert_allclose(softmax(logits), found.probabilities, atol=step)
    else:
        np.testing.assert_allclose(softmax(logits), found.probabilities, atol=TOLERANCE[scheme])
    old = read_head(bundle.flatbuffer, find_layer(bundle.graph, bundle.path))
    np.testing.assert_array_equal(head.weights[3], old.weights[3])
    assert np.abs(head.weights[:3] - old.weights[:3]).max() > 0


def test_exemplars_show_the_cost_at_home(tiny_models: dict[str, Any], site: Path) -> None:
    bundle = open_bundle(tiny_models["ptq-int8"]["out"])
    exemplars = bundle.exemplars
    assert exemplars is not None and exemplars.subset == "test"
    assert set(exemplars.truth) == set(range(4))
    classifier = Classifier.from_bundle(bundle, threads=1)
    learned = learn(classifier, read_site(classifier, site, labelled=True))
    assert learned.labelled is not None and learned.labelled.home is not None
    before, after = learned.labelled.home
    assert before.images == after.images == len(exemplars.truth)
    import zipfile

    with zipfile.ZipFile(bundle.path) as archive:
        assert archive.getinfo(EXEMPLARS).file_size <= MOST_BYTES


def test_unlabelled_images_move_the_detector_alone(tiny_models: dict[str, Any], site: Path, tmp_path: Path) -> None:
    model, out = Path(tiny_models["ptq-int8"]["out"]), tmp_path / "out.tflite"
    result = adapt(AdaptConfig(model, site, out, unlabelled=True))
    before = open_bundle(model)
    assert result.learned.labelled is None
    assert result.learned.flatbuffer == before.flatbuffer
    assert result.learned.unfamiliar is not None
    if result.written:  # the drawn cells are unlike the fields that it was trained on, unless it trained badly
        after = open_bundle(out)
        assert after.flatbuffer == before.flatbuffer
        assert after.manifest is not None and before.manifest is not None
        assert after.manifest.novelty != before.manifest.novelty
        assert after.manifest.metrics == before.manifest.metrics
        assert result.learned.unfamiliar[1] < result.learned.unfamiliar[0]
