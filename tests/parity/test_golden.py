"""The golden check passes on the packed model and fails on every change of the path to the output.

Each change is made in the product code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.edge_runtime import images
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.tools.golden import check_golden

KINDS = ("uint8", "int8", "float32", "dynamic")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, pack_tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return pack_tiny(request.param, tmp_path / "model.tflite")


def test_probabilities_are_those_of_the_workstation(model: Path) -> None:
    results = check_golden(Classifier.open(model))
    assert len(results) == 2
    for result in results:
        assert result.ok, result.describe()
        assert result.tolerance == (0 if result.unit == "units" else 1e-5)


@pytest.mark.parametrize("filter_", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC, Image.Resampling.BOX])
def test_a_changed_resize_is_caught(model: Path, monkeypatch: pytest.MonkeyPatch, filter_: int) -> None:
    resize = Image.Image.resize

    def other(self: Image.Image, size: tuple[int, int], _: int, **rest: Any) -> Image.Image:
        return resize(self, size, filter_, **rest)

    monkeypatch.setattr(Image.Image, "resize", other)
    _expect_failure(model, pixels_ok=False)


def test_a_changed_channel_order_is_caught(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = images._decode

    def bgr(image: Image.Image, name: str) -> Image.Image:
        return Image.merge("RGB", decode(image, name).split()[::-1])

    monkeypatch.setattr(images, "_decode", bgr)
    _expect_failure(model, pixels_ok=False)


def test_a_changed_brightness_is_caught(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda image, name: decode(image, name).point(lambda v: v / 255 * 250))
    _expect_failure(model, pixels_ok=False)


@pytest.mark.parametrize("change", [{"std": 128.5}, {"mean": 125.0}, {"mean": 0.0, "std": 255.0}])
def test_a_changed_scale_is_caught(pack_tiny: Callable[..., Path], tmp_path: Path, change: dict[str, float]) -> None:
    """Float models only: for integer models, opening compares the scale with the input contract."""
    opened = Classifier.open(pack_tiny("float32", tmp_path / "model.tflite"))
    changed = dataclasses.replace(opened.input, **change)
    classifier = Classifier(opened.model, opened.labels, changed, threads=1, bundle=opened.bundle)
    results = check_golden(classifier)
    assert all(result.pixels_ok for result in results)
    assert not any(result.ok for result in results)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_changed_offset_of_an_integer_model_is_caught(
    pack_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The interpreter gets other values than the pixels."""
    classifier = Classifier.open(pack_tiny(kind, tmp_path / "model.tflite"))
    invoke = classifier.model.invoke
    monkeypatch.setattr(classifier.model, "invoke", lambda batch: invoke(batch // 2))
    results = check_golden(classifier)
    assert all(result.pixels_ok for result in results)
    assert not any(result.ok for result in results)


def test_a_changed_fit_is_caught(model: Path) -> None:
    classifier = Classifier.open(model)
    classifier.input = dataclasses.replace(classifier.input, fit="center-crop")
    assert not any(result.ok for result in check_golden(classifier))


def test_tolerance_is_in_units(pack_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier.open(pack_tiny("uint8", tmp_path / "model.tflite"))
    invoke = classifier.model.invoke

    def two_units_off(batch: np.ndarray) -> np.ndarray:
        output = invoke(batch)
        return np.where(output > 127, output - 2, output + 2).astype(output.dtype)

    monkeypatch.setattr(classifier.model, "invoke", two_units_off)
    assert [result.difference for result in check_golden(classifier)] == [2, 2]
    assert not any(result.ok for result in check_golden(classifier))
    assert not any(result.ok for result in check_golden(classifier, tolerance_units=1))
    assert all(result.ok for result in check_golden(classifier, tolerance_units=2))


def test_foreign_models_have_nothing_to_check(tiny_flatbuffers: dict[str, bytes], tmp_path: Path) -> None:
    path, labels = tmp_path / "foreign.tflite", tmp_path / "labels.txt"
    path.write_bytes(tiny_flatbuffers["uint8"])
    labels.write_text("a\nb\nc\nd\n")
    assert check_golden(Classifier.open(path, labels_file=labels)) == []


def test_a_trained_model_of_real_size(smear_bundle: Path) -> None:
    for result in check_golden(Classifier.open(smear_bundle)):
        assert result.ok, result.describe()


def _expect_failure(model: Path, pixels_ok: bool) -> None:
    results = check_golden(Classifier.open(model))
    assert [result.pixels_ok for result in results] == [pixels_ok] * 2
    assert not any(result.ok for result in results)
    # Not by the pixels' digest alone: the outputs say so too.
    assert all(result.difference > result.tolerance for result in results)
