"""Quantizes a trained run to one verified, packed ``model.tflite``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..console.progress import Progress
from ..edge_runtime import parallel
from ..edge_runtime.calibration import apply_temperature
from ..edge_runtime.classifier import Classifier
from ..edge_runtime.errors import EdgeallError, GateError
from ..edge_runtime.manifest import Manifest
from ..edge_runtime.ood import is_out_of_distribution, read_ood_detector
from ..edge_runtime.preprocess import InputSpec
from ..models.keras_compat import exact_float32
from ..train.batches import Images, plain
from ..train.data import cache
from ..train.data.split import Split, check_split
from ..train.evaluation.metrics import metrics_of
from ..train.evaluation.reliability import reliability_report, sent_to_review
from ..train.evaluation.robustness import robustness, robustness_text
from ..train.evaluation.text import metrics_text
from ..train.reports.model_report import write_model_report
from ..train.runs import data_root, image_folder, input_spec, load_model, load_own_split, load_run, load_subsets
from .packaging.card import model_card
from .packaging.contents import REVIEW_FACTS, golden_candidates, manifest_of, quality_gate
from .packaging.golden import choose_golden
from .packaging.pack import pack
from .quantization.activations import activation_extremes, layer_report, stratified
from .quantization.calibrate import calibration_of, review_rule, wanted_rule
from .quantization.config import QuantizeConfig
from .quantization.convert import compressed_bytes, convert, layers_in_float, sparsity, with_second_output
from .quantization.fold import fold_batch_normalization
from .quantization.layer_error import LayerError
from .quantization.mild import validation_predictions
from .quantization.novelty import IMAGES as NOVELTY_IMAGES
from .quantization.novelty import fit_novelty
from .quantization.placement import Placement, images_at_once, input_range, place, ranges, rounded
from .quantization.result import QuantizationResult
from .quantization.summary import quantize_text
from .quantization.verify import compare, pixels_of, predict, predictions_and_features

FOLD_TOLERANCE = 1e-4
"""Largest accepted change of a probability by folding BatchNormalization; `_check_folding` has the one exception."""
ROUNDING = 2.0**-22
"""Relative change of every weight that simulates the rounding of float32."""
GOLDEN_IMAGES = 2


def quantize(config: QuantizeConfig, progress: Progress) -> QuantizationResult:
    """Convert a run, verify the result, check the gate and pack the model.

    The packed model is at ``config.out``. Where the test subset was verified, an HTML report is written beside it.

    Raises:
        UsageError: invalid settings, or ``out`` exists.
        DataError: the run is not complete, or the data is not what it was trained on.
        GateError: the accuracy drops by more than ``config.max_drop``; nothing is written.
    """
    config.check()
    job = _open(config, progress)
    network = _fold(job)
    converted = _convert(job, network)
    verified = _verify(job, network, converted)
    _check_drop(job, verified)
    decisions = _fit_decisions(job, verified)
    metrics, assessed = _assess(job, verified, decisions)
    measured = _measured(job, network, converted, verified) | decisions.facts | assessed
    manifest = _pack(job, converted, verified, decisions, measured, metrics)
    return _report(job, measured, metrics, manifest)


# --- the steps and their results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """The opened run, and what every step reads: ``subsets`` are its preprocessed images by subset."""

    config: QuantizeConfig
    progress: Progress
    facts: dict[str, Any]
    root: Path
    split: Split
    spec: InputSpec
    subsets: dict[str, Images]
    positive: list[int]

    @property
    def verified_images(self) -> Images:
        return self.subsets[self.config.subset]

    @property
    def seed(self) -> int:
        return int(self.facts["settings"]["seed"])


@dataclass(frozen=True)
class _Network:
    """The folded float network; ``placement`` is None for a float scheme.

    ``probabilities`` are those of Keras float32 before folding, of the verified images, ``(images, labels)``.
    """

    folded: Any
    placement: Placement | None
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class _Converted:
    """The flatbuffers; ``output`` is the name of the layer behind the second output."""

    flatbuffer: bytes
    float32: bytes
    output: str
    layers: list[LayerError] | None


@dataclass(frozen=True)
class _Verified:
    """The converted model and its predictions: ``probabilities`` ``(images, labels)``, not calibrated, and pooled
    ``features`` ``(images, features)``. ``cost`` and ``float_cost`` compare it and the float32 TFLite model with Keras.
    """

    classifier: Classifier
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    cost: dict[str, Any]
    float_cost: dict[str, Any]


@dataclass(frozen=True)
class _Decisions:
    """``calibration``, ``decision`` and ``novelty`` of the manifest, and the stored OOD detector."""

    facts: dict[str, Any]
    detector: bytes

    @property
    def temperature(self) -> float:
        return float(self.facts["calibration"]["temperature"])

    @property
    def review_below(self) -> float | None:
        value: float | None = self.facts["decision"].get("review_below")
        return value


def _open(config: QuantizeConfig, progress: Progress) -> _Job:
    """Open the run and its data, and refuse what would only fail at the end."""
    cache_dir = cache.ready(config.cache_dir)
    facts = load_run(config.run)
    positive = [facts["labels"].index(label) for label in facts["positive_labels"]]
    wanted_rule(positive, config.target_sensitivity, config.review_budget)
    root = config.data or data_root(facts)
    split = load_own_split(config.run, facts)
    check_split(split, root)
    spec = input_spec(facts["settings"])
    subsets = load_subsets(split, root, spec, cache_dir, progress)
    return _Job(config, progress, facts, root, split, spec, subsets, positive)


def _fold(job: _Job) -> _Network:
    """Fold BatchNormalization, and decide what an integer scheme rounds."""
    model = load_model(job.config.run, job.facts)
    folded = fold_batch_normalization(model)
    placement = place(folded, input_range(job.spec), job.config.float_layers) if job.config.integer else None
    with exact_float32():
        probabilities = model.predict(plain(job.verified_images, 2 * images_at_once(model)), verbose=0)
        _check_folding(probabilities, folded, job.verified_images)
    return _Network(folded, placement, probabilities)


def _check_folding(before: NDArray[np.float32], folded: Any, images: Images) -> None:
    """Check that folding left the network what it was.

    In a network of a hundred layers that is hardly trained, rounding alone can exceed `FOLD_TOLERANCE`. Its effect is
    measured then: folding may change a prediction no more than changing the last bits of all weights does.
    """

    def predictions() -> Any:
        return folded.predict(plain(images, 2 * images_at_once(folded)), verbose=0)

    after = predictions()
    difference = float(np.abs(before - after).max())
    if difference <= FOLD_TOLERANCE:
        return
    weights, generator = folded.get_weights(), np.random.default_rng(0)
    signs = [generator.choice(np.array([-1, 1], np.float32), value.shape) for value in weights]
    folded.set_weights([value * (1 + ROUNDING * sign) for value, sign in zip(weights, signs, strict=True)])
    noise = float(np.abs(predictions() - after).max())
    folded.set_weights(weights)
    if not difference <= FOLD_TOLERANCE + noise:  # a NaN is refused too
        raise EdgeallError(
            f"folding BatchNormalization changed a probability by {difference:.2g}, rounding alone by {noise:.2g}; "
            "please report this"
        )


def _convert(job: _Job, network: _Network) -> _Converted:
    """Convert to the scheme, and to float32 for comparison."""
    config, spec = job.config, job.spec
    job.progress.note(f"converting to {config.scheme}")
    float32 = convert(network.folded, "float32", spec)
    if network.placement is None:
        whole = with_second_output(network.folded, config.explain)
        return _Converted(convert(whole, config.scheme, spec), float32, whole.output_names[0], None)
    placement = network.placement
    trained, spanned = _integer_network(job, network.folded, placement)
    whole = with_second_output(rounded(trained, placement, spanned), config.explain)
    flatbuffer = convert(whole, config.scheme, spec, placement.floats)
    layers = None
    if config.layer_report:
        layers = layer_report(trained, placement, spanned, job.subsets["validation"], job.progress)
    return _Converted(flatbuffer, float32, whole.output_names[0], layers)


def _integer_network(job: _Job, folded: Any, placement: Placement) -> tuple[Any, dict[str, Any]]:
    """The float network whose weights are quantized, and its activation ranges; ``qat-int8`` trains both."""
    config, settings = job.config, job.facts["settings"]
    images = stratified(job.subsets["train"], config.representative, job.seed)
    measured = activation_extremes(folded, placement, images, settings, job.progress)
    if config.scheme != "qat-int8":
        return folded, ranges(placement, measured)
    from .quantization.qat import quantization_aware  # imports tfmot
    from .quantization.qat_training import sparsity_masks, train_quantized

    masks = sparsity_masks(folded, job.facts, job.progress)
    trainable = quantization_aware(folded, placement, measured, masks, config.clusters)
    train_quantized(config, trainable, job.subsets, len(images), settings, job.progress)
    return trainable.trained(), ranges(placement, trainable.measured())


def _verify(job: _Job, network: _Network, converted: _Converted) -> _Verified:
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


def _check_drop(job: _Job, verified: _Verified) -> None:
    """Raise GateError where the accuracy drops by more than ``max_drop``."""
    config, cost = job.config, verified.cost
    if config.max_drop is not None and cost["drop_points"] > config.max_drop:
        raise GateError(
            f"{config.scheme} loses {cost['drop_points']:.2f} points of {config.subset} accuracy "
            f"({100 * cost['reference_accuracy']:.2f} % to {100 * cost['accuracy']:.2f} %), "
            f"more than --max-drop {config.max_drop:g}; {config.out} was not written",
            hint="try --scheme qat-int8, more --epochs, or a larger --max-drop",
        )


def _fit_decisions(job: _Job, verified: _Verified) -> _Decisions:
    """Fit temperature, OOD detector and review rule; the classifier gets the detector."""
    config, classifier = job.config, verified.classifier
    fitted = validation_predictions(classifier, job.subsets["validation"], job.seed, job.progress)
    calibration = calibration_of(fitted.probabilities, fitted.truth, fitted.images) | fitted.facts()
    training = stratified(job.subsets["train"], NOVELTY_IMAGES, job.seed)
    _, known = predictions_and_features(
        classifier, pixels_of(training), len(training), "fitting the OOD detector", job.progress
    )
    novelty, detector = fit_novelty(known, fitted.unchanged(fitted.features), len(job.split.labels))
    classifier.ood_detector = read_ood_detector(novelty, detector, config.out.name)
    scores = apply_temperature(fitted.probabilities, calibration["temperature"])
    unfamiliar = is_out_of_distribution(fitted.features, classifier.ood_detector)
    decision = review_rule(
        scores, fitted.truth, job.positive, config.target_sensitivity, config.review_budget, unfamiliar
    )
    if decision:
        sent = sent_to_review(scores, decision["review_below"], unfamiliar)
        assert sent is not None
        decision["reviewed_unchanged"] = float(fitted.unchanged(sent).mean())
    return _Decisions({"calibration": calibration, "decision": decision, "novelty": novelty}, detector)


def _assess(job: _Job, verified: _Verified, decisions: _Decisions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of the verified images for the manifest; reliability, review and robustness for the result."""
    config, classifier, split = job.config, verified.classifier, job.split
    truth, temperature = job.verified_images.labels, decisions.temperature
    assert classifier.ood_detector is not None
    unfamiliar = is_out_of_distribution(verified.features, classifier.ood_detector)
    assessed = reliability_report(
        verified.probabilities, truth, job.positive, temperature, decisions.review_below, unfamiliar
    )
    probabilities = apply_temperature(verified.probabilities, temperature)
    entries, positive = split.subset(config.subset), job.facts["positive_labels"]
    metrics = metrics_of(entries, split.labels, probabilities, positive, config.subset, split.level, job.seed)
    metrics |= {"ece_uncalibrated": assessed["reliability"]["before"]["ece"], "aurc": assessed["risk_coverage"]["aurc"]}
    if assessed["review"] is not None:
        metrics |= {key: assessed["review"][key] for key in REVIEW_FACTS}
    assessed["robustness"] = None
    if config.robust:
        assessed["robustness"] = robustness(
            classifier,
            parallel.Layout(1, classifier.threads),
            image_folder(job.root),
            entries,
            job.progress,
            temperature=temperature,
            review_below=decisions.review_below,
        )
        metrics |= _robust_metrics(assessed["robustness"])
    return metrics, assessed


