"""Compares trained networks in several schemes: accuracy, size, and latency on this machine."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ... import __version__
from ...console.progress import Progress
from ...edge_runtime.errors import DataError, EdgeallError, NoSpaceError, UsageError
from ...edge_runtime.files import output_lock
from ...edge_runtime.images import mark_output, refuse_inside
from ...models.keras_compat import keras
from ...train.run_info import RunInfo
from ...train.runs import data_root, load_run, provenance, write_json
from .compare_config import CompareOptions
from .compare_models import describe, measure, open_run
from .compare_result import ComparedModel, ComparedTiming, Comparison, Failure, ProtocolInfo, SchemeFigures
from .compare_table import against_best, mark_front, notes_of, rows_of, write_csv
from .latency import Latency, interleaved
from .tasks import registry as tasks
from .tasks.registry import Measured, OpenRun

SCHEMA = 1
T = TypeVar("T")


def compare_runs(runs: Sequence[Path], out: Path, options: CompareOptions, progress: Progress) -> Comparison:
    """Compare finished runs of any backbone, pruned or not.

    A missing ``<scheme>.tflite`` is made and kept in the run's folder; an existing one must be made of that run. Every
    model runs on its test subset through the device's code path. Its answers are kept in ``out/predictions``, so
    the same command resumes after a kill. Latency is measured anew each time, all models in turn in one process.

    Args:
        runs: complete run folders with the same classes.
        out: folder for ``compare.json``, ``compare.csv`` and ``compare.html``.
        options: see `CompareOptions`.

    Returns:
        The content of ``compare.json``.

    Raises:
        UsageError: no runs, an unknown scheme, an ``out`` that cannot be written to, lies in the data or is in use;
            before any work starts.
        DataError: a run folder that is not complete, or runs of different tasks or classes.
    """
    options = options.checked()
    if not runs:
        raise UsageError("nothing to compare", hint="give run folders of `edgeall train`")
    facts = {folder: load_run(folder) for folder in runs}
    _same_classes(facts)
    for folder, run in facts.items():
        if "test" not in run.metrics:
            raise DataError(
                f"{folder}: was never evaluated on its test subset", hint="compare the run that a search has chosen"
            )
    check_out(out, [options.data] if options.data else [data_root(run) for run in facts.values()])
    names = _names([*facts])
    with output_lock(out, "compare"):
        return compare_groups({names[folder]: [folder] for folder in facts}, out, options, [], None, progress)


@dataclass
class _Found:
    """What was measured so far.

    Attributes:
        failures: see `failure_of`.
        models: by name, still without their schemes.
        measured: by model and scheme, see `edgeall.optimize.experiments.compare_models.measure`.
        drawn: by model, see `ComparisonTask.drawn`.
    """

    failures: list[Failure]
    models: dict[str, ComparedModel] = field(default_factory=dict)
    measured: dict[tuple[str, str], tuple[Callable[..., SchemeFigures], Measured]] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)


def compare_groups(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    options: CompareOptions,
    failures: list[Failure],
    protocol: ProtocolInfo | None,
    progress: Progress,
) -> Comparison:
    """Quantize, classify and time the runs, and write the report.

    Args:
        groups: run folders by model; several folds of a model under cross-validation.
        out: see `compare_runs`.
        options: checked.
        failures: of training, see `failure_of`; later failures are added.
        protocol: the report's entry of the protocol.
    """
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    found = _Found(failures)
    for name, folders in groups.items():
        _measure_model(found, name, folders, out, options, progress)
        keras.backend.clear_session()
    if not found.models:
        raise DataError(f"no run could be opened; {failures[0]}", hint=failures[0].hint)
    result = _result(found, out, options, protocol, progress)
    write_json(out / "compare.json", result.to_json())
    write_csv(out / "compare.csv", result)
    tasks.of_result(result).write_report(out / "compare.html", result, found.drawn)
    return result


def _measure_model(
    found: _Found, name: str, folders: Sequence[Path], out: Path, options: CompareOptions, progress: Progress
) -> None:
    """Open the runs of one model, and measure it in every scheme."""
    opened = attempt(name, None, functools.partial(_open_model, name, folders, options, progress))
    if isinstance(opened, Failure):
        progress.note(f"failed: {opened}")
        found.failures.append(opened)
        return
    runs, found.models[name] = opened
    found.drawn[name] = tasks.of_run(runs[0].facts).drawn(runs)
    for scheme in options.schemes:
        made = attempt(name, scheme, functools.partial(measure, runs, scheme, out, options, progress))
        if isinstance(made, Failure):
            progress.note(f"failed: {made}")
            found.failures.append(made)
        else:
            found.measured[name, scheme] = made


def _open_model(
    name: str, folders: Sequence[Path], options: CompareOptions, progress: Progress
) -> tuple[list[OpenRun], ComparedModel]:
    """The runs of one model, and the report's facts."""
    runs = [open_run(name, folder, options, progress) for folder in folders]
    return runs, describe(name, runs)


