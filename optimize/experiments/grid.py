"""Runs the studies' grid as an Optuna study that several machines can share.

Any number of processes on any machines may work on one study; each point is trained once. A process may be killed at
any moment. The next process that starts, or that finishes a trial, takes over its trial and resumes it from the last
epoch if the run folder is the same.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import DataError
from ...edge_runtime.images import mark_output, refuse_inside
from ...edge_runtime.results import from_json
from ...edge_runtime.tools.atomic import atomic_write
from ...models import registry
from ...models.keras_compat import keras
from ...models.registry import BuildArgs
from ...train.data import cache
from ...train.runs import write_json
from ...train.workers import refuse_cluster
from .grid_config import GridConfig, Point
from .grid_result import GridFigures, GridResult, GridRow
from .grid_trials import MAX_DEATHS, MachineError, deaths, died, join, run_trial, take_over
from .storage import open_storage


def run_grid(config: GridConfig, progress: Progress) -> GridResult:
    """Work on a grid until no point is left, and report its state: after every run in ``grid.json`` and ``grid.csv``.

    Raises:
        UsageError: an unknown backbone, or a storage that cannot be opened or holds another grid; before any work.
    """
    refuse_cluster("compare")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = replace(config, cache_dir=cache.ready(config.cache_dir))
    config.check()
    grid, out = config.grid, config.out
    refuse_inside(config.data, out)
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    study = optuna.create_study(
        storage=open_storage(config.storage or str(out / "study.journal")),
        study_name=config.study or grid.name,
        direction="maximize",
        sampler=optuna.samplers.GridSampler(grid.space(), seed=0),  # the same order of points in every process
        load_if_exists=True,
    )
    join(study, config)
    fetched = config.weights != "imagenet"
    while take_over(study, grid):
        if not fetched:
            _fetch_weights(config)
            fetched = True
        try:
            study.optimize(lambda trial: run_trial(trial, study, config, progress), n_trials=1, catch=(Exception,))
        except MachineError as error:
            raise error.__cause__ or error from None
        keras.backend.clear_session()
        _write(study, config)
    return _write(study, config)


def _write(study: Any, config: GridConfig) -> GridResult:
    """Write ``grid.json`` and ``grid.csv`` with what is done so far."""
    result = _result(study, config)
    write_json(config.out / "grid.json", result.to_json())
    _write_csv(config.out / "grid.csv", result.rows)
    return result


def _fetch_weights(config: GridConfig) -> None:
    """Have Keras download the weights of all backbones. A network out of reach must not count as a trial's result."""
    for model in config.grid.models:
        spec = registry.get(model)
        size = config.input_size or spec.input_hw[0]
        if spec.pretrained:
            spec.build(BuildArgs(size, size, 1.0 if spec.alphas else None, "imagenet"))
    keras.backend.clear_session()


def _result(study: Any, config: GridConfig) -> GridResult:
    """Every point of the grid, with the trial that counts for it."""
    space = config.grid.space()
    tried: dict[Point, list[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        if "spare" not in trial.user_attrs and set(trial.params) == set(space):
            tried.setdefault(Point(**trial.params), []).append(trial)
    rows = [_standing(point, tried.get(point, [])) for point in config.grid.points()]
    done = [row for row in rows if row.state == "done"]
    if len({row.figures.dataset_sha256 for row in done}) > 1:
        raise DataError(f"study {study.study_name}: its workers used different data", hint="use the same images on all")
    return GridResult(
        grid=config.grid,
        frozen=config.frozen,
        study=study.study_name,
        synthetic=any(row.figures.synthetic for row in done),
        rows=rows,
        best=max(done, key=_by_validation, default=None),
        best_on_test=max(done, key=lambda row: row.figures.test_accuracy or 0.0, default=None),
        failed=sum(row.state == "failed" for row in rows),
        left=sum(row.state in ("running", "waiting") for row in rows),
    )


def _by_validation(row: GridRow) -> tuple[float, float]:
    return row.figures.validation_accuracy or 0.0, -(row.figures.validation_loss or 0.0)


def _standing(point: Point, trials: Sequence[Any]) -> GridRow:
    """State and figures of one point, from its trials."""
    counting = next((trial for trial in trials if not died(trial)), None)
    if counting is None and deaths(trials) > MAX_DEATHS:
        return GridRow(point, "failed", GridFigures(), f"its process died {deaths(trials)} times")
    if counting is None:
        return GridRow(point, "waiting", GridFigures(), None)
    state = {"COMPLETE": "done", "FAIL": "failed", "RUNNING": "running"}[counting.state.name]
    figures = from_json(GridFigures, counting.user_attrs.get("facts", {}))
    return GridRow(point, state, figures, counting.user_attrs.get("error"))


def _write_csv(path: Path, rows: Sequence[GridRow]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0].to_json()))
        writer.writeheader()
        writer.writerows(row.to_json() for row in rows)
