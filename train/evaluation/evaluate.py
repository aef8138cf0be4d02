"""Computes the metrics of a Keras run or of a ``model.tflite``. The same images give the same figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import is_keras, open_bundle
from ...edge_runtime.calibration import apply_temperature, temperature_of
from ...edge_runtime.classifier import Classifier, Inference
from ...edge_runtime.errors import DataError, ImageError, UsageError
from ...edge_runtime.parallel import WORTH_MEASURING, Layout, Pool
from ...edge_runtime.preprocess import InputSpec, load_input
from ...edge_runtime.results import OPTIONAL, SPREAD, Result
from ...edge_runtime.tools.layout import choose_layout
from ...edge_runtime.vision.finder import open_finder
from ..data import cache
from ..data.dataset import positive_labels
from ..data.split import SplitEntry
from ..segmentation.results import MaskEvaluation
from .against import PairedComparison, open_other, paired_comparison
from .config import EvaluateSettings
from .context import Context, Predict, context
from .fields import classify_fields, open_for_fields, select_fields
from .metrics import Metrics, metrics_of
from .reliability import ReliabilityReport, reliability_report
from .robustness import Robustness, robustness
from .selection import Known, Selection, model_images, model_split, select
from .site import ExternalValidation, Site, external_validation, find_own_images, read_site

__all__ = ["EvaluateSettings", "Evaluation", "evaluate", "task_of"]


@dataclass(frozen=True)
class Evaluation(Result):
    """What `evaluate` measured. What was not requested is None.

    Attributes:
        model: path of the run or model file.
        on_cells: of Grad-CAM on a synthetic data set, see `edgeall.train.evaluation.gradcam.on_cells`.
        context: what the classifier looks at.
        seconds: duration.
    """

    model: str
    metrics: Metrics = field(metadata=SPREAD)
    report: ReliabilityReport = field(metadata=SPREAD)
    on_cells: dict[str, float] | None = field(default=None, metadata=OPTIONAL)
    against: PairedComparison | None = field(default=None, metadata=OPTIONAL)
    robustness: Robustness | None = field(default=None, metadata=OPTIONAL)
    context: Context | None = field(default=None, metadata=OPTIONAL)
    site: ExternalValidation | None = field(default=None, metadata=OPTIONAL)
    seconds: float = 0.0


def evaluate(target: Path, settings: EvaluateSettings, progress: Progress) -> Evaluation | MaskEvaluation:
    """Classify labelled images, or segment images with masks, and compute metrics.

    Args:
        target: a run folder (its Keras model is evaluated), or a model file (evaluated with the device's code).
        settings: see `EvaluateSettings`.
        progress: receives notes and progress bars.

    Raises:
        UsageError: settings that conflict with each other or with the target.
        DataError: the images are no longer those of the split, or have classes that the model does not have.
    """
    started = time.perf_counter()
    if settings.site is not None and settings.side is not None:
        raise UsageError(
            f"--side {settings.side} with --site: all images of a site are evaluated", hint="remove one of them"
        )
    if not target.exists():
        raise DataError(f"{target}: no such run or model file", hint="check the path")
    if is_keras(target):
        from .. import runs

        runs.check_is_run(target)
    if task_of(target) == "segmentation":
        from ..segmentation.evaluate import evaluate_masks

        masks = evaluate_masks(target, settings, progress)
        return replace(masks, seconds=time.perf_counter() - started)
    if settings.by_cells:
        return replace(_evaluate_fields(target, settings, progress), seconds=time.perf_counter() - started)
    evaluate_one = _evaluate_run if target.is_dir() else _evaluate_model
    return replace(evaluate_one(target, settings, progress), seconds=time.perf_counter() - started)


def task_of(target: Path) -> str:
    """The task of a run or of a model file."""
    if not target.is_dir():
        return open_bundle(target).task
    from .. import runs
    from ..tasks import registry

    return registry.of_run(runs.load_run(target)).name


def _evaluate_run(run: Path, settings: EvaluateSettings, progress: Progress) -> Evaluation:
    """The metrics of a run's Keras model."""
    from .. import runs  # loads TensorFlow, which a model file does not need
    from ..batches import Images, plain

    _check_run_settings(run, settings)
    cache_dir = cache.ready(settings.cache_dir)
    facts = runs.load_run(run)
    root, labels = settings.data or runs.data_root(facts), tuple(facts.labels)
    own = runs.load_own_split(run, facts)
    site, selected = _select(Known(run, labels, own, settings.data is None), root, settings, progress)
    spec = runs.input_spec(facts.settings)
    pixels = cache.pixels(selected.folder, selected.entries, spec, cache_dir, progress)
    rows = np.arange(len(selected.entries))
    model = runs.load_model(run, facts)
    probabilities = model.predict(plain(Images(pixels, rows, rows, spec), 64), verbose=0)
    cells = None
    if settings.explain is not None:
        from .gradcam import Explained, explain

        truth, names = _truth(selected.entries, labels), [entry.path for entry in selected.entries]
        explained = Explained(model, spec, pixels, probabilities, names)
        cells = explain(settings.explain, explained, truth, labels, runs.image_folder(root), progress)
    positive, seed = facts.positive_labels, facts.settings.seed
    metrics = metrics_of(selected.entries, labels, probabilities, positive, selected.subset, selected.level, seed)
    report = reliability_report(probabilities, _truth(selected.entries, labels), _indices(labels, positive))
    seen = None
    if settings.context:

        def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            every = np.arange(len(images))
            return np.asarray(model.predict(plain(Images(images, every, every, spec), 64), verbose=0))

        seen = _context(predict, spec, selected, labels, settings, progress)
    external = None
    if settings.site is not None and site is not None:
        repeated = find_own_images(site, own, runs.image_folder(root), progress)
        own_metrics = facts.classified["test"].to_json()
        external = external_validation(settings.site, site, metrics, None, own_metrics, repeated)
    return Evaluation(str(run), metrics, report, on_cells=cells, context=seen, site=external)


def _check_run_settings(run: Path, settings: EvaluateSettings) -> None:
    fixed = (settings.split, settings.labels_file, settings.mean, settings.std, settings.input_size)
    if any(value is not None for value in fixed):
        raise UsageError("a run has its own split, labels, normalization and input size", hint="remove those options")
    if settings.robust or settings.against is not None:
        raise UsageError(
            f"{run}: {'--robustness' if settings.robust else '--against'} requires a model file",
            hint="quantize the run, then give the model file",
        )


def _evaluate_model(path: Path, settings: EvaluateSettings, progress: Progress) -> Evaluation:
    """The metrics of a model file."""
    if settings.explain is not None:
        raise UsageError(
            f"{path}: --explain requires a run", hint="for a model file use `edgeall run MODEL DIR --explain`"
        )
    if settings.data is None and settings.site is None:
        raise UsageError(f"{path}: nothing to evaluate on", hint="name a folder of labelled images with --data")
    classifier = Classifier.open(
        path,
        threads=1,
        labels_file=settings.labels_file,
        mean=settings.mean,
        std=settings.std,
        input_size=settings.input_size,
    )
    manifest = classifier.bundle.manifest if classifier.bundle else None
    training, labels = (manifest.training if manifest else {}), classifier.labels
    if settings.site is not None and (manifest is None or not manifest.metrics.get("per_class")):
        raise UsageError(
            f"{path}: its manifest has no metrics of a test subset to compare with", hint=f"use --data {settings.site}"
        )
    own = model_split(path, training.get("split_sha256"), settings.split)
    known = Known(path, labels, own, settings.split is not None)
    site, selected = _select(known, settings.data, settings, progress)
    entries, seed = selected.entries, training.get("seed", 0)
    split_sha256 = training.get("split_sha256") if selected.level not in ("none", "site") else None
    other = None if settings.against is None else open_other(settings.against, path, labels, split_sha256)
    files = [selected.folder / entry.path for entry in entries]
    layout = choose_layout(classifier, [str(file) for file in files[:WORTH_MEASURING]], note=progress.note)
    raw, unfamiliar = _predict(classifier, layout, files, "evaluating", progress)
    positive = manifest.positive_labels if manifest else positive_labels(labels)
    temperature = temperature_of(manifest)
    below = manifest.decision.get("review_below") if manifest else None
    probabilities = apply_temperature(raw, temperature)
    metrics = metrics_of(entries, labels, probabilities, positive, selected.subset, selected.level, seed)
    fitted = temperature if manifest and manifest.calibration else None
    report = reliability_report(raw, _truth(entries, labels), _indices(labels, positive), fitted, below, unfamiliar)
    found = Evaluation(str(path), metrics, report)
    if settings.against is not None and other is not None:
        others, _ = _predict(other, layout, files, f"evaluating {settings.against}", progress)
        found = replace(found, against=paired_comparison(settings.against, entries, labels, raw, others, seed))
    if settings.robust:
        robust = robustness(
            classifier, layout, selected.folder, entries, progress, temperature=temperature, review_below=below
        )
        found = replace(found, robustness=robust)
    if settings.context:

        def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.stack([classifier.predict(image) for image in images])

        found = replace(found, context=_context(predict, classifier.input, selected, labels, settings, progress))
    if settings.site is not None and site is not None and manifest is not None:
        repeated = find_own_images(site, own, model_images(path, settings.data, own), progress)
        reviewed = None if report.review is None else report.review.reviewed
        external = external_validation(settings.site, site, metrics, reviewed, manifest.metrics, repeated)
        found = replace(found, site=external)
    return found


def _evaluate_fields(path: Path, settings: EvaluateSettings, progress: Progress) -> Evaluation:
    """The metrics of a model of cells on fields."""
    classifier, manifest = open_for_fields(path, settings)
    labels = classifier.labels
    own = model_split(path, manifest.training.get("split_sha256"), settings.split)
    selected = select_fields(Known(path, labels, own, False), settings, progress)
    entries, probabilities, unfamiliar = classify_fields(classifier, selected, settings.cell_model, progress)
    positive, seed = manifest.positive_labels, manifest.training.get("seed", 0)
    metrics = metrics_of(entries, labels, probabilities, positive, selected.subset, selected.level, seed)
    truth, below = _truth(entries, labels), manifest.decision.get("review_below")
    report = reliability_report(probabilities, truth, _indices(labels, positive), None, below, unfamiliar)
    return Evaluation(str(path), metrics, report)


def _context(
    predict: Predict,
    spec: InputSpec,
    selected: Selection,
    labels: Sequence[str],
    settings: EvaluateSettings,
    progress: Progress,
) -> Context:
    finder = open_finder(settings.cell_model)
    return context(predict, spec, selected.folder, selected.entries, labels, finder, progress)


def _select(
    known: Known, root: Path | None, settings: EvaluateSettings, progress: Progress
) -> tuple[Site | None, Selection]:
    """The images to evaluate on: those of the site, or those of ``root``."""
    if settings.site is not None:
        site = read_site(settings.site, known.labels, known.path, progress)
        return site, Selection(site.root, site.entries, "site", "site")
    assert root is not None
    return None, select(known, root, settings.side, progress)


def _predict(
    classifier: Classifier, layout: Layout, files: Sequence[Path], title: str, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Probabilities ``(files, labels)``, and ``(files,)`` which are out-of-distribution; None without a detector.

    Raises:
        ImageError: an image cannot be read.
    """
    rows: list[Inference] = []
    with progress.task(title, len(files)) as advance, Pool(classifier, layout) as pool:
        for _, outcome in pool.map(lambda file: load_input(file, classifier.input), files):
            if isinstance(outcome, ImageError):
                raise outcome
            rows.append(outcome)
            advance(len(rows), "")
    unfamiliar = np.array([row.novelty is not None and row.novelty > 1 for row in rows])
    return np.stack([row.probabilities for row in rows]), unfamiliar if classifier.ood_detector else None


def _truth(entries: Sequence[SplitEntry], labels: Sequence[str]) -> NDArray[np.int64]:
    """Class index of each image, ``(n,)``."""
    return np.array([labels.index(entry.label) for entry in entries])


def _indices(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    return [labels.index(name) for name in names]