def _timed(found: _Found, seconds: float, progress: Progress) -> tuple[int, dict[str, ComparedModel]]:
    """The number of rounds, and the models with their schemes. A scheme's latency is the mean over the folds."""
    opened = {(*key, fold): pair for key, (_, made) in found.measured.items() for fold, pair in enumerate(made.timed)}
    rounds, times = interleaved(opened, seconds, progress) if opened else (0, {})
    schemes: dict[str, dict[str, SchemeFigures]] = {name: {} for name in found.models}
    for (name, scheme), (figures, made) in found.measured.items():
        folds = [times[name, scheme, fold] for fold in range(len(made.timed))]
        means = np.mean([(fold.p10_ms, fold.p50_ms, fold.p90_ms) for fold in folds], axis=0)
        schemes[name][scheme] = figures(latency=Latency(*map(float, means)))
    return rounds, {name: replace(model, schemes=schemes[name]) for name, model in found.models.items()}


def _result(
    found: _Found, out: Path, options: CompareOptions, protocol: ProtocolInfo | None, progress: Progress
) -> Comparison:
    rounds, by_name = _timed(found, options.seconds, progress)
    models = [*by_name.values()]
    tested_on = {model.name: model.test_sha256 for model in models}
    rows = mark_front([row for model in models for row in rows_of(model)], tested_on)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Comparison(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        edgeall_version=__version__,
        **vars(provenance()),
        labels=models[0].labels,
        synthetic=any(model.data.synthetic for model in models),
        protocol=protocol,
        schemes=list(options.schemes),
        timing=ComparedTiming(threads=1, rounds=rounds, load_average_1min=load),
        rows=against_best(rows, tested_on, {key: made.scores for key, (_, made) in found.measured.items()}),
        models=by_name,
        failures=found.failures,
        notes=notes_of(models),
        report=str(out / "compare.html"),
        task=tasks.of_model(models[0]).name,
    )


def check_out(out: Path, roots: Sequence[Path]) -> None:
    """Raise UsageError if a report cannot be written to ``out``, or would lie in the data."""
    for root in roots:
        refuse_inside(root, out)
    if out.is_file() or (out / "run.json").exists():
        raise UsageError(f"{out}: is {'a file' if out.is_file() else 'a run'}", hint="give a folder for the report")


def attempt(model: str, scheme: str | None, work: Callable[[], T]) -> T | Failure:
    """What ``work`` returns, or `failure_of` its exception. Interrupts pass through."""
    try:
        return work()
    except NoSpaceError:  # the report could not be written either
        raise
    except Exception as error:  # of any kind: the other models continue
        return failure_of(model, scheme, error)


def failure_of(model: str, scheme: str | None, error: Exception) -> Failure:
    """The report's entry of a failure; an unexpected exception comes with its traceback."""
    if isinstance(error, EdgeallError):
        return Failure(model, scheme, error.message, error.hint)
    message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    details = "".join(traceback.format_exception(error))
    return Failure(model, scheme, message, "", details)


def _same_classes(facts: Mapping[Path, RunInfo]) -> None:
    (first, wanted), *others = facts.items()
    for folder, run in others:
        task, other = tasks.of_run(run).name, tasks.of_run(wanted).name
        if task != other:
            raise DataError(f"{folder} is a {task} run, {first} a {other} run", hint="compare runs of one task")
        if run.labels != wanted.labels:
            raise DataError(
                f"{folder} has the classes {', '.join(run.labels)}, {first} has {', '.join(wanted.labels)}",
                hint="compare runs of the same classes",
            )


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Name of each run in the report: its folder's name, with as many parents as make the names different."""
    parts = {folder: folder.resolve().parts for folder in folders}
    for count in range(1, max(map(len, parts.values())) + 1):
        names = {folder: "/".join(of[-count:]) for folder, of in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    raise UsageError("the same run is named twice")
