"""Public classifiers recognize the objects on three photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.edge_runtime.preprocess import load_input

V1_FLOAT = "mobilenet_v1_0.25_224_1_metadata_1.tflite"
V1_UINT8 = "mobilenet_v1_0.25_224_quant.tflite"
V2_UINT8 = "mobilenet_v2_1.0_224_quant.tflite"
MODELS = (V1_FLOAT, V1_UINT8, V2_UINT8)

CATS = ("tabby", "tiger cat", "Egyptian cat", "Persian cat", "Siamese cat")


@pytest.fixture
def foreign(test_data: Path) -> Path:
    return test_data / "foreign"


@pytest.mark.parametrize("name", MODELS)
def test_labels_and_normalization_come_from_the_metadata(foreign: Path, name: str) -> None:
    classifier = Classifier.open(foreign / name)
    assert classifier.input.mean == classifier.input.std == 127.5
    assert len(classifier.labels) == len(set(classifier.labels)) == 1001
    assert classifier.labels[0] == "background"
    assert not classifier.logits


@pytest.mark.parametrize("name", MODELS)
def test_a_burger_is_a_burger(foreign: Path, name: str) -> None:
    prediction = classify_one(Classifier.open(foreign / name), str(foreign / "burger-224.png"))
    assert prediction.label.startswith("cheeseburger")
    assert prediction.probability > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_a_cat_is_a_cat(foreign: Path, name: str) -> None:
    prediction = classify_one(Classifier.open(foreign / name), str(foreign / "cat_720p.jpg"))
    assert prediction.label.startswith(CATS)
    cats = sum(p for label, p in prediction.probabilities.items() if label.startswith(CATS))
    assert cats > 0.8


def test_a_table_of_objects_is_not_certain(foreign: Path) -> None:
    for name in MODELS:
        prediction = classify_one(Classifier.open(foreign / name), str(foreign / "multi_objects.jpg"))
        assert prediction.error is None
        assert prediction.probability < 0.6


@pytest.mark.parametrize("name", MODELS)
def test_flags_override_the_metadata(foreign: Path, name: str, tmp_path: Path) -> None:
    """A given label file, and the same normalization as in the metadata."""
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {index}\n" for index in range(1001)))
    by_flags = Classifier.open(foreign / name, labels_file=labels, mean=127.5, std=127.5)
    own = Classifier.open(foreign / name)
    pixels = load_input(foreign / "burger-224.png", own.input)
    np.testing.assert_array_equal(by_flags.predict(pixels), own.predict(pixels))
    best = int(own.predict(pixels).argmax())
    assert by_flags.labels[best] == f"class {best}"


def test_a_wrong_normalization_matters(foreign: Path) -> None:
    """Proves that the flags reach the model."""
    wrong = classify_one(Classifier.open(foreign / V1_FLOAT, mean=0, std=1), str(foreign / "burger-224.png"))
    assert not wrong.label.startswith("cheeseburger")


@pytest.mark.parametrize("name", MODELS)
def test_same_units_as_ten_lines_around_the_interpreter(foreign: Path, name: str) -> None:
    classifier = Classifier.open(foreign / name, threads=1)
    pixels = load_input(foreign / "cat_720p.jpg", classifier.input)
    model = Interpreter(model_path=str(foreign / name), num_threads=1)
    model.allocate_tensors()
    detail = model.get_input_details()[0]
    fed = pixels if detail["dtype"] == np.uint8 else (pixels.astype(np.float32) - 127.5) / 127.5
    model.set_tensor(detail["index"], fed[None])
    model.invoke()
    expected = model.get_tensor(model.get_output_details()[0]["index"])[0]
    np.testing.assert_array_equal(classifier.predict_units(pixels), expected)
