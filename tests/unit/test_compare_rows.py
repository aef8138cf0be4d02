"""The tables of a comparison and of a grid: rows, Pareto front, paired comparisons, pruned models, CSV and text."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeall.edge_runtime.results import from_json
from edgeall.optimize.experiments.compare_report import pruned_pairs
from edgeall.optimize.experiments.compare_result import ComparedModel, ComparedRow, Comparison
from edgeall.optimize.experiments.compare_table import (
    against_best,
    compare_text,
    mark_front,
    notes_of,
    rows_of,
    write_csv,
)
from edgeall.optimize.experiments.grid import _write_csv
from edgeall.optimize.experiments.grid_result import GridResult, grid_text

GOLDEN = Path(__file__).with_name("golden")
COMPARED = json.loads(GOLDEN.joinpath("compare.json").read_text())
COMPARISONS = {name: from_json(Comparison, COMPARED[name]) for name in ("two", "folds")}
TESTED_ON = {"one": "a", "two": "a", "else": "b"}


def row(model: str, accuracy: float, ms: float = 1.0) -> ComparedRow:
    return replace(COMPARISONS["two"].rows[0], model=model, scheme="float32", accuracy=accuracy, latency_p50_ms=ms)


@pytest.mark.parametrize("name", COMPARISONS)
def test_rows_notes_text_and_table_are_made_of_the_models(name: str, tmp_path: Path) -> None:
    found = COMPARISONS[name]
    models = [*found.models.values()]
    made = mark_front(
        [row for model in models for row in rows_of(model)], {model.name: model.test_sha256 for model in models}
    )
    none = {"only_this_right": None, "only_best_right": None, "mcnemar_p": None}
    assert made == [replace(row, **none) for row in found.rows]
    assert notes_of(models) == found.notes
    assert compare_text(found) == COMPARED[f"{name}_text"]
    write_csv(tmp_path / "compare.csv", found)
    with (tmp_path / "compare.csv").open(newline="") as file:
        assert list(csv.reader(file)) == COMPARED[f"{name}_csv"]


@pytest.mark.parametrize("name", ["grid", "grid_begun"])
def test_table_and_text_of_a_grid(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.joinpath("grid.json").read_text())
    found = from_json(GridResult, golden[name])
    assert found.to_json() == golden[name]
    assert grid_text(found) == golden[f"{name}_text"]
    _write_csv(tmp_path / "grid.csv", found.rows)
    with (tmp_path / "grid.csv").open(newline="") as file:
        assert list(csv.reader(file)) == golden[f"{name}_csv"]


def test_a_pruned_model_is_compared_with_its_parent() -> None:
    golden = [*COMPARISONS["two"].models.values()]
    parent_info = next(model.pruned for model in golden if model.pruned)

    def model(name: str, parameters: int, p50: float, accuracy: float, parent: str | None) -> ComparedModel:
        figures = golden[0].schemes["ptq-int8"]
        figures = replace(
            figures,
            compressed_bytes=10 * parameters,
            latency=replace(figures.latency, p50_ms=p50),
            metrics=replace(figures.metrics, accuracy=accuracy),
        )
        return replace(
            golden[0],
            name=name,
            parameters=parameters,
            macs=100 * parameters,
            run_sha256=[f"digest of {name}"],
            pruned=parent and replace(parent_info, run_sha256=f"digest of {parent}"),
            schemes={"ptq-int8": figures},
        )

    whole = model("whole", 1000, 4.0, 0.9, None)
    half = model("half", 400, 1.0, 0.875, "whole")
    stray = model("stray", 400, 1.0, 0.8, "another")
    (pair,) = pruned_pairs([half, whole, stray])
    assert (pair.model, pair.parent, pair.scheme) == ("half", "whole", "ptq-int8")
    assert (pair.parameters, pair.macs, pair.compressed_bytes, pair.latency) == (0.4, 0.4, 0.4, 0.25)
    assert (pair.accuracy, pair.parent_accuracy) == (0.875, 0.9)
    assert pair.gained == "faster, smaller"
    same = model("same", 1000, 4.1, 0.9, "whole")
    assert pruned_pairs([whole, same])[0].gained == "nothing: no faster, no smaller"


def test_every_model_is_compared_with_the_best_on_the_same_images() -> None:
    right = {
        ("one", "float32"): np.array([True] * 9 + [False]),
        ("two", "float32"): np.array([True] * 3 + [False] * 6 + [True]),
        ("else", "float32"): np.array([True] * 10),
    }
    rows = [row(name, float(values.mean())) for (name, _), values in right.items()]
    one, two, other = against_best(rows, TESTED_ON, right)
    assert one.mcnemar_p is None and other.mcnemar_p is None, "each the best of its images"
    assert (two.only_this_right, two.only_best_right) == (1, 6)
    assert two.mcnemar_p == pytest.approx(2 * (1 + 7) / 2**7)


def test_the_front_is_drawn_among_models_evaluated_on_the_same_images() -> None:
    rows = [row("a", 0.8, ms=1.0), row("b", 0.9, ms=2.0), row("c", 0.85, ms=3.0), row("d", 0.1, ms=9.0)]
    marked = mark_front(rows, {"a": "x", "b": "x", "c": "x", "d": "y"})
    assert [row.on_front for row in marked] == [True, True, False, True]
