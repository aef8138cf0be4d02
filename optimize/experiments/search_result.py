"""The result of a search: the choice, the Pareto front, their files and their text."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...console.tables import percent, record, table
from ...edge_runtime.errors import GateError
from ...edge_runtime.tools.atomic import atomic_write
from ...train.reports.plots import DPI, GRID, INK, QUIET, TRAIN, VALIDATION
from .candidate import Candidate
from .pareto import front

COSTS = {
    "latency_ms": ("max_latency_ms", "milliseconds of one image, one thread"),
    "file_bytes": ("max_bytes", "bytes"),
}
"""Axis of the front: name of its budget, and its label."""
TRAINING = ("learning_rate", "dropout", "weight_decay", "augment", "unfreeze")
"""Fields of a candidate that say how it is trained; None where the search leaves them at the default."""
COLUMNS = (
    *("trial", "outcome", "model", "alpha", "input_size", "macs", "scheme", "accuracy", "float_accuracy"),
    *("latency_ms", "flatbuffer_bytes", "file_bytes", "parameters", "untrained_latency_ms"),
    *("untrained_flatbuffer_bytes", "within_budget", "on_front", "chosen", "seconds", "host", "reason"),
    *TRAINING,
)
"""Columns of ``trials.csv``."""

Row = dict[str, Any]


def judged(trials: Sequence[Mapping[str, Any]], cost: str) -> list[Row]:
    """One row per trial, with ``on_front``, ``chosen`` and, for a measured trial, ``within_budget``.

    Args:
        trials: from `edgeall.optimize.experiments.trials.Trials.rows`.
        cost: one of `COSTS`.
    """
    rows = [_row(trial) for trial in trials]
    measured = [row for row in rows if row["outcome"] == "measured"]
    best = {measured[index]["trial"] for index in front([(row[cost], row["accuracy"]) for row in measured])}
    chosen = choose(measured, cost)
    return [
        {**row, "on_front": row["trial"] in best, "chosen": chosen is not None and row["trial"] == chosen["trial"]}
        for row in rows
    ]


def choose(rows: Sequence[Row], cost: str) -> Row | None:
    """The measured trial within the budget with the best validation accuracy; of equal ones the cheapest."""
    fitting = [row for row in rows if row["outcome"] == "measured" and row["within_budget"]]
    return max(fitting, key=lambda row: (row["accuracy"], -row[cost], -row["trial"]), default=None)


def alike(rows: Sequence[Row], cost: str) -> Row | None:
    """The cheapest trial whose accuracy is within one standard error of the chosen one's.

    The standard error is binomial, and at least one image, because it would be 0 where all predictions are correct.
    None if the chosen trial is the cheapest.
    """
    chosen = choose(rows, cost)
    if chosen is None:
        return None
    share, images = chosen["accuracy"], chosen["images"]
    error = max(math.sqrt(share * (1.0 - share) / images), 1.0 / images)
    near = [
        row
        for row in rows
        if row["outcome"] == "measured"
        and row["within_budget"]
        and row["accuracy"] >= share - error
        and row[cost] < chosen[cost]
    ]
    return min(near, key=lambda row: row[cost], default=None)


def missed(rows: Sequence[Row], budget: Mapping[str, float | None], cost: str) -> GateError | None:
    """The error to raise if no trial fits the budget, or none that fits is accurate enough."""
    chosen, minimum = choose(rows, cost), budget["min_accuracy"]
    if chosen is None:
        known = [row for row in rows if row["outcome"] in ("measured", "refused") and row["overshoot"] is not None]
        nearest = min(known, key=lambda row: row["overshoot"], default=None)
        tail = f"; the nearest, {describe(nearest)}, {nearest['reason']}" if nearest else ""
        return GateError(
            f"no candidate fits {budget_text(budget)}{tail}",
            hint="raise the budget or --trials, or use smaller --alphas, --sizes or --macs",
        )
    if minimum is not None and chosen["accuracy"] < minimum:
        return GateError(
            f"no candidate within {budget_text(budget)} reaches --min-accuracy {minimum:g} in validation; "
            f"the nearest is {describe(chosen)}: {percent(chosen['accuracy'])}, {figures(chosen)}",
            hint="raise the budget, --trials or the epochs, or lower --min-accuracy",
        )
    return None


def write_trials(path: Path, rows: Sequence[Row]) -> None:
    """Write ``trials.csv``: one line for each trial, see `COLUMNS`."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def plot_front(rows: Sequence[Row], cost: str, most: float | None, path: Path) -> None:
    """Draw accuracy over cost of every measured trial, the front as a line, the budget, and the chosen trial.

    Args:
        most: budget of the cost, or None.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9.6, 4.6), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes, names = figure.subplots(1, 2, width_ratios=(2.2, 1.0))
    measured = [row for row in rows if row["outcome"] == "measured"]
    best = sorted((row for row in measured if row["on_front"]), key=lambda row: row[cost])
    rest = [row for row in measured if not row["on_front"]]
    axes.plot([row[cost] for row in rest], [row["accuracy"] for row in rest], "o", color=QUIET, label="measured")
    axes.plot([row[cost] for row in best], [row["accuracy"] for row in best], "o-", color=TRAIN, label="Pareto front")
    for row in rows:
        if row["chosen"]:
            axes.plot(row[cost], row["accuracy"], "o", color=INK, markersize=13, fillstyle="none", label="chosen")
    # Names at the points would overlap, because the points of a front are close.
    for number, row in enumerate(best, start=1):
        at = (row[cost], row["accuracy"])
        axes.annotate(f"{number}", at, (0, 9), textcoords="offset points", fontsize=8, ha="center", color=TRAIN)
    listed = "\n".join(f"{number}  {describe(row)}" for number, row in enumerate(best, start=1))
    names.text(0.0, 1.0, listed, transform=names.transAxes, fontsize=7, va="top", linespacing=1.6, color=INK)
    names.axis("off")
    if most is not None:
        axes.axvline(most, color=VALIDATION, linestyle="--", linewidth=1, label="budget")
    if not measured:
        axes.text(0.5, 0.5, "no candidate was measured", ha="center", transform=axes.transAxes, color=QUIET)
    axes.set(xlabel=COSTS[cost][1], ylabel="validation accuracy")
    axes.margins(x=0.08, y=0.12)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, format="png", metadata={"Software": None})


def search_text(result: Mapping[str, Any]) -> str:
    """Table and facts of the result of `edgeall.optimize.experiments.search.search`."""
    rows, device = result["trials"], result["device"]
    shown = sorted((row for row in rows if row["outcome"] == "measured"), key=lambda row: row[result["cost"]])
    trials = [
        [
            candidate_of(row).describe(),
            percent(row["accuracy"]),
            f"{row['latency_ms']:.2f} ms",
            row["file_bytes"],
            " ".join(
                word
                for word, so in (
                    ("chosen", row["chosen"]),
                    ("front", row["on_front"]),
                    ("over budget", not row["within_budget"]),
                )
                if so
            ),
        ]
        for row in shown
    ]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in result["outcomes"].items() if count)
    facts: dict[str, object] = {
        "budget": budget_text(result["budget"]),
        "trials": f"{outcomes or 'none'}; of {result['candidates']:,} candidates",
        "machine": f"{device['cpu']}, {device['runtime']}, one thread",
        "split": f"{result['split']['level']} level; {result['split']['validation']:,} validation images decide",
    }
    chosen = next((row for row in rows if row["chosen"]), None)
    if chosen:
        facts["chosen"] = f"{describe(chosen)}: {percent(chosen['accuracy'])} on validation, {figures(chosen)}"
    if result["alike"]:
        near = result["alike"]
        facts["within its error"] = f"{describe(near)}: {percent(near['accuracy'])}, {figures(near)}"
    if result["test"]:
        low, high = result["test"]["accuracy_ci95"]
        facts["test subset"] = (
            f"{percent(result['test']['accuracy'])} of {result['test']['images']:,} images "
            f"(95 % interval {percent(low)} to {percent(high)}), used once, for the chosen model"
        )
        facts["model"] = f"{result['model']}, {result['file_bytes']:,} bytes"
    for number, note in enumerate(result["notes"]):
        facts["note" if number == 0 else f"note {number + 1}"] = note
    listed = table(["measured", "validation", "p50", "bytes", ""], trials) if trials else "no candidate was measured"
    return f"{listed}\n\n{record(facts)}"


def describe(row: Mapping[str, Any]) -> str:
    """Text of a row's candidate, see `Candidate.describe`."""
    return candidate_of(row).describe()


