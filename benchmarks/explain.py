"""The cost of the second output: several models measured in turn, in one process.

python benchmarks/explain.py PLAIN DEFAULT EXPLAIN

Three packed files of one run: with one output, with the pooled features (as `quantize` makes it), with the feature map
(`quantize --explain`). Every round runs each model once on the same image, in a changing order. The page gives medians
of all rounds, the spread of the ratio over ten parts of the rounds, and tenth percentiles, which other programs disturb
less. Limit: the map adds at most 5 % to the p50 of invoke. Also the time to read and score the second output. Appended
to `explain.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.ood import ood_score
from edgeall.edge_runtime.tools.device import describe_device
from edgeall.edge_runtime.tools.explain import dense_head, evidence

LIMIT = 5.0
"""Percent of the one-output model's p50."""
PARTS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("plain", "default", "explain"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    models = [arguments.plain, arguments.default, arguments.explain]
    section, met = measured(models, arguments.rounds)
    print(section)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "explain.md").open("a", encoding="utf-8") as page:
        page.write(section)
    return 0 if met else 1


def measured(paths: list[Path], rounds: int) -> tuple[str, bool]:
    """A Markdown section, and whether the limit was met."""
    classifiers = [Classifier.open(path, threads=1) for path in paths]
    spec = classifiers[0].input
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (spec.height, spec.width, 3), np.uint8)
    bundle = classifiers[2].bundle
    assert bundle is not None and bundle.manifest is not None
    weights, _ = dense_head(bundle.graph, bundle.flatbuffer, bundle.path)
    invoke, scoring = np.empty((rounds, 3)), np.zeros((rounds, 3))
    taken_apart = np.empty(rounds)
    for round_ in range(-50, rounds):  # the first fifty warm up
        for index in generator.permutation(3):
            classifier = classifiers[index]
            begin = time.perf_counter()
            classifier.predict_units(pixels)
            invoke[round_, index] = time.perf_counter() - begin
            if classifier.ood_detector is None:
                continue
            begin = time.perf_counter()
            units = classifier.model.second_units()[0]
            ood_score(classifier.pooled(units), classifier.ood_detector)
            scoring[round_, index] = time.perf_counter() - begin
            if units.ndim == 3:
                begin = time.perf_counter()
                evidence(classifier.features(units), weights)
                taken_apart[round_] = time.perf_counter() - begin
    names = ("one output", "features", "feature map")
    rows = []
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        p50 = np.median(invoke[:, index])
        parts = np.array_split(np.arange(rounds), PARTS)
        ratios = [100 * (np.median(invoke[part, index]) / np.median(invoke[part, 0]) - 1) for part in parts]
        added = 100 * (p50 / np.median(invoke[:, 0]) - 1)
        spread = f"{min(ratios):+.1f} to {max(ratios):+.1f}"
        size = f"{path.stat().st_size:,}"
        quiet = np.percentile(invoke[:, index], 10)
        ratio = 100 * (quiet / np.percentile(invoke[:, 0], 10) - 1)
        cost = f"{1e6 * np.median(scoring[:, index]):.0f}"
        cells = (
            name,
            size,
            f"{1e3 * p50:.3f}",
            f"{added:+.1f} ({spread})",
            f"{1e3 * quiet:.3f}",
            f"{ratio:+.1f}",
            cost,
        )
        rows.append(f"| {' | '.join(cells)} |")
    added = 100 * (np.median(invoke[:, 2]) / np.median(invoke[:, 0]) - 1)
    met = bool(added <= LIMIT)
    training, scheme = bundle.manifest.training, bundle.manifest.quantization["scheme"]
    lines = [
        f"# What the second output costs: {training['backbone']} {training['alpha']:g}, {scheme}",
        "",
        f"`python benchmarks/explain.py`, {datetime.now(timezone.utc):%Y-%m-%d}; {rounds:,} rounds, one thread. In "
        f"brackets the least and the most of {PARTS} parts of the rounds. The map adds {added:+.1f} % to the p50 of "
        f"invoke, limit {LIMIT:g}: **{'met' if met else 'MISSED'}**. The map of evidence for all labels: "
        f"{1e6 * np.median(taken_apart):.0f} µs more, where it is asked for.",
        "",
        "| second output | bytes | invoke p50, ms | against one, % | p10, ms | against one, % | reading, scoring, µs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    sys.exit(main())
