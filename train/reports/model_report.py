"""The page about a model's answers on labelled images: its figures, and whether its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...edge_runtime.files import scratch, write_text
from . import plots
from .page import png_uri, template


def write_model_report(
    path: Path, title: str, texts: Sequence[tuple[str, str]], metrics: Mapping[str, Any], synthetic: bool
) -> None:
    """One self-contained HTML file, without scripts or external resources.

    Args:
        path: of the file.
        title: what was measured on what.
        texts: sections before the figures: a heading and a table of `edgeall.console.tables`.
        metrics: with what `edgeall.train.evaluation.reliability.trust` says, and ``robustness`` where it was measured.
        synthetic: whether the images are drawn.
    """
    curve, review = metrics["risk_coverage"], metrics["review"]
    with scratch() as folder:
        drawn = {name: folder / f"{name}.png" for name in ("reliability", "risk_coverage", "robustness")}
        plots.plot_reliability(metrics["reliability"], drawn["reliability"])
        plots.plot_risk_coverage(curve, review, drawn["risk_coverage"])
        images = {
            "reliability": (png_uri(drawn["reliability"]), _describe_reliability(metrics["reliability"])),
            "risk_coverage": (png_uri(drawn["risk_coverage"]), _describe_curve(curve, review)),
        }
        if "robustness" in metrics:
            found = metrics["robustness"]
            plots.plot_robustness(found, drawn["robustness"])
            said = f"Accuracy under corruption: mean {found['mean']:.4f}, worst {found['worst']:.4f}."
            images["robustness"] = (png_uri(drawn["robustness"]), said)
    page = template("edgeall.train.reports", "model.html").render(
        title=title, texts=texts, images=images, synthetic=synthetic
    )
    # A file name on disk need not be valid Unicode; the report must not fail for it.
    write_text(path, page, errors="replace")


def _describe_reliability(found: Mapping[str, Any]) -> str:
    said = [
        f"{name} calibration error {found[name]['ece']:.4f}, Brier score {found[name]['brier']:.4f}"
        for name in ("before", "after")
        if found[name] is not None
    ]
    return f"Reliability diagram: {'; '.join(said)}."


def _describe_curve(curve: Mapping[str, Any], review: Mapping[str, Any] | None) -> str:
    errors = "; ".join(f"{share} of the images {error:.4f}" for share, error in curve["error_at"].items())
    asked = "" if review is None else f" Sent to review: {review['reviewed']:.4f} of the images."
    return f"Risk-coverage curve, error of the surest {errors}. Area {curve['aurc']:.5f}.{asked}"
