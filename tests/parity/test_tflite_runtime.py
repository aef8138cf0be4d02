"""The runtime of 32-bit Arm, tflite-runtime 2.14 with numpy 1, in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import venvs

REQUIREMENTS = ("tflite-runtime==2.14.0", "numpy<2", "pillow>=10.1", "flatbuffers>=23", "click>=8.1")

PROGRAM = """
import dataclasses, json, sys
import numpy
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.golden import check_golden
from edgeall.edge_runtime.inspect import inspect_model

assert int(numpy.__version__.split(".")[0]) == 1
classifier = Classifier.open(sys.argv[1], threads=1)
assert classifier.model.runtime == "tflite_runtime"
facts = inspect_model(sys.argv[1])
print(json.dumps({
    "results": [dataclasses.asdict(result) | {"ok": result.ok} for result in check_golden(classifier)],
    "golden_ok": facts["golden_ok"],
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
        pytest.skip(f"tflite-runtime can't be installed here: {str(error).strip().splitlines()[-1]}")


@pytest.fixture
def golden_there(runtime_python: Path, repository: Path, tmp_path: Path) -> Callable[[Path], dict[str, object]]:
    """Runs the golden check of a model there."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "edgeall").symlink_to(repository)

    def check(model: Path) -> dict[str, object]:
        command = [str(runtime_python), "-B", "-W", "error", "-c", PROGRAM, str(model)]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        answer: dict[str, object] = json.loads(result.stdout)
        return answer

    return check


def test_integer_model_within_three_units(
    smear_bundle: Path, golden_there: Callable[[Path], dict[str, object]]
) -> None:
    answer = golden_there(smear_bundle)
    results = answer["results"]
    assert isinstance(results, list)
    assert len(results) == 3
    for result in results:
        assert result["unit"] == "units"
        assert result["tolerance"] == 3
        assert result["pixels_ok"]
        assert result["difference"] <= 3
        assert result["ok"]
    assert answer["golden_ok"] is True
    assert answer["runtime"] == "tflite-runtime 2.14.0"
    assert answer["heavy"] == []


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32"])
def test_tiny_models(
    kind: str, pack_tiny: Callable[..., Path], golden_there: Callable[[Path], dict[str, object]], tmp_path: Path
) -> None:
    answer = golden_there(pack_tiny(kind, tmp_path / "model.tflite"))
    assert answer["golden_ok"] is True, answer
