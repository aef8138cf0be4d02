"""The studies' grid of learning rate, dropout, split and backbone as an Optuna study that machines can share.

Any number of processes, on any machines, may work on one study: each point is trained once. A process may be killed
at any moment; the next one to start, or to finish a trial, takes up what it left, from the last epoch where the run
folder is the same.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, EdgeallError, NoSpaceError, UsageError
from ...edge_runtime.images import mark_output, refuse_inside
from ...edge_runtime.tools.atomic import atomic_write
from ...models import registry
from ...models.keras_compat import keras
from ...models.registry import BuildArgs
from ...train.data import cache
from ...train.run import TrainSettings, is_complete, train
from ...train.runs import load_run, write_json
from ...train.workers import refuse_cluster
from .backbones import check_weights, model_name, weights_of
from .protocols import protocol_named, split_settings
from .storage import open_storage

ALIVE_EVERY_S = 30.0
STALE_S = 600.0
"""A trial of another machine that has given no sign of life for so long is taken up again."""
MOST_DEATHS = 10
"""Times that a point is tried again after its process died: what always runs out of memory must end."""
FIGURES = (
    *("validation_accuracy", "validation_loss", "test_accuracy", "test_loss", "test_macro_f1", "split_level"),
    *("minutes", "run", "dataset_sha256", "synthetic"),
)
COLUMNS = ("model", "protocol", "learning_rate", "dropout", "state", *FIGURES, "error")


@dataclass(frozen=True)
class Grid:
    """What is tried in all combinations, and what is the same in all of them."""

    name: str
    source: str
    models: tuple[str, ...]
    protocols: tuple[str, ...]
    learning_rates: tuple[float, ...]
    dropouts: tuple[float, ...]
    epochs: int
    batch_size: int = 32

    @property
    def points(self) -> int:
        """How many combinations there are."""
        return len(self.models) * len(self.protocols) * len(self.learning_rates) * len(self.dropouts)

    def space(self) -> dict[str, list[Any]]:
        """For Optuna's GridSampler."""
        return {
            "model": list(self.models),
            "protocol": list(self.protocols),
            "learning_rate": list(self.learning_rates),
            "dropout": list(self.dropouts),
        }


GRID_48 = Grid(
    name="grid-48",
    source="a study of the four-class set (README, 2024): best of 48 runs, Adam",
    models=("inception_resnet_v2", "nasnet_large"),
    protocols=("global-70-15-15", "balanced-700-150-150"),
    learning_rates=(0.1, 0.01, 0.001, 0.0001),
    dropouts=(0.4, 0.2, 0.0),
    epochs=60,
)


class _Ended(BaseException):
    """The machine, not the trial, is at fault; Optuna lets it through."""


@dataclass(frozen=True)
class _Plan:
    """Everything that a trial needs besides its point of the grid."""

    data: Path
    out: Path
    grid: Grid
    weights: str
    frozen: bool
    input_size: int | None
    seed: int
    cache_dir: Path

    def settings(self, point: Mapping[str, Any]) -> TrainSettings:
        """Of one point's run."""
        spec = registry.get(point["model"])
        alpha = 1.0 if spec.alphas else None
        weights = weights_of(spec.name, alpha, self.weights)
        frozen = self.frozen and weights != "none"  # the features of an untrained network are noise
        (dealt,) = split_settings(protocol_named(point["protocol"]))
        return TrainSettings(
            data=self.data,
            out=self.out / _slug(point),
            model=spec.name,
            alpha=alpha,
            weights=weights,
            input_size=self.input_size,
            epochs_head=self.grid.epochs if frozen else 0,
            epochs_finetune=0 if frozen else self.grid.epochs,
            batch_size=self.grid.batch_size,
            lr_head=point["learning_rate"],
            lr_finetune=point["learning_rate"],
            dropout=point["dropout"],
            patience=self.grid.epochs,
            seed=self.seed,
            cache_dir=self.cache_dir,
            **dealt,
        )


