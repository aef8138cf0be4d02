"""The cost of `--augment microscope`: images/s of training with it and with `light`, in turn.

python benchmarks/augmentation.py DATA [--rounds 3]

Both alphas of MobileNetV2 at 224 px, untrained, whole epochs of fine-tuning as `edgeall train` runs them: augmentation
uses the same cores as training. A round gives one cost from two neighbouring measurements, and the next round begins
with the other kind. The median over rounds is robust to changes of the machine's speed. Written to `augmentation.md`.
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
Rates = dict[tuple[float, str], list[float]]
"""Images/s by alpha and kind, in the order of the rounds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rates: Rates = {(alpha, kind): [] for alpha in ALPHAS for kind in KINDS}
    with TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for alpha, kind in ((alpha, kind) for alpha in ALPHAS for kind in KINDS[:: -1 if turn % 2 else 1]):
                words = ("--alpha", alpha, "--weights", "none", "--augment", kind, "--epochs-finetune", EPOCHS)
                out = Path(folder) / f"{alpha:g}-{kind}-{turn}"
                run = command.answer(
                    *("train", "--data", arguments.data, "--split-by", "image", "--per-class", PER_CLASS),
                    *(*words, "--cache-dir", Path(folder) / "cache", "--out", out),
                )
                rates[alpha, kind].append(run["timing"]["finetune_images_per_s"])
    page, met = report(rates)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "augmentation.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def report(rates: Rates) -> tuple[str, bool]:
    """A Markdown page, and whether the limit is met."""
    from edgeall.edge_runtime.tools.device import describe_device

    rows, met = [], True
    for alpha in ALPHAS:
        light, microscope = (rates[alpha, kind] for kind in KINDS)
        costs = [1 - one / other for one, other in zip(microscope, light, strict=True)]
        cost = statistics.median(costs)
        met = met and cost <= MAX_COST
        rows.append(
            f"| {alpha:g} | {statistics.median(light):.1f} | {statistics.median(microscope):.1f} | "
            f"{', '.join(f'{100 * each:.1f}' for each in costs)} | {100 * cost:.1f} | {100 * MAX_COST:g} | "
            f"{'yes' if cost <= MAX_COST else 'NO'} |"
        )
    rounds = len(rates[ALPHAS[0], KINDS[0]])
    lines = [
        "# What augmentation costs",
        "",
        f"`python benchmarks/augmentation.py DATA --rounds {rounds}`, {datetime.now(timezone.utc):%Y-%m-%d}. Images/s "
        "of fine-tuning MobileNetV2 at 224 px, medians; the cost is the median of the rounds' own, each of two runs "
        "one right after the other.",
        "",
        "| alpha | light | microscope | cost %, by round | cost % | limit | met |",
        "| ---: | ---: | ---: | --- | ---: | ---: | --- |",
        *rows,
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    sys.exit(main())
