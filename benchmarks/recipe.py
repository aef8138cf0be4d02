"""The defaults of `edgeall train` compared with alternatives: one setting changed at a time.

python benchmarks/recipe.py DATA --weights FILE --alpha 0.35 [--variants default,augment-light] [--folds 2/5,4/5]

Each variant is trained, quantized and evaluated by the installed program, on contiguous folds, with the other settings
at their defaults. Every figure is of the **validation subset** of its fold, through the int8 file: settings are never
chosen by a test subset. (The validation images of a fold are test images of another fold; five folds with a default
that was chosen here are optimistic to that extent.) Rows are written to `recipe.jsonl` as they finish, with the last
revision that changed the product's code; the same command resumes. `recipe.md` shows them all.
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

VARIANTS: dict[str, tuple[object, ...]] = {
    "default": (),
    "epochs-12": ("--epochs-finetune", 12),
    "epochs-16": ("--epochs-finetune", 16),
    "epochs-48": ("--epochs-finetune", 48),
    "augment-light": ("--augment", "light"),
    "augment-none": ("--augment", "none"),
    "lr-0.00025": ("--lr-finetune", 0.00025),
    "lr-0.001": ("--lr-finetune", 0.001),
    "no-head-stage": ("--epochs-head", 0),
    "no-class-weights": ("--no-class-weights",),
    "dropout-0.4": ("--dropout", 0.4),
    "input-160": ("--input-size", 160),
}
"""Options that differ from the defaults of `edgeall train`."""

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--variants", default="default", help=f"comma-separated; all: {', '.join(VARIANTS)}")
    parser.add_argument("--schemes", default="ptq-int8", help="of quantize, comma-separated")
    parser.add_argument("--folds", default="2/5,4/5")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--work", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    names = arguments.variants.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"no variant called {unknown[0]}; there are: {', '.join(VARIANTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = _load(arguments.out / "recipe.jsonl")
    for seed in arguments.seeds.split(","):
        for fold in arguments.folds.split(","):
            for name in names:
                for row in _measure(arguments, rows, name, fold, int(seed)):
                    rows.append(row)
                    with (arguments.out / "recipe.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    (arguments.out / "recipe.md").write_text(report(rows), encoding="utf-8")
    print(report(rows))
    return 0


def _measure(arguments: argparse.Namespace, rows: list[Row], name: str, fold: str, seed: int) -> list[Row]:
    """The rows of one variant on one fold that are still missing."""
    revision = command.revision("train", "optimize", "models", "edge_runtime")
    key = {"variant": name, "alpha": arguments.alpha, "fold": fold, "seed": seed, "source_revision": revision}
    schemes = [
        scheme
        for scheme in arguments.schemes.split(",")
        if not any(all(row[part] == value for part, value in {**key, "scheme": scheme}.items()) for row in rows)
    ]
    if not schemes:
        return []
    run = arguments.work / f"{revision}-{arguments.alpha:g}-{name}-{fold.replace('/', 'of')}-{seed}"
    if not (run / "run.json").exists():
        command.answer(
            *("train", "--data", arguments.data, "--alpha", arguments.alpha, "--weights", arguments.weights),
            *("--fold", fold, "--split-by", "block", "--seed", seed, "--out", run, *VARIANTS[name]),
        )
    trained = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return [{**key, **_quantized(arguments, run, trained, scheme)} for scheme in schemes]


def _quantized(arguments: argparse.Namespace, run: Path, trained: Row, scheme: str) -> Row:
    model = run / f"{scheme}.tflite"
    done = command.run("quantize", run, "--scheme", scheme, "--out", model, "--force")
    if done.status:
        raise SystemExit(f"quantize of {run} ended with status {done.status}")
    found = command.answer("evaluate", model, "--data", arguments.data, "--side", "validation", "--robustness")
    robust = found["robustness"]
    return {
        "scheme": scheme,
        "epochs_finetune": trained["settings"]["epochs_finetune"],
        "train_images": trained["split"]["train"],
        "validation_images": found["images"],
        "accuracy": found["accuracy"],
        "log_loss": found["log_loss"],
        "ece": found["ece"],
        "robust_mean": robust["mean"],
        "robust_worst": robust["worst"],
        "robust_worst_at": robust["worst_at"]["corruption"],
        "train_s": trained["timing"]["total_s"],
        "quantize_s": done.seconds,
    }


def report(rows: list[Row]) -> str:
    """A Markdown page: one line for each variant, means over its folds and seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["alpha"], row["source_revision"], row["variant"], row["scheme"]), []).append(row)
    lines = [
        "# The default recipe, one setting changed at a time",
        "",
        f"`python benchmarks/recipe.py`, {datetime.now(timezone.utc):%Y-%m-%d}. Four-class set, contiguous folds "
        "of file numbers. Figures are of the **validation subsets** through the int8 file: they choose, "
        "and prove nothing about unseen slides. Mean over folds and seeds, with the lowest and the highest.",
        "",
        "| alpha | revision | variant | scheme | runs | epochs | accuracy % | log loss | robust mean % | "
        "robust worst % | training min |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (alpha, revision, variant, scheme), some in sorted(groups.items(), key=lambda item: item[0]):
        lines.append(
            f"| {alpha:g} | {revision} | {variant} | {scheme} | {len(some)} | "
            f"{_spread(some, 'epochs_finetune', 1, 0)} | {_spread(some, 'accuracy', 100, 2)} | "
            f"{_spread(some, 'log_loss', 1, 3)} | {_spread(some, 'robust_mean', 100, 2)} | "
            f"{_spread(some, 'robust_worst', 100, 2)} | {_spread(some, 'train_s', 1 / 60, 1)} |"
        )
    return "\n".join(lines) + "\n"


def _spread(rows: list[Row], key: str, factor: float, digits: int) -> str:
    values = [factor * row[key] for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    if len({f"{value:.{digits}f}" for value in values}) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _load(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
