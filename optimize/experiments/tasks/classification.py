"""Comparison of classifiers: accuracy, and McNemar's test against the most accurate one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....console.progress import Progress
from ....console.tables import percent
from ....edge_runtime.bundle import Bundle
from ....edge_runtime.calibration import apply_temperature, temperature_of
from ....edge_runtime.classifier import Classifier
from ....train.batches import Images
from ....train.data import cache
from ....train.data.split import Split
from ....train.data.subsets import SUBSETS
from ....train.evaluation.metrics import metrics_of
from ....train.run_info import RunInfo
from ....train.runs import data_root, input_spec, load_subsets, test_probabilities
from ....train.segmentation.results import MaskMetrics
from ...quantization.verify import compare, predict
from ..compare_config import CompareOptions
from ..compare_result import (
    ComparedModel,
    ComparedRow,
    Comparison,
    FoldMetrics,
    MaskSubset,
    SchemeFigures,
    SubsetFigures,
)
from .registry import ComparisonTask, Measured, OpenRun, shared


class ClassificationComparison(ComparisonTask):
    """`OpenRun.images` are `Images` by subset; `OpenRun.reference` are probabilities ``(test images, labels)``."""

    name = "classification"
    csv_columns = (
        *("model", "scheme", "runs", "split_level", "optimistic", "accuracy", "accuracy_sd", "accuracy_low"),
        *("accuracy_high", "drop_points", "agreement", "macro_f1", "log_loss", "ece", "sensitivity", "specificity"),
        *("test_images", "parameters", "macs", "file_bytes", "flatbuffer_bytes", "compressed_bytes", "latency_p50_ms"),
        *("latency_p90_ms", "on_front", "train_accuracy", "validation_accuracy", "train_log_loss"),
        *("validation_log_loss", "pruned", "float_layers", "only_this_right", "only_best_right", "mcnemar_p", "error"),
        *("balanced_accuracy", "auroc_positive", "weighted_precision", "weighted_recall", "weighted_f1", "epoch_s"),
    )
    heads = ("accuracy", "p", "drop", "macro F1")
    explained = ("p: probability of such a difference from the best by chance (McNemar's exact test)",)

    def load(
        self, folder: Path, facts: RunInfo, split: Split, options: CompareOptions, progress: Progress
    ) -> tuple[dict[str, Images], NDArray[np.float32]]:
        root, spec = options.data or data_root(facts), input_spec(facts.settings)
        subsets = load_subsets(split, root, spec, cache.ready(options.cache_dir), progress)
        return subsets, test_probabilities(folder, split)

    def figures(
        self, runs: Sequence[OpenRun]
    ) -> tuple[dict[str, SubsetFigures | MaskSubset], FoldMetrics | MaskMetrics]:
        probabilities = np.concatenate([run.reference for run in runs])
        return {name: _over_runs(runs, name) for name in SUBSETS}, _metrics(runs, probabilities)

    def measure(self, runs: Sequence[OpenRun], bundles: Sequence[Bundle], out: Path, progress: Progress) -> Measured:
        classifiers = [Classifier.from_bundle(bundle, threads=1) for bundle in bundles]
        parts = [
            _predictions(run, bundle, classifier, out, progress)
            for run, bundle, classifier in zip(runs, bundles, classifiers, strict=True)
        ]
        probabilities = np.concatenate(parts)
        truth = np.concatenate([run.images["test"].labels for run in runs])
        cost = compare(runs[0].split.labels, truth, np.concatenate([run.reference for run in runs]), probabilities)
        order = np.argsort([entry.sha256 for run in runs for entry in run.test], kind="stable")
        images = [run.images["test"].pixels[run.images["test"].rows[0]] for run in runs]
        return Measured(
            drop_points=cost.drop_points,
            agreement=cost.agreement,
            max_abs_difference=cost.max_abs_difference,
            metrics=_metrics(runs, probabilities),
            timed=list(zip(classifiers, images, strict=True)),
            scores=(probabilities.argmax(axis=1) == truth)[order],
        )

    def row(self, model: ComparedModel, scheme: str, figures: SchemeFigures) -> ComparedRow:
        metrics = figures.metrics
        assert isinstance(metrics, FoldMetrics)
        assert metrics.averages is not None and metrics.accuracy_ci95 is not None
        low, high = metrics.accuracy_ci95
        accuracies, weighted = metrics.accuracies, metrics.averages["weighted"]
        alike = ("macro_f1", "log_loss", "ece", "sensitivity", "specificity", "balanced_accuracy", "auroc_positive")
        return ComparedRow(
            accuracy=float(np.mean(accuracies)),
            accuracy_sd=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
            accuracy_low=low,
            accuracy_high=high,
            weighted_precision=weighted.precision,
            weighted_recall=weighted.recall,
            weighted_f1=weighted.f1,
            agreement=figures.agreement,
            **{name: getattr(metrics, name) for name in alike},
            **shared(model, scheme, figures),
        )

    def csv_of_model(self, model: ComparedModel) -> dict[str, Any]:
        return {
            f"{name}_{key}": getattr(model.by_side[name], key)
            for name in ("train", "validation")
            for key in ("accuracy", "log_loss")
        }

    def cells(self, row: ComparedRow, p_value: str) -> tuple[str, ...]:
        spread = "" if row.accuracy_sd is None else f" ± {100 * row.accuracy_sd:.2f}"
        return f"{percent(row.accuracy)}{spread}", p_value, f"{row.drop_points:.2f}", f"{row.macro_f1:.4f}"

    def drawn(self, runs: Sequence[OpenRun]) -> Any:
        return [entry for run in runs for entry in run.test], np.concatenate([run.reference for run in runs])

    def write_report(self, path: Path, result: Comparison, drawn: Mapping[str, Any]) -> None:
        from ..compare_report import write_compare_report

        write_compare_report(path, result, drawn)


TASK = ClassificationComparison()


def _over_runs(runs: Sequence[OpenRun], subset: str) -> SubsetFigures:
    found = [run.facts.classified[subset] for run in runs]
    names = ("accuracy", "log_loss", "macro_f1")
    means = {name: float(np.mean([getattr(metrics, name) for metrics in found])) for name in names}
    return SubsetFigures(**means, accuracies=[metrics.accuracy for metrics in found])


def _metrics(runs: Sequence[OpenRun], probabilities: NDArray[np.float32]) -> FoldMetrics:
    first = runs[0]
    test = [entry for run in runs for entry in run.test]
    positive, seed, labels = first.facts.positive_labels, first.facts.settings.seed, first.split.labels
    pooled = metrics_of(test, labels, probabilities, positive, "test", first.split.level, seed)
    ends = np.cumsum([len(run.test) for run in runs])[:-1]
    accuracies = [
        float((part.argmax(axis=1) == run.images["test"].labels).mean())
        for run, part in zip(runs, np.split(probabilities, ends), strict=True)
    ]
    recalls = [row.recall for row in pooled.per_class.values() if row.support]
    return FoldMetrics(**vars(pooled), accuracies=accuracies, balanced_accuracy=float(np.mean(recalls)))


def _predictions(
    run: OpenRun, bundle: Bundle, classifier: Classifier, out: Path, progress: Progress
) -> NDArray[np.float32]:
    """Calibrated probabilities of the test subset, ``(images, labels)``; kept by digest of model and images."""
    test = [entry.sha256 for entry in run.test]
    made_of = cache.digest([cache.FORMAT, hashlib.sha256(bundle.flatbuffer).hexdigest(), test])
    path, shape = out / "predictions" / f"{made_of}.npy", (len(test), len(run.split.labels))
    rows = cache.load(path, shape, np.float32, progress)
    if rows is None:
        title = f"{run.model} {Path(bundle.path).stem}"
        rows = predict(classifier, run.images["test"], title, progress)
        cache.save(path, rows.shape, np.float32, [rows.astype(np.float32)])
    return apply_temperature(rows, temperature_of(bundle.manifest))
