"""The table of a search: its rows, the choice, the gate and the text."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.results import from_json
from edgeall.optimize.experiments import search_trial
from edgeall.optimize.experiments.candidate import Candidate
from edgeall.optimize.experiments.search_config import SearchSettings
from edgeall.optimize.experiments.search_result import (
    Budget,
    SearchResult,
    TrialRow,
    alike,
    choose,
    missed,
    row_of,
    search_text,
    with_choice,
    write_trials,
)
from edgeall.optimize.experiments.search_trial import Search
from edgeall.optimize.experiments.storage import open_storage
from edgeall.optimize.experiments.trials import Axes, Cost, Measurement, Space, Trials, Tried

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("search.json").read_text())
FOUND = from_json(SearchResult, GOLDEN["search"])
MEASURED = Measurement(0.97, 0.97, 100, 4.0, 8, 10, 5, "run")


def _row(trial: int, accuracy: float, latency_ms: float, **changes: Any) -> TrialRow:
    tried = Tried(
        trial=trial,
        outcome="measured",
        candidate=Candidate("mobilenet_v2", 0.35, 96, 1.0, "ptq-int8"),
        worker="one",
        measured=replace(MEASURED, accuracy=accuracy, latency_ms=latency_ms),
        overshoot=0.5,
    )
    return row_of(replace(tried, **changes))


def test_a_search_that_is_read_is_written_the_same_and_told_the_same(tmp_path: Path) -> None:
    assert json.dumps(FOUND.to_json()) == json.dumps(GOLDEN["search"])
    assert search_text(FOUND) == GOLDEN["search_text"]
    write_trials(tmp_path / "trials.csv", FOUND.trials)
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert list(csv.reader(file)) == GOLDEN["search_csv"]


def test_the_choice_of_a_search() -> None:
    unmarked = [replace(row, on_front=False, chosen=False) for row in FOUND.trials]
    rows = with_choice(unmarked, FOUND.cost)
    assert rows == FOUND.trials
    assert (choose(rows, FOUND.cost), alike(rows, FOUND.cost)) == (FOUND.chosen, FOUND.alike)
    gate = missed(rows, Budget(1000, None, 1.0), FOUND.cost)
    assert gate is not None and gate.message == GOLDEN["missed"]
    gate = missed([row for row in rows if row.outcome == "refused"], Budget(1000, None, None), FOUND.cost)
    assert gate is not None and gate.message == GOLDEN["missed_budget"]


def test_the_most_accurate_within_the_budget_is_chosen() -> None:
    rows = [
        _row(0, 0.99, 9.0, overshoot=1.8),
        _row(1, 0.97, 4.0),
        _row(2, 0.97, 3.0),
        _row(3, 0.96, 1.0),
        _row(4, 0.90, 0.5),
        _row(5, 1.0, 1.0, outcome="stopped"),
    ]
    chosen, near = choose(rows, "latency_ms"), alike(rows, "latency_ms")
    assert chosen is not None and chosen.trial == 2
    assert near is not None and near.trial == 3, "0.96 is within an error of 0.017, 0.90 is not"
    budget = Budget(5.0, None, 0.98)
    gate = missed(rows, budget, "latency_ms")
    assert gate is not None and "mobilenet_v2 0.35, 96 px, ptq-int8: 97.00 %, 3.00 ms" in gate.message
    assert missed(rows, replace(budget, min_accuracy=0.97), "latency_ms") is None


def test_a_measured_trial_is_stored_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Training and conversion are replaced; the next process reads what the trial stored."""
    space = Space((Axes("basic_cnn", (None,), (32,), (1.0,)),), ("ptq-int8",))
    worker = {"worker": "one", "host": "here", "folder": "out"}
    trials = Trials(open_storage(str(tmp_path / "journal")), "search", space, {}, worker, seed=0, free_epochs=0)
    settings = SearchSettings(tmp_path, tmp_path, max_latency_ms=5.0)
    split: Any = SimpleNamespace(labels=("a", "b"))
    facts: Any = None
    shared = Search(settings, space, split, facts, trials, Progress(quiet=True), tmp_path)
    cost = Cost(4.0, 800, 900, 0.8)
    results = SimpleNamespace(accuracy=0.9, float_accuracy=0.95, test_images=50, file_bytes=850)
    replaced: dict[str, Any] = {
        "untrained": b"",
        "cost_of": cost,
        "_trained_run": tmp_path / "run",
        "quantized": results,
        "open_bundle": SimpleNamespace(flatbuffer=b""),
        "load_run": SimpleNamespace(model=SimpleNamespace(parameters=7)),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(search_trial, name, lambda *_, _value=value, **__: _value)
    drawn = trials.next()
    assert drawn is not None
    assert search_trial.run_trial(shared, *drawn, "1 of 1") == "measured"
    (found,) = trials.rows()
    assert (found.candidate, found.worker, found.host, found.folder) == (drawn[1], "one", "here", "out")
    assert found.measured == Measurement(0.9, 0.95, 50, 4.0, 800, 850, 7, "run")
    assert (found.untrained, found.overshoot, found.reason) == (cost, 0.8, "")
    assert row_of(found).within_budget


def test_a_refused_trial_has_the_cost_of_its_untrained_network_alone() -> None:
    row = _row(0, 0.9, 1.0, outcome="refused", measured=None, untrained=Cost(9.0, 700, 800, 1.8), reason="too slow")
    found = row.to_json()
    assert (found["untrained_latency_ms"], found["untrained_flatbuffer_bytes"], found["overshoot"]) == (9.0, 700, 1.8)
    assert (found["within_budget"], found["accuracy"], found["latency_ms"], found["run"]) == (None,) * 4
