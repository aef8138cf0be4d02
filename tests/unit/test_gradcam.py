from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.models.keras_compat import keras
from edgeall.train.evaluation.gradcam import Explained, grad_cam, on_cells, select_examples


def test_a_head_without_pooling() -> None:
    """A dense layer on the flattened map: the evidence is the gradient times the map."""
    layers = keras.layers
    inputs = layers.Input((12, 12, 3))
    features = layers.Conv2D(4, 3, activation="relu", name="map")(inputs)
    logits = layers.Dense(2, name="logits")(layers.Flatten()(features))
    model = keras.Model(inputs, layers.Softmax()(logits))
    images = np.random.default_rng(0).normal(0, 1, (2, 12, 12, 3)).astype(np.float32)
    seen = keras.Model(inputs, features).predict(images, verbose=0)
    kernel = model.get_layer("logits").get_weights()[0].reshape(10, 10, 4, 2)
    found = grad_cam(model, images, [1, 0])
    assert found[0] == pytest.approx(seen[0] @ kernel[..., 1].sum(axis=(0, 1)), abs=1e-4)
    assert found[1] == pytest.approx(seen[1] @ kernel[..., 0].sum(axis=(0, 1)), abs=1e-4)


def test_evidence_on_cells_is_counted(tmp_path: Path) -> None:
    """A network that only uses brightness, and masks of the bright or the dark half."""
    layers = keras.layers
    inputs = layers.Input((32, 32, 3))
    features = layers.AveragePooling2D(4)(inputs)
    pooled = layers.GlobalAveragePooling2D()(layers.ReLU()(features))
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(2, name="logits")(pooled)))
    model.get_layer("logits").set_weights([np.ones((3, 2), np.float32), np.zeros(2, np.float32)])
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[:, :, :16] = 255
    cell = np.zeros((32, 32), np.uint8)
    cell[:, :16] = 2
    (tmp_path / ".truth" / "a").mkdir(parents=True)
    half = np.full((2, 2), 0.5, np.float32)
    images = Explained(model, InputSpec(32, 32), pixels, half, ["a/1.png", "a/2.png"])
    Image.fromarray(cell).save(tmp_path / ".truth" / "a" / "1.mask.png")
    assert on_cells(images, tmp_path) is None
    Image.fromarray(cell).save(tmp_path / ".truth" / "a" / "2.mask.png")
    found = on_cells(images, tmp_path)
    assert found is not None and found["evidence"] > 0.9 and found["area"] == 0.5
    for name in ("1", "2"):
        Image.fromarray(2 - cell).save(tmp_path / ".truth" / "a" / f"{name}.mask.png")
    found = on_cells(images, tmp_path)
    assert found is not None and found["evidence"] < 0.1


def test_wrong_and_uncertain_examples_are_selected() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.51, 0.49], [0.05, 0.95]], np.float32)
    assert select_examples(probabilities, np.array([0, 1, 0, 0])) == [
        (3, "wrong"),
        (1, "wrong"),
        (2, "unsure"),
        (0, "unsure"),
    ]
