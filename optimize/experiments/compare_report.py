"""Writes ``compare.html``: a comparison in one file, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.tools.atomic import write_text
from ...train.data.levels import LEVEL_TEXTS
from ...train.data.split import SplitEntry
from ...train.reports import plots
from ...train.reports.page import png_uri, template
from ...train.segmentation.results import MaskMetrics
from ..pruning.summary import FASTER
from .compare_result import ComparedModel, ComparedRow, Comparison, FoldMetrics, Row

ABSENT = "\N{EN DASH}"
Curves = Mapping[str, tuple[Sequence[SplitEntry], NDArray[np.float32]]]
"""By model: test images of all its runs, and probabilities of the float network, ``(images, labels)``."""


def write_compare_report(path: Path, result: Comparison, curves: Curves) -> None:
    """Draw the plots and write the page. The same result gives the same page.

    Args:
        path: the page; its plots go to ``plots/`` beside it.
        result: see `edgeall.optimize.experiments.compare.compare_runs`.
        curves: see `Curves`.
    """
    folder = path.parent / "plots"
    folder.mkdir(exist_ok=True)
    labels = result.labels
    models = list(result.models.values())
    pictures = draw_rows(
        [(row, row.accuracy_low, row.accuracy_high) for row in result.rows if isinstance(row, ComparedRow)],
        folder,
        "test accuracy, %",
    )
    drawn = {}
    for number, model in enumerate(models):
        entries, probabilities = curves[model.name]
        file = folder / f"roc-{number}.png"
        plots.plot_roc(_class_curves(labels, entries, probabilities, _of_folds(model.keras)), file)
        drawn[model.name] = png_uri(file)
    together = _positive_curves(models, curves, labels)
    if together:
        plots.plot_roc(together, folder / "roc-positive.png")
    write_page(
        path,
        "compare.html",
        result,
        Ranked("accuracy", "points lost", _percent),
        pictures=pictures,
        roc=drawn,
        roc_positive=png_uri(folder / "roc-positive.png") if together else None,
        positive=_of_folds(models[0].keras).positive_labels,
        shares=_shares,
    )


@dataclass(frozen=True)
class Ranked:
    """The figure that ranks the models: its name, the name of its loss in hundredths, and how it is shown."""

    name: str
    lost: str
    shown: Callable[[float], str]


def draw_rows(rows: Sequence[tuple[Row, float, float]], folder: Path, axis: str) -> dict[str, str]:
    """Draw the figure of every row as bars and against latency; returns the data URIs, none without rows.

    Args:
        rows: each with the ends of the figure's interval.
        folder: of the plots.
        axis: name of the figure.
    """
    points = [
        plots.Point(row.model, row.scheme, row.latency_p50_ms, row.figure, low, high, row.on_front)
        for row, low, high in rows
    ]
    if not points:
        return {}
    plots.plot_tradeoff(points, folder / "tradeoff.png", axis)
    plots.plot_accuracies(points, folder / "accuracies.png", axis)
    return {name: png_uri(folder / f"{name}.png") for name in ("tradeoff", "accuracies")}


def write_page(path: Path, name: str, result: Comparison, ranked: Ranked, **values: Any) -> None:
    """Write a page that extends ``compare_base.html``; ``values`` are for its own blocks."""
    models = list(result.models.values())
    filters: dict[str, Callable[..., Any]] = {"percent": _percent, "fixed": _fixed, "text": _text}
    filters |= {"megabytes": _megabytes, "millions": _millions, "figure": ranked.shown}
    page = template("edgeall.optimize.experiments", name, **filters).render(
        result=result,
        models=models,
        levels=LEVEL_TEXTS,
        pairs=pruned_pairs(models),
        ranked=ranked,
        metrics_of=_metrics,
        **values,
    )
    write_text(path, page, errors="replace")  # a path on disk need not be valid Unicode


def _of_folds(metrics: FoldMetrics | MaskMetrics) -> FoldMetrics:
    assert isinstance(metrics, FoldMetrics)
    return metrics


@dataclass(frozen=True)
class PrunedPair:
    """A pruned model and its parent in one scheme. ``parameters`` to ``latency`` are ratios, pruned to parent;
    the accuracy of a segmentation network is its Dice.
    """

    model: str
    parent: str
    scheme: str
    parameters: float
    macs: float
    compressed_bytes: float
    latency: float
    accuracy: float
    parent_accuracy: float
    sparsity_frac: float | None

    @property
    def gained(self) -> str:
        """Gain of the pruned model over its parent, in words."""
        faster, smaller = 1 / self.latency >= FASTER, 1 / self.compressed_bytes >= FASTER
        if not faster and not smaller:
            return "nothing: no faster, no smaller"
        return f"{'faster' if faster else 'no faster'}, {'smaller' if smaller else 'no smaller'}"


def pruned_pairs(models: Sequence[ComparedModel]) -> list[PrunedPair]:
    """A row for each scheme of each pruned model whose parent is compared too."""
    by_digest = {digest: model for model in models for digest in model.run_sha256}
    return [
        PrunedPair(
            model=model.name,
            parent=parent.name,
            scheme=scheme,
            parameters=model.parameters / parent.parameters,
            macs=model.macs / parent.macs,
            compressed_bytes=figures.compressed_bytes / before.compressed_bytes,
            latency=figures.latency.p50_ms / before.latency.p50_ms,
            accuracy=_figure(figures.metrics),
            parent_accuracy=_figure(before.metrics),
            sparsity_frac=figures.sparsity_frac,
        )
        for model in models
        if model.pruned and (parent := by_digest.get(model.pruned.run_sha256))
        for scheme, figures in model.schemes.items()
        if (before := parent.schemes.get(scheme))
    ]


def _figure(metrics: FoldMetrics | MaskMetrics) -> float:
    return metrics.dice if isinstance(metrics, MaskMetrics) else metrics.accuracy


def _class_curves(
    labels: Sequence[str], entries: Sequence[SplitEntry], probabilities: NDArray[np.float32], metrics: FoldMetrics
) -> list[plots.RocCurve]:
    true = np.array([entry.label for entry in entries])
    return [
        plots.RocCurve(label, true == label, probabilities[:, i].astype(np.float64), metrics.per_class[label].auroc)
        for i, label in enumerate(labels)
    ]


def _positive_curves(models: Sequence[ComparedModel], curves: Curves, labels: Sequence[str]) -> list[plots.RocCurve]:
    """One curve for each model: the positive classes against the others; empty without a positive class."""
    found = []
    for model in models:
        metrics = _of_folds(model.keras)
        positive = metrics.positive_labels
        if not positive:
            return []
        entries, probabilities = curves[model.name]
        truth = np.isin([entry.label for entry in entries], positive)
        score = probabilities[:, np.isin(labels, positive)].sum(axis=1).astype(np.float64)
        found.append(plots.RocCurve(model.name, truth, score, metrics.auroc_positive))
    return found


def _metrics(model: ComparedModel) -> dict[str, FoldMetrics | MaskMetrics]:
    """Test metrics of the float network and of every scheme, by name."""
    return {"Keras float32": model.keras, **{name: figures.metrics for name, figures in model.schemes.items()}}


def _shares(confusion: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """Each count with its share of the true class."""
    return [[(count, count / max(sum(row), 1)) for count in row] for row in confusion]


def _percent(share: float | None, digits: int = 2) -> str:
    return ABSENT if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _fixed(number: float | None, digits: int = 4) -> str:
    return ABSENT if number is None else f"{number:.{digits}f}"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f}"


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
