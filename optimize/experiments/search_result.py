"""The result of a search: the choice, the Pareto front, their files and their text."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...console.tables import percent, record, table
from ...edge_runtime.errors import GateError
from ...edge_runtime.results import SPREAD, SPREAD_NULL, Result
from ...edge_runtime.tools.atomic import atomic_write
from ...edge_runtime.tools.device import Device
from ...train.reports.plots import DPI, GRID, INK, QUIET, TRAIN, VALIDATION
from .candidate import Candidate
from .pareto import front
from .trials import Measurement, Tried

COSTS = {
    "latency_ms": ("max_latency_ms", "milliseconds of one image, one thread"),
    "file_bytes": ("max_bytes", "bytes"),
}
"""Axis of the front: name of its budget, and its label."""
COLUMNS = (
    *("trial", "outcome", "model", "alpha", "input_size", "macs", "scheme", "accuracy", "float_accuracy"),
    *("latency_ms", "flatbuffer_bytes", "file_bytes", "parameters", "untrained_latency_ms"),
    *("untrained_flatbuffer_bytes", "within_budget", "on_front", "chosen", "seconds", "host", "reason"),
    *("learning_rate", "dropout", "weight_decay", "augment", "unfreeze"),
)
"""Columns of ``trials.csv``."""


@dataclass(frozen=True, kw_only=True)
class TrialRow(Result):
    """One trial of a search; for ``outcome`` see `edgeall.optimize.experiments.trials.Trials`.

    Attributes:
        measured: None unless the outcome is ``measured``, like ``within_budget``.
        untrained_latency_ms: of the network with random weights, like ``untrained_flatbuffer_bytes``.
        overshoot: share of the budget, above 1 if the network exceeds it.
        on_front: on the Pareto front of cost and accuracy.
    """

    trial: int
    outcome: str
    candidate: Candidate = field(metadata=SPREAD)
    measured: Measurement | None = field(metadata=SPREAD_NULL)
    untrained_latency_ms: float | None
    untrained_flatbuffer_bytes: int | None
    within_budget: bool | None
    overshoot: float | None
    reason: str
    seconds: float | None
    worker: str | None
    host: str | None
    folder: str | None
    on_front: bool = False
    chosen: bool = False

    def __str__(self) -> str:
        """Text of the candidate."""
        return self.candidate.describe()


@dataclass(frozen=True)
class Budget(Result):
    """The limits of a search; at least one of the first two is given."""

    max_latency_ms: float | None
    max_bytes: int | None
    min_accuracy: float | None

    def __str__(self) -> str:
        """Text, as in ``5 ms, 600,000 bytes``."""
        most_ms, most_bytes = self.max_latency_ms, self.max_bytes
        parts = [
            *([] if most_ms is None else [f"{most_ms:g} ms"]),
            *([] if most_bytes is None else [f"{most_bytes:,} bytes"]),
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class SearchSplit(Result):
    """The split of a search, and the images of each subset."""

    level: str
    embargo: int | None
    left_out: dict[str, int]
    sha256: str
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class ChosenModel(Result):
    """The model of the chosen trial.

    Attributes:
        looked: trials whose models were evaluated on the test subset, in order.
        test: ``metrics`` of its manifest; None if it was not made here, like ``model`` and ``file_bytes``.
    """

    looked: list[int]
    test: dict[str, Any] | None = None
    model: str | None = None
    file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult(Result):
    """The content of ``search.json``.

    Attributes:
        settings: of the search, as plain JSON.
        cost: one of `COSTS`.
        candidates: number of points of the search space.
        outcomes: number of trials by outcome.
        front: trials on the Pareto front.
        chosen: None if no trial fits the budget.
        alike: see `alike`.
        gate: why no model was made; None if one was.
    """

    schema: int
    created: str
    settings: dict[str, Any]
    budget: Budget
    cost: str
    device: Device
    versions: dict[str, str | None]
    source_revision: str | None
    synthetic: bool
    split: SearchSplit
    candidates: int
    outcomes: dict[str, int]
    trials: list[TrialRow]
    front: list[int]
    chosen: TrialRow | None
    alike: TrialRow | None
    gate: str | None
    made: ChosenModel = field(metadata=SPREAD)
    notes: list[str]


def row_of(trial: Tried) -> TrialRow:
    """The row of one trial, before the choice."""
    is_measured, estimate = trial.outcome == "measured", trial.untrained
    overshoot = trial.overshoot if is_measured else estimate.overshoot if estimate else None
    return TrialRow(
        **{name: getattr(trial, name) for name in ("trial", "outcome", "candidate", "reason", "seconds")},
        **{name: getattr(trial, name) for name in ("worker", "host", "folder")},
        measured=trial.measured if is_measured else None,
        untrained_latency_ms=estimate.latency_ms if estimate else None,
        untrained_flatbuffer_bytes=estimate.flatbuffer_bytes if estimate else None,
        within_budget=overshoot is not None and overshoot <= 1 if is_measured else None,
        overshoot=overshoot,
    )


def with_choice(rows: Sequence[TrialRow], cost: str) -> list[TrialRow]:
    """The rows with ``on_front`` and ``chosen``. ``cost``: one of `COSTS`."""
    measured = [(row, row.measured) for row in rows if row.measured]
    points = [(getattr(found, cost), found.accuracy) for _, found in measured]
    best = {measured[index][0].trial for index in front(points)}
    chosen = choose(rows, cost)
    return [replace(row, on_front=row.trial in best, chosen=bool(chosen and row.trial == chosen.trial)) for row in rows]


def choose(rows: Sequence[TrialRow], cost: str) -> TrialRow | None:
    """The measured trial within the budget with the best validation accuracy; of equal ones the cheapest."""
    return max(
        _fitting(rows), key=lambda pair: (pair[1].accuracy, -getattr(pair[1], cost), -pair[0].trial), default=(None,)
    )[0]


def _fitting(rows: Sequence[TrialRow]) -> list[tuple[TrialRow, Measurement]]:
    """The measured trials within the budget."""
    return [(row, row.measured) for row in rows if row.measured and row.within_budget]


def alike(rows: Sequence[TrialRow], cost: str) -> TrialRow | None:
    """The cheapest trial whose accuracy is within one standard error of the chosen one's.

    The standard error is binomial, and at least one image, because it would be 0 where all predictions are correct.
    None if the chosen trial is the cheapest.
    """
    chosen = choose(rows, cost)
    if chosen is None or chosen.measured is None:
        return None
    share, images = chosen.measured.accuracy, chosen.measured.images
    error = max(math.sqrt(share * (1.0 - share) / images), 1.0 / images)
    most = getattr(chosen.measured, cost)
    near = [
        (getattr(found, cost), row)
        for row, found in _fitting(rows)
        if found.accuracy >= share - error and getattr(found, cost) < most
    ]
    return min(near, key=lambda pair: pair[0], default=(None, None))[1]


def missed(rows: Sequence[TrialRow], budget: Budget, cost: str) -> GateError | None:
    """The error to raise if no trial fits the budget, or none that fits is accurate enough."""
    chosen, minimum = choose(rows, cost), budget.min_accuracy
    if chosen is None or chosen.measured is None:
        known = [(row.overshoot, row) for row in rows if row.overshoot is not None]
        known = [(overshoot, row) for overshoot, row in known if row.outcome in ("measured", "refused")]
        nearest = min(known, key=lambda pair: pair[0], default=(0.0, None))[1]
        tail = f"; the nearest, {nearest}, {nearest.reason}" if nearest else ""
        return GateError(
            f"no candidate fits {budget}{tail}",
            hint="raise the budget or --trials, or use smaller --alphas, --sizes or --macs",
        )
    if minimum is not None and chosen.measured.accuracy < minimum:
        return GateError(
            f"no candidate within {budget} reaches --min-accuracy {minimum:g} in validation; "
            f"the nearest is {chosen}: {percent(chosen.measured.accuracy)}, {chosen.measured}",
            hint="raise the budget, --trials or the epochs, or lower --min-accuracy",
        )
    return None


def write_trials(path: Path, rows: Sequence[TrialRow]) -> None:
    """Write ``trials.csv``: one line for each trial, see `COLUMNS`."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row.to_json() for row in rows)


