"""K contiguous folds of the real four-class set by the default commands, pooled, compared with a public study.

Used by `all4.py --split-by block --folds K`. Folds with predictions are reused, and the program resumes interrupted
trainings.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import command
import numpy as np

BLOCK = 37
"""Images that are drawn together: about one patient's (3,256 images of 89 patients)."""

RESAMPLES = 10_000
LIMIT = 0.985
"""Least balanced accuracy of all folds together."""
REFERENCE = {"accuracy": 0.978, "low": 0.967, "high": 0.988}
SOURCE = (
    "frozen DinoBloom-S, 22 M parameters, contiguous folds, embargo 37: "
    "https://github.com/shrirudragoud/leukemia-detection-and-Segmentation, "
    "docs/results/ablation_sources_contiguous.md"
)

Row = dict[str, Any]
"""One image's answer: path, label, predicted, probability, review, fold."""


def run_folds(arguments: argparse.Namespace) -> str:
    """Train, quantize and ask every fold; a Markdown page."""
    rows: list[Row] = []
    folds = []
    for number in range(1, arguments.folds + 1):
        facts = _fold(arguments, number)
        folds.append(facts)
        rows += facts["answers"]
    return report(arguments, rows, folds)


def _fold(arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    """What a fold came to; from its own file where it is complete."""
    run = arguments.work / f"all4-{arguments.alpha:g}-block-fold-{number}-of-{arguments.folds}"
    model, kept = run / "model.tflite", run / "fold.json"
    if kept.exists():
        facts = json.loads(kept.read_text(encoding="utf-8"))
        if facts["robustness"] is not None or not arguments.robustness:
            return dict(facts)
    if not (run / "run.json").exists():
        command.answer(
            *("train", "--data", arguments.data, "--alpha", arguments.alpha, "--weights", arguments.weights),
            *("--split-by", "block", "--fold", f"{number}/{arguments.folds}", "--out", run),
        )
    quantized = run / "quantized.json"
    if not quantized.exists():
        summary = command.answer("quantize", run, "--out", model, "--force")
        _write(quantized, summary)
    facts = {
        "fold": number,
        "answers": [{**row, "fold": number} for row in _answers(run, model, arguments.data)],
        "split": json.loads((run / "run.json").read_text(encoding="utf-8"))["split"],
        "train_s": json.loads((run / "run.json").read_text(encoding="utf-8"))["timing"]["total_s"],
        **{key: json.loads(quantized.read_text(encoding="utf-8"))[key] for key in ("file_bytes", "scheme")},
        "robustness": None,
    }
    if arguments.robustness:
        measured = command.answer("evaluate", model, "--data", arguments.data, "--robustness")
        facts["robustness"] = {key: measured["robustness"][key] for key in ("images", "mean", "worst", "worst_at")}
    _write(kept, facts)
    return facts


def _answers(run: Path, model: Path, data: Path) -> list[Row]:
    """The int8 file's prediction for every image of the run's test subset, by `edgeall run`."""
    entries = json.loads((run / "split.json").read_text(encoding="utf-8"))["entries"]
    labels = {str(data / entry["path"]): entry for entry in entries if entry["side"] == "test"}
    printed = subprocess.run(
        [command.EDGEALL, "run", str(model), *labels, "--json"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    answers = [json.loads(line) for line in printed.splitlines()]
    if len(answers) != len(labels) or any("error" in answer for answer in answers):
        raise SystemExit(f"{model}: not all {len(labels)} test images were answered")
    return [
        {
            "path": labels[answer["image"]]["path"],
            "label": labels[answer["image"]]["label"],
            "predicted": answer["label"],
            "probability": answer["probability"],
            "review": answer["review"],
        }
        for answer in answers
    ]


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def balanced_accuracy(label: Sequence[str], right: Sequence[bool]) -> float:
    """Mean of the classes' recalls."""
    truth, correct = np.array(label), np.array(right, dtype=float)
    return float(np.mean([correct[truth == one].mean() for one in np.unique(truth)]))


def block_interval(rows: Sequence[Mapping[str, Any]], resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the balanced accuracy; drawn are blocks of about `BLOCK` images in a row, within each class."""
    return interval_of_means(rows, lambda row: float(row["label"] == row["predicted"]), resamples)


def interval_of_means(
    rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the mean of the classes' means of ``value``, with blocks drawn as in `block_interval`."""
    generator = np.random.default_rng(0)
    means = []
    for label in sorted({row["label"] for row in rows}):
        own = sorted((row for row in rows if row["label"] == label), key=lambda row: _number(row["path"]))
        blocks = np.array_split(np.array([value(row) for row in own]), max(1, round(len(own) / BLOCK)))
        sums, sizes = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
        drawn = generator.integers(0, len(blocks), (resamples, len(blocks)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)


def _number(path: str) -> int:
    return int(re.findall("[0-9]+", PurePosixPath(path).stem)[-1])


def report(arguments: argparse.Namespace, rows: Sequence[Row], folds: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown page of the pooled predictions."""
    right = [row["label"] == row["predicted"] for row in rows]
    accuracy = balanced_accuracy([row["label"] for row in rows], right)
    low, high = block_interval(rows)
    wrong = [row for row, ok in zip(rows, right, strict=True) if not ok]
    unseen = sum(not row["review"] for row in wrong)
    typed = f"python benchmarks/all4.py DATA --weights FILE --alpha {arguments.alpha:g} --split-by block"
    typed += f" --folds {arguments.folds}{' --robustness' if arguments.robustness else ''}"
    lines = [
        f"# Four-class set, MobileNetV2 {arguments.alpha:g}/224, {arguments.folds} contiguous folds",
        "",
        f"`{typed}`, {datetime.now(timezone.utc):%Y-%m-%d}. Default settings of `edgeall train` and `edgeall quantize` "
        f"({folds[0]['scheme']}); every image is classified once, by the int8 file that saw none within "
        f"{folds[0]['split']['embargo']} file numbers of it.",
        "",
        "| | balanced accuracy | 95 % interval |",
        "| --- | ---: | ---: |",
        f"| ours, int8 | {accuracy:.3f} | {low:.3f} to {high:.3f} |",
        f"| reference | {REFERENCE['accuracy']:.3f} | {REFERENCE['low']:.3f} to {REFERENCE['high']:.3f} |",
        f"| limit: {'met' if accuracy >= LIMIT else '**missed**'} | {LIMIT:.3f} | |",
        "",
        f"Interval: bootstrap over blocks of about {BLOCK} images in a row, within each class. Reference: {SOURCE}.",
        "",
        f"{len(wrong)} of {len(rows)} wrong, {unseen} of them not sent to review; "
        f"{sum(row['review'] for row in rows)} images sent to review.",
        "",
        "| class | images | recall |",
        "| --- | ---: | ---: |",
        *(
            f"| {label} | {len(own)} | {np.mean(own):.3f} |"
            for label in sorted({row["label"] for row in rows})
            for own in [[ok for row, ok in zip(rows, right, strict=True) if row["label"] == label]]
        ),
        "",
        "| fold | train | validation | test | left out | balanced accuracy | training, min | file, bytes |"
        + (" robust mean | robust worst |" if arguments.robustness else ""),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |" + (" ---: | ---: |" if arguments.robustness else ""),
        *(_fold_line(fold, rows) for fold in folds),
        "",
    ]
    measured = [fold["robustness"] for fold in folds if fold["robustness"] is not None]
    if measured:
        images = np.array([one["images"] for one in measured])
        mean = float(np.average([one["mean"] for one in measured], weights=images))
        lines += [
            f"Under the robustness suite: mean {mean:.3f} of all folds; worst cell of any fold "
            f"{min(one['worst'] for one in measured):.3f}.",
            "",
        ]
    return "\n".join(lines)


def _fold_line(fold: Mapping[str, Any], rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["fold"] == fold["fold"]]
    accuracy = balanced_accuracy([row["label"] for row in own], [row["label"] == row["predicted"] for row in own])
    split, robust = fold["split"], fold["robustness"]
    cells = [
        *(str(fold["fold"]), *(str(split[side]) for side in ("train", "validation", "test"))),
        *(str(sum(split["left_out"].values())), f"{accuracy:.3f}"),
        *(f"{fold['train_s'] / 60:.1f}", f"{fold['file_bytes']:,}"),
        *([f"{robust['mean']:.3f}", f"{robust['worst']:.3f}"] if robust else []),
    ]
    return f"| {' | '.join(cells)} |"
