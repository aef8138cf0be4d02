"""The runtime of 32-bit Arm, tflite-runtime 2.14 with numpy 1, in a separate environment."""

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
from agreement import UNITS_ROUNDING, assert_same_answers, assert_same_labels, with_builtin_kernels
from fixtures_models import LABELS

from edgeall.edge_runtime.pipeline import classify
from edgeall.edge_runtime.tools.golden import UNITS_TOLERANCE, check_golden

REQUIREMENTS = ("tflite-runtime==2.14.0", "numpy<2", "pillow>=10.1", "flatbuffers>=23", "click>=8.1")

PROGRAM = """
import dataclasses, json, sys
import numpy
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.edge_runtime.tools.inspect import inspect_model
from edgeall.edge_runtime.pipeline import classify

assert int(numpy.__version__.split(".")[0]) == 1
classifier = Classifier.open(sys.argv[1], threads=1)
images = sys.stdin.read().splitlines()
assert classifier.model.runtime == "tflite_runtime"
facts = inspect_model(sys.argv[1])
predictions = list(classify(classifier, images))
print(json.dumps({
    "results": [dataclasses.asdict(result) | {"ok": result.ok} for result in check_golden(classifier)],
    "golden_ok": facts.golden_ok,
    "labels": [prediction.label for prediction in predictions],
    "probabilities": [list(prediction.probabilities.values()) for prediction in predictions],
    "runtime": facts.runtime,
    "heavy": sorted({name.split(".")[0] for name in sys.modules} & {"tensorflow", "ai_edge_litert", "keras"}),
}))
"""


@pytest.fixture(scope="session")
def runtime_python() -> Path:
    """The Python 3.11 of an environment with tflite-runtime, created once."""
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if python is None:
        pytest.skip("tflite-runtime 2.14 needs Python 3.11, which is not here")
    try:
        return venvs.make_venv(venvs.CACHED / "tflite-runtime", REQUIREMENTS, python)
    except AssertionError as error:
        venvs.unavailable(f"tflite-runtime can't be installed here: {str(error).strip().splitlines()[-1]}")


@pytest.fixture
def there(runtime_python: Path, repository: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``there(model, images)`` runs the golden check with that Python, and classifies the images."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "edgeall").symlink_to(repository)

    def check(model: Path, images: Sequence[str] = ()) -> dict[str, Any]:
        command = [str(runtime_python), "-B", "-W", "error", "-c", PROGRAM, str(model)]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
        names = "\n".join(images)
        result = subprocess.run(
            command, input=names, env=environment, capture_output=True, text=True, timeout=venvs.HANG_S
        )
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    return check


def test_integer_kernels_are_those_that_litert_has_too(
    smear_bundle: Path, test_data: Path, there: Callable[..., dict[str, Any]]
) -> None:
    """Per image on real images of every class; labels may only swap within one unit."""
    images = [str(file) for label in LABELS for file in sorted((test_data / "all4" / label).iterdir())[1::80]]
    here = with_builtin_kernels(smear_bundle)
    ours = [list(prediction.probabilities.values()) for prediction in classify(here, images)]
    answer = there(smear_bundle, images)
    assert len(ours) >= 30
    assert_same_answers(ours, answer["probabilities"], UNITS_ROUNDING * here.model.output.scale)
    assert_same_labels(ours, list(map(LABELS.index, answer["labels"])), UNITS_ROUNDING * here.model.output.scale)
    assert answer["runtime"] == "tflite-runtime 2.14.0"
    assert answer["heavy"] == []


def test_the_golden_check_finds_there_what_these_kernels_differ_by(
    smear_bundle: Path, there: Callable[..., dict[str, Any]]
) -> None:
    _check_golden(smear_bundle, there(smear_bundle))


def _check_golden(model: Path, answer: dict[str, Any]) -> None:
    """The difference of these kernels from XNNPACK on a golden image depends on the network: it is computed here."""
    expected = check_golden(with_builtin_kernels(model), tolerance_units=UNITS_TOLERANCE["tflite_runtime"])
    assert expected
    for found, here in zip(answer["results"], expected, strict=True):
        assert (found["name"], found["unit"], found["tolerance"]) == (here.name, "units", 3)
        assert found["pixels_ok"]
        assert abs(found["difference"] - here.difference) <= UNITS_ROUNDING
        assert found["ok"] == (found["difference"] <= 3)
    assert answer["golden_ok"] == all(result["ok"] for result in answer["results"])


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32"])
def test_tiny_models(
    kind: str, pack_tiny: Callable[..., Path], there: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    model = pack_tiny(kind, tmp_path / "model.tflite")
    answer = there(model)
    if kind == "float32":
        assert answer["golden_ok"] is True, answer
    else:
        _check_golden(model, answer)


@pytest.mark.parametrize("scheme", ["ptq-int8", "qat-int8"])
def test_what_quantize_makes(
    scheme: str, tiny_models: dict[str, dict[str, Any]], there: Callable[..., dict[str, Any]]
) -> None:
    """Files of `edgeall quantize`, e.g. with a dense layer quantized per channel."""
    model = Path(tiny_models[scheme]["out"])
    _check_golden(model, there(model))
