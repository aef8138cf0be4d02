"""Runs side by side: what the report says, what is made only once, and what is said of models that fail."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.optimize.experiments import backbones, compare_models
from edgeall.optimize.experiments.backbones import BackbonesConfig, compare_backbones
from edgeall.optimize.experiments.compare import compare_runs
from edgeall.optimize.experiments.compare_config import CompareOptions
from edgeall.optimize.experiments.compare_table import compare_text
from edgeall.optimize.experiments.tasks import classification
from edgeall.train.data.split import load_split

QUIET = Progress(quiet=True)
SCHEMES = ("float32", "ptq-int8")


class Page(HTMLParser):
    """The tags of a page and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._hidden = False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], BackbonesConfig, CompareOptions]:
    """A comparison under cross-validation by subject, one model of it without weights; and what it was called with."""
    from edgeall.train.data.synth import synthesize

    folder = tmp_path_factory.mktemp("folds")
    synthesize(folder / "cells", 90, seed=5, size=64, layout="cnmc")
    (folder / "weights").mkdir()
    config = BackbonesConfig(
        folder / "cells",
        ["mobilenet_v2:0.35", "basic_cnn"],
        "subject-3-fold",
        folder / "study",
        weights=str(folder / "weights"),
        training={"epochs_finetune": 1, "input_size": 32},
    )
    options = CompareOptions(("float32",), seconds=0.1, cache_dir=folder / "cache")
    return compare_backbones(config, options, QUIET), config, options


def test_a_model_that_cannot_be_trained_is_reported_and_the_others_continue(folds: Any) -> None:
    result, config, _ = folds
    assert [row.model for row in result.rows] == ["basic_cnn"]
    (failure,) = result.failures
    assert failure.model == "mobilenet_v2_0.35"
    assert "mobilenet_v2_0.35_no_top.h5: no such weights file" in failure.error
    assert "mobilenet_v2_0.35: " in compare_text(result)
    text = Page((config.out / "compare.html").read_text()).text
    assert "1 failed." in text
    assert "no such weights file" in text


def test_folds_make_one_row_with_mean_and_spread(folds: Any) -> None:
    result, config, _ = folds
    runs = [config.out / "basic_cnn" / f"fold-{i}" for i in (1, 2, 3)]
    accuracies = [json.loads((run / "run.json").read_text())["metrics"]["test"]["accuracy"] for run in runs]
    model, row = result.models["basic_cnn"], result.rows[0]
    assert model.keras.accuracies == pytest.approx(accuracies)
    assert row.accuracy == pytest.approx(np.mean(row_accuracies := model.schemes["float32"].metrics.accuracies))
    assert row.accuracy_sd == pytest.approx(np.std(row_accuracies, ddof=1))
    images = {entry.path for run in runs for entry in load_split(run / "split.json").subset("test")}
    assert row.test_images == len(images) == np.sum(model.keras.confusion)
    assert row.split_level == "subject"
    assert not row.optimistic
    people = {entry.subject for run in runs for entry in load_split(run / "split.json").subset("test")}
    assert model.schemes["float32"].metrics.subjects.subjects == len(people)
    assert any("those of one subject are not" in note for note in result.notes)
    text = Page((config.out / "compare.html").read_text()).text
    assert "fold 3" in text
    assert "optimistic" not in text


