"""The content of ``grid.json``, and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...console.tables import percent, table
from ...edge_runtime.results import SPREAD, Result
from ...train.run_info import RunInfo
from .grid_config import Grid, Point


@dataclass(frozen=True, kw_only=True)
class GridFigures(Result):
    """What the run of a point measured; all None before it is done.

    Precision, recall and F1 are weighted by the images of each class; None in a run of an older version.
    """

    validation_accuracy: float | None = None
    validation_loss: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    test_macro_f1: float | None = None
    split_level: str | None = None
    minutes: float | None = None
    run: str | None = None
    dataset_sha256: str | None = None
    synthetic: bool | None = None
    train_accuracy: float | None = None
    train_loss: float | None = None
    train_precision: float | None = None
    train_recall: float | None = None
    validation_precision: float | None = None
    validation_recall: float | None = None
    test_precision: float | None = None
    test_recall: float | None = None
    test_weighted_f1: float | None = None


@dataclass(frozen=True)
class GridRow(Result):
    """One point of a grid. ``state`` is ``done``, ``failed``, ``running`` or ``waiting``."""

    point: Point = field(metadata=SPREAD)
    state: str
    figures: GridFigures = field(metadata=SPREAD)
    error: str | None


@dataclass(frozen=True, kw_only=True)
class GridResult(Result):
    """The content of ``grid.json``.

    Attributes:
        rows: every point.
        best: the point with the best validation accuracy.
        best_on_test: the point that a choice by test accuracy would have claimed.
        failed: number of points; ``left``: of those that are neither done nor failed.
    """

    grid: Grid
    frozen: bool
    study: str
    synthetic: bool
    rows: list[GridRow]
    best: GridRow | None
    best_on_test: GridRow | None
    failed: int
    left: int


def figures_of(run: RunInfo, folder: Path) -> GridFigures:
    """The figures of a complete run."""
    found: dict[str, float] = {}
    for name, metrics in run.classified.items():
        found |= {f"{name}_accuracy": metrics.accuracy, f"{name}_loss": metrics.log_loss}
        weighted = (metrics.averages or {}).get("weighted")
        if weighted is not None:
            found |= {f"{name}_precision": weighted.precision, f"{name}_recall": weighted.recall}
            if name == "test":
                found["test_weighted_f1"] = weighted.f1
    return GridFigures(
        **found,
        test_macro_f1=run.classified["test"].macro_f1,
        split_level=run.split.level,
        minutes=run.total_s / 60,
        run=str(folder),
        dataset_sha256=run.data.dataset_sha256,
        synthetic=run.data.synthetic,
    )


def grid_text(result: GridResult) -> str:
    """Table of the result of `edgeall.optimize.experiments.grid.run_grid`, and its best points."""
    columns = ["model", "protocol", "learning rate", "dropout", "validation", "test", "test loss", "state"]
    rows = [
        [
            row.point.model,
            row.point.protocol,
            f"{row.point.learning_rate:g}",
            f"{row.point.dropout:g}",
            percent(row.figures.validation_accuracy),
            percent(row.figures.test_accuracy),
            None if row.figures.test_loss is None else f"{row.figures.test_loss:.4f}",
            row.state,
        ]
        for row in result.rows
    ]
    parts = [table(columns, rows)]
    if result.best and result.best_on_test:
        done = sum(row.state == "done" for row in result.rows)
        parts.append(
            f"best in validation: {_best(result.best)}\n"
            f"best on the test subset: {_best(result.best_on_test)}; this is optimistic, as the best of {done}"
        )
    if result.left:
        parts.append(f"{result.left} of {len(result.rows)} points are not done; another worker has them")
    if any(row.figures.split_level == "image" for row in result.rows):
        parts.append("image-level split: optimistic")
    return "\n\n".join(parts)


def _best(row: GridRow) -> str:
    return f"{row.point.slug}, test accuracy {percent(row.figures.test_accuracy)}"
