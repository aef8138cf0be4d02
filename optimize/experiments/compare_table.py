"""The table of a comparison: its rows, notes, CSV file and text."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...console.tables import table
from ...edge_runtime.tools.atomic import atomic_write
from .compare_result import ComparedModel, Comparison, Row
from .latency import BUSY
from .pareto import front
from .tasks import registry as tasks


def rows_of(model: ComparedModel) -> list[Row]:
    """The rows of one model: one for each scheme. `mark_front` and `against_best` complete them."""
    task = tasks.of_model(model)
    return [task.row(model, scheme, figures) for scheme, figures in model.schemes.items()]


def mark_front(rows: Sequence[Row], tested_on: Mapping[str, str]) -> list[Row]:
    """The rows with ``on_front``. ``tested_on``: digest of the test images, by model."""
    chosen: set[int] = set()
    for digest in set(tested_on.values()):
        members = [i for i, row in enumerate(rows) if tested_on[row.model] == digest]
        chosen.update(members[i] for i in front([(rows[i].latency_p50_ms, rows[i].figure) for i in members]))
    return [replace(row, on_front=i in chosen) for i, row in enumerate(rows)]


def against_best(
    rows: Sequence[Row], tested_on: Mapping[str, str], scores: Mapping[tuple[str, str], NDArray[Any]]
) -> list[Row]:
    """The rows with the paired comparison with the best row of the same test images.

    Args:
        rows: in the order of the table.
        tested_on: digest of the test images, by model.
        scores: of every test image by model and scheme, see `Measured.scores`.
    """
    best: dict[str, Row] = {}
    for row in rows:
        digest = tested_on[row.model]
        if digest not in best or row.figure > best[digest].figure:
            best[digest] = row
    found = []
    for row in rows:
        leader = best[tested_on[row.model]]
        if row is not leader:
            row = row.paired(scores[row.model, row.scheme], scores[leader.model, leader.scheme])
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
    task = tasks.of_result(result)
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, task.csv_columns)
        writer.writeheader()
        for row in result.rows:
            extra = task.csv_of_model(result.models[row.model])
            layers = json.dumps(row.float_layers) if row.float_layers else ""
            writer.writerow({**row.to_json(), **extra, "float_layers": layers})
        for failure in result.failures:
            writer.writerow({"model": failure.model, "scheme": failure.scheme, "error": failure.error})


def compare_text(result: Comparison) -> str:
    """Table of the result of `edgeall.optimize.experiments.compare.compare_runs`, then the failures and notes."""
    task = tasks.of_result(result)
    columns = ["model", "scheme", *task.heads, "params", "MMACs", "file", "zipped", "p50", ""]
    rows = [
        [
            row.model,
            row.scheme,
            *task.cells(row, "best" if row.p_value is None else f"{row.p_value:.3f}"),
            f"{row.parameters / 1e6:.2f} M",
            f"{row.macs / 1e6:.0f}",
            f"{row.file_bytes / 1e6:.2f} MB",
            f"{row.compressed_bytes / 1e6:.2f} MB",
            f"{row.latency_p50_ms:.2f} ms",
            "front" if row.on_front else "",
        ]
        for row in result.rows
    ]
    parts = [table(columns, rows)]
    if result.failures:
        parts.append("\n".join(["failed:", *(f"  {failure}" for failure in result.failures)]))
    parts.append("\n".join([*task.explained, *result.notes, f"report: {result.report}"]))
    return "\n\n".join(parts)
