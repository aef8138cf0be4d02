"""The table of a comparison: its rows, notes, CSV file and text."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.tables import percent, table
from ...edge_runtime.tools.atomic import atomic_write
from ...train.evaluation.mcnemar import mcnemar
from .compare_result import ComparedModel, ComparedRow, Comparison, FoldMetrics, SchemeFigures
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


def rows_of(model: ComparedModel) -> list[ComparedRow]:
    """The rows of one model: one for each scheme. `mark_front` and `against_best` complete them."""
    return [_row(model, scheme, figures, figures.metrics) for scheme, figures in model.schemes.items()]


def _row(model: ComparedModel, scheme: str, figures: SchemeFigures, metrics: FoldMetrics) -> ComparedRow:
    assert metrics.averages is not None and metrics.accuracy_ci95 is not None
    low, high = metrics.accuracy_ci95
    accuracies = metrics.accuracies
    weighted = metrics.averages["weighted"]
    return ComparedRow(
        model=model.name,
        scheme=scheme,
        runs=len(model.runs),
        accuracy=float(np.mean(accuracies)),
        accuracy_sd=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        accuracy_low=low,
        accuracy_high=high,
        test_images=metrics.images,
        weighted_precision=weighted.precision,
        weighted_recall=weighted.recall,
        weighted_f1=weighted.f1,
        latency_p50_ms=figures.latency.p50_ms,
        latency_p90_ms=figures.latency.p90_ms,
        pruned=model.pruned is not None,
        **_alike(model, "split_level", "optimistic", "parameters", "macs", "epoch_s"),
        **_alike(metrics, "macro_f1", "log_loss", "ece", "sensitivity", "specificity"),
        **_alike(metrics, "balanced_accuracy", "auroc_positive"),
        **_alike(figures, "drop_points", "agreement", "float_layers"),
        **_alike(figures, "file_bytes", "flatbuffer_bytes", "compressed_bytes"),
    )


def _alike(of: object, *names: str) -> dict[str, Any]:
    """The attributes that a row names alike."""
    return {name: getattr(of, name) for name in names}


def mark_front(rows: Sequence[ComparedRow], tested_on: Mapping[str, str]) -> list[ComparedRow]:
    """The rows with ``on_front``. ``tested_on``: digest of the test images, by model."""
    chosen: set[int] = set()
    for digest in set(tested_on.values()):
        members = [i for i, row in enumerate(rows) if tested_on[row.model] == digest]
        chosen.update(members[i] for i in front([(rows[i].latency_p50_ms, rows[i].accuracy) for i in members]))
    return [replace(row, on_front=i in chosen) for i, row in enumerate(rows)]


def against_best(
    rows: Sequence[ComparedRow], tested_on: Mapping[str, str], right: Mapping[tuple[str, str], NDArray[np.bool_]]
) -> list[ComparedRow]:
    """The rows with the paired comparison with the most accurate row of the same test images.

    Args:
        rows: in the order of the table.
        tested_on: digest of the test images, by model.
        right: correct predictions by model and scheme, see `edgeall.optimize.experiments.compare_models.Measured`.
    """
    best: dict[str, ComparedRow] = {}
    for row in rows:
        digest = tested_on[row.model]
        if digest not in best or row.accuracy > best[digest].accuracy:
            best[digest] = row
    found = []
    for row in rows:
        leader = best[tested_on[row.model]]
        if row is not leader:
            test = mcnemar(right[row.model, row.scheme], right[leader.model, leader.scheme])
            row = replace(
                row, only_this_right=test.only_first, only_best_right=test.only_second, mcnemar_p=test.p_value
            )
        found.append(row)
    return found


def notes_of(models: Sequence[ComparedModel]) -> list[str]:
    """Limits of the comparison that a reader has to know."""
    notes = []
    if any(model.optimistic for model in models):
        notes.append("image-level split: optimistic (images of one subject may be in training and test)")
    if len({model.test_sha256 for model in models}) > 1:
        notes.append(
            "not all models have the same test images: their accuracies cannot be compared directly, and p compares a "
            "model with the best one of the same test images"
        )
    schemes = [figures for model in models for figures in model.schemes.values()]
    if any(figures.metrics.ci_unit == "subject" for figures in schemes):
        notes.append("p assumes independent images; those of one subject are not, so p is too small")
    scattered = sum(figures.latency.p90_ms > BUSY * figures.latency.p10_ms for figures in schemes)
    if scattered:
        notes.append(
            f"{scattered} of {len(schemes)} latencies vary by more than a factor of {BUSY:g}: other programs were "
            "running; repeat the command on an idle machine"
        )
    if any(model.data.synthetic for model in models):
        notes.append("SYNTHETIC images: no figure here applies to real blood")
    return notes


def write_csv(path: Path, result: Comparison) -> None:
    """One line for each model and scheme; failures at the end, with their error alone."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        for row in result.rows:
            extra = {
                f"{name}_{key}": getattr(result.models[row.model].by_side[name], key)
                for name in ("train", "validation")
                for key in ("accuracy", "log_loss")
            }
            layers = json.dumps(row.float_layers) if row.float_layers else ""
            writer.writerow({**row.to_json(), **extra, "float_layers": layers})
        for failure in result.failures:
            writer.writerow({"model": failure.model, "scheme": failure.scheme, "error": failure.error})


def compare_text(result: Comparison) -> str:
    """Table of the result of `edgeall.optimize.experiments.compare.compare_runs`, then the failures and notes."""
    columns = ["model", "scheme", "accuracy", "p", "drop", "macro F1", "params", "MMACs", "file", "zipped", "p50", ""]
    rows = []
    for row in result.rows:
        spread = "" if row.accuracy_sd is None else f" ± {100 * row.accuracy_sd:.2f}"
        rows.append(
            [
                row.model,
                row.scheme,
                f"{percent(row.accuracy)}{spread}",
                "best" if row.mcnemar_p is None else f"{row.mcnemar_p:.3f}",
                f"{row.drop_points:.2f}",
                f"{row.macro_f1:.4f}",
                f"{row.parameters / 1e6:.2f} M",
                f"{row.macs / 1e6:.0f}",
                f"{row.file_bytes / 1e6:.2f} MB",
                f"{row.compressed_bytes / 1e6:.2f} MB",
                f"{row.latency_p50_ms:.2f} ms",
                "front" if row.on_front else "",
            ]
        )
    parts = [table(columns, rows)]
    if result.failures:
        parts.append("\n".join(["failed:", *(f"  {failure}" for failure in result.failures)]))
    explained = "p: probability of such a difference from the best by chance (McNemar's exact test)"
    parts.append("\n".join([explained, *result.notes, f"report: {result.report}"]))
    return "\n\n".join(parts)