def plot_front(rows: Sequence[TrialRow], cost: str, most: float | None, path: Path) -> None:
    """Draw accuracy over cost of every measured trial, the front as a line, the budget, and the chosen trial.

    Args:
        most: budget of the cost, or None.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9.6, 4.6), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes, names = figure.subplots(1, 2, width_ratios=(2.2, 1.0))
    measured = [(getattr(row.measured, cost), row.measured.accuracy, row) for row in rows if row.measured]
    best = sorted((point for point in measured if point[2].on_front), key=lambda point: point[0])
    rest = [point for point in measured if not point[2].on_front]
    axes.plot([point[0] for point in rest], [point[1] for point in rest], "o", color=QUIET, label="measured")
    axes.plot([point[0] for point in best], [point[1] for point in best], "o-", color=TRAIN, label="Pareto front")
    for *at, row in measured:
        if row.chosen:
            axes.plot(*at, "o", color=INK, markersize=13, fillstyle="none", label="chosen")
    # Names at the points would overlap, because the points of a front are close.
    for number, (*at, _) in enumerate(best, start=1):
        axes.annotate(f"{number}", at, (0, 9), textcoords="offset points", fontsize=8, ha="center", color=TRAIN)
    listed = "\n".join(f"{number}  {row}" for number, (*_, row) in enumerate(best, start=1))
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


def search_text(result: SearchResult) -> str:
    """Table and facts of the result of `edgeall.optimize.experiments.search.search`."""
    measured = [(row, row.measured) for row in result.trials if row.measured]
    shown = sorted(measured, key=lambda pair: getattr(pair[1], result.cost))
    trials = [
        [str(row), percent(found.accuracy), f"{found.latency_ms:.2f} ms", found.file_bytes, _marks(row)]
        for row, found in shown
    ]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in result.outcomes.items() if count)
    facts: dict[str, object] = {
        "budget": result.budget,
        "trials": f"{outcomes or 'none'}; of {result.candidates:,} candidates",
        "machine": f"{result.device.cpu}, {result.device.runtime}, one thread",
        "split": f"{result.split.level} level; {result.split.validation:,} validation images decide",
    }
    for row, found in measured:
        if row.chosen:
            facts["chosen"] = f"{row}: {percent(found.accuracy)} on validation, {found}"
    if result.alike and result.alike.measured:
        near = result.alike.measured
        facts["within its error"] = f"{result.alike}: {percent(near.accuracy)}, {near}"
    test = result.made.test
    if test:
        low, high = test["accuracy_ci95"]
        facts["test subset"] = (
            f"{percent(test['accuracy'])} of {test['images']:,} images "
            f"(95 % interval {percent(low)} to {percent(high)}), used once, for the chosen model"
        )
        facts["model"] = f"{result.made.model}, {result.made.file_bytes:,} bytes"
    for number, note in enumerate(result.notes):
        facts["note" if number == 0 else f"note {number + 1}"] = note
    listed = table(["measured", "validation", "p50", "bytes", ""], trials) if trials else "no candidate was measured"
    return f"{listed}\n\n{record(facts)}"


def _marks(row: TrialRow) -> str:
    marks = (("chosen", row.chosen), ("front", row.on_front), ("over budget", not row.within_budget))
    return " ".join(word for word, applies in marks if applies)
