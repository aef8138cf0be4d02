"""Runs the whole chain on drawn images: draw smears, train, quantize in three schemes, measure, report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..console.progress import Progress
from ..console.tables import percent, record, table
from ..edge_runtime.files import output_lock
from ..edge_runtime.results import Result
from ..edge_runtime.tools.bench import bench
from ..edge_runtime.tools.bench_config import BenchConfig
from ..train.config import TrainSettings
from ..train.data.levels import split_text
from ..train.data.synth import MARKER, synthesize
from ..train.run import train
from ..train.run_info import RunInfo
from ..train.run_settings import RunSettings
from ..train.runs import is_whole, load_run
from .quantization.config import QuantizeConfig
from .quantize import quantize_classifier

IMAGES = 960
EPOCHS = 24
SEED = 7
NETWORK: dict[str, Any] = {"model": "mobilenet_v2", "alpha": 0.35, "input_size": 96}
BENCH_S = 2.0
"""Duration of each timed loop, seconds: hundreds of queries."""
SCHEMES = ("float32", "ptq-int8", "qat-int8")


@dataclass(frozen=True)
class DemoRow(Result):
    """One scheme: size, accuracy on the test subset, lost percentage points, and median latencies in ms."""

    scheme: str
    file_bytes: int
    accuracy: float
    drop_points: float
    p50_ms: float
    end_to_end_p50_ms: float


@dataclass(frozen=True)
class Demo(Result):
    """What `demo` measured: one row for each scheme, and the paths of the report and the last model."""

    rows: list[DemoRow]
    float_accuracy: float
    test_images: int
    split_level: str
    report: str
    model: str


def demo(out: Path, progress: Progress, images: int = IMAGES, epochs: int = EPOCHS) -> Demo:
    """Run everything once; results of an earlier, interrupted call are kept.

    Args:
        out: folder for the images, the run and the models.
        images: number of images to draw.
        epochs: training epochs; with fewer than the default the network learns little.
    """
    with output_lock(out, "demo"):
        return _demo(out, progress, images, epochs)


def _demo(out: Path, progress: Progress, images: int, epochs: int) -> Demo:
    drawn, run = out / "images", out / "run"
    if not (drawn / "manifest.csv").exists():  # written last
        if (drawn / MARKER).exists():
            shutil.rmtree(drawn)
        with progress.task("drawing synthetic smears", images) as advance:
            synthesize(drawn, images, SEED, on_progress=lambda done, total: advance(done, ""))
    settings = TrainSettings(
        data=drawn / "manifest.csv",
        out=run,
        weights="none",
        epochs_head=0,
        epochs_finetune=epochs,
        patience=epochs,
        lr_finetune=3e-3,
        augment="light",  # in minutes a network cannot learn the changes of every microscope
        cache_dir=out / "cache",
        **NETWORK,
    )
    facts = _finished(settings) or train(replace(settings, force=True), progress)
    rows = []
    for scheme in SCHEMES:
        model = run / f"{scheme}.tflite"
        config = QuantizeConfig(run, scheme, model, force=True, cache_dir=out / "cache")
        quantized = quantize_classifier(config, progress)
        figures = bench(model, BenchConfig(images=drawn, seconds=BENCH_S))
        rows.append(
            DemoRow(
                scheme,
                quantized.file_bytes,
                quantized.accuracy,
                quantized.drop_points,
                figures.stages["invoke"].p50_ms,
                figures.stages["end_to_end"].p50_ms,
            )
        )
    return Demo(
        rows=rows,
        float_accuracy=facts.classified["test"].accuracy,
        test_images=facts.split.test,
        split_level=facts.split.level,
        report=str(run / "report.html"),
        model=str(run / f"{SCHEMES[-1]}.tflite"),
    )


def _finished(settings: TrainSettings) -> RunInfo | None:
    """The run of an earlier call, if it is complete and was made by this version with these settings."""
    if not is_whole(settings.out):
        return None
    facts = load_run(settings.out)
    same = facts.settings == RunSettings.of(settings) and facts.edgeall_version == __version__
    return facts if same else None


def demo_text(result: Demo) -> str:
    """Table of the result of `demo`, and the paths of its files."""
    rows = [
        [
            row.scheme,
            f"{row.file_bytes / 1e6:.2f} MB",
            percent(row.accuracy),
            f"{row.drop_points:.2f} points",
            f"{row.p50_ms:.2f} ms",
            f"{row.end_to_end_p50_ms:.2f} ms",
        ]
        for row in result.rows
    ]
    facts = {
        "images": f"SYNTHETIC; {result.test_images:,} test images, {split_text(result.split_level)}",
        "Keras float32": percent(result.float_accuracy),
        "model": result.model,
        "report": result.report,
    }
    return f"{table(['scheme', 'size', 'accuracy', 'drop', 'p50 model', 'p50 image'], rows)}\n\n{record(facts)}"
