"""What `quantize` fits and packs: temperature, review rule, OOD detector, quality gate, robustness, report."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import calibration_error
from ai_edge_litert.schema_py_generated import ModelT

from edgeall import cli
from edgeall.console.progress import Progress
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.calibration import temperature_of
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.images import find_images, open_rgb
from edgeall.edge_runtime.ood import distance
from edgeall.edge_runtime.pipeline import classify, classify_one
from edgeall.edge_runtime.preprocess import load_input
from edgeall.edge_runtime.tools.decisions import REVIEW_BUDGET
from edgeall.edge_runtime.tools.novelty import CLEAN_SHARE
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.edge_runtime.vision.quality import Gate, thresholds_of, to_values
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantization.mild import STRENGTH
from edgeall.optimize.quantization.schemes import SCHEMES
from edgeall.optimize.quantize import quantize
from edgeall.train.data.split import load_split
from edgeall.train.evaluation.evaluate import EvaluateSettings, Evaluation, evaluate
from edgeall.train.evaluation.robustness import robustness
from edgeall.train.evaluation.text import metrics_text

QUIET = Progress(quiet=True)
START = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)
WRONG = ("wrong", "wrong_reviewed", "wrong_not_reviewed")


def test_run_and_evaluate_report_calibrated_probabilities(
    tiny_run: Path, tiny_settings: Any, tiny_models: dict[str, Any]
) -> None:
    summary = tiny_models["ptq-int8"]
    out = Path(summary["out"])
    bundle = open_bundle(out)
    assert bundle.manifest is not None
    temperature = temperature_of(bundle.manifest)
    assert temperature == summary["calibration"]["temperature"] != 1.0
    classifier = Classifier.open(out)
    found = list(classify(classifier, [str(tiny_settings.data)]))
    below = bundle.manifest.decision["review_below"]
    strange = [item.novelty is not None and item.novelty > 1 for item in found]
    assert [item.review for item in found] == [
        item.probability < below or new for item, new in zip(found, strange, strict=True)
    ]
    split = load_split(tiny_run / "split.json")
    kept = {str(tiny_settings.data / entry.path) for entry in split.subset("validation")}
    sent = [item.review for item in found if item.image in kept]
    assert bundle.manifest.decision["reviewed_unchanged"] == pytest.approx(np.mean(sent))
    metrics = evaluate(out, EvaluateSettings(data=tiny_settings.data, split=tiny_run / "split.json"), QUIET).to_json()
    assert metrics["ece"] == pytest.approx(bundle.manifest.metrics["ece"])
    of_test = {str(tiny_settings.data / entry.path): entry.label for entry in split.subset("test")}
    said = [(item.probability, item.label == of_test[item.image]) for item in found if item.image in of_test]
    expected = calibration_error(*zip(*said, strict=True))
    assert metrics["ece"] == pytest.approx(expected, abs=1e-6)


def test_quantize_without_an_option_packs_a_rule_fitted_on_changed_images_too(tiny_models: dict[str, Any]) -> None:
    summary = tiny_models["ptq-int8"]
    manifest = open_bundle(summary["out"]).manifest
    assert manifest is not None
    assert manifest.decision == summary["decision"] and manifest.calibration == summary["calibration"]
    decision, fitted = manifest.decision, manifest.calibration
    assert (decision["rule"], decision["target"]) == ("review_budget", REVIEW_BUDGET)
    assert 0 < decision["review_below"] < 1
    assert 0 <= decision["reviewed_unchanged"] <= 1
    assert (fitted["changed_strength"], fitted["changed_images"] % fitted["images"]) == (STRENGTH, 0)
    review = summary["review"]
    assert {key: manifest.metrics[key] for key in WRONG} == {key: review[key] for key in WRONG}
    card = zipfile.ZipFile(summary["out"]).read("MODEL_CARD.md").decode()
    assert f"Of its {review['wrong']} wrong predictions {review['wrong_reviewed']} are sent to review" in card
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert f"{review['wrong_reviewed']} of {review['wrong']} sent to review" in page


def test_the_report_for_model_explorer_names_the_tensors_of_the_written_file(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "m.tflite", tmp_path / "layers.json"
    words = ["quantize", "--layer-report", str(report), str(tiny_run), "--out", str(out), "--max-drop", "100"]
    assert cli.main([*words, "--auto-float", "--cache-dir", str(tiny_settings.cache_dir), "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert f"{report}: node data for Model Explorer" in printed.err
    (graph,) = ModelT.InitFromPackedBuf(out.read_bytes(), 0).subgraphs
    written = {graph.tensors[at].name.decode() for operator in graph.operators for at in operator.outputs}
    (name, data) = next(iter(json.loads(report.read_text()).items()))
    assert name == graph.name.decode() and set(data["results"]) <= written
    found = {value["value"] for value in data["results"].values()}
    assert found == {row["channel_sqnr_db"] for row in result["layers"]} - {None} != set()
    assert result["float_layers"] == [] == result["auto_float"]["layers"]
    assert [trial["layers"] for trial in result["auto_float"]["trials"]] == [0]


def test_a_budget_of_0_sends_only_out_of_distribution_images_to_review(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def packed(*options: str) -> Any:
        words = ["quantize", str(tiny_run), "--scheme", "ptq-int8", "--out", str(tmp_path / "m.tflite"), "--force"]
        assert cli.main([*words, "--cache-dir", str(tiny_settings.cache_dir), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    default, off = packed(), packed("--review-budget", "0")
    assert default["decision"]["target"] == REVIEW_BUDGET
    assert default["review"]["below"] == default["decision"]["review_below"]
    assert off["decision"] == {} and off["review"]["below"] is None
    assert off["review"]["reviewed"] == off["review"]["unfamiliar"] <= default["review"]["reviewed"]
    assert off["calibration"] == default["calibration"], "drawn from the run's seed"


def test_quantize_leaves_the_page_beside_the_model_and_the_figures_in_it(
    tiny_run: Path, tiny_settings: Any, tiny_models: dict[str, Any]
) -> None:
    summary = tiny_models["ptq-int8"]
    out = Path(summary["out"])
    page = Path(summary["report"])
    assert page == out.with_name("ptq-int8.report.html")
    html = page.read_text(encoding="utf-8")
    metrics = evaluate(out, EvaluateSettings(data=tiny_settings.data, split=tiny_run / "split.json"), QUIET).to_json()
    for key in ("reliability", "risk_coverage", "review"):
        assert metrics[key] == summary[key], "measured twice, through two code paths"
    assert metrics["reliability"]["before"]["bins"] != metrics["reliability"]["after"]["bins"]
    assert metrics["ece"] == pytest.approx(metrics["reliability"]["after"]["ece"])
    assert f"Sent to review: {metrics['review']['reviewed']:.4f}" in html
    manifest = json.loads(zipfile.ZipFile(out).read("edgeall.json"))
    assert manifest["metrics"]["aurc"] == metrics["risk_coverage"]["aurc"]
    assert manifest["metrics"]["reviewed"] == metrics["review"]["reviewed"]
    assert manifest["metrics"]["ece_uncalibrated"] == metrics["reliability"]["before"]["ece"]
    assert "per_subject" not in json.dumps(manifest), "names of people don't travel"


def test_a_run_is_reported_without_calibration(tiny_run: Path, tiny_settings: Any) -> None:
    found = evaluate(tiny_run, EvaluateSettings(cache_dir=tiny_settings.cache_dir), QUIET)
    assert isinstance(found, Evaluation)
    assert found.report.reliability.after is None and found.report.review is None
    assert found.report.reliability.before.ece == pytest.approx(found.metrics.ece)
    assert "calibration" in metrics_text(found.metrics, found.report)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_fits_it(scheme: str, tiny_run: Path, tiny_models: dict[str, Any], synthetic_fields: Path) -> None:
    """With the features of the file, on the validation subset; images above the threshold are sent to review.

    These images depend on the training, so the test moves the threshold to the middle of the test images.
    """
    model = Path(tiny_models[scheme]["out"])
    classifier = Classifier.open(model, threads=1)
    manifest = open_bundle(model).manifest
    assert manifest is not None and manifest.novelty == tiny_models[scheme]["novelty"]
    assert classifier.ood_detector is not None
    sides = load_split(tiny_run / "split.json")
    threshold, rounding = classifier.ood_detector.threshold, 1e-5  # the threshold is the distance of one of them
    kept = [classify_one(classifier, str(synthetic_fields / entry.path)) for entry in sides.subset("validation")]
    strange = [one.novelty is not None and one.novelty > 1 + rounding / threshold for one in kept]
    assert manifest.novelty["reviewed"] == pytest.approx(np.mean(strange))
    assert manifest.novelty["reviewed"] <= CLEAN_SHARE
    own = [*map(str, find_images(synthetic_fields))][::4]
    features = []
    for path in own:
        answer = classifier.infer(load_input(path, classifier.input))
        assert answer.units is not None
        features.append(classifier.pooled(answer.units))
    apart = distance(np.stack(features), classifier.ood_detector)
    middle = float(np.median(apart))
    classifier.ood_detector = replace(classifier.ood_detector, threshold=middle)
    found = [classify_one(classifier, path) for path in own]
    np.testing.assert_allclose([one.novelty for one in found], apart / middle, rtol=1e-3, atol=rounding / middle)
    assert [one.reason == "unfamiliar" for one in found] == [
        one.novelty is not None and one.novelty > 1 for one in found
    ]
    assert 0 < sum(one.reason == "unfamiliar" for one in found) < len(found)
    line = json.loads(json.dumps(next(one for one in found if one.review).as_json()))
    assert line["reason"] == "unfamiliar" and line["novelty"] > 1


def test_quantize_writes_mean_and_worst_into_the_file(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgeall.optimize.tasks.classification.robustness", partial(robustness, kinds=("jpeg", "underexposed"))
    )
    out = tmp_path / "model.tflite"
    folder = tiny_settings.cache_dir
    asked = {"robust": True, "review_budget": 0.2}
    found = quantize(QuantizeConfig(tiny_run, "ptq-int8", out, **asked, cache_dir=folder), QUIET).robustness
    assert found is not None
    bundle = open_bundle(out)
    assert bundle.manifest is not None
    metrics = bundle.manifest.metrics
    assert (metrics["robust_accuracy_mean"], metrics["robust_accuracy_worst"]) == (found.mean, found.worst)
    assert (metrics["robust_ece_mean"], metrics["robust_ece_worst"]) == (found.ece_mean, found.ece_worst)
    assert metrics["robust_reviewed_mean"] == found.reviewed_mean
    assert metrics["robust_wrong_not_reviewed_mean"] == found.wrong_not_reviewed_mean
    card = zipfile.ZipFile(out).read("MODEL_CARD.md").decode()
    assert f"{found.worst:.4f} at worst ({metrics['robust_worst_at']})" in card
    assert f"calibration error is then {found.ece_mean:.4f} on average" in card
    assert f"sent to review: {100 * found.reviewed_mean:.1f} % of the images" in card
    assert 'alt="Accuracy under corruption' in out.with_suffix(".report.html").read_text(encoding="utf-8")
    split = load_split(tiny_run / "split.json")
    again = evaluate(out, EvaluateSettings(data=tiny_settings.data, split=tiny_run / "split.json", robust=False), QUIET)
    assert again.robustness is None and again.metrics.images == len(split.subset("test")) == found.images


def test_robustness_requires_a_model_file(tiny_run: Path) -> None:
    with pytest.raises(UsageError, match="--robustness requires a model file"):
        evaluate(tiny_run, EvaluateSettings(robust=True), QUIET)


def test_quantize_fits_the_gate_to_the_fields_it_was_trained_on(
    tiny_models: dict[str, Any], synthetic_fields: Path
) -> None:
    """The manifest has limits, and the training fields pass them."""
    packed = open_bundle(tiny_models["ptq-int8"]["out"]).manifest
    fitted = thresholds_of(packed)
    assert packed is not None and packed.quality == to_values(fitted)
    frames = [Frame(np.asarray(open_rgb(path)), START, 0) for path in find_images(synthetic_fields)]
    let_through = sum(Gate(fitted).judge(frame).ok for frame in frames)
    assert let_through >= 0.97 * len(frames)
    assert let_through >= sum(Gate().judge(frame).ok for frame in frames)
