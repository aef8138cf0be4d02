"""Protocols of the studies: subsets, leakage of augmentation before the split, and a grid shared by machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.optimize.experiments.protocols import PROTOCOLS, protocol_named, split_settings
from edgeall.train.batches import Images
from edgeall.train.data.balance import filled, parse_per_class, sample_subsets
from edgeall.train.data.split import Split, SplitEntry
from edgeall.train.data.subsets import LEFT_OUT, SUBSETS

QUIET = Progress(quiet=True)


def _split(counts: dict[tuple[str, str], int]) -> Split:
    entries = [
        SplitEntry(f"{label}/{side}{n}.png", label, None, f"{label}{side}{n}", side)
        for (label, side), count in counts.items()
        for n in range(count)
    ]
    return Split("image", 0, tuple(sorted({label for label, _ in counts})), "ab" * 32, tuple(entries))


# --- the same number of every class -----------------------------------------------------------------------------------


def test_too_many_are_sampled_and_stay_in_the_split() -> None:
    split = _split({("a", "train"): 9, ("a", "validation"): 3, ("a", "test"): 5, ("b", "train"): 2, ("b", "test"): 1})
    dealt = sample_subsets(split, parse_per_class("4/2/3"), seed=1)
    counts = Counter((entry.label, entry.side) for entry in dealt.entries)
    assert counts == {
        ("a", "train"): 4,
        ("a", "validation"): 2,
        ("a", "test"): 3,
        ("a", LEFT_OUT): 8,
        ("b", "train"): 2,
        ("b", "test"): 1,
    }
    assert [entry.path for entry in dealt.entries] == [entry.path for entry in split.entries]
    assert dealt == sample_subsets(split, parse_per_class("4/2/3"), seed=1)
    assert dealt != sample_subsets(split, parse_per_class("4/2/3"), seed=2)


def test_too_few_are_filled_up_evenly() -> None:
    labels = np.array([0] * 3 + [1] * 10)
    images = Images(np.zeros((20, 2, 2, 3), np.uint8), np.arange(5, 18), labels, InputSpec(2, 2))
    full = filled(images, 8)
    times = Counter(full.rows.tolist())
    assert [times[row] for row in (5, 6, 7)] == [3, 3, 2]
    assert [times[row] for row in range(8, 18)] == [1] * 10, "nothing is thrown away here: `sample_subsets` does that"
    assert (full.labels == np.where(full.rows < 8, 0, 1)).all()


@pytest.mark.parametrize("text", ["700", "700/150", "700/0/150", "a/b/c", "700/150/150/1", "-1/2/3"])
def test_numbers_per_class_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="--per-class"):
        parse_per_class(text)


# --- protocols --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_deals_what_its_name_says(name: str, tmp_path: Path) -> None:
    from edgeall.train.data.dataset import load_dataset
    from edgeall.train.data.synth import synthesize
    from edgeall.train.prepare import prepare_data
    from edgeall.train.run import TrainSettings

    synthesize(tmp_path / "cells", 120, seed=5, size=64, layout="cnmc")
    tests = []
    for settings in split_settings(protocol_named(name)):
        found = prepare_data(TrainSettings(tmp_path / "cells", tmp_path / "run", **settings), False, QUIET)
        split, facts = found.split, found.facts
        assert split.level == "subject", "they are known here, so no protocol may part them"
        of = {side: {entry.subject for entry in split.subset(side)} for side in SUBSETS}
        assert not of["test"] & (of["train"] | of["validation"])
        tests.append({entry.path for entry in split.subset("test")})
        assert facts["data"]["left_out"] == 0
    every = {sample.path for sample in load_dataset(tmp_path / "cells").samples}
    if name == "subject-3-fold":
        assert len(tests) == 3
        assert sum(map(len, tests)) == len(every)
        assert set.union(*tests) == every
    else:
        wanted = {"global-70-15-15": 0.15, "balanced-700-150-150": 0.15, "60-20-20": 0.2}[name]
        assert len(tests[0]) / len(every) == pytest.approx(wanted, abs=0.08), "subjects are few and whole"


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        protocol_named("60-20-2")
    assert "did you mean 60-20-20?" in raised.value.hint
    with pytest.raises(UsageError, match="splits by subject"):
        split_settings(protocol_named("subject-3-fold"), "image")
    assert {one["split_by"] for one in split_settings(protocol_named("60-20-20"), "block")} == {"block"}


# --- what augmenting first leaks --------------------------------------------------------------------------------------


def test_leak_is_measured_on_the_same_images_dealt_three_ways(synthetic_fields: Path, tmp_path: Path) -> None:
    from edgeall.models import registry
    from edgeall.models.registry import BuildArgs
    from edgeall.optimize.experiments.leak import LeakConfig, leak_text, measure_leak

    backbone = registry.get("basic_cnn").build(BuildArgs(32, 32, None, "none"))
    backbone.save_weights(tmp_path / "weights.h5")
    config = LeakConfig(
        synthetic_fields,
        model="basic_cnn",
        weights=str(tmp_path / "weights.h5"),
        input_size=32,
        per_class="28/6/6",
        seeds=2,
        cache_dir=tmp_path / "cache",
    )
    result = measure_leak(config, QUIET)
    assert result["originals"] == dict.fromkeys(("Benign", "Early", "Pre", "Pro"), 32)
    assert result["copies"] == dict.fromkeys(("Benign", "Early", "Pre", "Pro"), 8)
    ways = result["ways"]
    assert ways["by-group"]["seen"] == 0, "no test image's original, nor its duplicates, was trained on"
    assert ways["before"]["seen"] > 0.2, "a fifth of the images are copies, of which most lie on the train side"
    for side, most in (("train_images", 4 * 28), ("test_images", 4 * 6)):
        assert ways["before"][side] == ways["by-group"][side] <= most, "the same numbers, or their difference is more"
    difference = np.mean(ways["before"]["accuracies"]) - np.mean(ways["by-group"]["accuracies"])
    assert result["leak_points"] == pytest.approx(100 * difference)
    assert f"{result['leak_points']:.2f} points" in leak_text(result)


def test_leak_needs_features_that_mean_something(tmp_path: Path) -> None:
    from edgeall.optimize.experiments.leak import LeakConfig, measure_leak

    with pytest.raises(UsageError, match="untrained"):
        measure_leak(LeakConfig(tmp_path, model="basic_cnn", weights="none"), QUIET)


# --- the grid ---------------------------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from edgeall.optimize.experiments.grid import run_grid
from edgeall.optimize.experiments.grid_config import Grid, GridConfig
from edgeall.console.progress import Progress
grid = Grid("tiny", "a test", ("basic_cnn",), ("global-70-15-15", "60-20-20"), (0.01, 0.001), (0.2,), epochs=1)
data, out, storage = sys.argv[1:]
config = GridConfig(Path(data), Path(out), grid, weights="none", input_size=32, storage=storage,
                    cache_dir=Path(out) / "cache")
run_grid(config, Progress())
"""


