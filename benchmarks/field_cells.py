"""A field's class from the whole field, from its cells, and from both, on contiguous folds of the four-class set.

python benchmarks/field_cells.py DATA --weights FILE [--folds 5]

DATA holds all4; FILE holds ImageNet weights of MobileNetV2 0.35. `edgeall cells --crops` cuts each field into its whole
cells, and a crop inherits the label and the subset of its field. Two networks of one input size see equally many
training images, once fields and once crops; both are quantized to int8. A field's verdict from its cells is the mean
of their probabilities; from both, the mean of that and the field's own. Nothing is chosen by the test subset. A fold
that is complete is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np
from folds import balanced_accuracy, block_interval, interval_of_means

ALPHA, INPUT_PX = 0.35, 96
SEEN = 36_000
"""Training images that each network sees in all: as many as `edgeall train` takes for fields."""
WAYS = ("the field", "its cells", "both")

Row = dict[str, Any]
"""One test field: path, label, fold, cells, and for each of `WAYS` the predicted label, None without a cell."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/field-cells"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    crops = _crops(arguments)
    rows = [row for number in range(1, arguments.folds + 1) for row in _fold(arguments, crops, number)]
    page = report(rows, arguments.folds)
    print(page)
    (arguments.out / "field_cells.md").write_text(page, encoding="utf-8")
    return 0


def _crops(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The crops of each field, by its path in all4; both relative."""
    kept, out = arguments.work / "crops.json", arguments.work / "cells"
    if not kept.exists():
        found = command.answer("cells", arguments.data / "all4", "--out", out, "--crops")
        root = arguments.data / "all4"
        crops = {
            str(Path(image["image"]).relative_to(root)): [row["crop"] for row in image["cells"] if row["crop"]]
            for image in found["images"]
        }
        kept.write_text(json.dumps(crops), encoding="utf-8")
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def _fold(arguments: argparse.Namespace, crops: Mapping[str, Sequence[str]], number: int) -> list[Row]:
    """Its test fields; from its own file where it is complete."""
    folder, root = arguments.work / f"fold-{number}-of-{arguments.folds}", arguments.data / "all4"
    kept = folder / "rows.json"
    if kept.exists():
        return list(json.loads(kept.read_text(encoding="utf-8")))
    by_block = ("--split-by", "block", "--fold", f"{number}/{arguments.folds}")
    fields = _model(arguments, folder / "fields", ("--data", root, *by_block))
    entries = json.loads((folder / "fields" / "split.json").read_text(encoding="utf-8"))["entries"]
    sides = [(entry, crop) for entry in entries if entry["side"] in _SIDES for crop in crops[entry["path"]]]
    manifest = arguments.work / "cells" / f"fold-{number}.csv"
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "side"))
        table.writerows((crop, entry["label"], entry["side"]) for entry, crop in sides)
    training = sum(entry["side"] == "train" for entry, _ in sides)
    epochs = max(1, round(SEEN / training))
    cells = _model(arguments, folder / "crops", ("--data", manifest, "--epochs-finetune", epochs))
    tested = {entry["path"]: entry["label"] for entry in entries if entry["side"] == "test"}
    of_field = _probabilities(fields, {path: root / path for path in tested})
    own = {crop: arguments.work / "cells" / crop for path in tested for crop in crops[path]}
    of_crop = _probabilities(cells, own)
    rows = []
    for path, label in tested.items():
        pooled = _mean([of_crop[crop] for crop in crops[path]])
        both = _mean([of_field[path], pooled]) if pooled else of_field[path]
        verdicts = [max(found, key=found.__getitem__) if found else None for found in (of_field[path], pooled, both)]
        answers = dict(zip(WAYS, verdicts, strict=True))
        rows.append({"path": path, "label": label, "fold": number, "cells": len(crops[path]), **answers})
    kept.write_text(json.dumps(rows), encoding="utf-8")
    return rows


_SIDES = ("train", "validation", "test")


def _model(arguments: argparse.Namespace, run: Path, words: Sequence[object]) -> Path:
    """The int8 file of a network trained with these options."""
    model = run / "model.tflite"
    if not (run / "run.json").exists():
        command.answer(
            *("train", *words, "--out", run, "--alpha", ALPHA),
            *("--weights", arguments.weights, "--input-size", INPUT_PX),
        )
    if not model.exists():
        command.answer("quantize", run, "--out", model)
    return model


def _probabilities(model: Path, images: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """For each name the probability of each label."""
    names = {str(path): name for name, path in images.items()}
    printed = subprocess.run(
        [command.EDGEALL, "run", str(model), *names, "--json"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    found = {names[answer["image"]]: answer["probabilities"] for answer in map(json.loads, printed.splitlines())}
    if len(found) != len(names):
        raise SystemExit(f"{model}: not all {len(names)} images were answered")
    return found


def _mean(probabilities: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not probabilities:
        return {}
    return {label: float(np.mean([one[label] for one in probabilities])) for label in probabilities[0]}


def gain(rows: Sequence[Row], way: str) -> tuple[float, float, float]:
    """Balanced accuracy of a way less that of the field, and its 95 % interval by a paired bootstrap over blocks."""
    low, high = interval_of_means(
        rows, lambda row: float(row[way] == row["label"]) - float(row[WAYS[0]] == row["label"])
    )
    return _balanced(rows, way) - _balanced(rows, WAYS[0]), low, high


def _balanced(rows: Sequence[Row], way: str) -> float:
    return balanced_accuracy([row["label"] for row in rows], [row[way] == row["label"] for row in rows])


def report(rows: Sequence[Row], folds: int) -> str:
    """A Markdown page."""
    labels = sorted({row["label"] for row in rows})
    without = sum(row["cells"] == 0 for row in rows)
    lines = [
        f"# Four-class fields from the field and from its cells, {folds} contiguous folds",
        "",
        f"`python benchmarks/field_cells.py DATA --weights FILE --folds {folds}`, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}. "
        f"MobileNetV2 {ALPHA:g} at {INPUT_PX} pixels, int8 (PTQ). Both networks see about {SEEN:,} training images; "
        "every other option is the default. A crop has the label of its field. Its cells: the mean of their "
        "probabilities. Both: the mean of that and the field's own.",
        "",
        f"| verdict from | balanced accuracy (95 % interval) | less the field's | {' | '.join(labels)} |",
        f"| --- | ---: | ---: |{' ---: |' * len(labels)}",
    ]
    for way in WAYS:
        low, high = block_interval([{**row, "predicted": row[way]} for row in rows])
        more = gain(rows, way)
        recalls = [float(np.mean([row[way] == label for row in rows if row["label"] == label])) for label in labels]
        lines.append(
            f"| {way} | {_balanced(rows, way):.3f} ({low:.3f} to {high:.3f}) | "
            + ("" if way == WAYS[0] else f"{more[0]:+.3f} ({more[1]:+.3f} to {more[2]:+.3f})")
            + f" | {' | '.join(f'{recall:.3f}' for recall in recalls)} |"
        )
    lines += [
        "",
        f"{len(rows)} fields, {np.mean([row['cells'] for row in rows]):.1f} whole cells in each on average; "
        f"{without} without a whole cell: wrong for its cells, and by the field alone for both. Intervals: "
        "bootstrap over blocks of images in a row, within each class.",
        "",
        *(
            f"- fold {number}: " + ", ".join(f"{way} {_balanced(own, way):.3f}" for way in WAYS)
            for number in sorted({row["fold"] for row in rows})
            for own in [[row for row in rows if row["fold"] == number]]
        ),
        "",
        "Research use only, not a diagnosis.",
        "",
        *command.machine_lines(),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
