"""The studies: leakage of augmentation before the split, and a grid shared by machines."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import UsageError

QUIET = Progress(quiet=True)


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
    assert result.originals == dict.fromkeys(("Benign", "Early", "Pre", "Pro"), 32)
    assert result.copies == dict.fromkeys(("Benign", "Early", "Pre", "Pro"), 8)
    ways = result.ways
    assert ways["by-group"].seen == 0, "no test image's original, nor its duplicates, was trained on"
    assert ways["before"].seen > 0.2, "a fifth of the images are copies, of which most lie on the train side"
    for side, most in (("train_images", 4 * 28), ("test_images", 4 * 6)):
        assert getattr(ways["before"], side) == getattr(ways["by-group"], side) <= most, (
            "the same numbers, or their difference is more"
        )
    difference = np.mean(ways["before"].accuracies) - np.mean(ways["by-group"].accuracies)
    assert result.leak_points == pytest.approx(100 * difference)
    assert f"{result.leak_points:.2f} points" in leak_text(result)


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


def _tiny_grid(data: Path, out: Path, storage: str, **changes: Any) -> Any:
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


@pytest.mark.parametrize(
    "kind", [pytest.param("journal", marks=pytest.mark.long), pytest.param("sqlite", marks=pytest.mark.slow)]
)
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
    assert (out / "grid.csv").read_text(encoding="utf-8").count(",done,") == 1, "written after every run"

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        assert other.stderr is not None
        begun = next(line for line in other.stderr if line.startswith("trial"))
        result = _tiny_grid(synthetic_fields, out, storage)
        rest = other.stderr.read()
    assert other.returncode == 0, rest
    result = _tiny_grid(synthetic_fields, out, storage)  # the other may have been the last
    assert [row.state for row in result.rows] == ["done"] * 4
    assert (result.left, result.failed) == (0, 0)
    trials = _trials(storage)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(done) == len({tuple(sorted(trial.params.items())) for trial in done}) == 4, "each point once"
    workers = {trial.user_attrs["worker"]["pid"] for trial in done}
    assert {os.getpid(), other.pid} <= workers | {os.getpid()}
    assert other.pid in workers, f"the second worker did its share, beginning with {begun}"
    with (out / "grid.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    for subset in ("train", "validation", "test"):
        for row in written:
            assert float(row[f"{subset}_recall"]) == pytest.approx(float(row[f"{subset}_accuracy"])), "weighted"
            assert 0 <= float(row[f"{subset}_precision"]) <= 1
    figures = [row.figures for row in result.rows]
    assert result.best.figures == max(figures, key=lambda each: (each.validation_accuracy, -each.validation_loss))
    assert result.best_on_test.figures.test_accuracy == max(each.test_accuracy for each in figures)


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
