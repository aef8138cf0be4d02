"""Several trained networks side by side: what they get right, what they weigh, how fast they are on this machine."""

from __future__ import annotations

import csv
import functools
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
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
from ...edge_runtime.tools.atomic import atomic_write
from ...edge_runtime.tools.device import describe_device
from ...models.keras_compat import keras
from ...train.data import cache
from ...train.data.split import SplitEntry
from ...train.evaluation.metrics import mcnemar
from ...train.runs import data_root, load_run, source_revision, versions, write_json
from ..quantization.convert import SCHEMES
from .compare_models import OpenRun, Options, describe, measure, open_run
from .compare_report import write_compare_report
from .latency import BUSY, PERCENTILES, interleaved
from .pareto import front

SCHEMA = 1
DEFAULT_SCHEMES = ("float32", "ptq-int8", "qat-int8")
SECONDS = 3.0
"""Timed for each model, about; see `interleaved`."""
CSV_COLUMNS = (
    *("model", "scheme", "runs", "split_level", "optimistic", "accuracy", "accuracy_sd", "accuracy_low"),
    *("accuracy_high", "drop_points", "agreement", "macro_f1", "log_loss", "ece", "sensitivity", "specificity"),
    *("test_images", "parameters", "macs", "file_bytes", "flatbuffer_bytes", "compressed_bytes", "latency_p50_ms"),
    *("latency_p90_ms", "on_front", "train_accuracy", "validation_accuracy", "train_log_loss"),
    *("validation_log_loss", "pruned", "float_layers", "only_this_right", "only_best_right", "mcnemar_p", "error"),
)


def compare_runs(
    runs: Sequence[Path],
    out: Path,
    schemes: Sequence[str] = DEFAULT_SCHEMES,
    *,
    qat_epochs: int = 4,
    seconds: float = SECONDS,
    data: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Hold finished runs against each other: of any backbone, pruned or not.

    Where a run has no ``<scheme>.tflite`` yet, it is made and kept in the run's folder; one that is there must be of
    that run. Every model's test side goes through the device's own code path; what was classified once is kept in
    ``out/predictions``, so that the same command after a kill goes on. Latency is measured anew each time, all
    models in turn in one process.

    Args:
        runs: complete run folders of one data set's classes.
        out: folder for ``compare.json``, ``compare.csv`` and ``compare.html``.
        schemes: of `edgeall.optimize.quantization.convert.SCHEMES`.
        qat_epochs: of ``qat-int8``, where it has to be trained.
        seconds: how long each model is timed, about.
        data: where the images are now, if not where the runs read them.

    Returns:
        What was written to ``compare.json``: ``rows``, one for each model and scheme; ``models``, with the float
        metrics of all sides and every scheme's on the test side; ``failures``: what could not be made, and why.

    Raises:
        UsageError: no runs, an unknown scheme, an ``out`` that can't be written to, lies in the data or is in use;
            before any work starts.
        DataError: a folder that is no complete run, or runs of different classes.
    """
    options = options_of(schemes, qat_epochs, seconds, data, cache_dir)
    if not runs:
        raise UsageError("nothing to compare", hint="name run folders of `edgeall train`")
    facts = {folder: load_run(folder) for folder in runs}
    _same_labels(facts)
    for folder, run in facts.items():
        if "test" not in run["metrics"]:
            raise DataError(f"{folder}: was never evaluated on its test side", hint="compare what a search has chosen")
    check_out(out, [data] if data else [data_root(run) for run in facts.values()])
    names = _names([*facts])
    with output_lock(out, "compare"):
        return compare_groups({names[folder]: [folder] for folder in facts}, out, options, [], None, progress)


def compare_text(result: Mapping[str, Any]) -> str:
    """`compare_runs`' result for people: one line for each model and scheme, then what failed."""
    from ...console.tables import percent, table

    columns = ["model", "scheme", "accuracy", "p", "drop", "macro F1", "params", "MMACs", "file", "zipped", "p50", ""]
    rows = []
    for row in result["rows"]:
        spread = "" if row["accuracy_sd"] is None else f" ± {100 * row['accuracy_sd']:.2f}"
        rows.append(
            [
                row["model"],
                row["scheme"],
                f"{percent(row['accuracy'])}{spread}",
                "best" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.3f}",
                f"{row['drop_points']:.2f}",
                f"{row['macro_f1']:.4f}",
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['macs'] / 1e6:.0f}",
                f"{row['file_bytes'] / 1e6:.2f} MB",
                f"{row['compressed_bytes'] / 1e6:.2f} MB",
                f"{row['latency_p50_ms']:.2f} ms",
                "front" if row["on_front"] else "",
            ]
        )
    parts = [table(columns, rows)]
    if result["failures"]:
        parts.append("\n".join(["failed:", *(f"  {failure_text(failure)}" for failure in result["failures"])]))
    explained = "p: that so many images or more tell it from the best by chance (McNemar's exact test)"
    parts.append("\n".join([explained, *result["notes"], f"report: {result['report']}"]))
    return "\n\n".join(parts)


