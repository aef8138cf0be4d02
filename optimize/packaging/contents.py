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
from ...edge_runtime.tools.atomic import scratch
from ...edge_runtime.vision import quality
from ...train.data.split import Split
from ...train.data.subsets import SUBSETS
from ...train.data.synth import Layout, synthesize
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


def kept_metrics(metrics: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a classifier that its manifest holds."""
    kept = [key for key in ("ece_uncalibrated", "aurc", *REVIEW_FACTS) if key in metrics]
    kept += ["ci_unit", "macro_f1", "ece", "brier", "log_loss", "sensitivity", "specificity", "auroc_positive"]
    kept += [key for key in metrics if key.endswith("_ci95") or key.startswith("robust_")] + ["per_class"]
    return {
        **{key: metrics[key] for key in ("split", "images", "accuracy")},
        "float_accuracy": measured["float_accuracy"],
        **{key: metrics[key] for key in kept},
        "subjects": _without_names(metrics["subjects"]),
    }


def manifest_of(
    run: Path,
    facts: dict[str, Any],
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
        metrics: of the verified subset.
        golden: source of the golden images, see `golden_candidates`.
        sections: further fields, which depend on the task.
    """
    settings, model = facts["settings"], facts["model"]
    return Manifest(
        name=run.resolve().name,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit=facts["unit"],
        labels=tuple(facts["labels"]),
        positive_labels=tuple(facts["positive_labels"]),
        input=spec,
        quantization={
            **{key: measured[key] for key in QUANTIZATION_FACTS},
            "versions": versions(),
            "source_revision": source_revision(),
        },
        training={
            "backbone": model["name"],
            "alpha": model["alpha"],
            **_training(run, facts, split),
            "seed": settings["seed"],
            "augment": settings["augment"],
            "versions": facts["versions"],
            "source_revision": facts["source_revision"],
            "synthetic": facts["data"]["synthetic"],
        },
        metrics=metrics,
        golden={"source": golden},
        **sections,
    )


def _training(run: Path, facts: dict[str, Any], split: Split) -> dict[str, Any]:
    """Digests and split of the training data."""
    return {
        "dataset_sha256": split.dataset_sha256,
        "split_sha256": split.sha256,
        "run_sha256": run_digest(run),
        "split_level": split.level,
        **({} if split.embargo is None else {"embargo": split.embargo, "left_out": split.left_out}),
        "images": {side: facts["split"][side] for side in SUBSETS},
    }


def golden_candidates(
    source: str, facts: dict[str, Any], split: Split, root: Path
) -> tuple[str, Iterator[Image.Image]]:
    """Candidates for the golden images, and the manifest's description of their source."""
    if source == "synthetic":
        return "synthetic", _drawn("all4" if facts["unit"] == "field" else "cnmc")
    test = split.subset("test")
    entries = test[:: max(len(test) // GOLDEN_CANDIDATES, 1)]  # sorted by path, so the stride reaches every class
    folder = image_folder(root)
    source = "synthetic images of the test split" if facts["data"]["synthetic"] else "images of the test split"
    return source, (open_rgb(folder / entry.path) for entry in entries)


def _drawn(layout: Layout) -> Iterator[Image.Image]:
    with scratch() as folder:
        synthesize(folder / "drawn", GOLDEN_CANDIDATES, seed=0, layout=layout)
        yield from (open_rgb(path) for path in find_images(folder / "drawn"))


def quality_gate(facts: dict[str, Any], split: Split, root: Path) -> dict[str, float]:
    """Limits of the rig's quality gate, fitted to fields of the training subset.

    Empty for a data set of single cells, because the rig's camera records fields.
    """
    if facts["unit"] != "field":
        return {}
    train, folder = split.subset("train"), image_folder(root)
    some = train[:: max(len(train) // GATE_IMAGES, 1)]
    return quality.to_values(quality.fit(np.asarray(open_rgb(folder / entry.path)) for entry in some))


def _without_names(subjects: dict[str, Any] | None) -> dict[str, Any] | None:
    """Metrics by subject without the subjects' names: the file travels to places where names must not go."""
    return subjects and {key: value for key, value in subjects.items() if key != "per_subject"}
