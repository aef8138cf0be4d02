"""Pruning: what is asked for is what is found, it survives, and the result is a run like any other."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import FLOAT_ROUNDING, assert_same_answers, least_agreement

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.models.graph import sources
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.macs import macs
from edgeall.models.narrow import groups, with_channels
from edgeall.optimize.prune import prune
from edgeall.optimize.pruning.channels import SLOW, Budget, importance, round_up
from edgeall.optimize.pruning.config import PruneConfig
from edgeall.optimize.pruning.sparsity import Masks, prunable, sparsity_of
from edgeall.optimize.pruning.summary import prune_text, verdict
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantize import quantize
from edgeall.train.batches import plain
from edgeall.train.checkpoint import TrainingState
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.runs import input_spec, load_model, load_own_split, load_run, load_subsets

QUIET = Progress(quiet=True)
layers = keras.layers


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
    assert run["pruned"]["found"] == pytest.approx(0.75, abs=0.005)
    assert run["pruned"]["kind"] == "sparsity" and run["pruned"]["asked"] == 0.75
    assert run["pruned"]["macs"] == run["pruned"]["parent_macs"]
    size = run["pruned"]["size"]
    assert size["float32_gzip_bytes"] < 0.5 * size["parent_float32_gzip_bytes"]
    assert "channels" not in run["model"]


def test_only_epochs_with_the_final_masks_are_kept(sparse: _Made) -> None:
    with (sparse.out / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    (kept,) = [int(row["epoch"]) for row in rows if row["stage"] == "prune" and row["kept"] == "1"]
    assert kept >= 3, "of 4 epochs the sparsity rises in 60 %"
    assert rows[0]["stage"] == "finetune", "the weights were trained before, and the report shows it"


def test_settling_weights_are_not_kept_however_good() -> None:
    inputs = layers.Input((1,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    state = TrainingState.fresh(model, 0.0)
    for epoch, (loss, settling) in enumerate(((0.1, True), (0.9, True), (0.95, False), (5.0, False)), start=1):
        state = state.after({"epoch": epoch, "val_loss": loss}, settling)
        assert state.kept_epoch == min(epoch, 2), "epochs 3 and 4 are worse than 2, the best that is settled"


def test_the_network_has_the_channels_and_macs_that_its_run_says(smaller: _Made, tiny_run: Path) -> None:
    run, parent = load_run(smaller.out), load_run(tiny_run)
    model, whole = load_model(smaller.out, run), load_model(tiny_run, parent)
    pruned = run["pruned"]
    assert macs(model) == pruned["macs"] == run["model"]["macs"]
    assert macs(whole) == pruned["parent_macs"]
    assert pruned["found"] == macs(model) / macs(whole) <= 0.5
    assert pruned["found"] > 0.3, "no more than asked for, but for whole tiles of channels"
    assert model.count_params() == pruned["parameters"] == run["model"]["parameters"]
    assert whole.count_params() == pruned["parent_parameters"]
    found = {group.name: group.channels for group in groups(model)}
    assert found == run["model"]["channels"]
    before = {group.name: group.channels for group in groups(whole)}
    assert pruned["channels"] == {name: [before[name], found[name]] for name in before}
    assert pruned["size"]["float32_bytes"] < pruned["size"]["parent_float32_bytes"]


@pytest.mark.parametrize("which", ["sparse", "smaller"])
def test_a_pruned_run_is_a_run_like_any_other(
    which: str, tiny_run: Path, tiny_settings: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(which).out
    facts, parent = load_run(run), load_run(tiny_run)
    split = load_own_split(run, facts)
    assert facts["split"] == parent["split"]
    sides = load_subsets(split, tiny_settings.data, input_spec(facts["settings"]), tiny_settings.cache_dir, QUIET)
    probabilities = load_model(run, facts).predict(plain(sides["test"], 64), verbose=0)
    with (run / "predictions.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["side"] == "test"]
    written = np.array([[float(row[f"p_{label}"]) for label in split.labels] for row in rows])
    assert_same_answers(probabilities, written, FLOAT_ROUNDING)
    metrics = evaluate(run, EvaluateSettings(cache_dir=tiny_settings.cache_dir), QUIET)
    assert metrics["accuracy"] == facts["metrics"]["test"]["accuracy"]
    assert (run / "report.html").exists()
    out = tmp_path / "model.tflite"
    quantized = quantize(QuantizeConfig(run, "float32", out, cache_dir=tiny_settings.cache_dir), QUIET)
    assert quantized.max_abs_difference < FLOAT_ROUNDING
    assert quantized.agreement >= least_agreement(written, FLOAT_ROUNDING)
    assert not (run / "checkpoints").exists()
    text = prune_text(facts)
    assert all(sentence in text for sentence in facts["pruned"]["verdict"])
    json.dumps(facts)


def test_a_pruned_run_can_be_pruned_again(smaller: _Made, tiny_settings: Any, tmp_path: Path) -> None:
    cache_dir = tiny_settings.cache_dir
    both = prune(PruneConfig(smaller.out, tmp_path / "both", sparsity=0.5, epochs=1, cache_dir=cache_dir), QUIET)
    model = load_model(tmp_path / "both", both)
    before = load_run(smaller.out)["model"]
    assert both["model"]["channels"] == before["channels"]
    assert macs(model) == before["macs"]
    assert sparsity_of(model) == pytest.approx(0.5, abs=0.005)
    with pytest.raises(UsageError, match=r"50.00 % of its weights are zero"):
        prune(PruneConfig(tmp_path / "both", tmp_path / "less", sparsity=0.4), QUIET)


@pytest.mark.parametrize("which", ["sparse", "smaller"])
def test_the_same_command_continues_after_a_kill(which: str, tiny_run: Path, request: pytest.FixtureRequest) -> None:
    made: _Made = request.getfixturevalue(which)
    run = load_run(made.out)
    assert run["timing"]["resumed"]
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


def test_what_can_not_be_meant_is_refused_before_any_work(tiny_run: Path, tmp_path: Path) -> None:
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


def _deep() -> Any:
    """Every kind of layer with weights."""
    inputs = layers.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, name="first")(inputs))
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 1, activation="relu", name="wide")(x))
    return add_head(keras.Model(inputs, layers.Dense(24, activation="relu", name="dense")(x)), 3, 0.0)


def test_the_sparsity_rises_and_what_is_zero_stays_zero() -> None:
    keras.utils.set_random_seed(0)
    model, steps = _deep(), 200
    masks = Masks(model, 0.8, steps)
    average = model.get_weights()
    generator = np.random.default_rng(0)
    shares, before = [], {}
    for done in range(steps + 1):
        masks.after_step(done, average)
        kernels = {layer.name: layer.kernel.numpy() for layer in prunable(model)}
        for name, kernel in kernels.items():
            assert (kernel[before.get(name, kernel) == 0] == 0).all()
        index = [id(variable) for variable in model.weights].index(id(model.get_layer("wide").kernel))
        assert ((average[index] == 0) == (kernels["wide"] == 0)).all(), "the running average too"
        shares.append(sparsity_of(model))
        before = kernels
        for layer in prunable(model):  # an optimizer knows nothing of the masks
            layer.kernel.assign_add(generator.normal(0, 0.01, layer.kernel.shape))
        average = [value + 0.001 for value in average]
    assert shares[0] == 0
    assert (np.diff(shares) >= 0).all()
    assert shares[60] == pytest.approx(0.8 * (1 - 0.5**3), abs=0.02), "half way through the cubic rise"
    assert masks.settled == 120
    assert np.ptp(shares[masks.settled :]) == 0
    assert shares[-1] == pytest.approx(0.8, abs=0.005)
    assert {layer.name for layer in prunable(model)} == {"wide", "dense"}
    assert all((model.get_layer(name).get_weights()[0] != 0).all() for name in ("first", "depthwise", "logits"))


def test_after_a_restart_the_weights_tell_the_masks() -> None:
    keras.utils.set_random_seed(0)
    model = _deep()
    first = Masks(model, 0.8, 200)
    for done in range(41):
        first.after_step(done, model.get_weights())
    zeros = {layer.name: layer.kernel.numpy() == 0 for layer in prunable(model)}
    again = Masks(model, 0.8, 200)
    again.after_step(41, model.get_weights())
    for layer in prunable(model):
        layer.kernel.assign_add(np.ones(layer.kernel.shape))
    again.after_step(42 if 42 % 3 else 43, model.get_weights())
    for layer in prunable(model):
        np.testing.assert_array_equal(layer.kernel.numpy() == 0, zeros[layer.name])


def _linear() -> Any:
    """Logits that are linear in eight channels, which follow the image, or not at all: the last two."""
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="made")(inputs)
    model = add_head(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)), 3, 0.0)
    generator = np.random.default_rng(3)
    kernel = generator.normal(0, 1, (1, 1, 3, 8)) * np.array([1, 2, 3, 4, 5, 6, 0, 7])
    bias = np.array([0, 9, 0, 0, 0, 0, 50, 0])  # a constant is no information, however large
    model.get_layer("made").set_weights([kernel, bias])
    read = generator.normal(0, 1, (8, 3))
    read[7] = 0
    model.get_layer("logits").set_weights([read, np.zeros(3)])
    return model


def test_importance_is_how_far_the_logits_move() -> None:
    """Linear logits: the first order is all there is, and can be worked out by hand."""
    model = _linear()
    images = np.random.default_rng(0).normal(0, 1, (4096, 6, 6, 3)).astype(np.float32)
    pooled = keras.Model(model.input, sources(sources(model.get_layer("logits"))[0])[0].output).predict(
        images, verbose=0
    )
    reading = model.get_layer("logits").get_weights()[0]
    moved = pooled.var(axis=0) * (reading**2).sum(axis=1)
    found = importance(model, lambda: iter(np.split(images, 64)), np.random.default_rng(1))["made"]
    np.testing.assert_allclose(found[:6], moved[:6], rtol=0.15)
    assert found[6] < 1e-6 and found[7] == 0


def test_the_best_channels_for_their_time_are_kept() -> None:
    inputs = layers.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same", name="dear")(inputs)
    x = layers.Conv2D(40, 3, strides=4, padding="same", name="cheap")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 1, name="few")(layers.ReLU()(x)))
    budget = Budget(add_head(keras.Model(inputs, x), 2, 0.0))
    assert budget.macs({}) == budget.total
    generator = np.random.default_rng(0)
    scores = {group.name: generator.uniform(0.5, 1, group.channels) for group in budget.groups}
    for share in (0.9, 0.6, 0.4):
        keep = budget.allocate(scores, share)
        counts = {name: len(kept) for name, kept in keep.items()}
        assert budget.macs(counts) <= share * budget.total
        assert counts["dear"] % 8 == 0 and counts["cheap"] % 8 == 0 and counts["few"] >= 8
        for name, kept in keep.items():
            dropped = np.setdiff1d(np.arange(len(scores[name])), kept)
            assert not dropped.size or scores[name][dropped].max() <= scores[name][kept].min()
    saved = budget.time_saved
    worthless = {**scores, "cheap": scores["cheap"] * saved["cheap"] / saved["dear"] * 1e-3}
    counts = {name: len(kept) for name, kept in budget.allocate(worthless, 0.9).items()}
    assert counts["cheap"] < 40 and counts["dear"] == 32 and counts["few"] == 12
    assert [round_up(40, 0), round_up(40, 17), round_up(12, 9), round_up(500, 0), round_up(4, 0)] == [8, 24, 9, 56, 4]
    with pytest.raises(UsageError, match="can't be reached"):
        budget.allocate(scores, budget.smallest() * 0.99)


def test_a_depthwise_mac_and_a_value_moved_take_longer_than_a_dense_mac() -> None:
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, use_bias=False, name="made")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 1, name="read")(x))
    budget = Budget(add_head(keras.Model(inputs, x), 2, 0.0))
    dense = 64 * (3 + 12)
    moved = 64 * (1 + 2 + 1)  # written once, read and written by the depthwise convolution, read once
    assert budget.time_saved["made"] == dense + SLOW * (64 * 9 + moved)


def test_the_macs_of_a_budget_are_those_of_the_narrowed_network(tiny_run: Path) -> None:
    model = load_model(tiny_run, load_run(tiny_run))
    counts = {group.name: max(group.channels // 3, 1) for group in groups(model)}
    assert Budget(model).macs(counts) == pytest.approx(macs(with_channels(model, counts)), abs=len(counts))


def _figures(latency_ms: float, size: int, packed: int) -> dict[str, Any]:
    return {
        "kind": "sparsity",
        "latency": {"parent_float32_p50_ms": 10.0, "float32_p50_ms": latency_ms},
        "size": {
            "parent_float32_bytes": 8_000_000,
            "float32_bytes": size,
            "parent_float32_gzip_bytes": 7_000_000,
            "float32_gzip_bytes": packed,
        },
    }


def test_the_verdict_says_so_when_nothing_was_gained() -> None:
    speed, size, packed = verdict(_figures(9.8, 8_000_000, 2_000_000))
    assert "no faster (10.00 ms before, 9.80 ms after" in speed
    assert size == "file: no smaller (8.00 MB before, 8.00 MB after)"
    assert packed == "compressed file: 2.00 of 7.00 MB"
    assert "2.00 times as fast" in verdict(_figures(5.0, 4_000_000, 3_000_000))[0]
