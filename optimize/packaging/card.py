"""The model card in a packed model: Markdown with Hugging Face front matter."""

from __future__ import annotations

import json
from typing import Any

from ...edge_runtime.manifest import Manifest

_SPLIT_LIMITS = {
    "laboratory": "The test images come from a laboratory that the model was not trained on.",
    "subject": "The test images come from subjects that the model was not trained on.",
    "block": (
        "The test images are blocks of neighbouring file numbers, a stand-in for slides where no subject is known."
    ),
    "given": "The subsets are those of the data set. It is not known whether they share slides.",
    "image": "Image-level split: optimistic. Images of one subject may be in training and test.",
}
_SHOWN_LABELS = 20
_BY_SUBJECT = ("accuracy", "sensitivity", "specificity", "auroc_positive")


def model_card(manifest: Manifest) -> str:
    """Write the card from the manifest alone, so that the two cannot disagree."""
    sections = [
        _front_matter(manifest),
        f"# {manifest.name}",
        f"**{manifest.intended_use[:1].upper()}{manifest.intended_use[1:]}.**",
        "## Intended use",
        _PURPOSES[manifest.task](manifest)
        + "For research and teaching. It has not been validated for any clinical use, and must not be used for one.",
        "## Data",
        _facts(manifest.training),
        "## Metrics",
        _metrics(manifest.metrics),
        "## Quantization",
        _facts(manifest.quantization),
        *(["## Calibration and review", _decisions(manifest)] if manifest.task == "classification" else []),
        "## Known limits",
        _limits(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _classifies(manifest: Manifest) -> str:
    if "imported" in manifest.training:
        shown, labels = ", ".join(manifest.labels[:_SHOWN_LABELS]), len(manifest.labels)
        more = f" and {labels - _SHOWN_LABELS:,} more" if labels > _SHOWN_LABELS else ""
        return f"Classifies one image as one of {labels:,} labels: {shown}{more}. " + _positives(manifest)
    return (
        f"Classifies one image of a stained blood smear (one {manifest.unit}) as one of: {', '.join(manifest.labels)}. "
        + _positives(manifest)
    )


def _segments(manifest: Manifest) -> str:
    return (
        f"Finds {', '.join(manifest.labels)} in tiles of a stained blood smear in which a red cell has a diameter of "
        f"{manifest.segmentation['red_cell_px']:g} pixels, and measures that diameter. "
    )


_PURPOSES = {"classification": _classifies, "segmentation": _segments}


def _front_matter(manifest: Manifest) -> str:
    lines = [
        "---",
        "library_name: edgeall",
        f"pipeline_tag: image-{manifest.task}",
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
    return f"Positive classes: {', '.join(manifest.positive_labels)}. "


def _facts(values: dict[str, Any]) -> str:
    rows = [
        (key, value) for key, value in values.items() if isinstance(value, (str, int, float)) or _is_interval(value)
    ]
    return "\n".join(f"- {key.replace('_', ' ')}: {_text(value)}" for key, value in rows) or "Nothing recorded."


def _metrics(metrics: dict[str, Any]) -> str:
    blocks = [_facts(metrics)]
    per_class = metrics.get("per_class")
    if isinstance(per_class, dict) and per_class:
        names = [
            name
            for name in ("precision", "recall", "f1", "support", "dice", "iou", "images")
            if name in next(iter(per_class.values()))
        ]
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
        figures = [
            f"{name.replace('_', ' ')} {_text(subjects[name])}"
            for name in _BY_SUBJECT
            if subjects.get(name) is not None
        ]
        blocks.append(f"By subject ({subjects['subjects']}, each by the mean of its images): {', '.join(figures)}.")
    return "\n\n".join(blocks)


def _decisions(manifest: Manifest) -> str:
    if not manifest.calibration:
        return "Not calibrated: the probabilities are the outputs of the network."
    text = (
        "edgeall divides the logarithms of the model's outputs by a temperature, fitted on the validation subset. "
        "Other programs show the outputs without calibration."
    )
    rule = _facts(manifest.decision) if manifest.decision else "- review: no rule; the most probable label is given."
    return f"{text}\n\n{_facts(manifest.calibration)}\n{rule}{_wrong(manifest.metrics)}"


def _wrong(metrics: dict[str, Any]) -> str:
    """Wrong predictions and review; files of older versions do not record it."""
    if "wrong_not_reviewed" not in metrics:
        return ""
    return (
        f"\n\nOn the {metrics['split']} subset {100 * metrics['reviewed']:.2f} % of the images are sent to review, as "
        f"uncertain or out of distribution. Of its {metrics['wrong']} wrong predictions {metrics['wrong_reviewed']} "
        f"are sent to review; wrong and not sent: {100 * metrics['wrong_not_reviewed']:.2f} % of the images."
    )


def _limits(manifest: Manifest) -> str:
    level = str(manifest.training.get("split_level", "image"))
    limits = [
        _SPLIT_LIMITS[level] + _embargo(manifest.training),
        _unknown(manifest),
        _other_microscopes(manifest.metrics),
    ]
    if "imported" in manifest.training:
        limits[0] = (
            "The model was trained elsewhere. It is not known which images it was trained on: the test images, or "
            "others of the same subjects, may be among them."
        )
    if manifest.training.get("synthetic"):
        limits.insert(0, "SYNTHETIC: trained and tested on drawn images. Its figures do not apply to real blood.")
    source = str(manifest.golden.get("source", ""))
    if "synthetic" in source:
        limits.append("The golden images in the file are synthetic.")
    return "\n".join(f"- {limit}" for limit in limits)


def _unknown(manifest: Manifest) -> str:
    if manifest.task == "segmentation":
        return "The model gives every pixel one of the classes above, and takes no other kind of image for what it is."
    return "The model knows the labels above alone and gives one of them for any image. " + _ood(manifest.novelty)


def _embargo(training: dict[str, Any]) -> str:
    if training.get("embargo") is None:
        return ""
    left_out = sum(training.get("left_out", {}).values())
    return (
        f" No training image is within {training['embargo']} file numbers of a test image; {left_out:,} images were "
        "left out for that, or as duplicates."
    )


def _ood(novelty: dict[str, Any]) -> str:
    if not novelty:
        return "It has no out-of-distribution detector."
    return (
        "edgeall sends out-of-distribution images to review, by their features; other programs do not. Share of the "
        f"unchanged validation images: {novelty['reviewed']:.4f}."
    )


def _other_microscopes(metrics: dict[str, Any]) -> str:
    text = "Another microscope, lamp, stain or camera than in the training data changes the predictions; measure first."
    if "robust_dice_mean" in metrics:
        return (
            f"{text} Under the corruptions of suite {metrics['robust_suite']}, which imitate such changes, its Dice is "
            f"{metrics['robust_dice_mean']:.4f} on average and {metrics['robust_dice_worst']:.4f} at worst "
            f"({metrics['robust_worst_at']})."
        )
    if "robust_accuracy_mean" not in metrics:
        return text
    return (
        f"{text} Under the corruptions of suite {metrics['robust_suite']}, which imitate such changes, its accuracy is "
        f"{metrics['robust_accuracy_mean']:.4f} on average and {metrics['robust_accuracy_worst']:.4f} at worst "
        f"({metrics['robust_worst_at']}).{_robust_calibration(metrics)}"
    )


def _robust_calibration(metrics: dict[str, Any]) -> str:
    """Calibration and review under those corruptions; files of older versions do not record them."""
    if "robust_ece_mean" not in metrics:
        return ""
    text = (
        f" The expected calibration error is then {metrics['robust_ece_mean']:.4f} on average and "
        f"{metrics['robust_ece_worst']:.4f} at worst"
    )
    if "robust_reviewed_mean" in metrics:
        text += f"; sent to review: {100 * metrics['robust_reviewed_mean']:.1f} % of the images"
    if "robust_wrong_not_reviewed_mean" in metrics:
        text += f"; wrong and not sent: {100 * metrics['robust_wrong_not_reviewed_mean']:.2f} %"
    return f"{text}."


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, float) for end in value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
