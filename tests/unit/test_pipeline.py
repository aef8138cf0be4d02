from __future__ import annotations

import json
import os
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from fixtures_models import LABELS, grainy_image, png

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import DataError
from edgeall.edge_runtime.pipeline import Prediction, classify, expand
from edgeall.edge_runtime.preprocess import load_input


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(["b/2.png", "a/1.png", "a/3.PNG", "a/.hidden/4.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(grainy_image(index)))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_expand_finds_images_in_order(folder: Path) -> None:
    found = [os.path.relpath(path, folder) for path in expand([folder / "b", folder, folder / "a" / "notes.txt"])]
    assert found == ["b/2.png", "a/1.png", "a/3.PNG", "b/2.png", "a/notes.txt"]


def test_expand_refuses_before_the_first_image(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such file or folder"):
        expand([folder, tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        expand([folder, tmp_path / "empty"])


def test_predictions_are_the_classifier_s(tiny_bundle: Path, folder: Path) -> None:
    classifier = Classifier.open(tiny_bundle)
    predictions = list(classify(classifier, [folder]))
    assert len(predictions) == 3
    for prediction in predictions:
        probabilities = classifier.predict(load_input(prediction.image, classifier.input))
        assert prediction.probabilities == dict(zip(LABELS, map(float, probabilities), strict=True))
        assert prediction.label == LABELS[int(probabilities.argmax())]
        assert prediction.probability == max(prediction.probabilities.values())
        assert not prediction.review
        assert prediction.error is None


def test_json_line(tiny_bundle: Path, folder: Path) -> None:
    line = json.loads(json.dumps(next(classify(Classifier.open(tiny_bundle), [folder])).as_json()))
    assert list(line) == ["image", "label", "probability", "probabilities", "review", "reason", "novelty"]
    assert list(line["probabilities"]) == list(LABELS)


def test_a_bad_image_is_reported_and_the_others_continue(tiny_bundle: Path, folder: Path) -> None:
    (folder / "a" / "2.png").write_bytes((folder / "a" / "1.png").read_bytes()[:100])
    (folder / "a" / "0.jpg").write_bytes(b"")
    predictions = list(classify(Classifier.open(tiny_bundle), [folder]))
    assert [prediction.error is None for prediction in predictions] == [False, True, False, True, True]
    bad = predictions[0].as_json()
    assert list(bad) == ["image", "error"]
    assert "the file is empty" in bad["error"]
    assert "truncated" in str(predictions[2].error)


@pytest.mark.parametrize(("kind", "value"), [("float32", np.nan), ("logits", np.nan), ("logits", np.inf)])
def test_outputs_that_are_not_numbers_are_not_labels(
    tiny_flatbuffers: dict[str, bytes], folder: Path, tmp_path: Path, kind: str, value: float
) -> None:
    """A foreign model, which has no digest, with one damaged weight."""
    model, labels = tmp_path / "model.tflite", tmp_path / "labels.txt"
    model.write_bytes(spoilt(tiny_flatbuffers[kind], value))
    labels.write_text("\n".join(LABELS))
    predictions = list(classify(Classifier.open(model, labels_file=labels, mean=127.5, std=127.5), [folder]))
    assert len(predictions) == 3
    for prediction in predictions:
        assert prediction.error is not None
        assert "not finite" in prediction.error
        assert "NaN" not in json.dumps(prediction.as_json())


def spoilt(flatbuffer: bytes, value: float) -> bytes:
    """``flatbuffer`` with ``value`` as the first bias of its last layer."""
    interpreter = Interpreter(model_content=flatbuffer)
    interpreter.allocate_tensors()
    for detail in interpreter.get_tensor_details():
        if tuple(detail["shape"]) == (len(LABELS),) and detail["dtype"] == np.float32:
            bias = interpreter.get_tensor(detail["index"])
            assert flatbuffer.count(bias.tobytes()) == 1
            changed = bias.copy()
            changed[0] = value
            return flatbuffer.replace(bias.tobytes(), changed.tobytes())
    raise AssertionError("the model has no bias")


def test_review_zone(pack_tiny: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    model = pack_tiny("uint8", tmp_path / "model.tflite")
    sure = [p.probability for p in classify(Classifier.open(model), [folder])]
    threshold = sorted(sure)[1]
    model = pack_tiny("uint8", tmp_path / "model.tflite", decision={"review_below": threshold})
    predictions = list(classify(Classifier.open(model), [folder]))
    assert [p.review for p in predictions] == [p < threshold for p in sure]
    assert any(p.review for p in predictions)
    assert not all(p.review for p in predictions)


def test_nothing_is_read_ahead(tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: an image is opened only when its prediction is requested."""
    opened: list[str] = []

    def load(path: str, spec: object) -> object:
        opened.append(path)
        return load_input(path, spec)  # type: ignore[arg-type]

    monkeypatch.setattr("edgeall.edge_runtime.pipeline.load_input", load)
    predictions = classify(Classifier.open(tiny_bundle), [folder])
    assert isinstance(predictions, types.GeneratorType)
    assert opened == []
    next(predictions)
    assert len(opened) == 1


def test_an_error_has_no_other_fields() -> None:
    assert Prediction("x.png", error="bad").as_json() == {"image": "x.png", "error": "bad"}
