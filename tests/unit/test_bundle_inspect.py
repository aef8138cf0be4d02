from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures_models import LABELS, SPEC

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.edge_runtime.tools import golden
from edgeall.edge_runtime.tools.inspect import inspect_model


def test_a_packed_integer_model(tiny_bundle: Path) -> None:
    facts = json.loads(json.dumps(inspect_model(tiny_bundle).to_json()))
    assert list(facts) == [
        *("path", "file_bytes", "flatbuffer_bytes", "weights_bytes", "packed", "manifest", "labels", "normalization"),
        *("digest_ok", "golden_ok", "golden", "input", "output", "scores", "operators", "tensor_types"),
        *("float_tensors", "tflite_metadata", "model_card", "runtime", "signature_ok"),
    ]
    assert list(facts["golden"][0]) == ["name", "ok", "pixels_ok", "difference", "tolerance", "unit"]
    assert list(facts["input"][0]) == ["name", "type", "shape", "scale", "zero_point"]
    assert facts["packed"] is True
    assert facts["digest_ok"] is True
    assert facts["golden_ok"] is True
    assert [result["difference"] for result in facts["golden"]] == [0, 0]
    assert facts["labels"] == list(LABELS)
    assert facts["normalization"] == [127.5, 127.5]
    assert facts["manifest"]["quantization"] == {"scheme": "ptq-int8"}
    assert facts["file_bytes"] == tiny_bundle.stat().st_size
    assert 0 < facts["weights_bytes"] < facts["flatbuffer_bytes"] < facts["file_bytes"]
    assert facts["float_tensors"] == 0
    assert facts["operators"]["CONV_2D"] == 2
    assert facts["operators"]["SOFTMAX"] == 1
    (tensor,) = facts["input"]
    assert (tensor["type"], tensor["shape"]) == ("UINT8", [1, SPEC.height, SPEC.width, 3])
    assert tensor["scale"] == pytest.approx(1 / 127.5, rel=0.01)
    assert facts["tflite_metadata"] is True
    assert "not a diagnosis" in facts["model_card"]


def test_the_file_is_opened_and_checked_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr("edgeall.edge_runtime.classifier.open_bundle", again)
    assert inspect_model(tiny_bundle).golden_ok is True


def test_golden_outputs_that_are_not_numbers(
    pack_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, instead of NaN in the JSON."""
    model = pack_tiny("float32", tmp_path / "model.tflite")
    monkeypatch.setattr(Classifier, "dequantize", lambda _, units: units * np.float32(np.nan))
    with pytest.raises(BundleError, match=r"outputs for 0\.png are not finite"):
        inspect_model(model)


def test_a_packed_float_model(pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    facts = inspect_model(pack_tiny("float32", tmp_path / "model.tflite")).to_json()
    assert facts["float_tensors"] > 0
    assert facts["golden_ok"] is True
    assert facts["input"][0]["scale"] is None


def test_a_failing_golden_check_is_shown(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upside_down(image: object, spec: InputSpec) -> object:
        return golden_preprocess(image, spec)[::-1]  # type: ignore[arg-type]

    golden_preprocess = golden.preprocess
    monkeypatch.setattr(golden, "preprocess", upside_down)
    facts = inspect_model(tiny_bundle).to_json()
    assert facts["golden_ok"] is False
    assert not any(result["pixels_ok"] for result in facts["golden"])


def test_a_foreign_model(tiny_flatbuffers: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "foreign.tflite"
    path.write_bytes(tiny_flatbuffers["float32"])
    facts = inspect_model(path).to_json()
    assert facts["packed"] is False
    for unknown in ("manifest", "labels", "normalization", "digest_ok", "golden_ok", "model_card"):
        assert facts[unknown] is None, unknown
    assert facts["operators"]["CONV_2D"] == 2
