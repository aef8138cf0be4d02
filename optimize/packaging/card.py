"""The model card that travels with a model: Markdown with Hugging Face front matter."""

from __future__ import annotations

import json
from typing import Any

from ...edge_runtime.manifest import Manifest

_SPLIT_LIMITS = {
    "subject": "The test images come from subjects the model was not trained on.",
    "block": (
        "The test images are blocks of neighbouring file numbers, a stand-in for slides where no subject is known."
    ),
    "given": "The data came split; the sides are as given. Whether they share slides isn't known.",
    "image": "Image-level split: optimistic. Images of one subject may be on both sides of the split.",
}
_BY_SUBJECT = ("accuracy", "sensitivity", "specificity", "auroc_positive")


def model_card(manifest: Manifest) -> str:
    """Write the card from the manifest alone, so that the two can't disagree."""
    sections = [
        _front_matter(manifest),
        f"# {manifest.name}",
        f"**{manifest.intended_use[:1].upper()}{manifest.intended_use[1:]}.**",
        "## Intended use",
        f"Classifies one image of a stained blood smear (one {manifest.unit}) as one of: "
        + ", ".join(manifest.labels)
        + ". "
        + _positives(manifest)
        + "For research and teaching. It has not been validated for any clinical use, and must not be used for one.",
        "## Data",
        _facts(manifest.training),
        "## Metrics",
        _metrics(manifest.metrics),
        "## Quantization",
        _facts(manifest.quantization),
        "## Calibration and review",
        _decisions(manifest),
        "## Known limits",
        _limits(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: Manifest) -> str:
    lines = [
        "---",
        "library_name: edgeall",
        "pipeline_tag: image-classification",
        "tags:",
        "- tflite",
        "- microscopy",
        "- research-use-only",
    ]
    accuracy = manifest.metrics.get("accuracy")
    if isinstance(accuracy, float):
        split = manifest.metrics.get("split", "unknown")
        lines += [
            "model-index:",
            f"- name: {json.dumps(manifest.name)}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {json.dumps(str(manifest.training.get('dataset_sha256', 'unknown')))}",
            "      type: image-folder",
            f"      split: {json.dumps(str(split))}",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {accuracy:.4f}",
        ]
    return "\n".join([*lines, "---"])


def _positives(manifest: Manifest) -> str:
    if not manifest.positive_labels:
        return ""
    return f"Counted as positive: {', '.join(manifest.positive_labels)}. "


def _facts(values: dict[str, Any]) -> str:
    rows = [
        (key, value) for key, value in values.items() if isinstance(value, (str, int, float)) or _is_interval(value)
    ]
    return "\n".join(f"- {key.replace('_', ' ')}: {_text(value)}" for key, value in rows) or "Nothing recorded."


def _metrics(metrics: dict[str, Any]) -> str:
    blocks = [_facts(metrics)]
    per_class = metrics.get("per_class")
    if isinstance(per_class, dict) and per_class:
        names = [name for name in ("precision", "recall", "f1", "support") if name in next(iter(per_class.values()))]
        blocks.append(
            "\n".join(
                [
                    f"| class | {' | '.join(names)} |",
                    f"| --- |{' --- |' * len(names)}",
                    *(
                        f"| {label} | {' | '.join(_text(row.get(name)) for name in names)} |"
                        for label, row in per_class.items()
                    ),
                ]
            )
        )
    subjects = metrics.get("subjects")
    if isinstance(subjects, dict) and subjects.get("subjects"):
        said = [
            f"{name.replace('_', ' ')} {_text(subjects[name])}"
            for name in _BY_SUBJECT
            if subjects.get(name) is not None
        ]
        blocks.append(f"By subject ({subjects['subjects']}, each by the mean of its images): {', '.join(said)}.")
    return "\n\n".join(blocks)


def _decisions(manifest: Manifest) -> str:
    if not manifest.calibration:
        return "Not calibrated: a probability is what the network says, no more."
    said = (
        "edgeall divides the logarithms of the model's outputs by a temperature, fitted on the validation side; other "
        "programs show them as they are."
    )
    rule = (
        _facts(manifest.decision)
        if manifest.decision
        else "- review: no rule was set; the most probable label is given."
    )
    return f"{said}\n\n{_facts(manifest.calibration)}\n{rule}{_wrong(manifest.metrics)}"


def _wrong(metrics: dict[str, Any]) -> str:
    """What became of wrong answers; files of older versions don't know."""
    if "wrong_not_reviewed" not in metrics:
        return ""
    return (
        f"\n\nOn the {metrics['split']} side {100 * metrics['reviewed']:.2f} % of the images are sent to review, "
        f"uncertain or unfamiliar. Of its {metrics['wrong']} wrong answers {metrics['wrong_reviewed']} are sent to "
        f"review; wrong and not sent: {100 * metrics['wrong_not_reviewed']:.2f} % of the images."
    )


def _limits(manifest: Manifest) -> str:
    level = str(manifest.training.get("split_level", "image"))
    limits = [
        _SPLIT_LIMITS[level] + _embargo(manifest.training),
        "Knows only the labels above: whatever else it is shown becomes one of them. " + _unfamiliar(manifest.novelty),
        _other_microscopes(manifest.metrics),
    ]
    if manifest.training.get("synthetic"):
        limits.insert(0, "SYNTHETIC: trained and tested on drawn images. Its figures say nothing about blood.")
    source = str(manifest.golden.get("source", ""))
    if "synthetic" in source:
        limits.append("The golden images inside the file are synthetic.")
    return "\n".join(f"- {limit}" for limit in limits)


def _embargo(training: dict[str, Any]) -> str:
    if training.get("embargo") is None:
        return ""
    left_out = sum(training.get("left_out", {}).values())
    return (
        f" No image within {training['embargo']} file numbers of one of them was trained on; {left_out:,} images were "
        "left out for that, or as duplicates."
    )


def _unfamiliar(novelty: dict[str, Any]) -> str:
    if not novelty:
        return "It can't tell what is unlike its training images."
    return (
        "edgeall asks for review of images whose features are unlike the training images', which other programs don't; "
        f"of clean validation images it asks for {novelty['reviewed']:.4f}."
    )


def _other_microscopes(metrics: dict[str, Any]) -> str:
    said = "Another microscope, lamp, stain or camera than the training data's changes its answers; measure before use."
    if "robust_accuracy_mean" not in metrics:
        return said
    return (
        f"{said} Under the corruptions of suite {metrics['robust_suite']}, which imitate such changes, its accuracy is "
        f"{metrics['robust_accuracy_mean']:.4f} on average and {metrics['robust_accuracy_worst']:.4f} at worst "
        f"({metrics['robust_worst_at']}).{_sureness(metrics)}"
    )


def _sureness(metrics: dict[str, Any]) -> str:
    """What becomes of its probabilities under those corruptions; files of older versions don't know."""
    if "robust_ece_mean" not in metrics:
        return ""
    said = (
        f" Its probabilities are then off by {metrics['robust_ece_mean']:.4f} on average and by "
        f"{metrics['robust_ece_worst']:.4f} at worst (expected calibration error)"
    )
    if "robust_reviewed_mean" in metrics:
        said += f", and it asks for review of {100 * metrics['robust_reviewed_mean']:.1f} % of the images"
    if "robust_wrong_not_reviewed_mean" in metrics:
        said += f"; wrong and not sent: {100 * metrics['robust_wrong_not_reviewed_mean']:.2f} %"
    return f"{said}."


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, float) for end in value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
