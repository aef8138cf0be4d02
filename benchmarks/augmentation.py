"""What `--augment microscope` costs: images/s of training with it and with `light`, in turns.

python benchmarks/augmentation.py DATA

Both alphas of MobileNetV2 at 224 px, from nothing, whole epochs of fine-tuning as `edgeall train` runs them: what is
drawn and warped on the side takes the same cores. Written to `augmentation.md`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import command

ALPHAS = (1.0, 0.35)
KINDS = ("light", "microscope")
EPOCHS = 3
"""The first of which traces the graph: a run's figure is the median of its epochs."""
PER_CLASS = "100/4/4"
MAX_COST = 0.25
"""Of the images/s under `light` (the issue's limit)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rates: dict[tuple[float, str], list[float]] = {(alpha, kind): [] for alpha in ALPHAS for kind in KINDS}
    with TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for (alpha, kind), found in rates.items():
                words = ("--alpha", alpha, "--weights", "none", "--augment", kind, "--epochs-finetune", EPOCHS)
                out = Path(folder) / f"{alpha:g}-{kind}-{turn}"
                run = command.answer(
                    *("train", "--data", arguments.data, "--split-by", "image", "--per-class", PER_CLASS),
                    *(*words, "--cache-dir", Path(folder) / "cache", "--out", out),
                )
                found.append(run["timing"]["finetune_images_per_s"])
    page, met = report({key: statistics.median(found) for key, found in rates.items()}, arguments.rounds)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "augmentation.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def report(rates: dict[tuple[float, str], float], rounds: int) -> tuple[str, bool]:
    """A Markdown page, and whether the limit is met."""
    from edgeall.edge_runtime.device import describe_device

    rows, met = [], True
    for alpha in ALPHAS:
        light, microscope = (rates[alpha, kind] for kind in KINDS)
        cost = 1 - microscope / light
        met = met and cost <= MAX_COST
        rows.append(
            f"| {alpha:g} | {light:.1f} | {microscope:.1f} | {100 * cost:.1f} | {100 * MAX_COST:g} | "
            f"{'yes' if cost <= MAX_COST else 'NO'} |"
        )
    lines = [
        "# What augmentation costs",
        "",
        f"`python benchmarks/augmentation.py DATA --rounds {rounds}`, {datetime.now(timezone.utc):%Y-%m-%d}. Images/s "
        "of fine-tuning MobileNetV2 at 224 px, in turns, medians.",
        "",
        "| alpha | light | microscope | cost % | limit | met |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
        *rows,
        "",
        *(f"- {key}: {value}" for key, value in describe_device().items() if value is not None),
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    sys.exit(main())
