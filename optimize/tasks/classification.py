"""Quantization of a classifier: accuracy against float32, calibration, review rule, OOD detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime import parallel
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.exemplars import store_exemplars
from ...edge_runtime.manifest import Manifest
from ...edge_runtime.tools.decisions import wanted_rule
from ...edge_runtime.tools.golden_images import choose_golden
from ...models.keras_compat import exact_float32, tf
from ...train.batches import Images, plain, shuffled
from ...train.evaluation.metrics import Metrics
from ...train.evaluation.reliability import ReliabilityReport
from ...train.evaluation.robustness import Robustness, robustness, robustness_text
from ...train.evaluation.text import metrics_text
from ...train.fit import CLASSIFICATION
from ...train.reports.model_report import write_model_report
from ...train.run_info import RunInfo
from ...train.runs import image_folder
from ...train.stage import Stage
from ..packaging.card import model_card
from ..packaging.contents import golden_candidates, manifest_metrics, manifest_of, quality_gate
from ..packaging.pack import pack
from ..quantization.activations import stratified
from ..quantization.config import QuantizeConfig
from ..quantization.convert import with_second_output
from ..quantization.decisions import Fitted, Fitting, assess, fit_decisions
from ..quantization.gate import gate_error
from ..quantization.job import Converted, Folded, Job
from ..quantization.placement import images_at_once
from ..quantization.result import Agreement, QuantizationResult, conversion_facts
from ..quantization.summary import quantize_text
from ..quantization.verify import ConversionCost, compare, pixels_of, predict, predictions_and_features
from .registry import Distillation, QuantizationTask

GOLDEN_IMAGES = 2


class Classification(QuantizationTask):
    """See `QuantizationTask`."""

    name = "classification"

    def check(self, config: QuantizeConfig, facts: RunInfo) -> None:
        wanted_rule(_positive(facts), config.target_sensitivity, config.review_budget)

    def predictions(self, model: Any, images: Images) -> NDArray[Any]:
        found: NDArray[np.float32] = model.predict(plain(images, 2 * images_at_once(model)), verbose=0)
        return found

    def sample(self, images: Images, count: int, seed: int) -> Images:
        return stratified(images, count, seed)

    def outputs(self, network: Any, explain: bool) -> Any:
        return with_second_output(network, explain)

    def epoch_images(self, images: Images) -> int:
        return len(images)

    def distillation(self, job: Job, stage: Stage, folded: Any) -> Distillation:
        settings, training, classes = job.facts.settings, job.subsets["train"], folded.output_shape[-1]
        weights = training.class_weights(classes) if settings.class_weights else None

        def batches(epoch: int) -> Any:
            images = shuffled(
                training,
                stage.batch_size,
                augment=settings.augment,
                seed=settings.seed + 1,
                epoch=epoch,
                class_weights=weights,
            )
            return images.map(lambda pixels, labels, weight: (pixels, folded(pixels, training=False), weight))

        validation = plain(job.subsets["validation"], 2 * images_at_once(folded))
        return Distillation(
            batches, validation.map(lambda pixels, labels: (pixels, tf.one_hot(labels, classes))), CLASSIFICATION
        )

    def validation_drop(self, job: Job, network: Folded) -> Callable[[bytes], float]:
        images, labels = job.subsets["validation"], job.split.labels
        with exact_float32():
            reference = self.predictions(network.folded, images)

        def lost(flatbuffer: bytes) -> float:
            candidate = Classifier.from_flatbuffer(flatbuffer, labels, job.spec, name=f"{job.config.scheme} model")
            found = predict(candidate, images, f"trying {job.config.scheme}", job.progress)
            return compare(labels, images.labels, reference, found).drop_points

        return lost

    def finish(self, job: Job, network: Folded, converted: Converted) -> QuantizationResult:
        verified = _verify(job, network, converted)
        _check_drop(job, verified, converted)
        fitted = fit_decisions(_fitting(job, verified))
        assessed = _assess(job, verified, fitted)
        measured = _measured(job, network, converted, verified) | {"decided": fitted.decisions}
        manifest = _pack(job, converted, verified, fitted, measured, assessed)
        return _report(job, measured, assessed, manifest)


TASK = Classification()


def _positive(facts: RunInfo) -> list[int]:
    return [facts.labels.index(label) for label in facts.positive_labels]


@dataclass(frozen=True)
class _Verified:
    """The converted model and its predictions: ``probabilities`` ``(images, labels)``, not calibrated, and pooled
    ``features`` ``(images, features)``. ``cost`` and ``float_cost`` compare it and the float32 TFLite model with Keras.
    """

    classifier: Classifier
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    cost: ConversionCost
    float_cost: ConversionCost


def _verify(job: Job, network: Folded, converted: Converted) -> _Verified:
    """Run the verified images through both TFLite models, by the code path of the device."""
    scheme, labels, images = job.config.scheme, job.split.labels, job.verified_images
    candidate = Classifier.from_flatbuffer(converted.flatbuffer, labels, job.spec, name=f"{scheme} model")
    probabilities, features = predictions_and_features(
        candidate, pixels_of(images), len(images), f"verifying {scheme}", job.progress
    )
    reference = Classifier.from_flatbuffer(converted.float32, labels, job.spec, name="float32 model")
    exact = probabilities
    if scheme != "float32":
        exact = predict(reference, images, "verifying float32", job.progress)
    cost, float_cost = (
        compare(labels, images.labels, network.probabilities, found) for found in (probabilities, exact)
    )
    return _Verified(candidate, probabilities, features, cost, float_cost)


def _check_drop(job: Job, verified: _Verified, converted: Converted) -> None:
    """Raise GateError where the accuracy drops by more than ``max_drop``."""
    config, cost = job.config, verified.cost
    if config.max_drop is not None and cost.drop_points > config.max_drop:
        lost = (
            f"{cost.drop_points:.2f} points of {config.subset} accuracy "
            f"({100 * cost.reference_accuracy:.2f} % to {100 * cost.accuracy:.2f} %)"
        )
        raise gate_error(config, lost, "classification", converted.auto_float)


def _fitting(job: Job, verified: _Verified) -> Fitting:
    config = job.config
    return Fitting(
        verified.classifier,
        job.subsets,
        job.split,
        job.facts.positive_labels,
        job.seed,
        config.target_sensitivity,
        config.review_budget,
        config.out.name,
        job.progress,
    )


@dataclass(frozen=True)
class _Assessed:
    """Metrics, calibration and review of the verified images, and robustness where it was asked for."""

    metrics: Metrics
    report: ReliabilityReport
    robust: Robustness | None


def _assess(job: Job, verified: _Verified, fitted: Fitted) -> _Assessed:
    """Measure the model with its decisions on the verified images."""
    config, classifier = job.config, verified.classifier
    metrics, report = assess(_fitting(job, verified), fitted, verified.probabilities, verified.features, config.subset)
    robust = None
    if config.robust:
        robust = robustness(
            classifier,
            parallel.Layout(1, classifier.threads),
            image_folder(job.root),
            job.split.subset(config.subset),
            job.progress,
            temperature=fitted.temperature,
            review_below=fitted.review_below,
        )
    return _Assessed(metrics, report, robust)


def _measured(job: Job, network: Folded, converted: Converted, verified: _Verified) -> dict[str, Any]:
    """The fields of the result that describe the conversion."""
    cost = verified.cost
    return conversion_facts(job, network, converted) | {
        "test_images": len(job.verified_images),
        "float_accuracy": cost.reference_accuracy,
        "accuracy": cost.accuracy,
        "drop_points": cost.drop_points,
        "agreement": cost.agreement,
        "max_abs_difference": cost.max_abs_difference,
        "per_class": cost.per_class,
        "tflite_float": Agreement(verified.float_cost.agreement, verified.float_cost.max_abs_difference),
    }


def _pack(
    job: Job,
    converted: Converted,
    verified: _Verified,
    fitted: Fitted,
    measured: dict[str, Any],
    assessed: _Assessed,
) -> Manifest:
    """Write the packed model to ``config.out``."""
    config, facts, split, root = job.config, job.facts, job.split, job.root
    source, images = golden_candidates(config.golden, facts, split, root)
    sections = fitted.decisions.to_json()
    sections["drift"] = fitted.drift
    sections["quality"] = quality_gate(facts, split, root)
    sections["exemplars"], exemplars = store_exemplars(verified.features, job.verified_images.labels, config.subset)
    metrics = manifest_metrics(assessed.metrics, assessed.report, assessed.robust, measured["float_accuracy"])
    manifest = manifest_of(config.run, facts, split, job.spec, measured, metrics, source, sections)
    golden = choose_golden(verified.classifier, images, GOLDEN_IMAGES)
    pack(converted.flatbuffer, manifest, golden, model_card(manifest), config.out, fitted.detector, exemplars)
    return manifest


def _report(job: Job, measured: dict[str, Any], assessed: _Assessed, manifest: Manifest) -> QuantizationResult:
    """The result, and the HTML report of a model that was verified on the test subset."""
    out = job.config.out
    report = out.with_suffix(".report.html") if job.config.subset == "test" else None
    result = QuantizationResult(
        **measured,
        assessed=assessed.report,
        robustness=assessed.robust,
        out=str(out),
        file_bytes=out.stat().st_size,
        report=str(report) if report else None,
    )
    if report:
        texts = [
            ("What the conversion cost", quantize_text(result)),
            ("On the test subset", metrics_text(assessed.metrics, assessed.report)),
        ]
        if assessed.robust is not None:
            texts.append(("Under changes of the microscope", robustness_text(assessed.robust)))
        title = f"{manifest.name}, {result.scheme}"
        write_model_report(report, title, texts, assessed.report, assessed.robust, result.synthetic)
    return result
