"""The effect of pruning: a trained run pruned by structure and by magnitude, quantized, and compared with the original.

python benchmarks/pruning.py RUN

RUN is the run folder of `benchmarks/all4.py --alpha 1.0 --split-by image`. Latencies are of one thread, measured in
turn in one process, so that other programs affect all models equally. The limits apply to the points lost against the
float32 accuracy of the unpruned network; the loss against its int8 accuracy is given too. Written to `pruning.md`;
finished steps are reused (--work).
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np

ROUNDS, CALLS = 30, 10


@dataclass(frozen=True)
class Variant:
    """One way of pruning and what it must reach.

    Attributes:
        option: of `edgeall prune`; empty for the unpruned run.
        quantized: more options of `edgeall quantize`.
        max_lost: points of accuracy, int8 against the unpruned float32.
        max_latency: share of the unpruned int8 latency.
        max_compressed: share of the unpruned int8 file's compressed size.
    """

    name: str
    option: tuple[str, float] | tuple[()]
    max_lost: float | None = None
    max_latency: float | None = None
    max_compressed: float | None = None
    quantized: tuple[str, int] | tuple[()] = ()


VARIANTS = (
    Variant("unpruned", ()),
    Variant("half the MACs", ("--macs", 0.5), max_lost=0.5, max_latency=0.65),
    Variant("a quarter of the MACs", ("--macs", 0.25), max_lost=1.5),
    Variant("75 % sparsity", ("--sparsity", 0.75), max_lost=1.0, max_compressed=0.45),
    Variant(
        "75 % sparsity, 16 clusters",
        ("--sparsity", 0.75),
        max_lost=1.0,
        max_compressed=0.45,
        quantized=("--clusters", 16),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    made = {variant.name: _make(variant, arguments) for variant in VARIANTS}
    latencies_ms = _interleaved({name: Path(answer["out"]) for name, (_, answer) in made.items()})
    page, met = report(made, latencies_ms, arguments.run)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "pruning.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def _make(variant: Variant, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run and the quantization's answer of one variant."""
    run: Path = arguments.run
    if variant.option:
        flag, value = variant.option
        run = arguments.work / f"{flag.strip('-')}-{value:g}"
        if not (run / "run.json").exists():
            command.answer("prune", arguments.run, flag, value, "--out", run)
    out = arguments.work / ("-".join([run.name, *(str(word).strip("-") for word in variant.quantized)]) + ".tflite")
    kept = out.with_suffix(".json")
    if not kept.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        words = ("quantize", run, "--scheme", "qat-int8", *variant.quantized, "--out", out, "--force")
        kept.write_text(json.dumps(command.answer(*words)))
    return json.loads((run / "run.json").read_text()), json.loads(kept.read_text())


def _interleaved(files: dict[str, Path]) -> dict[str, float]:
    """Median milliseconds of one inference on one thread, the models taken in turn."""
    from edgeall.edge_runtime.classifier import Classifier

    models = {name: Classifier.open(path, threads=1) for name, path in files.items()}
    spec = next(iter(models.values())).input
    image = np.random.default_rng(0).integers(0, 256, (spec.height, spec.width, 3), np.uint8)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.predict(image)
    for _ in range(ROUNDS):
        for name, model in models.items():
            for _ in range(CALLS):
                start = time.perf_counter()
                model.predict(image)
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def report(
    made: dict[str, tuple[dict[str, Any], dict[str, Any]]], latencies_ms: dict[str, float], parent: Path
) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met."""
    from edgeall.edge_runtime.tools.device import describe_device

    whole, dense = made["unpruned"]
    float_accuracy = whole["metrics"]["test"]["accuracy"]
    compressed = {name: len(gzip.compress(Path(answer["out"]).read_bytes(), 9)) for name, (_, answer) in made.items()}
    unpruned_macs = made["half the MACs"][0]["pruned"]["parent_macs"]
    rows, met = [], True
    for variant in VARIANTS:
        run, answer = made[variant.name]
        macs = run["pruned"]["macs"] if "pruned" in run else unpruned_macs
        figures = (
            (100 * (float_accuracy - answer["accuracy"]), variant.max_lost, "{:.2f}", "{:g}"),
            (latencies_ms[variant.name] / latencies_ms["unpruned"], variant.max_latency, "{:.2f}", "{:g}"),
            (compressed[variant.name] / compressed["unpruned"], variant.max_compressed, "{:.2f}", "{:g}"),
        )
        cells = []
        for figure, limit, form, limit_form in figures:
            ok = limit is None or figure <= limit
            met = met and ok
            said = "" if limit is None else f" (limit {limit_form.format(limit)}: {'met' if ok else 'MISSED'})"
            cells.append(form.format(figure) + said)
        rows.append(
            f"| {variant.name} | {macs / 1e6:.1f} M | {run['model']['parameters']:,} | "
            f"{100 * run['metrics']['test']['accuracy']:.2f} | {100 * answer['accuracy']:.2f} | {cells[0]} | "
            f"{100 * (dense['accuracy'] - answer['accuracy']):.2f} | "
            f"{latencies_ms[variant.name]:.2f} | {cells[1]} | {answer['flatbuffer_bytes']:,} | "
            f"{compressed[variant.name]:,} | {cells[2]} |"
        )
    lines = [
        "# Pruning that pays, and pruning that doesn't",
        "",
        f"`python benchmarks/pruning.py {parent}`, {datetime.now(timezone.utc):%Y-%m-%d}. MobileNetV2 "
        f"{whole['settings']['alpha']:g}/{whole['settings']['input_size']}, {dense['test_images']} test images, "
        f"{dense['split_level']}-level split. Everything int8 is qat-int8.",
        "",
        "| | MACs | parameters | float % | int8 % | points lost to float | to int8 | ms | of unpruned | "
        "flatbuffer bytes | file gzip bytes | of unpruned |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    sys.exit(main())
