"""Feature maps: they add up to the logits, change no answer, and are drawn over the image."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.images import find_images, open_rgb
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.edge_runtime.preprocess import load_input
from edgeall.edge_runtime.tools.explain import Explainer, dense_head, evidence, overlay, overlay_renderer
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.edge_runtime.tools.inspect import inspect_model
from edgeall.optimize.quantization.schemes import SCHEMES


def some_of(folder: Path) -> list[Path]:
    return list(find_images(folder))[::8]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_map_adds_up_to_the_logits(scheme: str, explained: dict[str, Path], synthetic_fields: Path) -> None:
    """Softmax of the map's mean plus the bias equals the model's output to within rounding.

    An integer model rounds the pooled features, the logits and the probabilities. The first moves a logit by half a
    step of every feature times its weight at the most, the second by half a step.
    """
    classifier = Classifier.open(explained[scheme], threads=1)
    bundle = classifier.bundle
    assert bundle is not None
    weights, bias = dense_head(bundle.graph, bundle.flatbuffer, bundle.path)
    main = bundle.graph.main
    softmax = next(operator for operator in main.operators if operator.name == "SOFTMAX")
    logit_step = (main.tensors[softmax.inputs[0]].scale or (0.0,))[0]
    dense = next(operator for operator in main.operators if operator.name == "FULLY_CONNECTED")
    taken = main.tensors[dense.inputs[0]]
    caught = False
    for image in some_of(synthetic_fields):
        answer = classifier.infer(load_input(image, classifier.input))
        assert answer.units is not None
        vector = classifier.pooled(answer.units)
        logits = evidence(classifier.features(answer.units), weights).mean(axis=(0, 1)) + bias
        step = 0.0
        if taken.scale:  # values outside the range of the pooled features are clipped
            step, zero_point = taken.scale[0], taken.zero_point[0]
            cut = np.clip(vector, step * (-128 - zero_point), step * (127 - zero_point))
            logits += weights @ (cut - vector)
        elif scheme == "dynamic":  # the kernel rounds its input to 8 bits
            step = float(np.abs(vector).max()) / 127
        # A probability changes by at most a quarter of the change of the logit difference.
        allowed = 0.25 * (step * float(np.abs(weights).sum(axis=1).max()) + logit_step) + 1e-5
        allowed += classifier.model.output.scale
        powers = np.exp(logits - logits.max())
        assert np.abs(powers / powers.sum() - answer.probabilities).max() <= allowed
        caught = caught or np.abs((powers / powers.sum())[::-1] - answer.probabilities).max() > allowed
    assert caught, "maps of other classes would show"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_answers_with_and_without(
    scheme: str, explained: dict[str, Path], tiny_models: dict[str, Any], synthetic_fields: Path
) -> None:
    plain = Classifier.open(tiny_models[scheme]["out"], threads=1)
    mapped = Classifier.open(explained[scheme], threads=1)
    for image in some_of(synthetic_fields):
        pixels = load_input(image, plain.input)
        one, other = plain.infer(pixels), mapped.infer(pixels)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        assert one.units is not None and other.units is not None
        assert one.units.ndim == 1 and other.units.ndim == 3
        few, many = plain.pooled(one.units), mapped.pooled(other.units)
        step = plain.model.second.scale if plain.model.second else 0.0
        within = few < 255 * step if step else np.full(few.shape, True)  # not clipped
        assert within.any()
        assert np.abs(few - many)[within].max() <= step + 1e-5


def test_golden_images_and_inspect(explained: dict[str, Path]) -> None:
    classifier = Classifier.open(explained["ptq-int8"], threads=1)
    checked = check_golden(classifier)
    assert checked and all(result.ok for result in checked)
    found = inspect_model(explained["ptq-int8"])
    assert [len(output.shape) for output in found.output] == [2, 4]
    assert found.float_tensors == 0


def test_overlays(explained: dict[str, Path], synthetic_fields: Path, tmp_path: Path) -> None:
    classifier = Classifier.open(explained["ptq-int8"], threads=1)
    explainer = Explainer(classifier, tmp_path / "deep" / "down")
    written = [explainer.draw(classify_one(classifier, str(image))) for image in some_of(synthetic_fields)[:3]]
    assert sorted((tmp_path / "deep" / "down").glob("*.png")) == written
    assert len(written) == 3
    with Image.open(written[0]) as image:
        assert min(image.size) >= 448


def test_the_overlay_marks_the_evidence_for_the_label() -> None:
    grey = np.full((48, 48, 3), 128, np.uint8)
    found = np.full((3, 3), -1.0, np.float32)
    assert np.unique(np.asarray(overlay(grey, found))) == [128]
    found[0, 2] = 2.0
    marked = np.asarray(overlay(grey, found)).astype(int)
    side = marked.shape[0]
    corner, opposite = marked[side // 8, -side // 8], marked[-side // 8, side // 8]
    assert corner[0] > 160 and corner[2] < 90, "orange"
    assert np.abs(opposite - 128).max() <= 1


def test_a_model_without_a_map_says_how_to_get_one(tiny_models: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no feature map") as caught:
        Explainer(Classifier.open(tiny_models["ptq-int8"]["out"]), tmp_path)
    assert "--explain" in caught.value.hint


def test_on_demand_draws_the_same_picture(explained: dict[str, Path], synthetic_fields: Path, tmp_path: Path) -> None:
    image = some_of(synthetic_fields)[0]
    classifier = Classifier.open(explained["ptq-int8"], threads=1)
    written = Explainer(classifier, tmp_path).draw(classify_one(classifier, str(image)))
    explain = overlay_renderer(explained["ptq-int8"])
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(explain, [open_rgb(image)] * 8))
    with Image.open(written) as drawn, Image.open(io.BytesIO(answers[0])) as asked:
        assert np.array_equal(np.asarray(drawn), np.asarray(asked))
    assert set(answers) == {answers[0]}


def test_head_of_reads_the_weights_keras_has(tiny_run: Path, tiny_models: dict[str, Any]) -> None:
    from edgeall.train.runs import load_model, load_run

    kernel, bias = load_model(tiny_run, load_run(tiny_run)).get_layer("logits").get_weights()
    for scheme, tolerance in (("float32", 1e-6), ("float16", 1e-3), ("ptq-int8", 1 / 127)):
        bundle = open_bundle(tiny_models[scheme]["out"])
        weights, offset = dense_head(bundle.graph, bundle.flatbuffer, bundle.path)
        assert np.abs(weights - kernel.T).max() <= tolerance * np.abs(kernel).max()
        assert offset == pytest.approx(bias, abs=max(tolerance * np.abs(bias).max(), 1e-3))