def _robust_metrics(found: dict[str, Any]) -> dict[str, Any]:
    """Mean and worst case of a robustness measurement, for the manifest."""
    worst = found["worst_at"]
    return {
        "robust_suite": found["suite"],
        "robust_worst_at": f"{worst['corruption']} at severity {worst['severity']}",
        **{f"robust_accuracy_{key}": found[key] for key in ("mean", "worst")},
        **{f"robust_ece_{key}": found[f"ece_{key}"] for key in ("mean", "worst")},
        **{f"robust_{key}": found[key] for key in ("reviewed_mean", "wrong_not_reviewed_mean")},
    }


def _measured(job: _Job, network: _Network, converted: _Converted, verified: _Verified) -> dict[str, Any]:
    """The fields of the result that describe the conversion."""
    cost, flatbuffer, folded = verified.cost, converted.flatbuffer, network.folded
    in_float = None
    if network.placement:
        in_float = layers_in_float(flatbuffer, [layer.name for layer in folded.layers], converted.output)
    return {
        "scheme": job.config.scheme,
        "synthetic": job.facts["data"]["synthetic"],
        "test_images": len(job.verified_images),
        "split_level": job.split.level,
        "float_accuracy": cost["reference_accuracy"],
        **{key: cost[key] for key in ("accuracy", "drop_points", "agreement", "max_abs_difference", "per_class")},
        "tflite_float": {key: verified.float_cost[key] for key in ("agreement", "max_abs_difference")},
        "flatbuffer_bytes": len(flatbuffer),
        "compressed_bytes": compressed_bytes(flatbuffer),
        "float_flatbuffer_bytes": len(converted.float32),
        "float_layers": in_float,
        "sparsity_frac": sparsity(flatbuffer),
        "clusters": job.config.clusters,
        "layers": converted.layers,
    }


