"""One model of a comparison: its runs, its files, and its test metrics in every scheme."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle, open_bundle
from ...edge_runtime.errors import BundleError
from ...models.macs import macs
from ...train.data import cache
from ...train.data.split import check_split
from ...train.data.subsets import SUBSETS
from ...train.runs import data_root, load_model, load_own_split, load_run, read_history, run_digest
from ..quantization.config import QuantizeConfig
from ..quantization.convert import compressed_bytes
from ..quantize import quantize
from .compare_config import CompareOptions
from .compare_result import ComparedData, ComparedModel, SchemeFigures
from .tasks import registry as tasks
from .tasks.registry import Measured, OpenRun


def open_run(name: str, folder: Path, options: CompareOptions, progress: Progress) -> OpenRun:
    """Open a finished run. Raises DataError if it or its data has changed."""
    facts = load_run(folder)
    split = load_own_split(folder, facts)
    check_split(split, options.data or data_root(facts))
    images, reference = tasks.of_run(facts).load(folder, facts, split, options, progress)
    return OpenRun(name, folder, facts, split, images, reference)


def describe(name: str, runs: Sequence[OpenRun]) -> ComparedModel:
    """The report's facts of one model, without its schemes."""
    first = runs[0].facts
    data = {item.name: getattr(first.data, item.name) for item in fields(ComparedData)}
    by_side, keras = tasks.of_run(first).figures(runs)
    return ComparedModel(
        name=name,
        runs=[str(run.folder) for run in runs],
        labels=first.labels,
        backbone=first.model.name,
        alpha=first.model.alpha,
        weights=first.settings.weights,
        augment=first.settings.augment,
        seed=first.settings.seed,
        input=first.model.input,
        parameters=first.model.parameters,
        macs=macs(load_model(runs[0].folder, first)),
        pruned=first.pruned,
        split_level=runs[0].split.level,
        optimistic=runs[0].split.level == "image",
        run_sha256=[run_digest(run.folder) for run in runs],
        split_sha256=[run.split.sha256 for run in runs],
        test_sha256=_test_digest(runs),
        data=ComparedData(**data),
        sides={name: [len(run.split.subset(name)) for run in runs] for name in SUBSETS},
        training_s=sum(run.facts.total_s for run in runs),
        epoch_s=_epoch_s(runs),
        resumed=any(bool(run.facts.timing.get("resumed")) for run in runs),
        by_side=by_side,
        keras=keras,
        schemes={},
    )


def _epoch_s(runs: Sequence[OpenRun]) -> float | None:
    """Median seconds of the epochs of the last stage of every run, validation included."""
    seconds = []
    for run in runs:
        history = read_history(run.folder)
        seconds += [float(row["seconds"]) for row in history if row["stage"] == history[-1]["stage"]]
    return float(np.median(seconds)) if seconds else None


def _test_digest(runs: Sequence[OpenRun]) -> str:
    """Equal for models with the same test images."""
    return cache.digest([sorted((entry.sha256, entry.label) for entry in run.test) for run in runs])


def measure(
    runs: Sequence[OpenRun], scheme: str, out: Path, options: CompareOptions, progress: Progress
) -> tuple[Callable[..., SchemeFigures], Measured]:
    """Measure the runs of one model in one scheme, but for their latency.

    Returns:
        What makes the figures of the report from ``latency``, which is still to be measured; and what was measured.
    """
    bundles = [_bundle(run, scheme, options, progress) for run in runs]
    found = tasks.of_run(runs[0].facts).measure(runs, bundles, out, progress)
    quantization = bundles[0].manifest.quantization if bundles[0].manifest else {}
    figures = functools.partial(
        SchemeFigures,
        files=[bundle.path for bundle in bundles],
        sha256=[hashlib.sha256(bundle.flatbuffer).hexdigest() for bundle in bundles],
        file_bytes=round(np.mean([bundle.file_bytes for bundle in bundles])),
        flatbuffer_bytes=round(np.mean([len(bundle.flatbuffer) for bundle in bundles])),
        compressed_bytes=round(np.mean([compressed_bytes(bundle.flatbuffer) for bundle in bundles])),
        sparsity_frac=quantization.get("sparsity_frac"),
        float_layers=quantization.get("float_layers"),
        drop_points=found.drop_points,
        agreement=found.agreement,
        max_abs_difference=found.max_abs_difference,
        metrics=found.metrics,
    )
    return figures, found


def _bundle(run: OpenRun, scheme: str, options: CompareOptions, progress: Progress) -> Bundle:
    """The run's model in this scheme; made if it does not exist."""
    path = run.folder / f"{scheme}.tflite"
    if not path.exists():
        epochs, data, cache_dir = options.qat_epochs, options.data, options.cache_dir
        quantize(QuantizeConfig(run.folder, scheme, path, epochs=epochs, data=data, cache_dir=cache_dir), progress)
    bundle = open_bundle(path)
    _check_origin(bundle, run, scheme)
    return bundle


def _check_origin(bundle: Bundle, run: OpenRun, scheme: str) -> None:
    """Raise BundleError for a model file that was not made of the run in whose folder it lies."""
    hint = "move it away, or replace it with `edgeall quantize --force`"
    if bundle.manifest is None:
        raise BundleError(f"{bundle.path}: not made by edgeall", hint=hint)
    found, model = bundle.manifest.training, run.facts.model
    wanted = {
        "run_sha256": run_digest(run.folder),
        "split_sha256": run.split.sha256,
        "backbone": model.name,
        "alpha": model.alpha,
        "seed": run.facts.settings.seed,
    }
    # Files of older versions do not name their run; the facts that they hold must match.
    differing = [key for key, value in wanted.items() if key in found and found[key] != value]
    if bundle.manifest.quantization.get("scheme") != scheme:
        differing.append("scheme")
    if differing or bundle.manifest.labels != tuple(run.facts.labels):
        raise BundleError(
            f"{bundle.path}: not made from {run.folder} ({', '.join(differing or ['labels'])})", hint=hint
        )
