"""The Python interface: every example of its documentation runs, and `import edgeall` loads nothing."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import grainy_image

import edgeall
from edgeall import api
from edgeall.edge_runtime.errors import BundleError, ImageError

LIGHT = ("edgeall.api", "edgeall.api.Model", "edgeall.api.Model.classify", "edgeall.api.Model.classify_folder")
LIGHT += ("edgeall.api.load", "edgeall.api.inspect_model")
"""Examples that need a model file only."""


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.tflite").write_bytes(tiny_bundle.read_bytes())
    grainy_image(1).save(tmp_path / "photo.jpg")
    (tmp_path / "smears").mkdir()
    for number in range(2):
        grainy_image(number).save(tmp_path / "smears" / f"{number}.png")
    return tmp_path


def examples() -> dict[str, list[doctest.Example]]:
    found = doctest.DocTestFinder(exclude_empty=True).find(api, "edgeall.api", module=api)
    return {test.name: test.examples for test in found if test.examples}


def run_examples(name: str, variables: dict[str, Any]) -> None:
    """Run the examples; what each gives has the type of the documented result."""
    for example in examples()[name]:
        try:
            expression = compile(example.source, name, "eval")
        except SyntaxError:
            exec(compile(example.source, name, "exec"), variables)
            continue
        result = eval(expression, variables)
        if example.want:
            assert type(result) is type(ast.literal_eval(example.want)), example.source


def test_every_function_has_an_example() -> None:
    assert set(examples()) == {
        *LIGHT,
        *(f"edgeall.api.{name}" for name in ("train_model", "quantize_run", "evaluate_model")),
    }


@pytest.mark.parametrize("name", LIGHT)
def test_examples_with_a_model_run(folder: Path, name: str) -> None:
    run_examples(name, {"edgeall": edgeall, "model": edgeall.load("model.tflite")})


def test_examples_with_a_run(tiny_run: Path, tiny_settings: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three examples in the order of the work; the run of the first one has been trained already."""
    (folder / "runs").mkdir()
    (folder / "runs" / "a035").symlink_to(tiny_run)
    (folder / "model.tflite").unlink()
    asked: list[Any] = []

    def trained(settings: Any, progress: Any) -> Any:
        asked.append(settings)
        from edgeall.train.runs import load_run

        return load_run(tiny_run)

    monkeypatch.setattr("edgeall.train.run.train", trained)
    for name in ("train_model", "quantize_run", "evaluate_model"):
        run_examples(f"edgeall.api.{name}", {"edgeall": edgeall})
    assert (asked[0].data, asked[0].out, asked[0].alpha) == (Path("smears"), Path("runs/a035"), 0.35)
    assert edgeall.load("model.tflite").labels


def test_files_pillow_images_and_pixels_give_the_same(folder: Path) -> None:
    model = edgeall.load("model.tflite")
    image = grainy_image(0)
    by_file, by_image = model.classify("smears/0.png"), model.classify(image)
    by_pixels = model.classify(np.asarray(image))
    assert dict(by_file.probabilities) == dict(by_image.probabilities) == dict(by_pixels.probabilities)


def test_faults_are_the_documented_errors(folder: Path) -> None:
    model = edgeall.load("model.tflite")
    (folder / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError):
        model.classify("bad.jpg")
    (folder / "smears" / "bad.jpg").write_bytes(b"no image")
    assert [bool(found.error) for found in model.classify_folder("smears")] == [False, False, True]
    with pytest.raises(BundleError):
        edgeall.load("bad.jpg")


def test_importing_edgeall_loads_nothing_heavy() -> None:
    heavy = {"numpy", "PIL", "tensorflow", "click"}
    code = f"import sys, edgeall; print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(edgeall.__all__) <= set(dir(edgeall))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgeall.nonsense


def test_the_module_runs_as_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "edgeall", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("edgeall ")
