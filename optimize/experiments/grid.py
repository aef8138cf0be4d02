"""Runs the studies' grid as an Optuna study that several machines can share.

Any number of processes on any machines may work on one study; each point is trained once. A process may be killed at
any moment. The next process that starts, or that finishes a trial, takes over its trial and resumes it from the last
epoch if the run folder is the same.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...console.tables import percent, table
from ...edge_runtime.errors import DataError
from ...edge_runtime.images import mark_output, refuse_inside
from ...edge_runtime.tools.atomic import atomic_write
from ...models import registry
from ...models.keras_compat import keras
from ...models.registry import BuildArgs
from ...train.data import cache
from ...train.runs import write_json
from ...train.workers import refuse_cluster
from .grid_config import GridConfig, slug
from .grid_trials import MAX_DEATHS, MachineError, deaths, died, join, run_trial, take_over
from .storage import open_storage

FIGURES = (
    *("validation_accuracy", "validation_loss", "test_accuracy", "test_loss", "test_macro_f1", "split_level"),
    *("minutes", "run", "dataset_sha256", "synthetic"),
    *("train_accuracy", "train_loss", "train_precision", "train_recall"),
    *("validation_precision", "validation_recall", "test_precision", "test_recall", "test_weighted_f1"),
)
COLUMNS = ("model", "protocol", "learning_rate", "dropout", "state", *FIGURES, "error")


def run_grid(config: GridConfig, progress: Progress) -> dict[str, Any]:
    """Work on a grid until no point is left, and report its state: after every run in ``grid.json`` and ``grid.csv``.

    Precision and recall are weighted by the images of each class.

    Returns:
        ``rows``: every point with its state (``done``, ``failed``, ``running``, ``waiting``) and figures; ``best``: the
        point with the best validation accuracy; ``best_on_test``: the point that a choice by test accuracy would have
        claimed; ``left``: number of points that are neither done nor failed.

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


def _write(study: Any, config: GridConfig) -> dict[str, Any]:
    """Write ``grid.json`` and ``grid.csv`` with what is done so far."""
    result = _result(study, config)
    write_json(config.out / "grid.json", result)
    _write_csv(config.out / "grid.csv", result["rows"])
    return result


def _fetch_weights(config: GridConfig) -> None:
    """Have Keras download the weights of all backbones. A network out of reach must not count as a trial's result."""
    for model in config.grid.models:
        spec = registry.get(model)
        size = config.input_size or spec.input_hw[0]
        if spec.pretrained:
            spec.build(BuildArgs(size, size, 1.0 if spec.alphas else None, "imagenet"))
    keras.backend.clear_session()


def grid_text(result: Mapping[str, Any]) -> str:
    """Table of the result of `run_grid`, and its best points."""
    columns = ["model", "protocol", "learning rate", "dropout", "validation", "test", "test loss", "state"]
    rows = [
        [
            row["model"],
            row["protocol"],
            f"{row['learning_rate']:g}",
            f"{row['dropout']:g}",
            percent(row["validation_accuracy"]),
            percent(row["test_accuracy"]),
            None if row["test_loss"] is None else f"{row['test_loss']:.4f}",
            row["state"],
        ]
        for row in result["rows"]
    ]
    parts = [table(columns, rows)]
    best, best_on_test = result["best"], result["best_on_test"]
    if best:
        parts.append(
            f"best in validation: {slug(best)}, test accuracy {percent(best['test_accuracy'])}\n"
            f"best on the test subset: {slug(best_on_test)}, test accuracy {percent(best_on_test['test_accuracy'])}; "
            f"this is optimistic, as the best of {sum(row['state'] == 'done' for row in result['rows'])}"
        )
    if result["left"]:
        parts.append(f"{result['left']} of {len(result['rows'])} points are not done; another worker has them")
    if any(row["split_level"] == "image" for row in result["rows"]):
        parts.append("image-level split: optimistic")
    return "\n\n".join(parts)


def _result(study: Any, config: GridConfig) -> dict[str, Any]:
    """Every point of the grid, with the trial that counts for it."""
    space = config.grid.space()
    tried: dict[tuple[Any, ...], list[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        if "spare" not in trial.user_attrs and set(trial.params) == set(space):
            tried.setdefault(tuple(trial.params[name] for name in space), []).append(trial)
    rows = [
        {**dict(zip(space, values, strict=True)), **_standing(tried.get(values, []))}
        for values in itertools.product(*space.values())
    ]
    done = [row for row in rows if row["state"] == "done"]
    if len({row["dataset_sha256"] for row in done}) > 1:
        raise DataError(f"study {study.study_name}: its workers used different data", hint="use the same images on all")
    return {
        "grid": asdict(config.grid),
        "frozen": config.frozen,
        "study": study.study_name,
        "synthetic": any(row["synthetic"] for row in done),
        "rows": rows,
        "best": max(done, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]), default=None),
        "best_on_test": max(done, key=lambda row: row["test_accuracy"], default=None),
        "failed": sum(row["state"] == "failed" for row in rows),
        "left": sum(row["state"] in ("running", "waiting") for row in rows),
    }


def _standing(trials: Sequence[Any]) -> dict[str, Any]:
    """State and figures of one point, from its trials."""
    counting = next((trial for trial in trials if not died(trial)), None)
    facts = counting.user_attrs.get("facts", {}) if counting else {}
    error = counting.user_attrs.get("error") if counting else None
    state = {"COMPLETE": "done", "FAIL": "failed", "RUNNING": "running"}[counting.state.name] if counting else "waiting"
    if counting is None and deaths(trials) > MAX_DEATHS:
        state, error = "failed", f"its process died {deaths(trials)} times"
    return {"state": state, **{key: facts.get(key) for key in FIGURES}, "error": error}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