def run_grid(
    data: Path,
    out: Path,
    grid: Grid = GRID_48,
    *,
    weights: str = "imagenet",
    frozen: bool = True,
    storage: str | None = None,
    study: str | None = None,
    input_size: int | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Work on a grid until no point is left to take, and report how it stands.

    Args:
        data: folder or manifest.
        out: folder for the runs, ``grid.json`` and ``grid.csv``; several workers may have the same one or their own.
        grid: what to try.
        weights: as in `edgeall.optimize.experiments.backbones.compare_backbones`.
        frozen: train the last layer alone, on the frozen backbone's features; False trains all of the network.
        storage: a URL for Optuna, or the path of a journal file. By default ``out/study.journal``.
        study: its name in the storage, the grid's by default.
        input_size: pixels, instead of each backbone's own.

    Returns:
        ``rows``: every point with its state (``done``, ``failed``, ``running``, ``waiting``) and figures; ``best``: the
        one with the best accuracy in validation; ``best_on_test``: the one that a choice by the test side would have
        claimed; ``left``: points that aren't done or failed yet.

    Raises:
        UsageError: an unknown backbone, a storage that can't be opened or that holds another grid; before any work.
    """
    refuse_cluster("compare")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_weights(weights)
    plan = _Plan(data, out, grid, weights, frozen, input_size, seed, cache.ready(cache_dir))
    for model in grid.models:
        settings = plan.settings({key: values[0] for key, values in grid.space().items()} | {"model": model})
        if settings.weights not in ("imagenet", "none") and not Path(settings.weights).is_file():
            raise UsageError(f"{settings.weights}: no such weights file", hint="all backbones of a grid need theirs")
        is_complete(settings)
    refuse_inside(data, out)
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    opened = optuna.create_study(
        storage=open_storage(storage or str(out / "study.journal")),
        study_name=study or grid.name,
        direction="maximize",
        sampler=optuna.samplers.GridSampler(grid.space(), seed=0),  # the same order of points in every process
        load_if_exists=True,
    )
    _join(opened, plan)
    fetched = weights != "imagenet"
    while _take_up(opened, grid):
        if not fetched:
            _fetch_weights(plan)
            fetched = True
        try:
            opened.optimize(lambda trial: _objective(trial, opened, plan, progress), n_trials=1, catch=(Exception,))
        except _Ended as end:
            raise end.__cause__ or end from None
        keras.backend.clear_session()
    result = _result(opened, plan)
    write_json(out / "grid.json", result)
    _write_csv(out / "grid.csv", result["rows"])
    return result


def _fetch_weights(plan: _Plan) -> None:
    """Have Keras download what the backbones need: a network out of reach is no result of a trial."""
    for model in plan.grid.models:
        spec = registry.get(model)
        size = plan.input_size or spec.input_hw[0]
        if spec.pretrained:
            spec.build(BuildArgs(size, size, 1.0 if spec.alphas else None, "imagenet"))
    keras.backend.clear_session()


def grid_text(result: Mapping[str, Any]) -> str:
    """`run_grid`'s result for people."""
    from ...console.tables import percent, table

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
    best, tempting = result["best"], result["best_on_test"]
    if best:
        parts.append(
            f"best in validation: {_slug(best)}, test accuracy {percent(best['test_accuracy'])}\n"
            f"chosen by the test side it would read {percent(tempting['test_accuracy'])} ({_slug(tempting)}): "
            f"the best of {sum(row['state'] == 'done' for row in result['rows'])} flatters itself"
        )
    if result["left"]:
        parts.append(f"{result['left']} of {len(result['rows'])} points are not done: another worker has them")
    if any(row["split_level"] == "image" for row in result["rows"]):
        parts.append("image-level split: optimistic")
    return "\n\n".join(parts)


# --- who does what ----------------------------------------------------------------------------------------------------
#
# Trials 0 to n - 1 are the n points of the grid, in GridSampler's order: the storage numbers trials one by one, so no
# two workers get the same. Later trials repeat points whose worker died, and of several such only the first counts.


def _take_up(study: Any, grid: Grid) -> bool:
    """Whether there is a trial to be had. Points that dead workers left are queued once all others are given out."""
    import optuna

    states = optuna.trial.TrialState
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == states.RUNNING and _is_dead(trial):
            # Another worker was faster; or GridSampler asks the study to stop, which it only takes from `optimize`.
            with contextlib.suppress(ValueError, RuntimeError, KeyError):
                study.tell(trial.number, state=states.FAIL)
    trials = study.get_trials(deepcopy=False)
    if len(trials) < grid.points or any(trial.state == states.WAITING for trial in trials):
        return True
    for point in range(grid.points):
        tried = [trial for trial in trials if _point(trial) == point and "spare" not in trial.user_attrs]
        if all(_was_cut(trial) for trial in tried) and _deaths(tried) <= MOST_DEATHS:
            attributes = {"grid_id": point, "search_space": tried[0].system_attrs["search_space"]}
            study.add_trial(optuna.create_trial(state=states.WAITING, system_attrs=attributes))
            return True
    return False


def _point(trial: Any) -> int:
    """Which point of the grid a trial is; a new one's isn't written down yet, but its number says it."""
    return int(trial.system_attrs.get("grid_id", trial.number))


def _was_cut(trial: Any) -> bool:
    """Whether a trial ended without a result or an error of its own."""
    return trial.state.name == "FAIL" and "error" not in trial.user_attrs


def _deaths(trials: Sequence[Any]) -> int:
    """How many of them ended with their process; those that a person interrupted don't count."""
    return sum(_was_cut(trial) and "interrupted" not in trial.user_attrs for trial in trials)


def _is_spare(trial: Any, study: Any) -> bool:
    """Whether an earlier trial of the same point is done, failed for good or is still to be reckoned with."""
    point = _point(study.get_trials(deepcopy=False)[trial.number])
    return any(
        _point(other) == point and "spare" not in other.user_attrs and not _was_cut(other)
        for other in study.get_trials(deepcopy=False)[: trial.number]
    )


def _is_dead(trial: Any) -> bool:
    """Whether the process of a running trial is gone, as far as can be told from here."""
    worker = trial.user_attrs.get("worker")
    if worker and worker["machine"] == _machine():
        try:
            os.kill(worker["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    seen = trial.user_attrs.get("alive", trial.datetime_start.timestamp())
    return bool(time.time() - seen > STALE_S)


def _machine() -> str:
    """Two processes that say the same can see each other's process numbers: one boot, one container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


@contextlib.contextmanager
def _alive(trial: Any) -> Iterator[None]:
    """Give signs of life while a trial runs: a journal file has no heartbeat of its own."""
    trial.set_user_attr("worker", {"machine": _machine(), "pid": os.getpid()})
    trial.set_user_attr("alive", time.time())
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(ALIVE_EVERY_S):
            with contextlib.suppress(Exception):  # a storage out of reach for a moment is no reason to stop training
                trial.set_user_attr("alive", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _join(study: Any, plan: _Plan) -> None:
    """Refuse a study of other settings. Paths may differ from machine to machine."""
    wanted = json.loads(json.dumps(asdict(plan.grid))) | {
        "frozen": plan.frozen,
        "input_size": plan.input_size,
        "seed": plan.seed,
        "weights": plan.weights if plan.weights in ("imagenet", "none") else "files",
    }
    if "settings" not in study.user_attrs:
        study.set_user_attr("settings", wanted)
    found = study.user_attrs["settings"]
    differing = [f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in {**found, **wanted}
                 if found.get(key) != wanted.get(key)]  # fmt: skip
    if differing:
        raise UsageError(
            f"study {study.study_name} has other settings ({'; '.join(differing)})",
            hint="repeat its settings to go on with it, or choose another --study, --storage or --out",
        )


# --- a trial ----------------------------------------------------------------------------------------------------------


def _objective(trial: Any, study: Any, plan: _Plan, progress: Progress) -> float:
    """Train one point, unless it is another worker's; its accuracy in validation."""
    import optuna

    if _is_spare(trial, study):
        trial.set_user_attr("spare", True)
        raise optuna.TrialPruned
    with _alive(trial):
        point = {name: trial.suggest_categorical(name, values) for name, values in plan.grid.space().items()}
        progress.note(f"trial {trial.number}: {_slug(point)}")
        try:
            settings = plan.settings(point)
            run = load_run(settings.out) if is_complete(settings) else train(settings, progress)
        except KeyboardInterrupt:
            trial.set_user_attr("interrupted", True)
            raise
        except (
            OSError,
            NoSpaceError,
        ) as error:  # a full disk would fail all that come after
            trial.set_user_attr("interrupted", True)
            raise _Ended from error
        except Exception as error:  # is part of the result; the other points go on
            said = error.message if isinstance(error, EdgeallError) else f"{type(error).__name__}: {error}"
            trial.set_user_attr("error", said.splitlines()[0] if said else type(error).__name__)
            progress.note(f"trial {trial.number}: failed: {said}")
            raise
        validation, test = run["metrics"]["validation"], run["metrics"]["test"]
        facts = {
            "validation_accuracy": validation["accuracy"],
            "validation_loss": validation["log_loss"],
            "test_accuracy": test["accuracy"],
            "test_loss": test["log_loss"],
            "test_macro_f1": test["macro_f1"],
            "split_level": run["split"]["level"],
            "minutes": run["timing"]["total_s"] / 60,
            "run": str(settings.out),
            "dataset_sha256": run["data"]["dataset_sha256"],
            "synthetic": run["data"]["synthetic"],
        }
        trial.set_user_attr("facts", facts)
        return float(validation["accuracy"])


def _slug(point: Mapping[str, Any]) -> str:
    spec = registry.get(point["model"])
    name = model_name(spec.name, 1.0 if spec.alphas else None)
    return f"{name}-{point['protocol']}-lr{point['learning_rate']:g}-dropout{point['dropout']:g}"


# --- how it stands ----------------------------------------------------------------------------------------------------


def _result(study: Any, plan: _Plan) -> dict[str, Any]:
    """Every point of the grid, with the trial that counts for it."""
    space = plan.grid.space()
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
        raise DataError(f"study {study.study_name}: its workers had different data", hint="give all the same images")
    return {
        "grid": asdict(plan.grid),
        "frozen": plan.frozen,
        "study": study.study_name,
        "synthetic": any(row["synthetic"] for row in done),
        "rows": rows,
        "best": max(done, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]), default=None),
        "best_on_test": max(done, key=lambda row: row["test_accuracy"], default=None),
        "failed": sum(row["state"] == "failed" for row in rows),
        "left": sum(row["state"] in ("running", "waiting") for row in rows),
    }


def _standing(trials: Sequence[Any]) -> dict[str, Any]:
    """State and figures of one point, of which ``trials`` were made."""
    counting = next((trial for trial in trials if not _was_cut(trial)), None)
    facts = counting.user_attrs.get("facts", {}) if counting else {}
    error = counting.user_attrs.get("error") if counting else None
    state = {"COMPLETE": "done", "FAIL": "failed", "RUNNING": "running"}[counting.state.name] if counting else "waiting"
    if counting is None and _deaths(trials) > MOST_DEATHS:
        state, error = "failed", f"its process died {_deaths(trials)} times"
    return {"state": state, **{key: facts.get(key) for key in FIGURES}, "error": error}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
