"""The runtime of 32-bit Arm, tflite-runtime 2.14 with numpy 1, in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import venvs
from fixtures_models import LABELS

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify

REQUIREMENTS = ("tflite-runtime==2.14.0", "numpy<2", "pillow>=10.1", "flatbuffers>=23", "click>=8.1")

PROGRAM = """
import dataclasses, json, sys
import numpy
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.golden import check_golden
from edgeall.edge_runtime.tools.inspect import inspect_model
from edgeall.edge_runtime.pipeline import classify

assert int(numpy.__version__.split(".")[0]) == 1
classifier = Classifier.open(sys.argv[1], threads=1)
images = sys.stdin.read().splitlines()
assert classifier.model.runtime == "tflite_runtime"
facts = inspect_model(sys.argv[1])
print(json.dumps({
    "results": [dataclasses.asdict(result) | {"ok": result.ok} for result in check_golden(classifier)],
    "golden_ok": facts["golden_ok"],
    "labels": [prediction.label for prediction in classify(classifier, images)],
    "runtime": facts["runtime"],
    "heavy": sorted({name.split(".")[0] for name in sys.modules} & {"tensorflow", "ai_edge_litert", "keras"}),
}))
"""


@pytest.fixture(scope="session")
def runtime_python() -> Path:
    """The Python 3.11 of an environment with tflite-runtime, made once."""
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if python is None:
        pytest.skip("tflite-runtime 2.14 needs Python 3.11, which is not here")
    try:
        return venvs.make_venv(venvs.CACHED / "tflite-runtime", REQUIREMENTS, python)
    except AssertionError as error:
        venvs.unavailable(f"tflite-runtime can't be installed here: {str(error).strip().splitlines()[-1]}")


@pytest.fixture
def there(runtime_python: Path, repository: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``there(model, images)`` runs the golden check there, and classifies the images."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "edgeall").symlink_to(repository)

    def check(model: Path, images: Sequence[str] = ()) -> dict[str, Any]:
        command = [str(runtime_python), "-B", "-W", "error", "-c", PROGRAM, str(model)]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
        names = "\n".join(images)
        result = subprocess.run(command, input=names, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    return check


def test_integer_model_within_three_units(smear_bundle: Path, there: Callable[..., dict[str, Any]]) -> None:
    answer = there(smear_bundle)
    assert len(answer["results"]) >= 2
    for result in answer["results"]:
        assert result["unit"] == "units"
        assert result["tolerance"] == 3
        assert result["pixels_ok"]
        assert result["difference"] <= 3
        assert result["ok"]
    assert answer["golden_ok"] is True
    assert answer["runtime"] == "tflite-runtime 2.14.0"
    assert answer["heavy"] == []


def test_same_labels_on_real_images(smear_bundle: Path, test_data: Path, there: Callable[..., dict[str, Any]]) -> None:
    """Its kernels round differently, so where two classes are even they may swap; seldom."""
    images = [str(file) for label in LABELS for file in sorted((test_data / "all4" / label).iterdir())[1::20]]
    ours = [prediction.label for prediction in classify(Classifier.open(smear_bundle), images)]
    theirs = there(smear_bundle, images)["labels"]
    assert len(ours) >= 100
    assert sum(map(str.__eq__, ours, theirs)) / len(ours) >= 0.96


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32"])
def test_tiny_models(
    kind: str, pack_tiny: Callable[..., Path], there: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    answer = there(pack_tiny(kind, tmp_path / "model.tflite"))
    assert answer["golden_ok"] is True, answer


@pytest.mark.parametrize("scheme", ["ptq-int8", "qat-int8"])
def test_what_quantize_makes(
    scheme: str, tiny_models: dict[str, dict[str, Any]], there: Callable[..., dict[str, Any]]
) -> None:
    """The product's own files, the dense layer quantized per channel among other things."""
    assert there(Path(tiny_models[scheme]["out"]))["golden_ok"] is True
