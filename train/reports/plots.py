"""Plots of runs and models as PNG files. Only matplotlib's object interface is used: no window, no global state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_curve

from ..evaluation.reliability import Calibrated, Review, RiskCoverage
from ..evaluation.robustness import Robustness
from ..segmentation.results import MaskRobustness

DPI = 160
INK, GRID, QUIET = "#1b1f24", "#d8dee4", "#57606a"
TRAIN, VALIDATION = "#0072b2", "#d55e00"
CLASS_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#882255", "#999933")
"""The colour-blind safe palette of Okabe and Ito, with yellow and black replaced."""
LINE_STYLES = ("-", "--", "-.", ":")
SHEET_ROW = 1.25
"""Height of a row of the sheet of wrong images, in widths of a column: the image and two lines of text."""


@dataclass(frozen=True)
class RocCurve:
    """A binary decision on every image.

    Attributes:
        name: for the legend.
        is_positive: bool, shape (n,).
        score: float, shape (n,), higher for positive.
        area: under the curve; None without positive or without negative images: then there is no curve.
    """

    name: str
    is_positive: NDArray[np.bool_]
    score: NDArray[np.float64]
    area: float | None


@dataclass(frozen=True)
class Point:
    """One model of a comparison.

    Attributes:
        name: next to the point.
        kind: determines colour and marker; in the legend.
        cost: milliseconds.
        accuracy: 0..1; of a segmentation network its Dice.
        low: lower end of its 95 % interval.
        high: upper end.
        on_front: whether it is on the Pareto front.
    """

    name: str
    kind: str
    cost: float
    accuracy: float
    low: float
    high: float
    on_front: bool


def plot_tradeoff(points: Sequence[Point], path: Path, axis: str = "test accuracy, %") -> None:
    """Accuracy (``axis`` names it) against latency with the Pareto front. Names off the front are grey."""
    figure = _figure(8.0, 5.2)
    axes = figure.subplots()
    kinds = list(dict.fromkeys(point.kind for point in points))
    for number, kind in enumerate(kinds):
        of_kind = [point for point in points if point.kind == kind]
        cost, value = np.array([p.cost for p in of_kind]), np.array([p.accuracy for p in of_kind])
        error = np.abs(np.array([(p.low, p.high) for p in of_kind]).T - value)
        color, marker = CLASS_COLORS[number % len(CLASS_COLORS)], "osD^v"[number % 5]
        axes.errorbar(
            cost, 100 * value, 100 * error, fmt=marker, color=color, label=_plain(kind), elinewidth=0.8, alpha=0.9
        )
    chosen = sorted((point for point in points if point.on_front), key=lambda point: (point.cost, point.accuracy))
    steps, tops = [point.cost for point in chosen], [100 * point.accuracy for point in chosen]
    axes.step(steps, tops, where="post", color=INK, linewidth=1, linestyle="--", zorder=1, label="Pareto front")
    axes.plot(steps, tops, "o", color=INK, markersize=13, fillstyle="none")
    for number, point in enumerate(sorted(points, key=lambda point: (point.accuracy, point.cost))):
        axes.annotate(
            _plain(point.name, 28),
            (point.cost, 100 * point.accuracy),
            xytext=(8, (4, -11)[number % 2]),  # alternately above and below, so that neighbours stay legible
            textcoords="offset points",
            fontsize=8 if point.on_front else 7,
            color=INK if point.on_front else QUIET,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15)
    axes.set(xlabel="milliseconds per image (median, one thread; logarithmic)", ylabel=axis)
    _clean(axes)
    figure.legend(loc="outside upper left", ncols=len(kinds) + 1, frameon=False)
    _save(figure, path)


def plot_accuracies(points: Sequence[Point], path: Path, axis: str = "test accuracy, %") -> None:
    """A horizontal bar for each model and scheme, the most accurate on top, with its 95 % interval."""
    figure = _figure(8.0, 1.2 + 0.3 * len(points))
    axes = figure.subplots()
    ordered = sorted(points, key=lambda point: point.accuracy)
    kinds = list(dict.fromkeys(point.kind for point in points))
    value = 100 * np.array([point.accuracy for point in ordered])
    error = np.abs(100 * np.array([(point.low, point.high) for point in ordered]).T - value)
    colors = [CLASS_COLORS[kinds.index(point.kind) % len(CLASS_COLORS)] for point in ordered]
    names = [f"{_plain(point.name, 28)} {_plain(point.kind)}" for point in ordered]
    axes.barh(range(len(ordered)), value, 0.7, xerr=error, color=colors, error_kw={"ecolor": INK, "elinewidth": 0.8})
    axes.set_yticks(range(len(ordered)), names, fontsize=8)
    lowest = min(100 * point.low for point in points)
    axes.set_xlim(max(0.0, lowest - 0.1 * (100 - lowest)), 100.0)
    axes.set(xlabel=axis)
    _clean(axes)
    _save(figure, path)


def plot_curves(history: Sequence[Mapping[str, str]], path: Path) -> None:
    """Loss and accuracy (of masks: Dice) of training and validation over the epochs of all stages.

    Args:
        history: rows of ``history.csv``, in order.
        path: the PNG to write.
    """
    figure = _figure(6.6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = np.arange(1, len(history) + 1)
    for axes, name in ((upper, "loss"), (lower, "dice" if history and "dice" in history[0] else "accuracy")):
        marker = "o" if len(history) < 40 else ""
        for column, color, who in ((name, TRAIN, "training"), (f"val_{name}", VALIDATION, "validation")):
            axes.plot(epochs, _column(history, column), color=color, label=who, marker=marker, markersize=3)
        axes.set_ylabel(name)
        _clean(axes)
    for boundary, before, after in stage_boundaries(history):
        for axes in (upper, lower):
            axes.axvline(boundary + 0.5, color=QUIET, linewidth=1, linestyle="--")
        for text, offset, side in ((before, -5, "right"), (after, 5, "left")):
            upper.annotate(
                _plain(text),
                (boundary + 0.5, 1),
                xycoords=("data", "axes fraction"),
                xytext=(offset, 4),
                textcoords="offset points",
                ha=side,
                color=QUIET,
            )
    if history:
        kept = _column(history, "kept") == 1
        losses = _column(history, "val_loss")[kept]
        label = "weights kept"
        upper.plot(epochs[kept], losses, "o", color=INK, markersize=9, fillstyle="none", label=label)
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    else:
        upper.text(0.5, 0.5, "no epoch was trained", ha="center", transform=upper.transAxes, color=QUIET)
    lower.set_xlabel("epoch, counted over all stages")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def stage_boundaries(history: Sequence[Mapping[str, str]]) -> list[tuple[int, str, str]]:
    """The boundaries between stages: (epochs before it, name before, name after)."""
    return [
        (i, history[i - 1]["stage"], history[i]["stage"])
        for i in range(1, len(history))
        if history[i - 1]["stage"] != history[i]["stage"]
    ]


def plot_confusion(labels: Sequence[str], confusion: Sequence[Sequence[int]], path: Path) -> None:
    """Counts and row percentages: true classes in rows, predicted classes in columns; shaded by row percentage."""
    counts = np.asarray(confusion, dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.4, 0.95 * len(labels) + 1.0)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        ink = "white" if shares[row, column] > 0.55 else (INK if count else QUIET)
        axes.text(column, row - 0.09, f"{count}", ha="center", va="center", color=ink, fontsize=13)
        axes.text(column, row + 0.25, f"{shares[row, column]:.1%}", ha="center", va="center", color=ink, fontsize=9)
    names = [_plain(label, 18) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=30 if max(map(len, names)) > 9 else 0)
    axes.set_yticks(range(len(labels)), names)
    axes.tick_params(length=0, colors=INK)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    _save(figure, path)


def plot_robustness(found: Robustness | MaskRobustness, path: Path) -> None:
    """Accuracy of every corruption at every severity, from `evaluation.robustness.robustness`; the worst is framed."""
    kinds = list(found.by_corruption)
    accuracy = np.array([cells.by_severity for cells in found.by_corruption.values()])
    figure = _figure(5.4, 0.32 * len(kinds) + 1.3)
    axes = figure.subplots()
    axes.imshow(accuracy, cmap="RdYlGn", vmin=0.5, vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=8, color=INK)
    row, column = np.unravel_index(int(accuracy.argmin()), accuracy.shape)
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.6))
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=8)
    axes.set_xticks(range(accuracy.shape[1]), [str(number + 1) for number in range(accuracy.shape[1])])
    axes.set_xlabel("severity")
    axes.set_title(
        f"{found.metric if isinstance(found, MaskRobustness) else 'accuracy'} under corruption, %: "
        f"mean {100 * found.mean:.1f}, worst {100 * found.worst:.1f}\n"
        "research use only, not a diagnosis",
        fontsize=9,
        color=INK,
    )
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _save(figure, path)


def plot_reliability(found: Calibrated, path: Path) -> None:
    """Reliability diagrams before and after calibration, from `evaluation.reliability.reliability_report`."""
    panels = found.panels()
    figure = _figure(4.0 * len(panels) + 0.4, 4.8)
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, gridspec_kw={"height_ratios": (3.2, 1)})
    most = max(row.images for _, panel in panels for row in panel.bins)
    for (upper, lower), (name, panel) in zip(grid.T, panels, strict=True):
        low, high, images, sure, right = (
            np.array([getattr(row, key) for row in panel.bins])
            for key in ("low", "high", "images", "confidence", "accuracy")
        )
        upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
        upper.bar(low, right, high - low, align="edge", color=TRAIN, alpha=0.35, edgecolor=TRAIN, linewidth=0.8)
        upper.plot(sure, right, "o", color=INK, markersize=4)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        when = f"{name} calibration" if len(panels) > 1 else "not calibrated"
        figures = f"ECE {panel.ece:.4f}, Brier {panel.brier:.4f}"
        upper.set_title(f"{when}\n{figures}", fontsize=10, color=INK)
        lower.bar(low, images, high - low, align="edge", color=QUIET)
        lower.set(yscale="log", ylim=(0.7, 1.5 * most), xlabel="top probability", ylabel="images")
        _clean(upper)
        _clean(lower)
    _save(figure, path)


def plot_risk_coverage(found: RiskCoverage, review: Review | None, path: Path) -> None:
    """Risk-coverage curve, with the review threshold."""
    figure = _figure(6.2, 4.0)
    axes = figure.subplots()
    coverage, risk = np.array([0.0, *found.coverage]), np.array([found.risk[0], *found.risk])
    axes.step(100 * coverage, 100 * risk, where="pre", color=TRAIN, linewidth=1.8, label=f"AURC {found.aurc:.5f}")
    if review is not None:
        kept, rest = 1 - review.reviewed, review.accuracy_of_the_rest
        axes.axvline(100 * kept, color=VALIDATION, linewidth=1, linestyle="--")
        label = f"sent to review: {100 * review.reviewed:.1f} % of images"
        axes.plot([100 * kept], [0 if rest is None else 100 * (1 - rest)], "o", color=VALIDATION, label=label)
    axes.set(xlim=(0, 101), xlabel="coverage: images by descending top probability, %", ylabel="error, %")
    axes.set_ylim(bottom=0, top=max(1.0, 108 * risk.max()))
    _clean(axes)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    _save(figure, path)


def plot_roc(curves: Sequence[RocCurve], path: Path) -> None:
    """All ROC curves, with the upper left corner enlarged below the diagonal."""
    figure = _figure(5.2, 5.5 + 0.2 * -(-len(curves) // 2))
    whole = figure.subplots()
    corner = whole.inset_axes((0.43, 0.07, 0.54, 0.54))
    handles, texts = [], []
    for i, curve in enumerate(curves):
        color = CLASS_COLORS[i % len(CLASS_COLORS)]
        # Curves of a good model overlap: line styles keep the lower ones visible.
        style = LINE_STYLES[(i + i // len(CLASS_COLORS)) % len(LINE_STYLES)]
        false_positive, true_positive = (
            ([], []) if curve.area is None else roc_curve(curve.is_positive, curve.score)[:2]
        )
        for axes in (whole, corner):
            (line,) = axes.plot(false_positive, true_positive, color=color, linestyle=style, linewidth=1.8)
        handles.append(line)
        # The number first: matplotlib hides legend entries that start with an underscore, and a class name may.
        texts.append(f"{'none' if curve.area is None else f'{curve.area:.4f}'}  {_plain(curve.name, 28)}")
    for axes in (whole, corner):
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
        axes.set_aspect("equal")
        _clean(axes)
    whole.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false positive rate", ylabel="true positive rate")
    whole.add_patch(Rectangle((0, 0.8), 0.2, 0.2, fill=False, edgecolor=QUIET, linewidth=1))
    corner.set(xlim=(-0.004, 0.204), ylim=(0.796, 1.004), xticks=(0, 0.1, 0.2), yticks=(0.8, 0.9, 1.0))
    corner.tick_params(labelsize=8)
    corner.set_title("framed corner", fontsize=8, color=QUIET, loc="left")
    figure.legend(
        handles, texts, title="AUROC", loc="outside lower left", ncols=2, fontsize=9, frameon=False, alignment="left"
    )
    _save(figure, path)


def plot_errors(errors: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A sheet of wrongly classified images.

    Args:
        errors: each with ``path``, ``label``, ``predicted``, ``probability`` and ``thumbnail``, an RGB image or None.
        path: the PNG to write.
    """
    columns = 4
    rows = max(1, -(-len(errors) // columns))
    figure = _figure(8.0, 2.5 * rows if errors else 1.2)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: one for each takes longer to make than all other plots
    axes.axis("off")
    if not errors:
        figure.text(0.5, 0.5, "no image of the test subset is classified wrongly", ha="center", color=QUIET)
    for number, error in enumerate(errors):
        row, column = divmod(number, columns)
        x, y, high = column + 0.5, SHEET_ROW * row + 0.76, 0.47
        thumbnail: Image.Image | None = error["thumbnail"]
        if thumbnail is None:
            axes.text(x, y, "image not readable", ha="center", va="center", color=QUIET)
        else:
            wide, high = (0.47 * edge / max(thumbnail.size) for edge in thumbnail.size)
            axes.imshow(np.asarray(thumbnail), extent=(x - wide, x + wide, y + high, y - high))
        title = f"{_plain(error['predicted'], 22)} {error['probability']:.3f}\ntrue {_plain(error['label'], 22)}"
        axes.text(x, y - high - 0.02, title, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set(xlim=(0, columns), ylim=(SHEET_ROW * rows, 0))
    _save(figure, path)


def _column(history: Sequence[Mapping[str, str]], name: str) -> NDArray[np.float64]:
    return np.array([float(row[name]) for row in history], dtype=np.float64)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(QUIET)


def _plain(text: str, width: int = 60) -> str:
    """A name from the user, shortened, with ``$`` escaped so that matplotlib does not parse it as maths."""
    short = text if len(text) <= width else text[: width - 1] + "…"
    return short.replace("\n", " ").replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # matplotlib's font lacks some scripts; report.html shows every name correctly.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png", metadata={"Software": None})
