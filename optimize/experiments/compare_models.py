"""One model of a comparison: its runs, its files, and its test metrics in every scheme."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle, open_bundle
from ...edge_runtime.calibration import apply_temperature, temperature_of
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import BundleError
from ...models.macs import macs
from ...train.batches import Images
from ...train.data import cache
from ...train.data.split import Split, SplitEntry, check_split
from ...train.data.subsets import SUBSETS
from ...train.evaluation.metrics import metrics_of
from ...train.run_info import RunInfo
from ...train.runs import (
    data_root,
    input_spec,
    load_model,
    load_own_split,
    load_run,
    load_subsets,
    read_history,
    run_digest,
    test_probabilities,
)
from ..quantization.config import QuantizeConfig
from ..quantization.convert import compressed_bytes
from ..quantization.verify import compare, predict
from ..quantize import quantize
from .compare_config import CompareOptions
from .compare_result import ComparedData, ComparedModel, FoldMetrics, SchemeFigures, SubsetFigures


@dataclass(frozen=True)
class OpenRun:
    """A finished run, and what every scheme is compared with.

    Attributes:
        model: name in the report; the folds of one model share it.
        folder: run folder.
        facts: its ``run.json``.
        split: its split.
        subsets: its preprocessed images by subset.
        keras: float32 Keras probabilities of the test subset, ``(images, labels)``.
    """

    model: str
    folder: Path
    facts: RunInfo
    split: Split
    subsets: dict[str, Images]
    keras: NDArray[np.float32]

    @property
    def test(self) -> tuple[SplitEntry, ...]:
        return self.split.subset("test")


def open_run(name: str, folder: Path, options: CompareOptions, progress: Progress) -> OpenRun:
    """Open a finished run. Raises DataError if it or its data has changed."""
    facts = load_run(folder)
    root = options.data or data_root(facts)
    split = load_own_split(folder, facts)
    check_split(split, root)
    subsets = load_subsets(split, root, input_spec(facts.settings), cache.ready(options.cache_dir), progress)
    return OpenRun(name, folder, facts, split, subsets, test_probabilities(folder, split))


def describe(name: str, runs: Sequence[OpenRun], probabilities: NDArray[np.float32]) -> ComparedModel:
    """The report's facts of one model, without its schemes."""
    first = runs[0].facts
    data = {item.name: getattr(first.data, item.name) for item in fields(ComparedData)}
    return ComparedModel(
        name=name,
        runs=[str(run.folder) for run in runs],
        labels=list(runs[0].split.labels),
        backbone=first.model.name,
        alpha=first.model.alpha,
        **{key: first.settings[key] for key in ("weights", "augment", "seed")},
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
        sides={name: [len(run.subsets[name]) for run in runs] for name in SUBSETS},
        training_s=sum(run.facts.total_s for run in runs),
        epoch_s=_epoch_s(runs),
        resumed=any(bool(run.facts.timing.get("resumed")) for run in runs),
        by_side={name: _over_runs(runs, name) for name in SUBSETS},
        keras=_metrics(runs, probabilities),
        schemes={},
    )


def _epoch_s(runs: Sequence[OpenRun]) -> float | None:
    """Median seconds of the epochs of the last stage of every run, validation included."""
    seconds = []
    for run in runs:
        history = read_history(run.folder)
        seconds += [float(row["seconds"]) for row in history if row["stage"] == history[-1]["stage"]]
    return float(np.median(seconds)) if seconds else None


def _over_runs(runs: Sequence[OpenRun], subset: str) -> SubsetFigures:
    found = [run.facts.classified[subset] for run in runs]
    names = ("accuracy", "log_loss", "macro_f1")
    means = {name: float(np.mean([getattr(metrics, name) for metrics in found])) for name in names}
    return SubsetFigures(**means, accuracies=[metrics.accuracy for metrics in found])


