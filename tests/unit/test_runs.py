"""Errors of commands that take a RUN for a path that is not a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeall import cli
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.errors import BundleError, DataError
from edgeall.train.runs import load_run


def saved_model(folder: Path) -> Path:
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").touch()
    return folder / "saved"


def file(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text("x")
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "what", "hint"),
    [
        (file("model.keras"), "a Keras model", "edgeall import"),
        (file("model.H5"), "a Keras model", "edgeall import"),
        (saved_model, "a Keras model", "edgeall import"),
        (file("model.tflite"), "a model file", "`edgeall run`, `evaluate` and `bench`"),
        (file("run.zip"), "a file", "the folder made by `edgeall train --out`"),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "prune", "compare", "evaluate"])
def test_a_model_from_elsewhere_is_not_a_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    what: str,
    hint: str,
    command: str,
) -> None:
    path = make(tmp_path)
    options = {
        "quantize": ["--scheme", "ptq-int8", "--out", tmp_path / "m.tflite"],
        "prune": ["--sparsity", "0.5", "--out", tmp_path / "pruned"],
        "compare": ["--out", tmp_path / "compared"],
        "evaluate": ["--data", tmp_path],
    }[command]
    if command == "evaluate" and what != "a Keras model":
        return  # any other file is a model file, or none that can be opened
    status = cli.main([command, str(path), *map(str, options)])
    said = capsys.readouterr().err
    assert status == 1 and f"{path}: {what}, not a run folder made by `edgeall train`" in said and hint in said


def test_the_model_of_a_run_leads_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "model.keras").touch()
    with pytest.raises(DataError, match="not a run folder") as caught:
        load_run(tmp_path / "model.keras")
    assert caught.value.hint == f"give its folder: {tmp_path}"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 99}'])
def test_a_damaged_run_json_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        load_run(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a complete run"):
        load_run(tmp_path)


def test_what_is_not_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a Keras model, not a") as caught:
        open_bundle(file("model.keras")(tmp_path))
    assert "edgeall import" in caught.value.hint
    with pytest.raises(BundleError, match="a folder, not a") as caught:
        open_bundle(tmp_path)
    assert "edgeall quantize" in caught.value.hint
