"""What a packed model holds besides the flatbuffer: manifest, golden images, and limits of the rig's quality gate."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...edge_runtime.images import find_images, open_rgb
from ...edge_runtime.manifest import Manifest
from ...edge_runtime.preprocess import InputSpec
from ...edge_runtime.results import plain
from ...edge_runtime.tools.atomic import scratch
from ...edge_runtime.vision import quality
from ...train.data.split import Split
from ...train.data.subsets import SUBSETS
from ...train.data.synth import Layout, synthesize
from ...train.evaluation.metrics import Metrics
from ...train.evaluation.reliability import ReliabilityReport
from ...train.evaluation.robustness import Robustness
from ...train.run_info import Facts, RunInfo
from ...train.runs import image_folder, run_digest, source_revision, versions

QUANTIZATION_FACTS = (
    "scheme",
    "drop_points",
    "agreement",
    "max_abs_difference",
    "tflite_float",
    "float_layers",
    "sparsity_frac",
    "clusters",
)
REVIEW_FACTS = (
    *("reviewed", "wrong", "wrong_reviewed", "wrong_not_reviewed"),
    *("accuracy_of_the_rest", "sensitivity_with_review"),
)
"""Effect of the review rule, fitted on the validation subset, on the subset of the manifest's metrics."""
GOLDEN_CANDIDATES = 48
GATE_IMAGES = 300
"""Training images to which the rig's quality gate is fitted."""


def manifest_metrics(
    metrics: Metrics, report: ReliabilityReport, robust: Robustness | None, float_accuracy: float | None
) -> dict[str, Any]:
    """Metrics of the verified subset for the manifest, without the subjects' names: the file travels."""
    values = metrics.to_json()
    kept = ["ci_unit", "macro_f1", "ece", "brier", "log_loss", "sensitivity", "specificity", "auroc_positive"]
    kept += [key for key in values if key.endswith("_ci95")]
    subjects = values["subjects"]
    return {
        **{key: values[key] for key in ("split", "images", "accuracy")},
        **({} if float_accuracy is None else {"float_accuracy": float_accuracy}),
        "ece_uncalibrated": report.reliability.before.ece,
        "aurc": report.risk_coverage.aurc,
        **({} if report.review is None else {key: getattr(report.review, key) for key in REVIEW_FACTS}),
        **{key: values[key] for key in kept},
        **({} if robust is None else _robust_metrics(robust)),
        "per_class": values["per_class"],
        "subjects": subjects and {key: value for key, value in subjects.items() if key != "per_subject"},
    }


def _robust_metrics(found: Robustness) -> dict[str, Any]:
    """Mean and worst case of a robustness measurement."""
    return {
        "robust_suite": found.suite,
        "robust_worst_at": f"{found.worst_at.corruption} at severity {found.worst_at.severity}",
        "robust_accuracy_mean": found.mean,
        "robust_accuracy_worst": found.worst,
        "robust_ece_mean": found.ece_mean,
        "robust_ece_worst": found.ece_worst,
        "robust_reviewed_mean": found.reviewed_mean,
        "robust_wrong_not_reviewed_mean": found.wrong_not_reviewed_mean,
    }


def manifest_of(
    run: Path,
    facts: RunInfo,
    split: Split,
    spec: InputSpec,
    measured: dict[str, Any],
    metrics: dict[str, Any],
    golden: str,
    sections: dict[str, Any],
) -> Manifest:
    """The manifest of a quantized run.

    Args:
        run: run folder.
        facts: its ``run.json``.
        split: its split.
        spec: input contract.
        measured: the fields of `edgeall.optimize.quantization.result.QuantizationResult` by name.
        metrics: of the verified subset, see `manifest_metrics`.
        golden: source of the golden images, see `golden_candidates`.
        sections: further fields, which depend on the task.
    """
    settings, model = facts.settings, facts.model
    return Manifest(
        name=run.resolve().name,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit=facts.unit,
        labels=tuple(facts.labels),
        positive_labels=tuple(facts.positive_labels),
        input=spec,
        quantization={
            **{key: plain(measured[key]) for key in QUANTIZATION_FACTS},
            "versions": versions(),
            "source_revision": source_revision(),
        },
        training={
            "backbone": model.name,
            "alpha": model.alpha,
            **({} if model.imported is None else {"imported": Path(model.imported.file).name}),
            **_training(run, facts, split),
            "seed": settings.seed,
            "augment": settings.augment,
            "versions": facts.versions,
            "source_revision": facts.source_revision,
            "synthetic": facts.data.synthetic,
        },
        metrics=metrics,
        golden={"source": golden},
        **sections,
    )


def _training(run: Path, facts: RunInfo, split: Split) -> dict[str, Any]:
    """Digests and split of the training data."""
    return {
        "dataset_sha256": split.dataset_sha256,
        "split_sha256": split.sha256,
        "run_sha256": run_digest(run),
        "split_level": split.level,
        **({} if split.embargo is None else {"embargo": split.embargo, "left_out": split.left_out}),
        "images": {side: getattr(facts.split, side) for side in SUBSETS},
    }


def golden_candidates(
    source: str, facts: RunInfo | Facts, split: Split, root: Path
) -> tuple[str, Iterator[Image.Image]]:
    """Candidates for the golden images, and the manifest's description of their source."""
    if source == "synthetic":
        return "synthetic", _drawn("all4" if facts.unit == "field" else "cnmc")
    test = split.subset("test")
    entries = test[:: max(len(test) // GOLDEN_CANDIDATES, 1)]  # sorted by path, so the stride reaches every class
    folder = image_folder(root)
    source = "synthetic images of the test split" if facts.data.synthetic else "images of the test split"
    return source, (open_rgb(folder / entry.path) for entry in entries)


def _drawn(layout: Layout) -> Iterator[Image.Image]:
    with scratch() as folder:
        synthesize(folder / "drawn", GOLDEN_CANDIDATES, seed=0, layout=layout)
        yield from (open_rgb(path) for path in find_images(folder / "drawn"))


def quality_gate(facts: RunInfo | Facts, split: Split, root: Path) -> dict[str, float]:
    """Limits of the rig's quality gate, fitted to fields of the training subset.

    Empty for a data set of single cells, because the rig's camera records fields.
    """
    if facts.unit != "field":
        return {}
    train, folder = split.subset("train"), image_folder(root)
    some = train[:: max(len(train) // GATE_IMAGES, 1)]
    return quality.to_values(quality.fit(np.asarray(open_rgb(folder / entry.path)) for entry in some))
