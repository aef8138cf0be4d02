"""Trials of a grid: which worker trains which point, and the training of one point.

Trials 0 to n - 1 are the n points of the grid in GridSampler's order. The storage numbers trials one by one, so no two
workers get the same point. Later trials repeat points whose worker died; the first of several repetitions counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import EdgeallError, NoSpaceError, UsageError
from ...models import registry
from ...train.run import train
from ...train.run_folder import is_complete
from ...train.runs import load_run
from .grid_config import Grid, GridConfig, Point
from .grid_result import figures_of
from .liveness import has_exited, heartbeat, is_silent, release_dead
from .storage import differences

STALE_S = 600.0
"""A trial of another machine without a sign of life for so long is taken over."""
MAX_DEATHS = 10
"""A point is tried again at most so often after its process died, as one that always runs out of memory does."""


class MachineError(BaseException):
    """The machine failed, not the trial; ``__cause__`` is the error. A BaseException, which Optuna lets through."""


def take_over(study: Any, grid: Grid) -> bool:
    """Whether a trial is available. Points of dead workers are queued once all other points are given out."""
    import optuna

    states = optuna.trial.TrialState
    release_dead(study, is_dead)
    trials = study.get_trials(deepcopy=False)
    if len(trials) < len(grid.points()) or any(trial.state == states.WAITING for trial in trials):
        return True
    for point in range(len(grid.points())):
        tried = [trial for trial in trials if _point(trial) == point and "spare" not in trial.user_attrs]
        if all(died(trial) for trial in tried) and deaths(tried) <= MAX_DEATHS:
            attributes = {"grid_id": point, "search_space": tried[0].system_attrs["search_space"]}
            study.add_trial(optuna.create_trial(state=states.WAITING, system_attrs=attributes))
            return True
    return False


def is_dead(trial: Any) -> bool:
    """Whether the process of a running trial is dead, as far as this machine can tell."""
    return has_exited(trial) or is_silent(trial, STALE_S)


def died(trial: Any) -> bool:
    """Whether a trial ended without a result and without an error of its own."""
    return trial.state.name == "FAIL" and "error" not in trial.user_attrs


def deaths(trials: Sequence[Any]) -> int:
    """Number of trials that ended with their process; interrupted ones do not count."""
    return sum(died(trial) and "interrupted" not in trial.user_attrs for trial in trials)


def _point(trial: Any) -> int:
    """Index of a trial's point. A new trial has none stored yet; its number is the index."""
    return int(trial.system_attrs.get("grid_id", trial.number))


def _is_spare(trial: Any, study: Any) -> bool:
    """Whether an earlier trial of the same point is done, failed for good or may still finish."""
    point = _point(study.get_trials(deepcopy=False)[trial.number])
    return any(
        _point(other) == point and "spare" not in other.user_attrs and not died(other)
        for other in study.get_trials(deepcopy=False)[: trial.number]
    )


def join(study: Any, config: GridConfig) -> None:
    """Refuse a study of other settings. Paths may differ between machines."""
    wanted = json.loads(json.dumps(asdict(config.grid))) | {
        "frozen": config.frozen,
        "input_size": config.input_size,
        "seed": config.seed,
        "weights": config.weights if config.weights in registry.WEIGHT_WORDS else "files",
    }
    if "settings" not in study.user_attrs:
        study.set_user_attr("settings", wanted)
    found = differences(study.user_attrs["settings"], wanted)
    if found:
        raise UsageError(
            f"study {study.study_name} has other settings ({found})",
            hint="repeat its settings to resume it, or choose another --study, --storage or --out",
        )


def run_trial(trial: Any, study: Any, config: GridConfig, progress: Progress) -> float:
    """Train one point, unless another worker has it; returns its validation accuracy."""
    import optuna

    if _is_spare(trial, study):
        trial.set_user_attr("spare", True)
        raise optuna.TrialPruned
    with heartbeat(trial):
        point = Point(*(trial.suggest_categorical(name, values) for name, values in config.grid.space().items()))
        progress.note(f"trial {trial.number}: {point.slug}")
        try:
            settings = config.training(point)
            run = load_run(settings.out) if is_complete(settings) else train(settings, progress)
        except KeyboardInterrupt:
            trial.set_user_attr("interrupted", True)
            raise
        except (OSError, NoSpaceError) as error:  # a full disk would fail all later trials too
            trial.set_user_attr("interrupted", True)
            raise MachineError from error
        except Exception as error:  # part of the result; the other points continue
            message = error.message if isinstance(error, EdgeallError) else f"{type(error).__name__}: {error}"
            trial.set_user_attr("error", message.splitlines()[0] if message else type(error).__name__)
            progress.note(f"trial {trial.number}: failed: {message}")
            raise
        figures = figures_of(run, settings.out)
        trial.set_user_attr("facts", figures.to_json())
        assert figures.validation_accuracy is not None
        return figures.validation_accuracy
