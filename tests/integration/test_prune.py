"""Pruned runs: what is asked for is what is found, it survives a kill, and the result is a run like any other."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import FLOAT_ROUNDING, assert_same_answers, least_agreement

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.models.macs import macs
from edgeall.models.narrow import groups, with_channels
from edgeall.optimize.prune import prune
from edgeall.optimize.pruning.channels import Budget
from edgeall.optimize.pruning.config import PruneConfig
from edgeall.optimize.pruning.sparsity import prunable, sparsity_of
from edgeall.optimize.pruning.summary import prune_text
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantize import quantize
from edgeall.train.batches import plain
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.runs import input_spec, load_model, load_own_split, load_run, load_subsets

QUIET = Progress(quiet=True)


class _Stop(Progress):
    """Interrupts when the first epoch's checkpoint is written."""

    def note(self, text: str) -> None:
        if text.startswith(("prune 1/", "recover 1/")):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class _Made:
    """A run that was pruned in two goes.

    Attributes:
        out: its folder.
        words: the options of both commands.
        cut: the weights when the first one was interrupted.
        seen: the rows of the second one.
    """

    out: Path
    words: dict[str, Any]
    cut: list[Any]
    seen: list[Any]


def _make(run: Path, out: Path, stage: str, **words: Any) -> _Made:
    with pytest.raises(KeyboardInterrupt):
        prune(PruneConfig(run, out, **words), _Stop(quiet=True))
    with pytest.raises(DataError, match="not a complete run"):
        load_run(out)
    with pytest.raises(UsageError, match="unfinished run with other settings"):
        prune(PruneConfig(run, out, **{**words, "epochs": 9}), QUIET)
    with np.load(out / "checkpoints" / f"{stage}.npz") as arrays:
        count = sum(name.startswith("weight_") for name in arrays)
        cut = [arrays[f"weight_{index}"] for index in range(count)]
    seen: list[Any] = []
    prune(PruneConfig(run, out, **words), QUIET, on_epoch=seen.append)
    return _Made(out, words, cut, seen)