def failure_text(failure: Mapping[str, Any]) -> str:
    """One line."""
    scheme = f" {failure['scheme']}" if failure["scheme"] else ""
    return f"{failure['model']}{scheme}: {failure['error']}"


def compare_groups(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    options: Options,
    failures: list[dict[str, Any]],
    protocol: dict[str, Any] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Quantize, classify and time what is there, and write the report.

    Args:
        groups: the run folders of every model, several under cross-validation.
        out: see `compare_runs`.
        options: see `Options`.
        failures: of training, so far; see `failure_of`.
        protocol: what the report says of it.
    """
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    models: dict[str, dict[str, Any]] = {}
    timed: dict[str, tuple[Classifier, NDArray[np.uint8]]] = {}
    right: dict[tuple[str, str], NDArray[np.bool_]] = {}
    curves: dict[str, tuple[list[SplitEntry], NDArray[np.float32]]] = {}
    for name, folders in groups.items():
        begun = attempt(name, None, functools.partial(_begin, name, folders, options, progress))
        if isinstance(begun, dict):
            progress.note(f"failed: {failure_text(begun)}")
            failures.append(begun)
            continue
        runs, models[name], curves[name] = begun
        for scheme in options.schemes:
            made = attempt(name, scheme, functools.partial(measure, runs, scheme, out, options, progress))
            if "error" in made:
                progress.note(f"failed: {failure_text(made)}")
                failures.append(made)
                continue
            models[name]["schemes"][scheme] = made["facts"]
            right[name, scheme] = made["right"]
            timed |= {f"{name}\n{scheme}\n{i}": pair for i, pair in enumerate(made["timed"])}
        keras.backend.clear_session()
    if not models:
        raise DataError(f"no run could be opened; {failure_text(failures[0])}", hint=failures[0]["hint"])
    timing: dict[str, Any] = {"rounds": 0, "models": {}}
    if timed:
        timing = interleaved(timed, options.seconds, progress)
    for name, model in models.items():
        for scheme, facts in model["schemes"].items():
            folds = [timing["models"][f"{name}\n{scheme}\n{i}"] for i in range(len(groups[name]))]
            facts["latency"] = {key: float(np.mean([fold[key] for fold in folds])) for key in PERCENTILES}
    rows = _mark_front([row for model in models.values() for row in _rows(model)], models)
    rows = against_best(rows, {name: model["test_sha256"] for name, model in models.items()}, right)
    result = {
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
            "rounds": timing["rounds"],
            "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "rows": rows,
        "models": models,
        "failures": failures,
        "notes": _notes(models),
        "report": str(out / "compare.html"),
    }
    write_json(out / "compare.json", result)
    _write_csv(out / "compare.csv", rows, models, failures)
    write_compare_report(out / "compare.html", result, curves)
    return result


def _begin(
    name: str, folders: Sequence[Path], options: Options, progress: Progress
) -> tuple[list[OpenRun], dict[str, Any], tuple[list[SplitEntry], NDArray[np.float32]]]:
    """One model's runs, what the report says of them, and what its ROC curves are drawn from."""
    runs = [open_run(name, folder, options, progress) for folder in folders]
    probabilities = np.concatenate([run.keras for run in runs])
    return runs, describe(name, runs, probabilities), ([entry for run in runs for entry in run.test], probabilities)


def options_of(
    schemes: Sequence[str], qat_epochs: int, seconds: float, data: Path | None, cache_dir: Path | None
) -> Options:
    """Checked. Raises UsageError for a scheme or number that can't be meant."""
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown or not schemes:
        named = f"no scheme called {unknown[0]!r}" if unknown else "no scheme to compare"
        raise UsageError(named, hint=f"there are: {', '.join(SCHEMES)}")
    if qat_epochs < 1 or not seconds > 0:
        raise UsageError("--qat-epochs is at least 1 and --seconds above 0")
    ordered = tuple(scheme for scheme in SCHEMES if scheme in schemes)
    return Options(ordered, qat_epochs, seconds, data, cache.ready(cache_dir))


def check_out(out: Path, roots: Sequence[Path]) -> None:
    """Raise UsageError where a report can't be written to ``out``, or would lie in the data."""
    for root in roots:
        refuse_inside(root, out)
    if out.is_file() or (out / "run.json").exists():
        raise UsageError(f"{out}: is {'a file' if out.is_file() else 'a run'}", hint="name a folder for the report")


def attempt(model: str, scheme: str | None, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or a dictionary that says why there is nothing. Interrupts go through."""
    try:
        return work()
    except NoSpaceError:  # the report could not be written either
        raise
    except Exception as error:  # one of many, after hours: whatever it was, the others go on
        return failure_of(model, scheme, error)


def failure_of(model: str, scheme: str | None, error: Exception) -> dict[str, Any]:
    """What the report says of it; a bug of ours comes with its traceback."""
    if isinstance(error, EdgeallError):
        return {"model": model, "scheme": scheme, "error": error.message, "hint": error.hint}
    said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    details = "".join(traceback.format_exception(error))
    return {"model": model, "scheme": scheme, "error": said, "hint": "", "traceback": details}


def _same_labels(facts: Mapping[Path, Mapping[str, Any]]) -> None:
    (first, wanted), *others = facts.items()
    for folder, run in others:
        if run["labels"] != wanted["labels"]:
            raise DataError(
                f"{folder} tells {', '.join(run['labels'])} apart, {first} {', '.join(wanted['labels'])}",
                hint="compare runs of the same classes",
            )


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """What the report calls each run: its folder's name, with as many parents as tell the runs apart."""
    parts = {folder: folder.resolve().parts for folder in folders}
    for count in range(1, max(map(len, parts.values())) + 1):
        names = {folder: "/".join(of[-count:]) for folder, of in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    raise UsageError("the same run is named twice")


def _rows(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the main table: one for each scheme."""
    return [
        {
            "model": model["name"],
            "scheme": scheme,
            "runs": len(model["runs"]),
            "split_level": model["split_level"],
            "optimistic": model["optimistic"],
            **_judged(facts["metrics"]),
            "drop_points": facts["drop_points"],
            "agreement": facts["agreement"],
            "parameters": model["parameters"],
            "macs": model["macs"],
            **{key: facts[key] for key in ("file_bytes", "flatbuffer_bytes", "compressed_bytes", "float_layers")},
            "latency_p50_ms": facts["latency"]["p50_ms"],
            "latency_p90_ms": facts["latency"]["p90_ms"],
            "pruned": bool(model["pruned"]),
        }
        for scheme, facts in model["schemes"].items()
    ]


def _judged(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Test metrics for a row. Under cross-validation accuracy is the folds' mean, the rest of all images together."""
    accuracies = metrics["accuracies"]
    low, high = metrics["accuracy_ci95"]
    return {
        "accuracy": float(np.mean(accuracies)),
        "accuracy_sd": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "accuracy_low": low,
        "accuracy_high": high,
        **{key: metrics[key] for key in ("macro_f1", "log_loss", "ece", "sensitivity", "specificity")},
        "test_images": metrics["images"],
    }


def _mark_front(rows: list[dict[str, Any]], models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add ``on_front``: among the models judged on the same images, none is both faster and more accurate."""
    chosen: set[int] = set()
    for digest in {model["test_sha256"] for model in models.values()}:
        members = [i for i, row in enumerate(rows) if models[row["model"]]["test_sha256"] == digest]
        points = [(rows[i]["latency_p50_ms"], rows[i]["accuracy"]) for i in members]
        chosen.update(members[i] for i in front(points))
    return [{**row, "on_front": i in chosen} for i, row in enumerate(rows)]


def against_best(
    rows: Sequence[Mapping[str, Any]], judged_on: Mapping[str, str], right: Mapping[tuple[str, str], NDArray[np.bool_]]
) -> list[dict[str, Any]]:
    """Hold every row against the most accurate one that was judged on the same images.

    Args:
        rows: with ``model``, ``scheme`` and ``accuracy``.
        judged_on: a digest of its test images, by model.
        right: by model and scheme, see `edgeall.optimize.experiments.compare_models.measure`.

    Returns:
        The rows with ``only_this_right``, ``only_best_right`` and ``mcnemar_p``, see
        `edgeall.train.evaluation.metrics.mcnemar`; None in the best one's own.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        digest = judged_on[row["model"]]
        if digest not in best or row["accuracy"] > best[digest]["accuracy"]:
            best[digest] = row
    found = []
    for row in rows:
        leader = best[judged_on[row["model"]]]
        test: dict[str, Any] = dict.fromkeys(("only_first", "only_second", "p_value"))
        if row is not leader:
            test = mcnemar(right[row["model"], row["scheme"]], right[leader["model"], leader["scheme"]])
        said = {"only_this_right": test["only_first"], "only_best_right": test["only_second"]}
        found.append({**row, **said, "mcnemar_p": test["p_value"]})
    return found


def _notes(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    every = list(models.values())
    if any(model["optimistic"] for model in every):
        notes.append("image-level split: optimistic (the same patient may be on both sides)")
    if len({model["test_sha256"] for model in every}) > 1:
        notes.append(
            "not all models were judged on the same images: their accuracies can't be compared directly, and p is "
            "against the best of those judged on the same ones"
        )
    judged = [facts["metrics"]["ci_unit"] for model in every for facts in model["schemes"].values()]
    if "subject" in judged:
        notes.append("p takes images for independent, which those of one subject are not: it is on the small side")
    timed = [facts["latency"] for model in every for facts in model["schemes"].values()]
    scattered = sum(latency["p90_ms"] > BUSY * latency["p10_ms"] for latency in timed)
    if scattered:
        notes.append(
            f"{scattered} of {len(timed)} latencies scatter by more than {BUSY:g} times: something else was running; "
            "give the same command again on an idle machine"
        )
    if any(model["data"]["synthetic"] for model in every):
        notes.append("SYNTHETIC images: no figure here says anything about real blood")
    return notes


def _write_csv(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
) -> None:
    """One line for each model and scheme, those that failed at the end with nothing but their error."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        for row in rows:
            sides = models[row["model"]]["by_side"]
            extra = {
                f"{side}_{key}": sides[side][key]
                for side in ("train", "validation")
                for key in ("accuracy", "log_loss")
            }
            layers = row["float_layers"]
            writer.writerow({**row, **extra, "float_layers": json.dumps(layers) if layers else ""})
        for failure in failures:
            writer.writerow({key: failure[key] for key in ("model", "scheme", "error")})
