"""The chain on the real four-class set: what training and quantization reach, beside the limits of the project.

python benchmarks/all4.py DATA --weights FILE --alpha 0.35 --split-by image [--augment light] [--epochs 16]

Runs `edgeall train`, then `edgeall quantize` in three schemes, as a user would, one after the other, and writes
`all4-<alpha>-<split>.md`. Nothing but the machine's own load should run beside it: training time is one of the figures.
The limits hold for the image-level split; contiguous blocks of file numbers are reported beside, not gated.

python benchmarks/all4.py DATA --weights FILE --alpha 0.35 --split-by block --folds 5 [--robustness]

runs all folds by the default commands instead, and writes `all4-<alpha>-block-5-folds.md`: see `folds.py`.
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

SCHEMES = ("float32", "ptq-int8", "qat-int8")


@dataclass(frozen=True)
class Limits:
    """What one network must reach: minutes of training, accuracy in %, points lost to QAT, sizes in MB (10^6 bytes)."""

    train_min: float
    float_accuracy: float
    qat_drop: float
    flatbuffer_mb: float | None
    file_mb: float


EPOCHS = {0.35: 16, 1.0: 24}
"""Of fine-tuning, at most; the bigger network has more time. Chosen by what the time allows, not by accuracy."""
LIMITS = {0.35: Limits(12.0, 99.0, 0.3, 0.66, 0.80), 1.0: Limits(40.0, 99.5, 0.2, None, 2.95)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--alpha", type=float, choices=sorted(LIMITS), required=True)
    parser.add_argument("--split-by", choices=["image", "block"], required=True)
    parser.add_argument("--folds", type=int, help="contiguous folds of --split-by block, instead of one split")
    parser.add_argument("--robustness", action="store_true", help="with --folds: under the robustness suite too")
    parser.add_argument("--scheme", default="qat-int8", help="with --folds")
    parser.add_argument("--augment", default="microscope", help="as of edgeall train")
    parser.add_argument("--epochs", type=int, help="of fine-tuning, at most; by default what the limit of time allows")
    parser.add_argument("--keep-run", action="store_true", help="quantize the run that is there; don't train again")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    if arguments.folds is not None:
        if arguments.split_by != "block" or arguments.folds < 2:
            parser.error("--folds takes 2 or more, and --split-by block")
        page = folds.run_folds(arguments)
        print(page)
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"all4-{arguments.alpha:g}-block-{arguments.folds}-folds.md"
        path.write_text(page, encoding="utf-8")
        return 0
    run = arguments.work / f"all4-{arguments.alpha:g}-{arguments.split_by}"
    if not (arguments.keep_run and (run / "run.json").exists()):
        _train(arguments, run)
    trained = json.loads((run / "run.json").read_text())
    schemes = {
        scheme: command.answer("quantize", run, "--scheme", scheme, "--out", run / f"{scheme}.tflite", "--force")
        for scheme in SCHEMES
    }
    page, met = report(arguments, trained, schemes)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{run.name}.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def _train(arguments: argparse.Namespace, run: Path) -> None:
    """Train from nothing, caches of pixels and features not there yet."""
    shutil.rmtree(run, ignore_errors=True)  # an unfinished run would be gone on with, and its time be too short
    cache = arguments.work / f"cache-{time.time_ns()}"
    command.answer(
        *("train", "--data", arguments.data, "--model", "mobilenet_v2", "--alpha", arguments.alpha),
        *("--weights", arguments.weights, "--epochs-finetune", arguments.epochs or EPOCHS[arguments.alpha]),
        *("--augment", arguments.augment, "--split-by", arguments.split_by, "--cache-dir", cache, "--out", run),
    )


def report(arguments: argparse.Namespace, run: dict[str, Any], schemes: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met (always, for a split that isn't gated)."""
    from edgeall.edge_runtime.device import describe_device

    limits, test = LIMITS[arguments.alpha], run["metrics"]["test"]
    gated = arguments.split_by == "image"
    qat = schemes["qat-int8"]
    checks = [
        ("training, whole", run["timing"]["total_s"] / 60, "min", "<=", limits.train_min),
        ("float test accuracy", 100 * test["accuracy"], "%", ">=", limits.float_accuracy),
        ("qat-int8, points lost", qat["drop_points"], "", "<=", limits.qat_drop),
        ("qat-int8, whole file", qat["file_bytes"] / 1e6, "MB", "<=", limits.file_mb),
    ]
    if limits.flatbuffer_mb is not None:
        checks.append(("qat-int8, flatbuffer", qat["flatbuffer_bytes"] / 1e6, "MB", "<=", limits.flatbuffer_mb))
    met = [figure <= limit if sign == "<=" else figure >= limit for _, figure, _, sign, limit in checks]
    low, high = test["accuracy_ci95"]
    wrong = test["images"] - round(test["accuracy"] * test["images"])
    split, data = run["split"], run["data"]
    typed = f"python benchmarks/all4.py DATA --weights FILE --alpha {arguments.alpha:g} --split-by {arguments.split_by}"
    typed += f" --augment {run['settings']['augment']}"
    typed += f" --epochs {arguments.epochs}" if arguments.epochs else ""
    lines = [
        f"# Four-class set, MobileNetV2 {arguments.alpha:g}/224, split by {arguments.split_by}",
        "",
        f"`{typed}{' --keep-run' if arguments.keep_run else ''}`, trained by source revision "
        f"{run['source_revision']}, {datetime.now(timezone.utc):%Y-%m-%d}. "
        f"At most {run['settings']['epochs_finetune']} epochs of fine-tuning. "
        f"{data['images']} images: {split['train']} train, {split['validation']} validation, "
        f"{split['test']} test; {data['exact_duplicates']} exact and {data['near_duplicates']} near "
        f"duplicates never on two sides. Fine-tuning ran at {run['timing']['finetune_images_per_s']:.0f} images/s.",
        "",
        f"Float test accuracy {100 * test['accuracy']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f} %, "
        f"by {test['ci_unit']}), {wrong} of {test['images']} wrong; "
        f"{_level(arguments.split_by)}",
        "",
        "| figure | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {name} | {figure:.2f} {unit} | {sign} {limit:g} {unit} | {_verdict(ok, gated)} |"
            for (name, figure, unit, sign, limit), ok in zip(checks, met, strict=True)
        ),
        "",
        "| scheme | flatbuffer bytes | file bytes | accuracy % | points lost | top-1 agreement % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {scheme['flatbuffer_bytes']:,} | {scheme['file_bytes']:,} | {100 * scheme['accuracy']:.2f} | "
            f"{scheme['drop_points']:.2f} | {100 * scheme['agreement']:.2f} |"
            for name, scheme in schemes.items()
        ),
        "",
        *(f"- {key}: {value}" for key, value in describe_device().items() if value is not None),
        "",
    ]
    return "\n".join(lines), all(met) or not gated


def _level(split_by: str) -> str:
    if split_by == "image":
        return "an image-level split: optimistic."
    return "the test side holds contiguous stretches of file numbers, a stand-in for unseen slides."


def _verdict(ok: bool, gated: bool) -> str:
    return ("yes" if ok else "NO") if gated else "not gated"


if __name__ == "__main__":
    sys.exit(main())