def figures(row: Mapping[str, Any]) -> str:
    """Latency and size of a measured row, as text."""
    return f"{row['latency_ms']:.2f} ms, {row['file_bytes']:,} bytes"


def budget_text(budget: Mapping[str, float | None]) -> str:
    """The budget as text, as in ``5 ms, 600,000 bytes``."""
    most_ms, most_bytes = budget["max_latency_ms"], budget["max_bytes"]
    parts = [
        *([] if most_ms is None else [f"{most_ms:g} ms"]),
        *([] if most_bytes is None else [f"{most_bytes:,} bytes"]),
    ]
    return ", ".join(parts)


def _row(trial: Mapping[str, Any]) -> Row:
    candidate: Candidate = trial["candidate"]
    measured = trial["outcome"] == "measured"
    estimate = trial.get("untrained") or {}
    figures_of = ("accuracy", "float_accuracy", "images", "latency_ms", "flatbuffer_bytes", "file_bytes", "parameters")
    return {
        "trial": trial["trial"],
        "outcome": trial["outcome"],
        **asdict(candidate),
        **{key: trial.get(key) if measured else None for key in (*figures_of, "run")},
        **{f"untrained_{key}": estimate.get(key) for key in ("latency_ms", "flatbuffer_bytes")},
        "within_budget": trial["overshoot"] <= 1 if measured else None,
        "overshoot": trial["overshoot"] if measured else estimate.get("overshoot"),
        "reason": trial.get("reason", ""),
        **{key: trial.get(key) for key in ("seconds", "worker", "host", "folder")},
    }


def candidate_of(row: Mapping[str, Any]) -> Candidate:
    """The candidate of a row."""
    network = (row[key] for key in ("model", "alpha", "input_size", "macs", "scheme"))
    training: dict[str, Any] = {key: row.get(key) for key in TRAINING}
    return Candidate(*network, **training)
