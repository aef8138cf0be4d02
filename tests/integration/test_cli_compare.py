"""`edgeall compare` in its three forms, with real runs: what is printed after the work, as text and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeall import cli
from edgeall.commands.output import SYNTHETIC
from edgeall.optimize.experiments import grid_config
from edgeall.optimize.experiments.grid_config import Grid

Printed = tuple[str, dict[str, Any]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[object]], Printed]:
    """The same command twice, for people and with ``--json``; both end well and say that the images are synthetic."""

    def call(arguments: Sequence[object]) -> Printed:
        said = []
        for form in ([], ["--json"]):
            capsys.readouterr()
            assert cli.main([*map(str, arguments), *form]) == 0
            out, err = capsys.readouterr()
            assert SYNTHETIC in err
            said.append(out)
        return said[0], json.loads(said[1])

    return call


def test_of_runs(printed: Callable[..., Printed], tiny_run: Path, tiny_settings: Any, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        shutil.copytree(tiny_run, run)
    where = ["--out", tmp_path / "out", "--cache-dir", tiny_settings.cache_dir]
    text, result = printed(["compare", *runs, "--schemes", "float32", *where])
    assert result["synthetic"] is True
    assert [row["model"] for row in result["rows"]] == ["one", "two"]
    assert [line.split()[:2] for line in text.splitlines()[2:4]] == [["one", "float32"], ["two", "float32"]]
    assert f"report: {tmp_path / 'out' / 'compare.html'}" in text


@pytest.mark.long
def test_of_backbones(
    printed: Callable[..., Printed], synthetic_fields: Path, tiny_settings: Any, tmp_path: Path
) -> None:
    how = ["--models", "basic_cnn", "--protocol", "60-20-20", "--schemes", "ptq-int8", "--weights", "none"]
    small = ["--epochs-finetune", 1, "--input-size", 32, "--cache-dir", tiny_settings.cache_dir]
    text, result = printed(["compare", "--data", synthetic_fields, *how, *small, "--out", tmp_path / "out"])
    assert result["protocol"]["name"] == "60-20-20"
    assert [row["model"] for row in result["rows"]] == ["basic_cnn"]
    assert text.splitlines()[2].split()[:2] == ["basic_cnn", "ptq-int8"]


def test_of_the_grid(
    printed: Callable[..., Printed],
    synthetic_fields: Path,
    tiny_settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole command on a grid of one point: those of grid-48 take minutes each."""
    monkeypatch.setattr(
        grid_config,
        "GRID_48",
        Grid("grid-1", "this test", ("basic_cnn",), ("global-70-15-15",), (0.01,), (0.2,), 1),
    )
    small = ["--weights", "none", "--input-size", 32, "--cache-dir", tiny_settings.cache_dir]
    arguments = ["compare", "--data", synthetic_fields, "--protocol", "grid-48", *small, "--out", tmp_path / "out"]
    text, result = printed(arguments)
    assert [(row["learning_rate"], row["state"]) for row in result["rows"]] == [(0.01, "done")]
    assert result["grid"]["models"] == ["basic_cnn"]
    assert text.splitlines()[2].split()[0] == "basic_cnn"
    assert f"test accuracy {100 * result['best']['test_accuracy']:.2f} %" in text
