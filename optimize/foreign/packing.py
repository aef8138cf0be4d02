"""Packs a foreign classifier: from a bare ``.tflite`` to a measured, verified file that answers as before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle, open_bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import UsageError
from ...edge_runtime.manifest import SCORES, Manifest
from ...edge_runtime.tools.decisions import wanted_rule
from ...edge_runtime.tools.golden_images import choose_golden
from ...train.data import cache
from ...train.data.split import Split, save_split
from ...train.data.subsets import SUBSETS
from ...train.imports.conventions import check_order
from ...train.runs import load_subsets, positive_of, source_revision, versions
from ..packaging.card import model_card
from ..packaging.contents import golden_candidates, manifest_metrics, quality_gate
from ..packaging.pack import pack
from ..quantization.decisions import UNFITTED, Fitted, Fitting, assess, fit_decisions
from ..quantization.result import AutoFloat
from ..quantization.verify import pixels_of, predictions_and_features
from .config import SCHEMES, PackConfig
from .data import Data, Images, open_data
from .features import with_features, with_flatbuffer
from .result import PackResult, only_seen
from .trials import Known, know

GOLDEN_IMAGES = 3
COMPARED = 64
"""Test images on which the packed model is compared with the bare one."""
FLOAT_EQUAL = 1e-6
"""Largest difference of a float output: the interpreter may group other operators when the features are an output."""


def pack_foreign(config: PackConfig, progress: Progress) -> PackResult:
    """Measure a foreign classifier on labelled images, fit its decisions, and pack it.

    Temperature, review threshold and out-of-distribution detector are fitted to the validation and train subsets, and
    the metrics are of the test subset. Too few images for a split are all measured, and nothing is fitted.

    Raises:
        UsageError: invalid settings; a packed model, or one to quantize that is not in float; facts about the model
            that are neither in the file nor named nor told by the data.
        BundleError: a file that is no classifier.
        DataError: data that do not belong to the model.
        GateError: the quantization loses more than ``max_drop``.
    """
    config.check()
    bundle = _bundle(config, progress)
    if bundle.manifest is not None:
        raise UsageError(f"{config.model}: packed already", hint="`edgeall quantize` packs what it makes")
    if config.integer:
        from .post_training import require_float  # imports TensorFlow

        require_float(bundle)
    cache_dir = cache.ready(config.cache_dir)
    data = open_data(config, progress)
    known = know(bundle, config, data, cache_dir, progress)
    fitting, quantization = _open(config, bundle, known, data, cache_dir, progress)
    fitted = fit_decisions(fitting) if data.divided else UNFITTED
    if fitted.detector is not None and not fitted.drift:
        progress.note("too few training images for the labels: no drift alarm")
    classifier, test = fitting.classifier, fitting.subsets["test"]
    probabilities, features = predictions_and_features(classifier, pixels_of(test), len(test), "measuring", progress)
    metrics, report = assess(fitting, fitted, probabilities, features, "test")
    metrics = only_seen(metrics)
    manifest = _manifest(config, known, fitting, fitted, manifest_metrics(metrics, report, None, None), data)
    if quantization is not None:
        manifest.quantization.update(quantization.facts())
    source, candidates = golden_candidates("test", data.facts, fitting.split, config.data)
    golden = choose_golden(classifier, candidates, GOLDEN_IMAGES)
    assert classifier.bundle is not None
    pack(classifier.bundle.flatbuffer, manifest, golden, model_card(manifest), config.out, fitted.detector)
    if data.divided:
        save_split(fitting.split, config.out.with_suffix(".split.json"))
    return PackResult(
        out=str(config.out),
        file_bytes=config.out.stat().st_size,
        labels=list(classifier.labels),
        input=known.input_text,
        normalization=known.normalization,
        normalization_from=known.how,
        trials=list(known.trials.trials) if known.trials else [],
        tried_images=known.trials.images if known.trials else 0,
        divided=data.divided,
        metrics=metrics,
        decided=fitted.decisions,
        review=report.review,
        golden=f"{len(golden)} {source}",
        synthetic=data.facts.data.synthetic,
        drop_points=quantization.drop_points if quantization else None,
        auto_float=quantization.auto_float if quantization else None,
    )


@dataclass(frozen=True)
class _Quantization:
    """What a quantization lost of the test accuracy in percentage points, and its search for float layers."""

    drop_points: float
    auto_float: AutoFloat | None

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"drop_points": self.drop_points, "float_layers": self.auto_float.layers if self.auto_float else []}


def _open(
    config: PackConfig, bundle: Bundle, known: Known, data: Data, cache_dir: Path, progress: Progress
) -> tuple[Fitting, _Quantization | None]:
    """The model, quantized if that is wanted, with its features; and the images."""
    own = known.classifier
    labels = own.labels
    split = replace(data.split, labels=labels)
    positive = positive_of(config.positive, labels)
    wanted_rule([labels.index(label) for label in positive], config.target_sensitivity, config.review_budget)
    subsets = load_subsets(split, config.data, own.input, cache_dir, progress)
    warning = None
    if known.trials is not None:
        shown = own.model.name
        warning = check_order(known.trials, known.normalization, labels, known.labels_named, shown)
    if warning:
        progress.note(f"warning: {warning}")
    quantization = None
    if config.integer:
        own, quantization = _quantized(config, bundle, own, subsets, data, progress)
    classifier = _with_features(own, subsets["test"], progress)
    fitting = Fitting(
        classifier,
        subsets,
        split,
        positive,
        config.seed,
        config.target_sensitivity,
        config.review_budget,
        config.out.name,
        progress,
    )
    return fitting, quantization


def _quantized(
    config: PackConfig,
    bundle: Bundle,
    own: Classifier,
    subsets: dict[str, Images],
    data: Data,
    progress: Progress,
) -> tuple[Classifier, _Quantization]:
    """The quantized classifier. Raises GateError if it loses more than ``max_drop`` of the test subset."""
    from .post_training import quantized  # imports TensorFlow

    if config.max_drop is not None and not data.divided:
        raise UsageError(
            f"{config.data}: too few images for a validation subset, which --max-drop needs",
            hint="leave --max-drop out, or give more images",
        )
    found, drop, auto_float = quantized(config, bundle, own, subsets, progress)
    return found, _Quantization(drop, auto_float)


def _bundle(config: PackConfig, progress: Progress) -> Bundle:
    """The flatbuffer, of a SavedModel after its conversion."""
    if not config.model.is_dir():
        return open_bundle(config.model)
    from .saved_model import converted  # imports TensorFlow

    # `post_training` quantizes it, as it does any float flatbuffer.
    return converted(config, SCHEMES[0] if config.integer else str(config.scheme), progress)


def _with_features(own: Classifier, test: Images, progress: Progress) -> Classifier:
    """The classifier with its features as a second output.

    Without them if it has none, or if its answers would change.
    """
    bundle = own.bundle
    assert bundle is not None
    flatbuffer = with_features(bundle.flatbuffer, bundle.graph)
    if flatbuffer is None:
        progress.note("no features in front of the last layer: no out-of-distribution detector")
        return own
    found = with_flatbuffer(own, flatbuffer)
    if not _same(own, found, test):
        progress.note("its answers change when its features are an output: no out-of-distribution detector")
        return own
    return found


def _same(one: Classifier, other: Classifier, images: Images) -> bool:
    """Whether two models give the same raw outputs."""
    for row in images.rows[:COMPARED]:
        first, second = (model.predict_units(images.pixels[row]).astype(np.float64) for model in (one, other))
        if float(np.abs(first - second).max()) > (FLOAT_EQUAL if one.model.output.dtype == np.float32 else 0):
            return False
    return True


def _manifest(
    config: PackConfig,
    known: Known,
    fitting: Fitting,
    fitted: Fitted,
    metrics: dict[str, Any],
    data: Data,
) -> Manifest:
    split: Split = fitting.split
    classifier = fitting.classifier
    scores = SCORES[1] if classifier.logits else SCORES[2] if classifier.sigmoid else SCORES[0]
    return Manifest(
        name=config.model.resolve().stem,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit=data.facts.unit,
        labels=classifier.labels,
        positive_labels=tuple(fitting.positive_labels),
        input=classifier.input,
        quantization={
            "scheme": config.scheme or f"foreign, input {classifier.model.input.dtype}",
            "versions": versions(),
            "source_revision": source_revision(),
        },
        training={
            "imported": config.model.name,
            "normalization_from": known.how,
            "dataset_sha256": split.dataset_sha256,
            "split_sha256": split.sha256,
            "split_level": split.level,
            "images": {name: len(split.subset(name)) for name in SUBSETS},
            "seed": config.seed,
            "synthetic": data.facts.data.synthetic,
        },
        metrics=metrics,
        golden={"source": "images of the data that it was packed with"},
        quality=quality_gate(data.facts, split, config.data) if data.divided else {},
        output={} if scores == SCORES[0] else {"scores": scores},
        drift=fitted.drift,
        **fitted.decisions.to_json(),
    )
