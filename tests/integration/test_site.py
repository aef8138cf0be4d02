"""External validation: the figures of a site and of the model's own test subset, and its own images at the site."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.results import from_json
from edgeall.train.data.split import load_split
from edgeall.train.data.synth import synthesize
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.evaluation.metrics import Metrics
from edgeall.train.evaluation.site import OwnImages, external_validation, find_own_images, read_site, site_text

NOTHING = OwnImages("files", 0, {}, None)


class Listening(Progress):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site without Pro and with other spellings of the classes."""
    folder = tmp_path_factory.mktemp("other") / "lab"
    synthesize(folder, 48, seed=99, size=96)
    shutil.rmtree(folder / "Pro")
    (folder / "Benign").rename(folder / "BENIGN")
    return folder


@pytest.fixture(scope="module")
def model(tiny_run: Path, tiny_models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model with its split.json and run.json in the same folder."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("split.json", "run.json"):
        shutil.copy(tiny_run / name, folder)
    return Path(shutil.copy(tiny_models["ptq-int8"]["out"], folder / "model.tflite"))


def test_a_site_is_compared_with_the_own_test_subset(
    model: Path, other: Path, tiny_run: Path, tiny_settings: Any
) -> None:
    progress = Listening()
    evaluation = evaluate(model, EvaluateSettings(site=other), progress)
    metrics, found = evaluation.metrics, evaluation.site
    assert found is not None and (metrics.split, metrics.images) == ("site", 36)
    assert found.missing == ["Pro"] and any("no images of Pro" in line for line in progress.said)
    assert found.repeated.looked_for == "pictures", "run.json beside the model says where its images are"
    assert found.repeated.images == 0 and not any("warning" in line for line in progress.said)
    assert found.here.accuracy == pytest.approx(metrics.accuracy)
    own = evaluate(model, EvaluateSettings(data=tiny_settings.data), QUIET).metrics
    kept = [number for number, label in enumerate(own.labels) if label != "Pro"]
    right = sum(own.confusion[number][number] for number in kept)
    images = sum(sum(own.confusion[number]) for number in kept)
    assert (found.own.images, found.own.accuracy) == (images, pytest.approx(right / images))
    assert found.drop_points == pytest.approx(100 * (right / images - metrics.accuracy))
    low, high = found.drop_points_ci95
    assert low < found.drop_points < high
    assert found.own.ece is None, "not to be had without Pro's images"
    text = site_text(found)
    assert "classes missing here" in text and "recall of Early" in text and "recall of Pro" not in text
    of_run = evaluate(tiny_run, EvaluateSettings(site=other, cache_dir=tiny_settings.cache_dir), QUIET).site
    assert of_run is not None and (of_run.repeated, of_run.own.images) == (found.repeated, images)


def test_the_models_own_images_among_the_sites_are_counted_and_warned_of(
    model: Path, other: Path, tiny_settings: Any, tmp_path: Path
) -> None:
    site = tmp_path / "lab"
    shutil.copytree(other, site)
    split = load_split(model.with_name("split.json"))
    train = [entry for entry in split.subset("train") if entry.label == "Early"]
    test = next(entry for entry in split.subset("test") if entry.label == "Early")
    shutil.copy(tiny_settings.data / train[0].path, site / "Early" / f"copied{Path(train[0].path).suffix}")
    shutil.copy(tiny_settings.data / test.path, site / "Early" / f"tested{Path(test.path).suffix}")
    again = open_rgb(tiny_settings.data / train[1].path).resize((150, 150), Image.Resampling.BICUBIC)
    again.save(site / "Early" / "saved-again.jpg", quality=85)
    progress = Listening()
    evaluation = evaluate(model, EvaluateSettings(site=site), progress)
    assert evaluation.site is not None
    found = evaluation.site.repeated
    assert (found.images, found.by_side) == (3, {"train": 2, "validation": 0, "test": 1})
    (said,) = (line for line in progress.said if line.startswith("warning"))
    assert "3 of the site's 39 images are the model's own" in said
    alone = tmp_path / "alone" / "model.tflite"
    alone.parent.mkdir()
    shutil.copy(model, alone)
    read = read_site(site, split.labels, alone, QUIET)
    of_files = find_own_images(read, split, None, QUIET)
    assert (of_files.looked_for, of_files.images) == ("files", 2)
    assert find_own_images(read, None, None, QUIET).looked_for is None
    quiet = Listening()
    alone_there = evaluate(alone, EvaluateSettings(site=site), quiet).site
    assert alone_there is not None and alone_there.repeated.looked_for is None
    assert any("give --split" in line for line in quiet.said)
    assert "saved-again.jpg" not in (of_files.first or "")


def test_a_class_that_the_model_does_not_know_is_named(model: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(other, tmp_path / "lab")
    (tmp_path / "lab" / "Early").rename(tmp_path / "lab" / "Lymphoblast")
    with pytest.raises(DataError, match=r"Lymphoblast: .* has no such class; it has Benign, Early, Pre, Pro"):
        evaluate(model, EvaluateSettings(site=tmp_path / "lab"), QUIET)


def test_options_that_conflict_with_a_site(model: Path, other: Path, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="--side test with --site"):
        evaluate(model, EvaluateSettings(site=other, side="test"), QUIET)
    with pytest.raises(UsageError, match="its manifest has no metrics of a test subset"):
        evaluate(tiny_bundle, EvaluateSettings(site=other), QUIET)


def subset(right: int, images: int, **more: Any) -> dict[str, Any]:
    per_class = {"ill": {"recall": right / images, "support": images}, "well": {"recall": 0.0, "support": 0}}
    return {"labels": ["ill", "well"], "per_class": per_class, "ci_unit": "image", **more}


def here(right: int, images: int) -> Metrics:
    return from_json(Metrics, subset(right, images))


def test_the_interval_of_the_drop_is_newcombes(other: Path) -> None:
    # His table II, (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339.
    site = replace(read_site(other, ("Benign", "Early", "Pre", "Pro"), Path("m"), QUIET), missing=())
    found = external_validation(other, site, here(48, 80), None, subset(56, 70), NOTHING)
    assert found.drop_points == pytest.approx(20.0)
    assert found.drop_points_ci95 == pytest.approx([5.24, 33.39], abs=0.01)
    # (h): 10/10 against 0/10 has 0.6075 to 1: a side without errors has an interval too.
    certain = external_validation(other, site, here(0, 10), None, subset(10, 10, accuracy_ci95=[1.0, 1.0]), NOTHING)
    assert certain.drop_points_ci95 == pytest.approx([60.75, 100.0], abs=0.01)
    by_subject = subset(56, 70, ci_unit="subject", accuracy_ci95=[0.6, 0.9])
    clustered = external_validation(other, site, here(48, 80), None, by_subject, NOTHING)
    assert clustered.own.ci_unit == "subject"
    assert clustered.drop_points_ci95[0] == pytest.approx(100 * (0.2 - np.hypot(0.2, 0.7005 - 0.6)), abs=0.2)
    assert "20.00 points" in site_text(found)