def _metrics(runs: Sequence[OpenRun], probabilities: NDArray[np.float32]) -> FoldMetrics:
    first = runs[0]
    test = [entry for run in runs for entry in run.test]
    positive, seed, labels = first.facts.positive_labels, first.facts.settings["seed"], first.split.labels
    pooled = metrics_of(test, labels, probabilities, positive, "test", first.split.level, seed)
    ends = np.cumsum([len(run.test) for run in runs])[:-1]
    accuracies = [
        float((part.argmax(axis=1) == run.subsets["test"].labels).mean())
        for run, part in zip(runs, np.split(probabilities, ends), strict=True)
    ]
    recalls = [row.recall for row in pooled.per_class.values() if row.support]
    return FoldMetrics(**vars(pooled), accuracies=accuracies, balanced_accuracy=float(np.mean(recalls)))


def _test_digest(runs: Sequence[OpenRun]) -> str:
    """Equal for models with the same test images."""
    return cache.digest([sorted((entry.sha256, entry.label) for entry in run.test) for run in runs])


@dataclass(frozen=True)
class Measured:
    """One model in one scheme.

    Attributes:
        figures: makes those of the report from ``latency``, which is still to be measured.
        timed: the open models, each with one image.
        right: whether the prediction is correct, bool ``(test images,)``, in the order of the images' digests.
    """

    figures: Callable[..., SchemeFigures]
    timed: list[tuple[Classifier, NDArray[np.uint8]]]
    right: NDArray[np.bool_]


def measure(runs: Sequence[OpenRun], scheme: str, out: Path, options: CompareOptions, progress: Progress) -> Measured:
    """Measure the runs of one model in one scheme, but for their latency."""
    bundles = [_bundle(run, scheme, options, progress) for run in runs]
    classifiers = [Classifier.from_bundle(bundle, threads=1) for bundle in bundles]
    parts = [
        _predictions(run, bundle, classifier, out, f"{run.model} {scheme}", progress)
        for run, bundle, classifier in zip(runs, bundles, classifiers, strict=True)
    ]
    probabilities = np.concatenate(parts)
    truth = np.concatenate([run.subsets["test"].labels for run in runs])
    cost = compare(runs[0].split.labels, truth, np.concatenate([run.keras for run in runs]), probabilities)
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
        drop_points=cost.drop_points,
        agreement=cost.agreement,
        max_abs_difference=cost.max_abs_difference,
        metrics=_metrics(runs, probabilities),
    )
    order = np.argsort([entry.sha256 for run in runs for entry in run.test], kind="stable")
    images = [run.subsets["test"].pixels[run.subsets["test"].rows[0]] for run in runs]
    right = (probabilities.argmax(axis=1) == truth)[order]
    return Measured(figures, list(zip(classifiers, images, strict=True)), right)


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
        "seed": run.facts.settings["seed"],
    }
    # Files of older versions do not name their run; the facts that they hold must match.
    differing = [key for key, value in wanted.items() if key in found and found[key] != value]
    if bundle.manifest.quantization.get("scheme") != scheme:
        differing.append("scheme")
    if differing or bundle.manifest.labels != run.split.labels:
        raise BundleError(
            f"{bundle.path}: not made from {run.folder} ({', '.join(differing or ['labels'])})", hint=hint
        )


def _predictions(
    run: OpenRun, bundle: Bundle, classifier: Classifier, out: Path, title: str, progress: Progress
) -> NDArray[np.float32]:
    """Calibrated probabilities of the test subset, ``(images, labels)``; kept by digest of model and images."""
    test = [entry.sha256 for entry in run.test]
    made_of = cache.digest([cache.FORMAT, hashlib.sha256(bundle.flatbuffer).hexdigest(), test])
    path, shape = out / "predictions" / f"{made_of}.npy", (len(test), len(run.split.labels))
    rows = cache.load(path, shape, np.float32, progress)
    if rows is None:
        rows = predict(classifier, run.subsets["test"], title, progress)
        cache.save(path, rows.shape, np.float32, [rows.astype(np.float32)])
    return apply_temperature(rows, temperature_of(bundle.manifest))
