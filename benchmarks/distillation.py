"""The effect of a teacher: the same small network trained with and without one, over several seeds, on one split.

python benchmarks/distillation.py DATA --weights FILE_0.35 --teacher-weights FILE_1.0

The teacher is MobileNetV2 1.0, the student 0.35, both at --input-size. At 224 the student without a teacher is wrong on
three images of the test subset, and any effect of a teacher is smaller than the difference between two seeds. Written
to `distillation-<size>.md`; finished runs are reused (--work).
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

KINDS = ("alone", "taught")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2 0.35")
    parser.add_argument("--teacher-weights", type=Path, required=True, help="of MobileNetV2 1.0")
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    teacher = arguments.work / f"teacher-{arguments.input_size}"
    taught = _run(arguments, teacher, "--alpha", 1.0, "--weights", arguments.teacher_weights, "--split-by", "image")
    students: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for seed in range(arguments.seeds):
        for kind in KINDS:
            out = arguments.work / f"{kind}-{arguments.input_size}-{seed}"
            words: tuple[object, ...] = ("--alpha", 0.35, "--weights", arguments.weights, "--split", teacher)
            words += ("--seed", seed, *(("--teacher", teacher) if kind == "taught" else ()))
            students[kind].append(_run(arguments, out, *words))
    page = report(arguments, taught, students)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"distillation-{arguments.input_size}.md").write_text(page, encoding="utf-8")
    return 0


def _run(arguments: argparse.Namespace, out: Path, *words: object) -> dict[str, Any]:
    """``run.json`` of one training, made before or now."""
    if not (out / "run.json").exists():
        command.answer("train", "--data", arguments.data, "--input-size", arguments.input_size, *words, "--out", out)
    return dict(json.loads((out / "run.json").read_text()))


def report(arguments: argparse.Namespace, teacher: dict[str, Any], students: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    figures = {
        kind: [{**run["metrics"]["test"], "minutes": run["timing"]["total_s"] / 60} for run in runs]
        for kind, runs in students.items()
    }
    rows = [
        f"| {seed} | "
        + " | ".join(
            cell
            for kind in KINDS
            for cell in (
                f"{100 * figures[kind][seed]['accuracy']:.2f}",
                f"{figures[kind][seed]['log_loss']:.4f}",
                f"{figures[kind][seed]['minutes']:.1f}",
            )
        )
        + " |"
        for seed in range(arguments.seeds)
    ]
    images = teacher["metrics"]["test"]["images"]
    lines = [
        f"# A teacher for a small network, {arguments.input_size} pixels",
        "",
        f"`python benchmarks/distillation.py DATA --weights FILE --teacher-weights FILE --input-size "
        f"{arguments.input_size} --seeds {arguments.seeds}`, {datetime.now(timezone.utc):%Y-%m-%d}. Teacher: "
        f"MobileNetV2 1.0, {100 * teacher['metrics']['test']['accuracy']:.2f} % of {images} test images. Student: "
        "MobileNetV2 0.35. One image-level split for all; every setting but the teacher and the seed is the default.",
        "",
        "| seed | alone: accuracy % | log loss | minutes | taught: accuracy % | log loss | minutes |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        _verdict(figures, images),
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines)


def _verdict(figures: dict[str, list[dict[str, Any]]], images: int) -> str:
    """What the seeds say, in a sentence: two standard errors of their mean difference are asked for."""
    said = []
    for name, key, scale, unit, better in (
        ("accuracy", "accuracy", 100, " points", 1),
        ("log loss", "log_loss", 1, "", -1),
    ):
        gains = [
            better * scale * (taught[key] - alone[key])
            for alone, taught in zip(figures["alone"], figures["taught"], strict=True)
        ]
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        clear = "better" if mean > 2 * error else "worse" if mean < -2 * error else "no different that can be told"
        said.append(f"{name}: {clear} with the teacher ({mean:+.3f} +- {error:.3f}{unit} of improvement)")
    return f"Over {len(figures['alone'])} seeds ({100 / images:.2f} points are one image), " + "; ".join(said) + "."


if __name__ == "__main__":
    sys.exit(main())
