"""What a classifier decides by: temperature, review rule, out-of-distribution detector; and its metrics with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.calibration import apply_temperature
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.drift import coordinates, image_facts
from ...edge_runtime.ood import is_out_of_distribution, read_ood_detector
from ...edge_runtime.tools.decisions import Decisions, review_rule
from ...edge_runtime.tools.drift import chosen_runs, fit_drift
from ...edge_runtime.tools.novelty import IMAGES as NOVELTY_IMAGES
from ...edge_runtime.tools.novelty import fit_novelty
from ...train.batches import Images
from ...train.data.split import Split
from ...train.evaluation.metrics import Metrics, metrics_of
from ...train.evaluation.reliability import ReliabilityReport, reliability_report, sent_to_review
from .activations import stratified
from .calibrate import calibration_of
from .mild import STRENGTH, validation_predictions
from .verify import pixels_of, predictions_and_features


@dataclass(frozen=True)
class Fitting:
    """The model and the images that its decisions are fitted to.

    Attributes:
        classifier: it gets the detector.
        subsets: preprocessed images by subset.
        split: of the images; its labels are those of the outputs, in order.
        positive_labels: the positive classes.
        seed: of every random draw.
        target_sensitivity: see `edgeall.edge_runtime.tools.decisions.review_rule`; also ``review_budget``.
        name: of the file, for messages.
        progress: receives progress bars.
    """

    classifier: Classifier
    subsets: Mapping[str, Images]
    split: Split
    positive_labels: Sequence[str]
    seed: int
    target_sensitivity: float | None
    review_budget: float | None
    name: str
    progress: Progress

    @property
    def positive(self) -> list[int]:
        """Indices of the positive labels."""
        return [self.split.labels.index(label) for label in self.positive_labels]


@dataclass(frozen=True)
class Fitted:
    """What was fitted to a model, and its stored detector; None without features.

    ``drift`` is the manifest's reference of the drift alarm; empty without features or with few images.
    """

    decisions: Decisions
    detector: bytes | None
    drift: dict[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        return self.decisions.calibration.temperature if self.decisions.calibration else 1.0

    @property
    def review_below(self) -> float | None:
        return self.decisions.decision.review_below if self.decisions.decision else None


UNFITTED = Fitted(Decisions(), None)
"""Of a model to which nothing was fitted."""


def fit_decisions(fitting: Fitting) -> Fitted:
    """Fit temperature, OOD detector and review rule; the classifier gets the detector, if the model has features."""
    classifier, progress = fitting.classifier, fitting.progress
    fitted = validation_predictions(classifier, fitting.subsets["validation"], fitting.seed, progress)
    calibration = replace(
        calibration_of(fitted.probabilities, fitted.truth, fitted.images),
        changed_images=fitted.images * fitted.copies,
        changed_strength=STRENGTH,
    )
    novelty, detector, unfamiliar = None, None, None
    drift: dict[str, Any] = {}
    if classifier.model.second is not None:
        training = stratified(fitting.subsets["train"], NOVELTY_IMAGES, fitting.seed)
        _, known = predictions_and_features(
            classifier, pixels_of(training), len(training), "fitting the OOD detector", progress
        )
        novelty, detector = fit_novelty(known, fitted.unchanged(fitted.features), _classes(fitting))
        classifier.ood_detector = read_ood_detector(novelty.to_json(), detector, fitting.name)
        drift = _drift(fitting)
        unfamiliar = is_out_of_distribution(fitted.features, classifier.ood_detector)
    scores = apply_temperature(fitted.probabilities, calibration.temperature)
    rule = review_rule(
        scores, fitted.truth, fitting.positive, fitting.target_sensitivity, fitting.review_budget, unfamiliar
    )
    if rule:
        sent = sent_to_review(scores, rule.review_below, unfamiliar)
        assert sent is not None
        rule = replace(rule, reviewed_unchanged=float(fitted.unchanged(sent).mean()))
    return Fitted(Decisions(calibration, rule, novelty), detector, drift)


def _drift(fitting: Fitting) -> dict[str, Any]:
    """The reference of the drift alarm, from runs of training images in the order of their files."""
    classifier, training = fitting.classifier, fitting.subsets["train"]
    assert classifier.ood_detector is not None
    runs = chosen_runs(training.labels)
    if not runs.size:
        return {}
    chosen = replace(training, rows=training.rows[runs.ravel()], labels=training.labels[runs.ravel()])
    probabilities, features = predictions_and_features(
        classifier, pixels_of(chosen), len(chosen), "fitting the drift alarm", fitting.progress
    )
    return fit_drift(
        np.stack([image_facts(pixels) for pixels in pixels_of(chosen)]),
        np.stack([coordinates(each, classifier.ood_detector) for each in features]),
        probabilities.argmax(axis=1),
        len(runs),
        probabilities.shape[1],
    )


def _classes(fitting: Fitting) -> int:
    """Number of labels that have images: a foreign model may know a thousand others."""
    return len(np.unique(fitting.subsets["train"].labels))


def assess(
    fitting: Fitting,
    fitted: Fitted,
    probabilities: NDArray[np.float32],
    features: NDArray[np.float32],
    subset: str,
) -> tuple[Metrics, ReliabilityReport]:
    """Metrics of one subset, with its reliability and review.

    Args:
        fitting: see `Fitting`.
        fitted: to the same model.
        probabilities: ``(images, labels)`` of the subset, not calibrated.
        features: pooled, ``(images, features)``.
        subset: its name.
    """
    split, truth = fitting.split, fitting.subsets[subset].labels
    detector = fitting.classifier.ood_detector
    unfamiliar = None if detector is None else is_out_of_distribution(features, detector)
    temperature = fitted.temperature if fitted.decisions.calibration else None
    report = reliability_report(probabilities, truth, fitting.positive, temperature, fitted.review_below, unfamiliar)
    calibrated = apply_temperature(probabilities, fitted.temperature)
    entries, positive = split.subset(subset), fitting.positive_labels
    return metrics_of(entries, split.labels, calibrated, positive, subset, split.level, fitting.seed), report
