"""Every backbone through training, pruning, PTQ and QAT by the public commands.

python benchmarks/coverage.py --size full

Networks start untrained and see a few synthetic images for one epoch. The page shows that each step ends, that the
model is fully integer and agrees with its float network, and the time and memory. Accuracy has no meaning here.
`--size small` takes each backbone's smallest input; `full` the one it was designed for. Written to
`coverage-<size>.md`. Earlier measurements are kept (in --work): an interrupted benchmark resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command

IMAGES = 40
BATCH = 4
SPARSITY = 0.5
MAX_MINUTES, MAX_BYTES = 30.0, 16 * 2**30
"""What converting the largest network may take: minutes, bytes of resident memory."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], required=True)
    parser.add_argument("--models", help="comma-separated; all when left out")
    parser.add_argument("--work", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    drawn = arguments.work / "images"
    if not drawn.exists():
        command.answer("data", "synth", "--out", drawn, "--images", IMAGES, "--seed", 1)
    listed = command.answer("models")["models"]
    wanted = arguments.models.split(",") if arguments.models else [model["name"] for model in listed]
    rows = [
        _row(model, arguments, drawn / "manifest.csv")
        for model in sorted(listed, key=lambda model: model["macs"])
        if model["name"] in wanted
    ]
    page, met = report(rows, arguments.size)
    print(page)
    if not arguments.models:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"coverage-{arguments.size}.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def _row(model: dict[str, Any], arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The four commands of one backbone; from its file where they were run before."""
    size = model["input_hw"][0] if arguments.size == "full" else model["sizes"][0]
    folder = arguments.work / f"{model['name']}-{size}"
    kept = folder / "row.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    run, sparse = folder / "run", folder / "sparse"
    few = ("--cache-dir", arguments.work / "cache", "--force")
    quantize = ("--representative", 8, *few)
    commands: dict[str, tuple[object, ...]] = {
        "train": (
            *("train", "--data", data, "--model", model["name"], "--weights", "none", "--input-size", size),
            *("--epochs-finetune", 1, "--batch-size", BATCH, "--split-by", "image", "--val-frac", 0.2),
            *("--out", run, *few),
        ),
        "prune": ("prune", run, "--sparsity", SPARSITY, "--epochs", 1, "--out", sparse, *few),
        "ptq": ("quantize", sparse, "--scheme", "ptq-int8", "--out", folder / "ptq-int8.tflite", *quantize),
        "qat": ("quantize", sparse, "--scheme", "qat-int8", "--epochs", 1, "--out", folder / "qat.tflite", *quantize),
    }
    row: dict[str, Any] = {"name": model["name"], "size": size}
    for name, words in commands.items():
        print(f"{model['name']} at {size}: {name}", file=sys.stderr, flush=True)
        done = command.run(*words)
        row[name] = asdict(done)
        if done.status:
            break
    kept.parent.mkdir(parents=True, exist_ok=True)
    if all(name in row and row[name]["status"] == 0 for name in commands):
        kept.write_text(json.dumps(row))
    return row


def _met(met: bool) -> str:
    return "met" if met else "**MISSED**"


def report(rows: list[dict[str, Any]], size: str) -> tuple[str, bool]:
    """A Markdown page, and whether every backbone came through within the limits."""
    from edgeall.edge_runtime.tools.device import describe_device

    whole = [row for row in rows if all(_good(row, step) for step in ("prune", "ptq", "qat"))]
    slowest = max((row[step]["seconds"] / 60 for row in whole for step in ("ptq", "qat")), default=0.0)
    largest = max((row[step]["peak_bytes"] for row in whole for step in ("ptq", "qat")), default=0)
    met = len(whole) == len(rows) and slowest <= MAX_MINUTES and largest <= MAX_BYTES
    lines = [
        f"# Coverage: {len(whole)} of {len(rows)} backbones at {'their smallest' if size == 'small' else 'full'} size",
        "",
        f"`python benchmarks/coverage.py --size {size}`, {datetime.now(timezone.utc):%Y-%m-%d}. Untrained networks, "
        f"one epoch on {IMAGES} synthetic images; pruned to {SPARSITY:.0%} sparsity, then PTQ and QAT of the pruned "
        "run. Times are of whole commands (TensorFlow's start included). *Agreement*: top-1, int8 against Keras float "
        "on the test subset.",
        "",
        f"Slowest quantization: {slowest:.1f} min (limit {MAX_MINUTES:.0f}: {_met(slowest <= MAX_MINUTES)}); largest "
        f"resident memory: {largest / 2**30:.1f} GiB (limit {MAX_BYTES / 2**30:.0f}: {_met(largest <= MAX_BYTES)}).",
        "",
        "| backbone | input | train | prune | sparsity found | PTQ int8 | QAT int8 | float layers | "
        "agreement PTQ, QAT | int8 file MB | QAT, s | QAT, GiB |",
        "| --- | ---: | --- | --- | ---: | --- | --- | --- | --- | ---: | ---: | ---: |",
        *(_line(row) for row in rows),
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines), met


def _good(row: dict[str, Any], step: str) -> bool:
    done = row.get(step, {"status": 1, "answer": {}})
    return done["status"] == 0 and not done["answer"].get("float_layers")


def _line(row: dict[str, Any]) -> str:
    steps = {name: "yes" if _good(row, name) else "NO" for name in ("train", "prune", "ptq", "qat")}
    ptq, qat = (row.get(name, {"answer": {}})["answer"] for name in ("ptq", "qat"))
    pruned = row.get("prune", {"answer": {}})["answer"].get("pruned", {})
    if not qat:
        return f"| {row['name']} | {row['size']} | " + " | ".join(steps.values()) + " | | | | | | |"
    return (
        f"| {row['name']} | {row['size']} | {steps['train']} | {steps['prune']} | {100 * pruned['found']:.1f} % | "
        f"{steps['ptq']} | {steps['qat']} | {', '.join(qat['float_layers']) or 'none'} | "
        f"{100 * ptq['agreement']:.0f} %, {100 * qat['agreement']:.0f} % | {qat['file_bytes'] / 1e6:.2f} | "
        f"{row['qat']['seconds']:.0f} | {row['qat']['peak_bytes'] / 2**30:.1f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
