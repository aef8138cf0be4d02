"""Metrics, calibration and review as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...console.tables import four, interval, percent, record, table
from ..data.levels import split_text


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The metrics of `edgeall.train.evaluation.metrics.compute_metrics` as tables; also those of masks."""
    if "dice" in metrics:
        return masks_text(metrics)
    facts = {
        "images": f"{metrics['images']:,} ({metrics['split']}, {split_text(metrics['split_level'])})",
        "accuracy": f"{percent(metrics['accuracy'])} (95 % interval {interval(metrics, 'accuracy', percent)}, "
        f"by {metrics['ci_unit']}, as those below)",
        "macro F1": f"{metrics['macro_f1']:.4f} ({interval(metrics, 'macro_f1', four)})",
        "log loss": f"{metrics['log_loss']:.4f}",
        "calibration error": f"{metrics['ece']:.4f}",
    }
    if metrics["positive_labels"]:
        against = f"({', '.join(metrics['positive_labels'])} against the rest)"
        facts |= {
            **{
                f"{name} {against}": f"{percent(metrics[name])} ({interval(metrics, name, percent)})"
                for name in ("sensitivity", "specificity")
                if metrics[name] is not None
            },
            **(
                {f"AUROC {against}": f"{metrics['auroc_positive']:.4f} ({interval(metrics, 'auroc_positive', four)})"}
                if metrics["auroc_positive"] is not None
                else {}
            ),
            "sensitivity at 95 % specificity": percent(metrics["sensitivity_at_specificity_95"]) or "",
        }
    facts |= reliability_facts(metrics)
    labels = metrics["labels"]
    classes = [
        [label, percent(row["precision"]), percent(row["recall"]), f"{row['f1']:.4f}", row["support"]]
        for label, row in ((label, metrics["per_class"][label]) for label in labels)
    ]
    confusion = [[label, *row] for label, row in zip(labels, metrics["confusion"], strict=True)]
    parts = [
        record(facts),
        table(["class", "precision", "recall", "F1", "images"], classes),
        table(["true \\ predicted", *labels], confusion),
    ]
    if metrics["subjects"]:
        parts.append(subjects_text(metrics["subjects"]))
    return "\n\n".join(parts)


def masks_text(metrics: Mapping[str, Any]) -> str:
    """The figures of `edgeall.train.segmentation.assess.figures` as tables."""
    cells = metrics["panoptic"]
    facts = {
        "images": f"{metrics['images']:,} ({metrics['split']}, {split_text(metrics['split_level'])})",
        **{
            name: f"{metrics[key]:.4f} (95 % interval {interval(metrics, key, four)}, by image)"
            for name, key in (("Dice of nuclei", "dice_nucleus"), ("Dice of whole cells", "dice_cell"))
        },
        "nucleus share of the cell": f"median error {four(metrics['nc_error'])}",
        "red cell's diameter": f"median error {four(metrics['red_cell_error'])} octaves",
        "cells": f"{cells['cells']:,} drawn, {cells['found']:,} found, {cells['matched']:,} matched; panoptic quality "
        f"{four(cells['quality'])}",
    }
    classes = [
        [label, four(row["dice"]), four(row["iou"]), row["images"]] for label, row in metrics["per_class"].items()
    ]
    rows = [
        [name, row["images"], four(row["dice_nucleus"]), four(row["dice_cell"]), four(row["nc_error"])]
        for name, row in metrics["per_laboratory"].items()
    ]
    return "\n\n".join(
        [
            record(facts),
            table(["class", "Dice of pixels", "IoU", "images"], classes),
            table(["laboratory", "images", "nuclei", "whole cells", "error of share"], rows),
        ]
    )


def reliability_facts(found: Mapping[str, Any]) -> dict[str, str]:
    """Rows for the keys of `edgeall.train.evaluation.reliability.reliability_report`; empty without them."""
    if "reliability" not in found:
        return {}
    fitted, before, after = (found["reliability"][key] for key in ("temperature", "before", "after"))
    text = f"calibration error {before['ece']:.4f}, Brier score {before['brier']:.4f}"
    if after is None:
        facts = {"calibration": f"none; {text}"}
    else:
        later = f"{after['ece']:.4f} and {after['brier']:.4f} after"
        facts = {"calibration": f"temperature {fitted:.2f}: {text} before, {later}"}
    curve, review = found["risk_coverage"], found["review"]
    shares = ", ".join(f"{percent(error)} at {100 * float(s):g} % coverage" for s, error in curve["error_at"].items())
    facts["error"] = f"{shares} (area under the risk-coverage curve {curve['aurc']:.5f})"
    if review is not None:
        why = []
        if review["unfamiliar"] is not None:
            why.append(f"{percent(review['unfamiliar'])} out-of-distribution")
        if review["below"] is not None:
            why.append(f"{'others ' if why else ''}with a probability below {review['below']:.4f}")
        rest = percent(review["accuracy_of_the_rest"]) or "-"
        facts["sent to review"] = f"{percent(review['reviewed'])}: {', '.join(why)}; accuracy of the rest {rest}"
        facts["wrong predictions"] = wrong_text(review)
    return facts


def wrong_text(review: Mapping[str, Any]) -> str:
    """How many wrong predictions were sent to review, see `edgeall.train.evaluation.reliability.review`."""
    missed = percent(review["wrong_not_reviewed"])
    return f"{review['wrong_reviewed']:,} of {review['wrong']:,} sent to review; not sent: {missed} of the images"


def subjects_text(found: Mapping[str, Any], most: int = 12) -> str:
    """The figures by subject, ``subjects`` of the metrics, and the ``most`` subjects with the lowest accuracy."""
    several = found["several_classes"]
    facts = {"subjects": f"{found['subjects']:,}, each by the mean probability of its images"}
    if several:
        facts["subjects"] += f"; {several:,} with images of several classes excluded"
    for name, show in (("accuracy", percent), ("sensitivity", percent), ("specificity", percent)):
        if found.get(name) is not None:
            facts[f"{name} by subject"] = f"{show(found[name])} ({interval(found, name, show)})"
    if found.get("auroc_positive") is not None:
        facts["AUROC by subject"] = f"{found['auroc_positive']:.4f} ({interval(found, 'auroc_positive', four)})"
    rows = [
        [row["subject"], row["label"] or "several", row["predicted"], row["images"], percent(row["accuracy"])]
        for row in found["per_subject"][:most]
    ]
    rest = len(found["per_subject"]) - len(rows)
    shown = table(["subject", "class", "predicted", "images", "accuracy"], rows)
    return f"{record(facts)}\n\n{shown}" + (
        f"\nand {rest:,} more with the same or a higher accuracy (all: --json)" if rest else ""
    )
