"""Paired comparison of two model files on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.edge_runtime.preprocess import load_input
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.make_split import make_split
from edgeall.train.data.scan import scan
from edgeall.train.data.split import SplitEntry, load_split, save_split
from edgeall.train.data.split_settings import SplitSettings
from edgeall.train.evaluation.against import against_text, paired_comparison
from edgeall.train.evaluation.bootstrap import difference_interval
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.evaluation.mcnemar import mcnemar

QUIET = Progress(quiet=True)


@pytest.fixture
def models(tiny_models: dict[str, Any]) -> dict[str, Path]:
    return {scheme: Path(tiny_models[scheme]["out"]) for scheme in ("float32", "ptq-int8")}


def test_two_files_are_compared_on_the_same_images(models: dict[str, Path], tiny_run: Path, tiny_settings: Any) -> None:
    first, second = models["ptq-int8"], models["float32"]
    split = tiny_run / "split.json"
    found = evaluate(first, EvaluateSettings(data=tiny_settings.data, split=split, against=second), QUIET).to_json()
    entries = load_split(split).subset("test")
    right = []
    for model in (first, second):
        classifier = Classifier.open(model)
        files = [tiny_settings.data / entry.path for entry in entries]
        said = [classifier.labels[classifier.predict(load_input(file, classifier.input)).argmax()] for file in files]
        right.append(np.array([label == entry.label for label, entry in zip(said, entries, strict=True)]))
    assert found["against"] | mcnemar(*right).to_json() == found["against"]
    assert found["against"]["accuracy"] == pytest.approx(right[1].mean())
    assert found["against"]["gain_points"] == pytest.approx(100 * (found["accuracy"] - right[1].mean()))
    same = evaluate(first, EvaluateSettings(data=tiny_settings.data, split=split, against=first), QUIET).against
    assert same is not None
    assert (same.gain_points, same.gain_points_ci95, same.test.p_value) == (0.0, [0.0, 0.0], 1.0)


def test_a_model_of_another_split_or_of_other_classes_is_refused(
    models: dict[str, Path], tiny_run: Path, tiny_settings: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    split = tiny_run / "split.json"
    with pytest.raises(DataError, match="was not made with the split of"):
        evaluate(models["float32"], EvaluateSettings(data=tiny_settings.data, split=split, against=tiny_bundle), QUIET)
    with pytest.raises(UsageError, match="--against requires a model file"):
        evaluate(tiny_run, EvaluateSettings(against=models["float32"]), QUIET)
    save_split(make_split(scan(load_dataset(tiny_settings.data)), SplitSettings(seed=9)), tmp_path / "split.json")
    with pytest.raises(DataError, match="not the split that"):
        evaluate(
            models["float32"],
            EvaluateSettings(data=tiny_settings.data, split=tmp_path / "split.json", against=models["ptq-int8"]),
            QUIET,
        )


def test_a_gain_by_hand_and_its_interval_by_subject() -> None:
    # Twenty people of ten images; the first model is right on all of them, the other wrong on all of two people.
    entries = [SplitEntry(f"{i}.png", "ill", f"p{i // 10}", "00", "test") for i in range(200)]
    first = np.tile([[0.2, 0.8]], (200, 1)).astype(np.float32)
    second = first.copy()
    second[:20] = [0.9, 0.1]
    found = paired_comparison(Path("other.tflite"), entries, ("well", "ill"), first, second, 0)
    assert (found.test.only_first, found.test.only_second, found.ci_unit) == (20, 0, "subject")
    assert found.gain_points == pytest.approx(10.0)
    assert found.test.p_value == pytest.approx(2 / 2**20)
    # Of twenty draws with a chance of 0.1 each, 0 to 5 are such people.
    assert found.gain_points_ci95 == pytest.approx([0.0, 25.0], abs=2.6)
    text = against_text(found)
    assert "+10.00 points" in text and "by subject" in text and "images of a subject as independent" in text
    right, other = np.ones(200, bool), second.argmax(axis=1) == 1
    (low, high), unit = difference_interval(right, other, None, 0)
    assert unit == "image" and low > 0.05 and high < 0.15
    assert difference_interval(right[:1], other[:1], None, 0) == ([1.0, 1.0], "image")
