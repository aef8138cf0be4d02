"""Related-domain transfer: the same network trained on the four-class set from ImageNet weights, and from white cells.

python benchmarks/transfer.py DATA --weights FILE [--folds 2/5,4/5] [--seeds 3] [--input-size 96]

DATA holds all4 and cells/pbc; FILE has the ImageNet weights of MobileNetV2 0.35. The second start is a run on the white
cells of PBC by type, which itself started from FILE. Contiguous folds with an embargo; every other setting is the
default. Written to `transfer-<size>.md`; finished runs are reused (--work), interrupted ones resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command

KINDS = ("ImageNet", "white cells")
FIGURES = {"accuracy": ("accuracy", 1), "log loss": ("log_loss", -1)}
"""Key in the metrics, and whether higher is better."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2 0.35")
    parser.add_argument("--folds", default="2/5,4/5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    source = arguments.work / f"pbc-{arguments.input_size}"
    pretrained = _run(arguments, source, arguments.data / "cells" / "pbc", arguments.weights)
    rows = []
    for fold in arguments.folds.split(","):
        for seed in range(arguments.seeds):
            row: dict[str, Any] = {"fold": fold, "seed": seed}
            for kind, weights in zip(KINDS, (arguments.weights, source), strict=True):
                name = f"{kind}-{arguments.input_size}-{fold}-{seed}".replace(" ", "-").replace("/", "of")
                words = ("--split-by", "block", "--fold", fold, "--seed", seed)
                run = _run(arguments, arguments.work / name, arguments.data / "all4", weights, *words)
                row[kind] = run["metrics"]["test"]
            rows.append(row)
    page = report(arguments, pretrained, rows)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"transfer-{arguments.input_size}.md").write_text(page, encoding="utf-8")
    return 0


def _run(arguments: argparse.Namespace, out: Path, data: Path, weights: Path, *words: object) -> dict[str, Any]:
    """``run.json`` of one training, made before or now."""
    if not (out / "run.json").exists():
        command.answer(
            *("train", "--data", data, "--alpha", 0.35, "--weights", weights),
            *("--input-size", arguments.input_size, *words, "--out", out),
        )
    return dict(json.loads((out / "run.json").read_text(encoding="utf-8")))


def report(arguments: argparse.Namespace, pretrained: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    cells = pretrained["metrics"]["test"]
    heads = [f"{kind}: {name}" for kind in KINDS for name in FIGURES]
    lines = [
        f"# Transfer from white cells to the four-class set, {arguments.input_size} pixels",
        "",
        f"`python benchmarks/transfer.py DATA --weights FILE --input-size {arguments.input_size}`, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}. MobileNetV2 0.35, float, default settings but the size. The run on "
        f"PBC's white cells, from ImageNet weights, reached {100 * cells['accuracy']:.1f} % of {cells['images']} test "
        "images. Contiguous folds of the four-class set, embargo 37.",
        "",
        f"| fold | seed | {' | '.join(heads)} |",
        f"| --- | ---: |{' ---: |' * len(heads)}",
        *(
            f"| {row['fold']} | {row['seed']} | "
            + " | ".join(f"{row[kind][key]:.4f}" for kind in KINDS for key, _ in FIGURES.values())
            + " |"
            for row in rows
        ),
        "",
        *(verdict(rows, name) for name in FIGURES),
        "",
        "Research use only, not a diagnosis.",
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines)


def verdict(rows: list[dict[str, Any]], name: str) -> str:
    """The mean gain by white cells over all folds and seeds. It counts from two standard errors."""
    key, sign = FIGURES[name]
    gains = [sign * (row[KINDS[1]][key] - row[KINDS[0]][key]) for row in rows]
    mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    found = "better" if mean > 2 * error else "worse" if mean < -2 * error else "no clear difference"
    return f"- {name}: {found} from white cells ({mean:+.4f} +- {error:.4f} of improvement, {len(gains)} pairs)"


if __name__ == "__main__":
    sys.exit(main())