def _pack(
    job: _Job,
    converted: _Converted,
    verified: _Verified,
    decisions: _Decisions,
    measured: dict[str, Any],
    metrics: dict[str, Any],
) -> Manifest:
    """Write the packed model to ``config.out``."""
    config, facts, split, root = job.config, job.facts, job.split, job.root
    source, images = golden_candidates(config.golden, facts, split, root)
    gate = quality_gate(facts, split, root)
    manifest = manifest_of(config.run, facts, split, job.spec, measured, metrics, source, gate)
    golden = choose_golden(verified.classifier, images, GOLDEN_IMAGES)
    pack(converted.flatbuffer, manifest, golden, model_card(manifest), config.out, decisions.detector)
    return manifest


def _report(job: _Job, measured: dict[str, Any], metrics: dict[str, Any], manifest: Manifest) -> QuantizationResult:
    """The result, and the HTML report of a model that was verified on the test subset."""
    out = job.config.out
    report = out.with_suffix(".report.html") if job.config.subset == "test" else None
    file_bytes = out.stat().st_size
    result = QuantizationResult(**measured, out=str(out), file_bytes=file_bytes, report=str(report) if report else None)
    if report:
        sections = ("reliability", "risk_coverage", "review")
        shown = metrics | {key: measured[key] for key in sections}
        texts = [("What the conversion cost", quantize_text(result)), ("On the test subset", metrics_text(shown))]
        if result.robustness is not None:
            shown["robustness"] = result.robustness
            texts.append(("Under changes of the microscope", robustness_text(result.robustness)))
        write_model_report(report, f"{manifest.name}, {result.scheme}", texts, shown, result.synthetic)
    return result
