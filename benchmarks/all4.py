"""The chain on the real four-class set by the default commands, with the limits of the project.

python benchmarks/all4.py DATA --weights FILE --alpha 0.35

Runs `edgeall train`, `edgeall quantize` and `edgeall evaluate --robustness` without any flag that changes the recipe,
and writes `all4-<alpha>-block.md`. Run nothing else on the machine: time is one of the figures. The limits are meant
for slides of unknown patients; the test subset of the default split, contiguous blocks, is the proxy. `--split-by
image` shows the figures of the optimistic split.

python benchmarks/all4.py DATA --weights FILE --alpha 0.35 --split-by block --folds 5 [--robustness]

runs contiguous folds instead, and writes `all4-<alpha>-block-5-folds.md`: see `folds.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import folds


@dataclass(frozen=True)
class Limits:
    """What one network must reach: minutes of both commands, size in MB (10^6 bytes), accuracies in %."""

    total_min: float
    file_mb: float
    clean: float
    mean: float
    worst: float
    ece: float = 0.03
    wrong_not_reviewed: float = 0.5
    reviewed: float = 6.0


LIMITS = {0.35: Limits(20.0, 0.70, 98.5, 98.0, 96.5), 1.0: Limits(60.0, 2.9, 99.0, 98.5, 97.5)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--alpha", type=float, choices=sorted(LIMITS), required=True)
    parser.add_argument("--split-by", choices=["block", "image"], default="block")
    parser.add_argument("--folds", type=int, help="so many contiguous folds, instead of the default split")
    parser.add_argument("--robustness", action="store_true", help="with --folds: under the robustness suite too")
    parser.add_argument("--keep-run", action="store_true", help="quantize the run that is there; don't train again")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.folds is not None:
        if arguments.split_by != "block" or arguments.folds < 2:
            parser.error("--folds takes 2 or more, and --split-by block")
        page, met = folds.run_folds(arguments), True
        path = arguments.out / f"all4-{arguments.alpha:g}-block-{arguments.folds}-folds.md"
    else:
        page, met = _default(arguments)
        path = arguments.out / f"all4-{arguments.alpha:g}-{arguments.split_by}.md"
    print(page)
    path.write_text(page, encoding="utf-8")
    return 0 if met else 1


def _default(arguments: argparse.Namespace) -> tuple[str, bool]:
    run = arguments.work / f"all4-{arguments.alpha:g}-{arguments.split_by}"
    if not (arguments.keep_run and (run / "run.json").exists()):
        _train(arguments, run)
    trained = json.loads((run / "run.json").read_text(encoding="utf-8"))
    done = command.run("quantize", run, "--out", run / "model.tflite", "--force")
    if done.status:
        raise SystemExit(f"quantize ended with status {done.status}")
    measured = command.answer("evaluate", run / "model.tflite", "--data", arguments.data, "--robustness")
    return report(arguments, trained, done, measured)


def _train(arguments: argparse.Namespace, run: Path) -> None:
    """Train from nothing, caches of pixels and features not there yet."""
    shutil.rmtree(run, ignore_errors=True)  # an unfinished run would be resumed, and its time would be too short
    cache = arguments.work / f"cache-{time.time_ns()}"
    command.answer(
        *("train", "--data", arguments.data, "--alpha", arguments.alpha, "--weights", arguments.weights),
        *("--split-by", arguments.split_by, "--cache-dir", cache, "--out", run),
    )


def report(
    arguments: argparse.Namespace, run: dict[str, Any], quantized: command.Done, measured: dict[str, Any]
) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met.

    Args:
        arguments: of the command line.
        run: its ``run.json``.
        quantized: `edgeall quantize`, with what it printed.
        measured: what `edgeall evaluate --robustness` printed of its file.
    """
    from edgeall.edge_runtime.tools.device import describe_device

    limits, default, robust = LIMITS[arguments.alpha], quantized.answer, measured["robustness"]
    review = measured["review"]
    checks = [
        ("train and quantize", (run["timing"]["total_s"] + quantized.seconds) / 60, "min", "<=", limits.total_min),
        ("whole file", default["file_bytes"] / 1e6, "MB", "<=", limits.file_mb),
        ("accuracy, clean", 100 * measured["accuracy"], "%", ">=", limits.clean),
        ("accuracy, mean of all changes", 100 * robust["mean"], "%", ">=", limits.mean),
        ("accuracy, worst change", 100 * robust["worst"], "%", ">=", limits.worst),
        ("calibration error, clean", measured["ece"], "", "<=", limits.ece),
        ("wrong and not sent to review", 100 * review["wrong_not_reviewed"], "%", "<=", limits.wrong_not_reviewed),
        ("sent to review, clean", 100 * review["reviewed"], "%", "<=", limits.reviewed),
    ]
    met = [figure <= limit if sign == "<=" else figure >= limit for _, figure, _, sign, limit in checks]
    low, high = measured["accuracy_ci95"]
    split, data, timing = run["split"], run["data"], run["timing"]
    worst = robust["worst_at"]
    lines = [
        f"# Four-class set, MobileNetV2 {arguments.alpha:g}/224, default commands, split by {arguments.split_by}",
        "",
        f"`python benchmarks/all4.py DATA --weights FILE --alpha {arguments.alpha:g}"
        f"{' --keep-run' if arguments.keep_run else ''}`, trained by source revision {run['source_revision']}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}. {data['images']} images, {_level(arguments.split_by, split)}: "
        f"{split['train']} train, {split['validation']} validation, {split['test']} test, {data['left_out']} left out. "
        f"At most {run['settings']['epochs_finetune']} epochs of fine-tuning, "
        f"{timing['finetune_images_per_s']:.0f} images/s. "
        f"Scheme {default['scheme']}.",
        "",
        "| figure, test subset | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {name} | {figure:.3g} {unit} | {sign} {limit:g} {unit} | {'yes' if ok else 'NO'} |"
            if unit in ("", "MB")
            else f"| {name} | {figure:.2f} {unit} | {sign} {limit:g} {unit} | {'yes' if ok else 'NO'} |"
            for (name, figure, unit, sign, limit), ok in zip(checks, met, strict=True)
        ),
        "",
        f"Accuracy {100 * measured['accuracy']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f} %, by "
        f"{measured['ci_unit']}). Worst change: {worst['corruption']} at severity {worst['severity']}. "
        f"{review['wrong']} wrong predictions, {review['wrong_reviewed']} of them sent to review. The float network: "
        f"{100 * default['float_accuracy']:.2f} %; same label {100 * default['agreement']:.2f} %.",
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines), all(met)


def _level(split_by: str, split: dict[str, Any]) -> str:
    if split_by == "image":
        return "split by image, which is optimistic"
    return f"contiguous stretches of file numbers with an embargo of {split['embargo']}"


if __name__ == "__main__":
    sys.exit(main())