def _tiny_grid(data: Path, out: Path, storage: str, **changes: Any) -> dict[str, Any]:
    from edgeall.optimize.experiments.grid import run_grid
    from edgeall.optimize.experiments.grid_config import Grid, GridConfig

    grid = Grid("tiny", "a test", ("basic_cnn",), ("global-70-15-15", "60-20-20"), (0.01, 0.001), (0.2,), epochs=1)
    config = GridConfig(
        data, out, replace(grid, **changes), weights="none", input_size=32, storage=storage, cache_dir=out / "cache"
    )
    return run_grid(config, QUIET)


def _trials(storage: str) -> list[Any]:
    import optuna

    from edgeall.optimize.experiments.storage import open_storage

    return optuna.load_study(study_name="tiny", storage=open_storage(storage)).get_trials()


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_killed_grid_is_resumed_and_two_workers_share_the_rest(
    kind: str, synthetic_fields: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    storage = str(tmp_path / "study.journal") if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    command = [sys.executable, "-c", WORKER, str(synthetic_fields), str(out), storage]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        assert any(line.startswith("trial 1:") for line in killed.stderr), "it came to its second trial"
        killed.send_signal(signal.SIGKILL)
    states = [trial.state.name for trial in _trials(storage)]
    assert states == ["COMPLETE", "RUNNING"], "the killed one can't have said that it is gone"

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        assert other.stderr is not None
        begun = next(line for line in other.stderr if line.startswith("trial"))
        result = _tiny_grid(synthetic_fields, out, storage)
        rest = other.stderr.read()
    assert other.returncode == 0, rest
    result = _tiny_grid(synthetic_fields, out, storage)  # the other may have been the last
    assert [row["state"] for row in result["rows"]] == ["done"] * 4
    assert (result["left"], result["failed"]) == (0, 0)
    trials = _trials(storage)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(done) == len({tuple(sorted(trial.params.items())) for trial in done}) == 4, "each point once"
    workers = {trial.user_attrs["worker"]["pid"] for trial in done}
    assert {os.getpid(), other.pid} <= workers | {os.getpid()}
    assert other.pid in workers, f"the second worker did its share, beginning with {begun}"
    best = max(result["rows"], key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert result["best"] == best
    assert result["best_on_test"]["test_accuracy"] == max(row["test_accuracy"] for row in result["rows"])


def test_a_study_of_other_settings_is_refused(tmp_path: Path, synthetic_fields: Path) -> None:
    import optuna

    from edgeall.optimize.experiments.grid_config import Grid, GridConfig
    from edgeall.optimize.experiments.grid_trials import join
    from edgeall.optimize.experiments.storage import open_storage

    study = optuna.create_study(storage=open_storage(str(tmp_path / "a.journal")), study_name="tiny")
    grid = Grid("tiny", "a test", ("basic_cnn",), ("60-20-20",), (0.01,), (0.2,), epochs=1)
    config = GridConfig(synthetic_fields, tmp_path, grid, "none", input_size=32, cache_dir=tmp_path)
    join(study, config)
    join(study, replace(config, data=tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="epochs was 1, is 2"):
        join(study, replace(config, grid=replace(grid, epochs=2)))
    with pytest.raises(UsageError, match="can't be opened"):
        open_storage("nonsense://here")
    with pytest.raises(UsageError, match="no backbone"):
        _tiny_grid(synthetic_fields, tmp_path / "out", str(tmp_path / "b.journal"), models=("basic_cn",))


def test_signs_of_life() -> None:
    from types import SimpleNamespace

    from edgeall.optimize.experiments.grid_trials import STALE_S, is_dead
    from edgeall.optimize.experiments.liveness import machine

    def trial(name: str, pid: int, seen_s_ago: float) -> Any:
        attributes = {"worker": {"machine": name, "pid": pid}, "alive": time.time() - seen_s_ago}
        return SimpleNamespace(user_attrs=attributes, datetime_start=datetime.now())

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert is_dead(trial(machine(), gone.pid, 1))
    assert not is_dead(trial(machine(), os.getpid(), 1))
    assert not is_dead(trial("another", gone.pid, 1)), "its process number says nothing here"
    assert is_dead(trial("another", gone.pid, STALE_S + 1))