def test_the_same_command_again_trains_and_classifies_nothing(folds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result, config, options = folds

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("done twice")

    monkeypatch.setattr(backbones, "train", never)
    monkeypatch.setattr(compare_models, "quantize", never)
    monkeypatch.setattr(classification, "predict", never)
    again = compare_backbones(config, options, QUIET)
    assert again.models["basic_cnn"].keras == result.models["basic_cnn"].keras
    assert [failure.model for failure in again.failures] == ["mobilenet_v2_0.35"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["basic_cnn", "mobilenet_v2:0.36"]}, "does not support alpha 0.36"),
        ({"models": ["basic_cnn:0.5"]}, "takes no alpha"),
        ({"models": ["basic_cnn", "basic_cnn"]}, "named twice"),
        ({"protocol": "70-15"}, "no protocol"),
        ({"schemes": ("int4",)}, "no scheme"),
        ({"weights": "nowhere"}, "no such folder"),
        ({"training": {"fold": "1/2"}}, "cannot change the setting fold"),
        ({"training": {"epochs_finetune": 2, "input_size": 32}}, "holds another run"),
    ],
)
def test_invalid_arguments_are_refused_before_any_work(
    folds: Any, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, options = folds
    weights = "none" if "models" in changes else config.weights
    other = replace(options, schemes=changes["schemes"]) if "schemes" in changes else options
    changes = {name: value for name, value in changes.items() if name != "schemes"}
    monkeypatch.setattr(backbones, "train", lambda *_: pytest.fail("began to work"))
    with pytest.raises(UsageError, match=said):
        compare_backbones(replace(config, **{"weights": weights, **changes}), other, QUIET)


@pytest.fixture(scope="module")
def two(tiny_run: Path, tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path, Any]:
    """Two runs of one split, one hardly trained and of a hostile name, and their comparison."""
    from edgeall.train.run import train

    folder = tmp_path_factory.mktemp("two")
    first, second = folder / "tiny", folder / "<script>$x_"
    shutil.copytree(tiny_run, first)
    train(replace(tiny_settings, out=second, epochs_finetune=1), QUIET)
    out = folder / "out"
    options = CompareOptions(SCHEMES, seconds=0.1, cache_dir=tiny_settings.cache_dir)
    result = compare_runs([first, second], out, options, QUIET)
    return [first, second], out, result


def test_the_table_holds_what_was_measured(two: Any) -> None:
    runs, out, result = two
    assert [(row.model, row.scheme) for row in result.rows] == [
        (run.name, scheme) for run in runs for scheme in SCHEMES
    ]
    for row in result.rows:
        run = next(run for run in runs if run.name == row.model)
        model, facts = result.models[row.model], json.loads((run / "run.json").read_text())
        assert row.file_bytes == (run / f"{row.scheme}.tflite").stat().st_size
        assert row.compressed_bytes < row.flatbuffer_bytes < row.file_bytes
        assert row.parameters == facts["model"]["parameters"]
        # 48 pixels a side: 48 * 48 * 27 * 32, halved by pooling twice, then the head of 4 classes
        assert row.macs == 48**2 * 27 * 32 + 24**2 * 288 * 64 + 12**2 * 576 * 128 + 128 * 4
        assert 0 < row.latency_p50_ms <= row.latency_p90_ms
        assert model.keras.confusion == facts["metrics"]["test"]["confusion"]
        assert model.by_side["train"].log_loss == facts["metrics"]["train"]["log_loss"]
        metrics = model.schemes[row.scheme].metrics
        assert row.drop_points == pytest.approx(100 * (model.keras.accuracy - metrics.accuracy))
        assert row.accuracy == np.trace(metrics.confusion) / np.sum(metrics.confusion)
    assert any(row.on_front for row in result.rows)
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["scheme"] for row in written] == [*SCHEMES] * 2
    assert [float(row["accuracy"]) for row in written] == [row.accuracy for row in result.rows]
    assert all(float(row["weighted_recall"]) == pytest.approx(float(row["accuracy"])) for row in written)
    assert all(float(row["epoch_s"]) > 0 for row in written)


def test_the_page_stands_alone_and_says_it_all(two: Any) -> None:
    _, out, result = two
    html = (out / "compare.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((a.get("src") or "data:").startswith("data:image/png") for tag, a in page.tags if tag == "img")
    assert "href" not in {name for _, attributes in page.tags for name in attributes}
    assert page.text.count("research use only, not a diagnosis") == 2
    assert "image-level split: optimistic" in page.text
    assert "SYNTHETIC" in page.text
    for row in result.rows:
        assert f"{100 * row.accuracy:.2f} %" in page.text
        assert f"{row.latency_p50_ms:.2f}" in page.text
    for model in result.models.values():
        for label, figures in model.keras.per_class.items():
            assert label in page.text
            assert f"{figures.f1:.4f}" in page.text
    assert sum(a.get("class") == "confusion" for _, a in page.tags) == 2 * (1 + len(SCHEMES)), "float beside int8"


def test_what_is_damaged_or_of_another_run_is_reported_and_the_others_continue(
    two: Any, tiny_settings: Any, tmp_path: Path
) -> None:
    (first, second), _, _ = two
    mixed, broken = tmp_path / "mixed", tmp_path / "broken"
    for copy in (mixed, broken):
        shutil.copytree(first, copy)
    shutil.copy(second / "float32.tflite", mixed / "float32.tflite")
    (broken / "predictions.csv").unlink()
    options = CompareOptions(SCHEMES, seconds=0.05, cache_dir=tiny_settings.cache_dir)
    result = compare_runs([broken, mixed], tmp_path / "out", options, QUIET)
    assert [(row.model, row.scheme) for row in result.rows] == [("mixed", "ptq-int8")]
    said = {(failure.model, failure.scheme): failure.error for failure in result.failures}
    assert set(said) == {("broken", None), ("mixed", "float32")}
    assert "predictions.csv" in said["broken", None]
    assert "run_sha256" in said["mixed", "float32"], "split, backbone and seed are alike: only the run's digest tells"


def test_runs_that_cannot_be_compared(two: Any, folds: Any, tmp_path: Path) -> None:
    (first, _), out, _ = two
    cells = folds[1].out / "basic_cnn" / "fold-1"
    with pytest.raises(DataError, match="has the classes all, hem"):
        compare_runs([first, cells], tmp_path / "out", CompareOptions(SCHEMES), QUIET)
    with pytest.raises(UsageError, match="named twice"):
        compare_runs([first, first / "." / ".." / first.name], tmp_path / "out", CompareOptions(SCHEMES), QUIET)
    with pytest.raises(DataError, match="not a complete run"):
        compare_runs([out], tmp_path / "out", CompareOptions(SCHEMES), QUIET)
    with pytest.raises(UsageError, match="is a run"):
        compare_runs([first], first, CompareOptions(SCHEMES), QUIET)
