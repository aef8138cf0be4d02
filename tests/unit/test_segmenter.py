"""The device's side of segmentation: the manifest's task, `Segmenter`, masks on disk, golden masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import SPEC, grainy_image, png
from fixtures_packed import repack
from PIL import Image

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, ImageError, UsageError
from edgeall.edge_runtime.manifest import parse_manifest
from edgeall.edge_runtime.masks import CLASSES, GREYS, classes_of, mask_image, open_mask
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.edge_runtime.segmenter import STEPS, Segmenter
from edgeall.edge_runtime.tasks import open_model
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.edge_runtime.tools.inspect import inspect_model, inspect_text

TILE = preprocess(grainy_image(5), SPEC)


def test_the_integer_output_is_given_as_it_is(tiny_segmenter: Path) -> None:
    segmenter = Segmenter.open(tiny_segmenter)
    found = segmenter.infer(TILE)
    assert found.probabilities.dtype == np.uint8 and found.probabilities.shape == (SPEC.height, SPEC.width, 3)
    np.testing.assert_array_equal(found.probabilities, segmenter.invoke(TILE)[0])
    assert np.abs(found.probabilities.sum(axis=2, dtype=int) - STEPS).max() <= 3, "each class is rounded by itself"
    assert len(np.unique(found.classes)) == 3 and found.classes.dtype == np.uint8
    assert segmenter.labels == CLASSES and segmenter.red_cell_px == 28.0


def test_a_float_model_agrees_within_the_steps_of_the_integer_one(
    tiny_segmenter: Path, pack_masks: Callable[..., Path], tmp_path: Path
) -> None:
    exact = Segmenter.open(pack_masks("float32", tmp_path / "float.tflite")).infer(TILE)
    found = Segmenter.open(tiny_segmenter).infer(TILE)
    assert exact.probabilities.dtype == np.uint8
    assert (exact.classes == found.classes).mean() > 0.9
    assert exact.red_cell == pytest.approx(found.red_cell, abs=0.15)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_golden_masks_are_verified(kind: str, pack_masks: Callable[..., Path], tmp_path: Path) -> None:
    model = pack_masks(kind, tmp_path / "model.tflite")
    assert all(result.ok for result in check_golden(open_model(open_bundle(model), 1)))

    def other_size(golden: dict[str, Any]) -> None:
        golden["images"][0]["red_cell"] += 0.5

    changed = check_golden(Segmenter.open(repack(model, tmp_path / "changed.tflite", other_size)))
    assert [result.ok for result in changed] == [False, True]

    def swapped(golden: dict[str, Any]) -> None:
        first, second = golden["images"]
        first["mask"], second["mask"] = second["mask"], first["mask"]

    facts = inspect_model(repack(model, tmp_path / "swapped.tflite", swapped))
    assert facts.golden_ok is False and "NOT as packed" in inspect_text(facts)


def test_inspect_shows_the_task(tiny_segmenter: Path) -> None:
    facts = inspect_model(tiny_segmenter)
    assert facts.manifest is not None
    assert facts.golden_ok is True and facts.manifest["task"] == "segmentation"
    assert facts.manifest["segmentation"] == {"red_cell_px": 28}
    assert "segmentation" in inspect_text(facts)


def test_each_class_refuses_the_other_task(tiny_segmenter: Path, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="a segmentation model, where a classifier is needed"):
        Classifier.open(tiny_segmenter)
    with pytest.raises(BundleError, match="a classification model, not a segmentation model"):
        Segmenter.open(tiny_bundle)


def test_a_manifest_without_a_task_is_a_classifiers(tiny_bundle: Path, tiny_segmenter: Path) -> None:
    packed = open_bundle(tiny_bundle).manifest
    assert packed is not None
    values = json.loads(packed.to_json())
    assert "segmentation" not in values
    del values["task"]
    assert parse_manifest(json.dumps(values), "m").task == "classification"
    masks = open_bundle(tiny_segmenter).manifest
    assert masks is not None
    for wrong in ({}, {"red_cell_px": "28"}, {"red_cell_px": 0}):
        with pytest.raises(BundleError, match="red_cell_px"):
            parse_manifest(json.dumps(json.loads(masks.to_json()) | {"segmentation": wrong}), "m")


def test_masks_come_back_as_they_were_written(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    mask_image(classes).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(open_mask(tmp_path / "mask.png", (30, 20)), classes)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "mask.png")))) == set(GREYS)


def test_a_wrong_mask_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(Image.new("L", (30, 20), 128)))
    with pytest.raises(ImageError, match="30x20 pixels, its image 20x30"):
        open_mask(path, (20, 30))
    with pytest.raises(ImageError, match="600 pixels of the mask have other values, such as 127"):
        classes_of(Image.new("RGB", (30, 20), (127, 127, 127)), "mask.png")
    with pytest.raises(ImageError, match="such as RGB"):
        classes_of(Image.new("RGB", (30, 20), (0, 128, 255)), "mask.png")
