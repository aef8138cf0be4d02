"""Grad-CAM of a trained network, and the overlays that `edgeall evaluate --explain` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.preprocess import normalize
from edgeall.edge_runtime.tools.explain import evidence
from edgeall.models.keras_compat import keras
from edgeall.train.data.split import load_split
from edgeall.train.data.synth import TRUTH
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.evaluation.gradcam import grad_cam
from edgeall.train.runs import input_spec, load_model, load_run


def test_of_averaged_features_it_is_the_class_activation_map(tiny_run: Path) -> None:
    facts = load_run(tiny_run)
    model, spec = load_model(tiny_run, facts), input_spec(facts.settings)
    random = np.random.default_rng(0)
    images = normalize(random.integers(0, 256, (4, spec.height, spec.width, 3), np.uint8), spec)
    last = [layer for layer in model.layers if len(layer.output_shape) == 4][-1]
    features, logits = keras.Model(model.input, [last.output, model.get_layer("logits").output]).predict(
        images, verbose=0
    )
    kernel, bias = model.get_layer("logits").get_weights()
    for label in range(4):
        found = grad_cam(model, images, [label] * 4)
        assert found == pytest.approx(evidence(features, kernel.T)[..., label], abs=1e-4)
        assert found.mean(axis=(1, 2)) + bias[label] == pytest.approx(logits[:, label], abs=1e-4)


def test_evaluate_writes_overlays(tiny_run: Path, tiny_settings: Any, synthetic_fields: Path, tmp_path: Path) -> None:
    entries = load_split(tiny_run / "split.json").subset("test")
    folder = tmp_path / "why"
    metrics = evaluate(
        tiny_run, EvaluateSettings(explain=folder, cache_dir=tiny_settings.cache_dir), Progress(quiet=True)
    ).to_json()
    cells = metrics["on_cells"]
    masks = [(synthetic_fields / TRUTH / entry.path).with_suffix(".mask.png") for entry in entries]
    size = (tiny_settings.input_size,) * 2
    covered = [np.asarray(Image.open(mask).resize(size, Image.Resampling.NEAREST)) > 0 for mask in masks]
    assert cells["area"] == pytest.approx(np.mean(covered))
    assert 0 <= cells["evidence"] <= 1
    wrong = round((1 - metrics["accuracy"]) * metrics["images"])
    names = [path.name for path in folder.iterdir()]
    assert sum(name.startswith("wrong-") for name in names) == min(wrong, 8)
    assert sum(name.startswith("unsure-") for name in names) == min(metrics["images"] - min(wrong, 8), 8)
