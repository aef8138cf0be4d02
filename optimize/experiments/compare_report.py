"""Writes ``compare.html``: a comparison in one file, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.tools.atomic import write_text
from ...train.data.levels import LEVEL_TEXTS
from ...train.data.split import SplitEntry
from ...train.reports import plots
from ...train.reports.page import png_uri, template
from ..pruning.summary import FASTER

ABSENT = "\N{EN DASH}"
Curves = Mapping[str, tuple[Sequence[SplitEntry], NDArray[np.float32]]]
"""By model: test images of all its runs, and probabilities of the float network, ``(images, labels)``."""


def write_compare_report(path: Path, result: Mapping[str, Any], curves: Curves) -> None:
    """Draw the plots and write the page. The same result gives the same page.

    Args:
        path: the page; its plots go to ``plots/`` beside it.
        result: see `edgeall.optimize.experiments.compare.compare_runs`.
        curves: see `Curves`.
    """
    folder = path.parent / "plots"
    folder.mkdir(exist_ok=True)
    labels = result["labels"]
    models = list(result["models"].values())
    points = [
        plots.Point(
            row["model"],
            row["scheme"],
            row["latency_p50_ms"],
            row["accuracy"],
            row["accuracy_low"],
            row["accuracy_high"],
            row["on_front"],
        )
        for row in result["rows"]
    ]
    tradeoff = None
    if points:
        plots.plot_tradeoff(points, folder / "tradeoff.png")
        tradeoff = png_uri(folder / "tradeoff.png")
        plots.plot_accuracies(points, folder / "accuracies.png")
    drawn = {}
    for number, model in enumerate(models):
        entries, probabilities = curves[model["name"]]
        file = folder / f"roc-{number}.png"
        plots.plot_roc(_class_curves(labels, entries, probabilities, model["float"]), file)
        drawn[model["name"]] = png_uri(file)
    together = _positive_curves(models, curves, labels)
    if together:
        plots.plot_roc(together, folder / "roc-positive.png")
    page = template(
        "edgeall.optimize.experiments",
        "compare.html",
        percent=_percent,
        fixed=_fixed,
        megabytes=_megabytes,
        millions=_millions,
        text=_text,
    ).render(
        result=result,
        models=models,
        levels=LEVEL_TEXTS,
        tradeoff=tradeoff,
        accuracies=png_uri(folder / "accuracies.png") if points else None,
        roc=drawn,
        roc_positive=png_uri(folder / "roc-positive.png") if together else None,
        positive=models[0]["float"]["positive_labels"],
        pairs=pruned_pairs(models),
        shares=_shares,
        metrics_of=_metrics,
    )
    write_text(path, page, errors="replace")  # a path on disk need not be valid Unicode


def pruned_pairs(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each scheme of each pruned model whose parent is compared too: both, and their ratios."""
    by_digest = {digest: model for model in models for digest in model["run_sha256"]}
    found = []
    for model in models:
        parent = by_digest.get((model["pruned"] or {}).get("run_sha256"))
        if parent is None:
            continue
        for scheme, facts in model["schemes"].items():
            before = parent["schemes"].get(scheme)
            if before is None:
                continue
            found.append(
                {
                    "model": model["name"],
                    "parent": parent["name"],
                    "scheme": scheme,
                    "parameters": model["parameters"] / parent["parameters"],
                    "macs": model["macs"] / parent["macs"],
                    "compressed_bytes": facts["compressed_bytes"] / before["compressed_bytes"],
                    "latency": facts["latency"]["p50_ms"] / before["latency"]["p50_ms"],
                    "accuracy": facts["metrics"]["accuracy"],
                    "parent_accuracy": before["metrics"]["accuracy"],
                    "sparsity_frac": facts["sparsity_frac"],
                    "gained": _gained(facts, before),
                }
            )
    return found


def _gained(after: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Gain of the pruned model over its parent in one scheme, in words."""
    faster = before["latency"]["p50_ms"] / after["latency"]["p50_ms"] >= FASTER
    smaller = before["compressed_bytes"] / after["compressed_bytes"] >= FASTER
    if not faster and not smaller:
        return "nothing: no faster, no smaller"
    return f"{'faster' if faster else 'no faster'}, {'smaller' if smaller else 'no smaller'}"


def _class_curves(
    labels: Sequence[str],
    entries: Sequence[SplitEntry],
    probabilities: NDArray[np.float32],
    metrics: Mapping[str, Any],
) -> list[plots.RocCurve]:
    true = np.array([entry.label for entry in entries])
    return [
        plots.RocCurve(
            label, true == label, probabilities[:, i].astype(np.float64), metrics["per_class"][label]["auroc"]
        )
        for i, label in enumerate(labels)
    ]


def _positive_curves(
    models: Sequence[Mapping[str, Any]], curves: Curves, labels: Sequence[str]
) -> list[plots.RocCurve]:
    """One curve for each model: the positive classes against the others; empty without a positive class."""
    found = []
    for model in models:
        positive = model["float"]["positive_labels"]
        if not positive:
            return []
        entries, probabilities = curves[model["name"]]
        truth = np.isin([entry.label for entry in entries], positive)
        score = probabilities[:, np.isin(labels, positive)].sum(axis=1).astype(np.float64)
        found.append(plots.RocCurve(model["name"], truth, score, model["float"]["auroc_positive"]))
    return found


def _metrics(model: Mapping[str, Any]) -> dict[str, Any]:
    """Test metrics of the float network and of every scheme, by name."""
    return {"Keras float32": model["float"], **{name: facts["metrics"] for name, facts in model["schemes"].items()}}


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
