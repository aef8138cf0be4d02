"""The HTML page about a model on labelled images: its metrics, calibration and review."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...edge_runtime.tools.atomic import scratch, write_text
from ..evaluation.reliability import Calibrated, ReliabilityReport, Review, RiskCoverage
from ..evaluation.robustness import Robustness
from . import plots
from .page import png_uri, template


def write_model_report(
    path: Path,
    title: str,
    texts: Sequence[tuple[str, str]],
    report: ReliabilityReport,
    robust: Robustness | None,
    synthetic: bool,
) -> None:
    """One self-contained HTML file, without scripts or external resources.

    Args:
        path: the HTML file.
        title: of the page.
        texts: sections before the figures: heading, and table of `edgeall.console.tables`.
        report: of the model on the images.
        robust: of the same, if it was measured.
        synthetic: whether the images are synthetic.
    """
    curve, review = report.risk_coverage, report.review
    with scratch() as folder:
        drawn = {name: folder / f"{name}.png" for name in ("reliability", "risk_coverage", "robustness")}
        plots.plot_reliability(report.reliability, drawn["reliability"])
        plots.plot_risk_coverage(curve, review, drawn["risk_coverage"])
        images = {
            "reliability": (png_uri(drawn["reliability"]), _describe_reliability(report.reliability)),
            "risk_coverage": (png_uri(drawn["risk_coverage"]), _describe_curve(curve, review)),
        }
        if robust is not None:
            plots.plot_robustness(robust, drawn["robustness"])
            alt = f"Accuracy under corruption: mean {robust.mean:.4f}, worst {robust.worst:.4f}."
            images["robustness"] = (png_uri(drawn["robustness"]), alt)
    page = template("edgeall.train.reports", "model.html").render(
        title=title, texts=texts, images=images, synthetic=synthetic
    )
    # A file name may be invalid Unicode; the report must not fail for it.
    write_text(path, page, errors="replace")


def _describe_reliability(found: Calibrated) -> str:
    parts = [
        f"{name} calibration error {panel.ece:.4f}, Brier score {panel.brier:.4f}" for name, panel in found.panels()
    ]
    return f"Reliability diagram: {'; '.join(parts)}."


def _describe_curve(curve: RiskCoverage, review: Review | None) -> str:
    errors = "; ".join(f"{error:.4f} at {share}" for share, error in curve.error_at.items())
    reviewed = "" if review is None else f" Sent to review: {review.reviewed:.4f} of the images."
    return f"Risk-coverage curve, error by coverage: {errors}. Area {curve.aurc:.5f}.{reviewed}"