@pytest.fixture(scope="module")
def sparse(tiny_run: Path, tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> _Made:
    """`tiny_run` with three quarters of its weights zero."""
    words = {"sparsity": 0.75, "epochs": 4, "cache_dir": tiny_settings.cache_dir}
    return _make(tiny_run, tmp_path_factory.mktemp("pruned") / "sparse", "prune", **words)


@pytest.fixture(scope="module")
def smaller(tiny_run: Path, tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> _Made:
    """`tiny_run` with at most half of its MACs."""
    words = {"macs": 0.5, "epochs": 2, "cache_dir": tiny_settings.cache_dir}
    return _make(tiny_run, tmp_path_factory.mktemp("pruned") / "smaller", "recover", **words)


def _zeros(model: Any) -> dict[str, float]:
    return {layer.name: float((layer.kernel.numpy() == 0).mean()) for layer in prunable(model)}


def test_the_sparsity_asked_for_is_the_sparsity_found(sparse: _Made) -> None:
    run = load_run(sparse.out)
    zeros = _zeros(load_model(sparse.out, run))
    assert set(zeros) == {"conv2", "conv3"}, "neither the first convolution nor the logits"
    assert all(share == pytest.approx(0.75, abs=0.005) for share in zeros.values())
    assert run.pruned.found == pytest.approx(0.75, abs=0.005)
    assert run.pruned.kind == "sparsity" and run.pruned.asked == 0.75
    assert run.pruned.macs == run.pruned.parent_macs
    size = run.pruned.size
    assert size["float32_gzip_bytes"] < 0.5 * size["parent_float32_gzip_bytes"]
    assert run.model.channels is None


def test_only_epochs_with_the_final_masks_are_kept(sparse: _Made) -> None:
    with (sparse.out / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    (kept,) = [int(row["epoch"]) for row in rows if row["stage"] == "prune" and row["kept"] == "1"]
    assert kept >= 3, "of 4 epochs the sparsity rises in 60 %"
    assert rows[0]["stage"] == "finetune", "the weights were trained before, and the report shows it"


def test_the_network_has_the_channels_and_macs_that_its_run_says(smaller: _Made, tiny_run: Path) -> None:
    run, parent = load_run(smaller.out), load_run(tiny_run)
    model, whole = load_model(smaller.out, run), load_model(tiny_run, parent)
    pruned = run.pruned
    assert macs(model) == pruned.macs == run.model.macs
    assert macs(whole) == pruned.parent_macs
    assert pruned.found == macs(model) / macs(whole) <= 0.5
    assert pruned.found > 0.3, "no more than asked for, but for whole tiles of channels"
    assert model.count_params() == pruned.parameters == run.model.parameters
    assert whole.count_params() == pruned.parent_parameters
    found = {group.name: group.channels for group in groups(model)}
    assert found == run.model.channels
    before = {group.name: group.channels for group in groups(whole)}
    assert pruned.channels == {name: [before[name], found[name]] for name in before}
    assert pruned.size["float32_bytes"] < pruned.size["parent_float32_bytes"]


@pytest.mark.parametrize("which", ["sparse", "smaller"])
def test_a_pruned_run_is_a_run_like_any_other(
    which: str, tiny_run: Path, tiny_settings: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(which).out
    facts, parent = load_run(run), load_run(tiny_run)
    split = load_own_split(run, facts)
    assert facts.split == parent.split
    sides = load_subsets(split, tiny_settings.data, input_spec(facts.settings), tiny_settings.cache_dir, QUIET)
    probabilities = load_model(run, facts).predict(plain(sides["test"], 64), verbose=0)
    with (run / "predictions.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["side"] == "test"]
    written = np.array([[float(row[f"p_{label}"]) for label in split.labels] for row in rows])
    assert_same_answers(probabilities, written, FLOAT_ROUNDING)
    metrics = evaluate(run, EvaluateSettings(cache_dir=tiny_settings.cache_dir), QUIET)
    assert metrics.to_json()["accuracy"] == facts.classified["test"].accuracy
    assert (run / "report.html").exists()
    out = tmp_path / "model.tflite"
    quantized = quantize(QuantizeConfig(run, "float32", out, cache_dir=tiny_settings.cache_dir), QUIET)
    assert quantized.max_abs_difference < FLOAT_ROUNDING
    assert quantized.agreement >= least_agreement(written, FLOAT_ROUNDING)
    assert not (run / "checkpoints").exists()
    text = prune_text(facts)
    assert all(sentence in text for sentence in facts.pruned.verdict)


def test_a_pruned_run_can_be_pruned_again(smaller: _Made, tiny_settings: Any, tmp_path: Path) -> None:
    cache_dir = tiny_settings.cache_dir
    both = prune(PruneConfig(smaller.out, tmp_path / "both", sparsity=0.5, epochs=1, cache_dir=cache_dir), QUIET)
    model = load_model(tmp_path / "both", both)
    before = load_run(smaller.out).model
    assert both.model.channels == before.channels
    assert macs(model) == before.macs
    assert sparsity_of(model) == pytest.approx(0.5, abs=0.005)
    with pytest.raises(UsageError, match=r"50.00 % of its weights are zero"):
        prune(PruneConfig(tmp_path / "both", tmp_path / "less", sparsity=0.4), QUIET)


@pytest.mark.parametrize("which", ["sparse", "smaller"])
def test_the_same_command_continues_after_a_kill(which: str, tiny_run: Path, request: pytest.FixtureRequest) -> None:
    made: _Made = request.getfixturevalue(which)
    run = load_run(made.out)
    assert run.timing["resumed"]
    assert [row["epoch"] for row in made.seen] == list(range(1, made.words["epochs"] + 1))
    model = load_model(made.out, run)
    kernels = {id(layer.kernel) for layer in prunable(model)}
    for before, variable in zip(made.cut, model.weights, strict=True):
        assert before.shape == variable.shape, "the channels ranked before the kill are the ones kept"
        if which == "sparse" and id(variable) in kernels:
            assert 0.3 < (before == 0).mean() < 0.74, "cut while it rose"
            assert (variable.numpy()[before == 0] == 0).all(), "what was zero before the kill stays zero"
    with pytest.raises(UsageError, match="complete run"):
        prune(PruneConfig(tiny_run, made.out, **made.words), QUIET)


def test_invalid_arguments_are_refused_before_any_work(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "how much"),
        ({"sparsity": 0.5, "macs": 0.5}, "not both"),
        ({"sparsity": 1.2}, "--sparsity must be above 0 and below 1, got 1.2"),
        ({"sparsity": 0.0}, "--sparsity must be above 0"),
        ({"macs": float("nan")}, "--macs must be above 0 and below 1, got nan"),
        ({"macs": 0.5, "epochs": 0}, "--epochs"),
        ({"macs": 0.5, "learning_rate": -1.0}, "--learning-rate"),
        ({"macs": 0.01}, "can't be reached"),
    ]
    for words, said in refused:
        with pytest.raises(UsageError, match=said):
            prune(PruneConfig(tiny_run, out, **words), QUIET)
    assert not out.exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for path, said in ((foreign, "is not a run"), (tiny_run, "is or holds the run"), (tiny_run.parent, "is or holds")):
        with pytest.raises(UsageError, match=said):
            prune(PruneConfig(tiny_run, path, sparsity=0.5, force=True), QUIET)
    with pytest.raises(DataError):
        prune(PruneConfig(tmp_path / "nothing", out, sparsity=0.5), QUIET)


def test_the_macs_of_a_budget_are_those_of_the_narrowed_network(tiny_run: Path) -> None:
    model = load_model(tiny_run, load_run(tiny_run))
    counts = {group.name: max(group.channels // 3, 1) for group in groups(model)}
    assert Budget(model).macs(counts) == pytest.approx(macs(with_channels(model, counts)), abs=len(counts))
