"""The table of a comparison: its rows, notes, CSV file and text."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.tables import percent, table
from ...edge_runtime.tools.atomic import atomic_write
from ...train.evaluation.mcnemar import mcnemar
from .latency import BUSY
from .pareto import front

CSV_COLUMNS = (
    *("model", "scheme", "runs", "split_level", "optimistic", "accuracy", "accuracy_sd", "accuracy_low"),
    *("accuracy_high", "drop_points", "agreement", "macro_f1", "log_loss", "ece", "sensitivity", "specificity"),
    *("test_images", "parameters", "macs", "file_bytes", "flatbuffer_bytes", "compressed_bytes", "latency_p50_ms"),
    *("latency_p90_ms", "on_front", "train_accuracy", "validation_accuracy", "train_log_loss"),
    *("validation_log_loss", "pruned", "float_layers", "only_this_right", "only_best_right", "mcnemar_p", "error"),
    *("balanced_accuracy", "auroc_positive", "weighted_precision", "weighted_recall", "weighted_f1", "epoch_s"),
)


def rows_of(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one model: one for each scheme."""
    return [
        {
            "model": model["name"],
            "scheme": scheme,
            "runs": len(model["runs"]),
            "split_level": model["split_level"],
            "optimistic": model["optimistic"],
            **_test_metrics(facts["metrics"]),
            "drop_points": facts["drop_points"],
            "agreement": facts["agreement"],
            "parameters": model["parameters"],
            "macs": model["macs"],
            **{key: facts[key] for key in ("file_bytes", "flatbuffer_bytes", "compressed_bytes", "float_layers")},
            "latency_p50_ms": facts["latency"]["p50_ms"],
            "latency_p90_ms": facts["latency"]["p90_ms"],
            "pruned": bool(model["pruned"]),
            "epoch_s": model["epoch_s"],
        }
        for scheme, facts in model["schemes"].items()
    ]


def _test_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Test metrics of a row. Under cross-validation the accuracy is the mean of the folds; the rest is pooled."""
    accuracies = metrics["accuracies"]
    low, high = metrics["accuracy_ci95"]
    return {
        "accuracy": float(np.mean(accuracies)),
        "accuracy_sd": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "accuracy_low": low,
        "accuracy_high": high,
        **{key: metrics[key] for key in ("macro_f1", "log_loss", "ece", "sensitivity", "specificity")},
        "test_images": metrics["images"],
        **{key: metrics[key] for key in ("balanced_accuracy", "auroc_positive")},
        **{f"weighted_{key}": value for key, value in metrics["averages"]["weighted"].items()},
    }


def mark_front(rows: list[dict[str, Any]], models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add ``on_front``: on the Pareto front of latency and accuracy of the models with the same test images."""
    chosen: set[int] = set()
    for digest in {model["test_sha256"] for model in models.values()}:
        members = [i for i, row in enumerate(rows) if models[row["model"]]["test_sha256"] == digest]
        points = [(rows[i]["latency_p50_ms"], rows[i]["accuracy"]) for i in members]
        chosen.update(members[i] for i in front(points))
    return [{**row, "on_front": i in chosen} for i, row in enumerate(rows)]


def against_best(
    rows: Sequence[Mapping[str, Any]], tested_on: Mapping[str, str], right: Mapping[tuple[str, str], NDArray[np.bool_]]
) -> list[dict[str, Any]]:
    """Paired comparison of every row with the most accurate row of the same test images.

    Args:
        rows: with ``model``, ``scheme`` and ``accuracy``.
        tested_on: digest of the test images, by model.
        right: correct predictions by model and scheme, see `edgeall.optimize.experiments.compare_models.measure`.

    Returns:
        The rows with ``only_this_right``, ``only_best_right`` and ``mcnemar_p``, see
        `edgeall.train.evaluation.mcnemar.mcnemar`; None in the best row itself.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        digest = tested_on[row["model"]]
        if digest not in best or row["accuracy"] > best[digest]["accuracy"]:
            best[digest] = row
    found = []
    for row in rows:
        leader = best[tested_on[row["model"]]]
        counts: tuple[float | None, ...] = (None, None, None)
        if row is not leader:
            test = mcnemar(right[row["model"], row["scheme"]], right[leader["model"], leader["scheme"]])
            counts = (test.only_first, test.only_second, test.p_value)
        names = ("only_this_right", "only_best_right", "mcnemar_p")
        found.append({**row, **dict(zip(names, counts, strict=True))})
    return found


def notes_of(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Limits of the comparison that a reader has to know."""
    notes = []
    every = list(models.values())
    if any(model["optimistic"] for model in every):
        notes.append("image-level split: optimistic (images of one subject may be in training and test)")
    if len({model["test_sha256"] for model in every}) > 1:
        notes.append(
            "not all models have the same test images: their accuracies cannot be compared directly, and p compares a "
            "model with the best one of the same test images"
        )
    units = [facts["metrics"]["ci_unit"] for model in every for facts in model["schemes"].values()]
    if "subject" in units:
        notes.append("p assumes independent images; those of one subject are not, so p is too small")
    timed = [facts["latency"] for model in every for facts in model["schemes"].values()]
    scattered = sum(latency["p90_ms"] > BUSY * latency["p10_ms"] for latency in timed)
    if scattered:
        notes.append(
            f"{scattered} of {len(timed)} latencies vary by more than a factor of {BUSY:g}: other programs were "
            "running; repeat the command on an idle machine"
        )
    if any(model["data"]["synthetic"] for model in every):
        notes.append("SYNTHETIC images: no figure here applies to real blood")
    return notes


def write_csv(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
) -> None:
    """One line for each model and scheme; failures at the end, with their error alone."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        for row in rows:
            subsets = models[row["model"]]["by_side"]
            extra = {
                f"{name}_{key}": subsets[name][key]
                for name in ("train", "validation")
                for key in ("accuracy", "log_loss")
            }
            layers = row["float_layers"]
            writer.writerow({**row, **extra, "float_layers": json.dumps(layers) if layers else ""})
        for failure in failures:
            writer.writerow({key: failure[key] for key in ("model", "scheme", "error")})


def compare_text(result: Mapping[str, Any]) -> str:
    """Table of the result of `edgeall.optimize.experiments.compare.compare_runs`, then the failures and notes."""
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
    explained = "p: probability of such a difference from the best by chance (McNemar's exact test)"
    parts.append("\n".join([explained, *result["notes"], f"report: {result['report']}"]))
    return "\n\n".join(parts)


def failure_text(failure: Mapping[str, Any]) -> str:
    """One line of text about a failure."""
    scheme = f" {failure['scheme']}" if failure["scheme"] else ""
    return f"{failure['model']}{scheme}: {failure['error']}"
