"""Compares trained networks in several schemes: accuracy, size, and latency on this machine."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...console.progress import Progress
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import DataError, EdgeallError, NoSpaceError, UsageError
from ...edge_runtime.files import output_lock
from ...edge_runtime.images import mark_output, refuse_inside
from ...edge_runtime.tools.device import describe_device
from ...models.keras_compat import keras
from ...train.data.split import SplitEntry
from ...train.run_info import RunInfo
from ...train.runs import data_root, load_run, source_revision, versions, write_json
from ...train.tasks.registry import only_classification
from .compare_config import CompareOptions
from .compare_models import OpenRun, describe, measure, open_run
from .compare_report import write_compare_report
from .compare_table import against_best, failure_text, mark_front, notes_of, rows_of, write_csv
from .latency import PERCENTILES, interleaved

SCHEMA = 1


def compare_runs(runs: Sequence[Path], out: Path, options: CompareOptions, progress: Progress) -> dict[str, Any]:
    """Compare finished runs of any backbone, pruned or not.

    A missing ``<scheme>.tflite`` is made and kept in the run's folder; an existing one must be made of that run. Every
    model classifies its test subset through the device's code path. Predictions are kept in ``out/predictions``, so
    the same command resumes after a kill. Latency is measured anew each time, all models in turn in one process.

    Args:
        runs: complete run folders with the same classes.
        out: folder for ``compare.json``, ``compare.csv`` and ``compare.html``.
        options: see `CompareOptions`.

    Returns:
        The content of ``compare.json``: ``rows``, one for each model and scheme; ``models``, with the float metrics of
        all subsets and the test metrics of every scheme; ``failures``: what could not be made, and why.

    Raises:
        UsageError: no runs, an unknown scheme, an ``out`` that cannot be written to, lies in the data or is in use;
            before any work starts.
        DataError: a run folder that is not complete, or runs of different classes.
    """
    options = options.checked()
    if not runs:
        raise UsageError("nothing to compare", hint="give run folders of `edgeall train`")
    facts = {folder: load_run(folder) for folder in runs}
    for run in facts.values():
        only_classification(run, "compare")
    _same_labels(facts)
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
        models: the report's facts by model.
        timed: open classifier and one preprocessed image, by ``model\\nscheme\\nfold``.
        right: correct predictions, bool ``(images,)``, by model and scheme.
        curves: test images and probabilities of the ROC curves, by model.
        failures: see `failure_of`.
    """

    failures: list[dict[str, Any]]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    timed: dict[str, tuple[Classifier, NDArray[np.uint8]]] = field(default_factory=dict)
    right: dict[tuple[str, str], NDArray[np.bool_]] = field(default_factory=dict)
    curves: dict[str, tuple[list[SplitEntry], NDArray[np.float32]]] = field(default_factory=dict)


def compare_groups(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    options: CompareOptions,
    failures: list[dict[str, Any]],
    protocol: dict[str, Any] | None,
    progress: Progress,
) -> dict[str, Any]:
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
        raise DataError(f"no run could be opened; {failure_text(failures[0])}", hint=failures[0]["hint"])
    rounds = _measure_latency(found, options.seconds, progress)
    result = _result(found, options, protocol, rounds) | {"report": str(out / "compare.html")}
    write_json(out / "compare.json", result)
    write_csv(out / "compare.csv", result["rows"], found.models, failures)
    write_compare_report(out / "compare.html", result, found.curves)
    return result


def _measure_model(
    found: _Found, name: str, folders: Sequence[Path], out: Path, options: CompareOptions, progress: Progress
) -> None:
    """Open the runs of one model, and measure it in every scheme."""
    opened = attempt(name, None, functools.partial(_open_model, name, folders, options, progress))
    if isinstance(opened, dict):
        progress.note(f"failed: {failure_text(opened)}")
        found.failures.append(opened)
        return
    runs, found.models[name], found.curves[name] = opened
    for scheme in options.schemes:
        made = attempt(name, scheme, functools.partial(measure, runs, scheme, out, options, progress))
        if "error" in made:
            progress.note(f"failed: {failure_text(made)}")
            found.failures.append(made)
            continue
        found.models[name]["schemes"][scheme] = made["facts"]
        found.right[name, scheme] = made["right"]
        found.timed |= {f"{name}\n{scheme}\n{i}": pair for i, pair in enumerate(made["timed"])}


def _open_model(
    name: str, folders: Sequence[Path], options: CompareOptions, progress: Progress
) -> tuple[list[OpenRun], dict[str, Any], tuple[list[SplitEntry], NDArray[np.float32]]]:
    """The runs of one model, the report's facts, and test images and probabilities of its ROC curves."""
    runs = [open_run(name, folder, options, progress) for folder in folders]
    probabilities = np.concatenate([run.keras for run in runs])
    return runs, describe(name, runs, probabilities), ([entry for run in runs for entry in run.test], probabilities)


def _measure_latency(found: _Found, seconds: float, progress: Progress) -> int:
    """Add ``latency`` to every scheme, the mean over the folds; returns the number of rounds."""
    timing: dict[str, Any] = {"rounds": 0, "models": {}}
    if found.timed:
        timing = interleaved(found.timed, seconds, progress)
    for name, model in found.models.items():
        for scheme, facts in model["schemes"].items():
            folds = [timing["models"][f"{name}\n{scheme}\n{i}"] for i in range(len(model["runs"]))]
            facts["latency"] = {key: float(np.mean([fold[key] for fold in folds])) for key in PERCENTILES}
    return int(timing["rounds"])


def _result(found: _Found, options: CompareOptions, protocol: dict[str, Any] | None, rounds: int) -> dict[str, Any]:
    """The content of ``compare.json``."""
    models = found.models
    rows = mark_front([row for model in models.values() for row in rows_of(model)], models)
    rows = against_best(rows, {name: model["test_sha256"] for name, model in models.items()}, found.right)
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "edgeall_version": __version__,
        "source_revision": source_revision(),
        "versions": versions(),
        "device": describe_device(),
        "labels": next(iter(models.values()))["labels"],
        "synthetic": any(model["data"]["synthetic"] for model in models.values()),
        "protocol": protocol,
        "schemes": list(options.schemes),
        "timing": {
            "threads": 1,
            "rounds": rounds,
            "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "rows": rows,
        "models": models,
        "failures": found.failures,
        "notes": notes_of(models),
    }


def check_out(out: Path, roots: Sequence[Path]) -> None:
    """Raise UsageError if a report cannot be written to ``out``, or would lie in the data."""
    for root in roots:
        refuse_inside(root, out)
    if out.is_file() or (out / "run.json").exists():
        raise UsageError(f"{out}: is {'a file' if out.is_file() else 'a run'}", hint="give a folder for the report")


def attempt(model: str, scheme: str | None, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or `failure_of` its exception. Interrupts pass through."""
    try:
        return work()
    except NoSpaceError:  # the report could not be written either
        raise
    except Exception as error:  # of any kind: the other models continue
        return failure_of(model, scheme, error)


def failure_of(model: str, scheme: str | None, error: Exception) -> dict[str, Any]:
    """The report's entry of a failure; an unexpected exception comes with its traceback."""
    if isinstance(error, EdgeallError):
        return {"model": model, "scheme": scheme, "error": error.message, "hint": error.hint}
    message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    details = "".join(traceback.format_exception(error))
    return {"model": model, "scheme": scheme, "error": message, "hint": "", "traceback": details}


def _same_labels(facts: Mapping[Path, RunInfo]) -> None:
    (first, wanted), *others = facts.items()
    for folder, run in others:
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
