"""`edgeall pack`: from a bare ``.tflite`` to a verified file that answers as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import convert
from PIL import Image

from edgeall import cli
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.drift import drift_groups
from edgeall.edge_runtime.preprocess import load_input
from edgeall.edge_runtime.tools.inspect import inspect_model

SIZE = 16
COLOURS = {"dark": 70, "light": 150}
"""Classes of images by their mean brightness."""


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    """Classifiers that tell dark images from light ones, normalized to -1..1."""
    from edgeall.models.keras_compat import keras

    layers, random = keras.layers, np.random.default_rng(2)

    def model(channels: int, units: int, activation: str) -> Any:
        inputs = layers.Input((SIZE, SIZE, channels))
        x = layers.Conv2D(12, 3, activation="relu")(inputs)
        last = layers.Dense(units, activation=activation)
        made = keras.Model(inputs, last(layers.GlobalAveragePooling2D()(x)))
        kernel = random.uniform(0.02, 0.1, made.layers[1].get_weights()[0].shape)
        made.layers[1].set_weights([kernel, np.full(12, 1.0)])
        weight = np.full((12, 1), 0.8) * (np.array([[-1.0, 1.0]]) if units == 2 else 1.0)
        middle = float(12 * 0.8 * np.mean(kernel.sum(axis=(0, 1, 2)) * (110 / 127.5 - 1) + 1.0))
        last.set_weights([weight, -middle * (np.array([-1.0, 1.0]) if units == 2 else np.ones(1))])
        return made

    images = np.stack([np.asarray(drawn(value, seed)) for seed, value in enumerate((10, 70, 110, 150, 250))])
    images = (images.astype(np.float32) - 127.5) / 127.5
    images[0, 0, 0], images[0, 0, 1] = -1, 1
    sigmoid = model(3, 1, "sigmoid")
    return {
        "softmax": convert(model(3, 2, "softmax"), "float32", images),
        "logits": convert(model(3, 2, "linear"), "uint8", images),
        "sigmoid": convert(sigmoid, "int8", images),
        "grey": convert(model(1, 1, "sigmoid"), "float32", images[..., :1]),
    }


def drawn(brightness: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).normal(brightness, 25, (SIZE + 4, SIZE + 2, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).resize((SIZE, SIZE))


def folder(path: Path, count: int) -> Path:
    for label, brightness in COLOURS.items():
        (path / label).mkdir(parents=True)
        for seed in range(count):
            drawn(brightness, 1000 * brightness + seed).save(path / label / f"{seed:03}.png")
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("few") / "data", 8)


Pack = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def packed(models: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    """``packed(kind, data, *options)``: exit status, JSON and stderr of `edgeall pack` into ``out.tflite``."""

    def run(kind: str, data: Path, *options: object) -> tuple[int, dict[str, Any], str]:
        bare = tmp_path / f"{kind}.tflite"
        bare.write_bytes(models[kind])
        words = ["pack", bare, "--data", data, "--out", tmp_path / "out.tflite", "--split-by", "image", *options]
        status = cli.main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out) if status == 0 else {}, err

    return run


@pytest.mark.parametrize("kind", ["softmax", "logits", "sigmoid", "grey"])
def test_a_bare_file_becomes_a_verified_one(kind: str, packed: Pack, few: Path, tmp_path: Path) -> None:
    named = ("--normalization=-1..1",) if kind != "logits" else ()
    status, found, err = packed(kind, few, *named)
    assert status == 0, err
    assert found["divided"] is False and "no temperature, threshold or detector" in err
    assert found["metrics"]["images"] == 16 and found["metrics"]["accuracy"] > 0.8
    facts = inspect_model(tmp_path / "out.tflite")
    assert facts.golden_ok and facts.digest_ok
    assert facts.scores == {"softmax": "probabilities", "grey": "sigmoid"}.get(kind, kind)
    labels = tmp_path / "labels.txt"
    labels.write_text("dark\nlight\n")
    given: dict[str, Any] = {} if kind == "logits" else {"mean": 127.5, "std": 127.5}
    bare = Classifier.open(tmp_path / f"{kind}.tflite", labels_file=labels, **given)
    own = Classifier.open(tmp_path / "out.tflite")
    for image in sorted(few.rglob("*.png"))[::5]:
        pixels = load_input(image, own.input)
        np.testing.assert_array_equal(own.predict(pixels), bare.predict(pixels))
    np.testing.assert_array_equal(own.clone(1).predict(pixels), own.predict(pixels))
    card = open_bundle(tmp_path / "out.tflite").model_card or ""
    assert "It is not known which images it was trained on" in card


def test_decisions_and_the_drift_alarm_are_fitted_where_there_are_enough_images(
    packed: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found, err = packed("softmax", folder(tmp_path / "data", 110), "--normalization=-1..1")
    assert status == 0, err
    assert found["normalization"] == "-1..1" and found["normalization_from"] == "named"
    assert len(found["trials"]) == 5
    assert found["divided"] and found["calibration"]["temperature"] > 0
    assert found["novelty"]["features"] == 12 and "review_below" in found["decision"]
    assert (tmp_path / "out.split.json").exists()
    own = Classifier.open(tmp_path / "out.tflite")
    assert own.ood_detector is not None
    assert own.infer(load_input(tmp_path / "data" / "dark" / "000.png", own.input)).novelty is not None
    assert drift_groups(own)
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for place, shift in ((home, 0), (elsewhere, 40)):
        place.mkdir()
        for number in range(30):
            drawn(tuple(COLOURS.values())[number % 2] + shift, 7_000_000 + number).save(place / f"{number:02}.png")
        assert cli.main(["run", str(tmp_path / "out.tflite"), str(place)]) == 0
        said = capsys.readouterr().err
        assert ("differ from those that the model was fitted on" in said) == bool(shift), said


def test_what_cannot_be_packed(packed: Pack, few: Path, tmp_path: Path) -> None:
    labels = tmp_path / "two.txt"
    labels.write_text("night\nday\n")
    status, _, err = packed("sigmoid", few, "--labels", labels, "--normalization=-1..1")
    assert status == 1 and "class dark is not one of the 2 labels" in err
    labels.write_text("light\ndark\n")  # the wrong way round: taken, because it is named, with a warning
    status, _, err = packed("softmax", few, "--labels", labels, "--normalization=-1..1")
    assert status == 0 and "better than in the order light, dark" in err
    status, _, err = packed("softmax", few, "--normalization=-1..1")
    assert status == 2 and "exists" in err
    again = tmp_path / "again.tflite"
    assert cli.main(["pack", str(tmp_path / "out.tflite"), "--data", str(few), "--out", str(again)]) == 2
