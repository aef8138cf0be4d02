"""Metrics, calibration and review as text."""

from __future__ import annotations

from collections.abc import Callable

from ...console.tables import four, percent, record, table
from ..data.levels import split_text
from ..segmentation.results import MaskMetrics
from .metrics import Metrics, SubjectFigures, SubjectMetrics
from .reliability import ReliabilityReport, Review


def metrics_text(metrics: Metrics | MaskMetrics, report: ReliabilityReport | None = None) -> str:
    """Metrics, and calibration and review where they were measured, as tables; also the figures of masks."""
    if isinstance(metrics, MaskMetrics):
        return masks_text(metrics)
    facts = {
        "images": f"{metrics.images:,} ({metrics.split}, {split_text(metrics.split_level)})",
        "accuracy": f"{percent(metrics.accuracy)} (95 % interval {_interval(metrics, 'accuracy', percent)}, "
        f"by {metrics.ci_unit}, as those below)",
        "macro F1": f"{metrics.macro_f1:.4f} ({_interval(metrics, 'macro_f1', four)})",
        "log loss": f"{metrics.log_loss:.4f}",
        "calibration error": f"{metrics.ece:.4f}",
    }
    if metrics.positive_labels:
        against = f"({', '.join(metrics.positive_labels)} against the rest)"
        for name in ("sensitivity", "specificity"):
            if getattr(metrics, name) is not None:
                facts[f"{name} {against}"] = f"{percent(getattr(metrics, name))} ({_interval(metrics, name, percent)})"
        if metrics.auroc_positive is not None:
            facts[f"AUROC {against}"] = f"{metrics.auroc_positive:.4f} ({_interval(metrics, 'auroc_positive', four)})"
        facts["sensitivity at 95 % specificity"] = percent(metrics.sensitivity_at_specificity_95) or ""
    if report is not None:
        facts |= reliability_facts(report)
    classes = [
        [label, percent(row.precision), percent(row.recall), f"{row.f1:.4f}", row.support]
        for label, row in metrics.per_class.items()
    ]
    classes += [
        [f"{name} average", percent(row.precision), percent(row.recall), f"{row.f1:.4f}", metrics.images]
        for name, row in (metrics.averages or {}).items()
    ]
    confusion = [[label, *row] for label, row in zip(metrics.labels, metrics.confusion, strict=True)]
    parts = [
        record(facts),
        table(["class", "precision", "recall", "F1", "images"], classes),
        table(["true \\ predicted", *metrics.labels], confusion),
    ]
    if metrics.subjects:
        parts.append(subjects_text(metrics.subjects))
    return "\n\n".join(parts)


def _interval(found: Metrics | SubjectFigures | MaskMetrics, name: str, show: Callable[[float], str | None]) -> str:
    """``98.25 % to 99.61 %``."""
    low, high = getattr(found, f"{name}_ci95")
    return f"{show(low)} to {show(high)}"


def masks_text(metrics: MaskMetrics) -> str:
    """The figures of masks as tables."""
    cells = metrics.panoptic
    facts = {
        "images": f"{metrics.images:,} ({metrics.split}, {split_text(metrics.split_level)})",
        **{
            name: f"{getattr(metrics, key):.4f} (95 % interval {_interval(metrics, key, four)}, by image)"
            for name, key in (("Dice of nuclei", "dice_nucleus"), ("Dice of whole cells", "dice_cell"))
        },
        "mean IoU of the classes": four(metrics.mean_iou),
        "nucleus share of the cell": f"median error {four(metrics.nc_error)}",
        "red cell's diameter": f"median error {four(metrics.red_cell_error)} octaves",
        "cells": f"{cells.cells:,} drawn, {cells.found:,} found, {cells.matched:,} matched; panoptic quality "
        f"{four(cells.quality)}, AJI {four(metrics.aji)}",
        "distance of the outlines": f"median {_um(metrics.nucleus_outline_um)} of nuclei, "
        f"{_um(metrics.cell_outline_um)} of whole cells",
    }
    classes = [[label, four(row.dice), four(row.iou), row.images] for label, row in metrics.per_class.items()]
    rows = [
        [name, row.images, four(row.dice_nucleus), four(row.dice_cell), four(row.nc_error)]
        for name, row in metrics.per_laboratory.items()
    ]
    return "\n\n".join(
        [
            record(facts),
            table(["class", "Dice of pixels", "IoU", "images"], classes),
            table(["laboratory", "images", "nuclei", "whole cells", "error of share"], rows),
        ]
    )


def _um(length: float | None) -> str:
    return "unknown" if length is None else f"{length:.2f} µm"


def reliability_facts(found: ReliabilityReport) -> dict[str, str]:
    """Rows of calibration, risk-coverage curve and review."""
    before, after = found.reliability.before, found.reliability.after
    text = f"calibration error {before.ece:.4f}, Brier score {before.brier:.4f}"
    if after is None:
        facts = {"calibration": f"none; {text}"}
    else:
        later = f"{after.ece:.4f} and {after.brier:.4f} after"
        facts = {"calibration": f"temperature {found.reliability.temperature:.2f}: {text} before, {later}"}
    curve, review = found.risk_coverage, found.review
    shares = ", ".join(f"{percent(error)} at {100 * float(s):g} % coverage" for s, error in curve.error_at.items())
    facts["error"] = f"{shares} (area under the risk-coverage curve {curve.aurc:.5f})"
    if review is not None:
        why = []
        if review.unfamiliar is not None:
            why.append(f"{percent(review.unfamiliar)} out-of-distribution")
        if review.below is not None:
            why.append(f"{'others ' if why else ''}with a probability below {review.below:.4f}")
        rest = percent(review.accuracy_of_the_rest) or "-"
        facts["sent to review"] = f"{percent(review.reviewed)}: {', '.join(why)}; accuracy of the rest {rest}"
        facts["wrong predictions"] = wrong_text(review)
    return facts


def wrong_text(review: Review) -> str:
    """How many wrong predictions were sent to review."""
    missed = percent(review.wrong_not_reviewed)
    return f"{review.wrong_reviewed:,} of {review.wrong:,} sent to review; not sent: {missed} of the images"


def subjects_text(found: SubjectMetrics, most: int = 12) -> str:
    """The figures by subject, and the ``most`` subjects with the lowest accuracy."""
    facts = {"subjects": f"{found.subjects:,}, each by the mean probability of its images"}
    if found.several_classes:
        facts["subjects"] += f"; {found.several_classes:,} with images of several classes excluded"
    figures = found.figures
    for name in ("accuracy", "sensitivity", "specificity"):
        if figures and getattr(figures, name) is not None:
            facts[f"{name} by subject"] = f"{percent(getattr(figures, name))} ({_interval(figures, name, percent)})"
    if figures and figures.auroc_positive is not None:
        facts["AUROC by subject"] = f"{figures.auroc_positive:.4f} ({_interval(figures, 'auroc_positive', four)})"
    rows = [
        [row.subject, row.label or "several", row.predicted, row.images, percent(row.accuracy)]
        for row in found.per_subject[:most]
    ]
    rest = len(found.per_subject) - len(rows)
    shown = table(["subject", "class", "predicted", "images", "accuracy"], rows)
    return f"{record(facts)}\n\n{shown}" + (
        f"\nand {rest:,} more with the same or a higher accuracy (all: --json)" if rest else ""
    )
