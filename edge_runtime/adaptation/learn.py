"""What a packed classifier learns from the images of a site: a new last layer, and decisions that fit there.

Nothing is written here, see `edgeall.edge_runtime.adaptation.adapt`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..calibration import FLOOR, apply_temperature
from ..classifier import Classifier
from ..errors import BundleError, DataError
from ..flatbuffer import read_graph
from ..manifest import Manifest
from ..messages import message
from ..ood import OodDetector, is_out_of_distribution, read_ood_detector
from ..tools.decisions import Calibration, Decisions, fit_temperature, review_rule
from ..tools.novelty import CLEAN_SHARE, Novelty, refit_novelty
from .drift import site_drift
from .fit import Examples, Refit, refit
from .head import Layer, as_read, computed, find_layer, patched, read_head
from .site import Site
from .verdict import LEVEL, Figures, Gain, figures, gain

LEAST_PER_CLASS = 5
"""A class with fewer labelled images keeps its row of the last layer."""
LEAST_LABELLED = 10
"""Labelled images from which the OOD detector moves."""
LEAST_UNLABELLED = 20
"""Images without labels that an adaptation needs."""
MARGIN = 1.1
"""Range of the layer's output, as a multiple of that on the images that were seen."""


@dataclass(frozen=True)
class Labelled:
    """A refitted last layer. What it is at the site is judged by images that were left out of the fit.

    Attributes:
        per_class: number of images by label.
        left_alone: labels whose row of the layer stays.
        strength: of the regularization.
        folds: parts that were left out in turn; the number of images for leave-one-out.
        rounded: images of the site that get another label because the layer is rounded to integers.
        before: figures of the old model at the site.
        after: figures at the site, each image from a layer that was fitted without it.
        gained: their comparison.
        home: figures of the exemplars of the home laboratory, before and after; None if the file has none.
        answers: class index of each image by the old model, and by a layer that was fitted without it; ``(2, n)``.
    """

    per_class: dict[str, int]
    left_alone: tuple[str, ...]
    strength: float
    folds: int
    rounded: int
    before: Figures
    after: Figures
    gained: Gain
    home: tuple[Figures, ...] | None
    answers: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """The fields as they are in the lineage, without the single images."""
        home = self.home and dict(zip(("before", "after"), (part.to_json() for part in self.home), strict=True))
        return {
            "per_class": self.per_class,
            "left_alone": list(self.left_alone),
            "strength": self.strength,
            "folds": self.folds,
            "rounded": self.rounded,
            "site": {"before": self.before.to_json(), "after": self.after.to_json()},
            "gain": self.gained.to_json(),
            "home": home,
        }


@dataclass(frozen=True)
class Learned:
    """What was learned from a site.

    Attributes:
        flatbuffer: the model with its new last layer; the old bytes if the images have no labels.
        labelled: the new layer; None if the images have no labels.
        decisions: sections of the manifest; those that stay are None.
        detector: the stored OOD detector; None if it stays.
        unfamiliar: shares of the site's images above the thresholds of the old and the new OOD detector, each image
            from a detector that was fitted without it; None if the detector stays.
        is_better: whether the site gains more than by chance.
        drift: reference of the drift alarm, see `edgeall.edge_runtime.adaptation.drift.site_drift`.
    """

    flatbuffer: bytes
    labelled: Labelled | None
    decisions: Decisions
    detector: bytes | None
    unfamiliar: tuple[float, float] | None
    is_better: bool
    drift: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> dict[str, Any]:
        """The sections of the manifest that change."""
        found = self.decisions.to_json()
        return {name: found[name] for name in ("calibration", "novelty", "decision") if found[name]}


def learn(classifier: Classifier, site: Site) -> Learned:
    """Learn from the images of a site.

    Labelled images refit the last layer, temperature, review threshold and OOD detector. Unlabelled ones refit the OOD
    detector, which consists of the statistics of the features.

    Args:
        classifier: a packed model with a second output.
        site: from `edgeall.edge_runtime.adaptation.site.read_site`.

    Raises:
        DataError: too few images, or of too few classes.
        BundleError: the model's last layer cannot be refitted, or it has no OOD detector for unlabelled images.
    """
    bundle = classifier.bundle
    assert bundle is not None and bundle.manifest is not None, "only a packed model learns"
    manifest = bundle.manifest
    if site.truth is None:
        return _learn_unlabelled(bundle, manifest, site)
    layer = find_layer(bundle.graph, bundle.path)
    old, features = read_head(bundle.flatbuffer, layer), as_read(site.features, layer)
    check_agreement(bundle, layer, site.features, site.probabilities)
    counts = np.bincount(site.truth, minlength=len(manifest.labels))
    free = counts >= LEAST_PER_CLASS
    if free.sum() < 2:
        found = ", ".join(f"{label} {count}" for label, count in zip(manifest.labels, counts, strict=True))
        text = message(
            "two classes must have at least {least} labelled images ({found})", least=LEAST_PER_CLASS, found=found
        )
        raise DataError(text, hint="label more images")
    fitted = refit(old, Examples(features, site.truth), free)
    seen = [features]
    if bundle.exemplars is not None:
        seen.append(as_read(bundle.exemplars.features, layer))
    flatbuffer = _flatbuffer(bundle, layer, fitted, free, np.vstack(seen))
    novelty, detector, unfamiliar = None, None, None
    if bundle.ood_detector is not None and len(site) >= LEAST_LABELLED:
        novelty, detector, unfamiliar = _refit_detector(bundle, site.features)
    labelled = _judged(bundle, site, fitted, flatbuffer)
    in_use = _refitted(novelty, detector) or classifier.ood_detector
    decisions = _decisions(manifest, classifier, site, fitted, novelty, in_use)
    layer = find_layer(read_graph(flatbuffer, bundle.path), bundle.path)
    drift = site_drift(bundle, site, computed(flatbuffer, layer, features).argmax(axis=1), in_use)
    return Learned(flatbuffer, labelled, decisions, detector, unfamiliar, labelled.gained.is_better, drift)


def check_agreement(
    bundle: Bundle, layer: Layer, features: NDArray[np.float32], probabilities: NDArray[np.float32]
) -> None:
    """Raise BundleError unless the layer gives the model's probabilities for its features.

    Args:
        features: pooled, ``(n, features)``.
        probabilities: of the same images, as the interpreter gives them, ``(n, labels)``.
    """
    found = np.inf
    if features.shape[1] == layer.weights.shape[1]:
        outputs = computed(bundle.flatbuffer, layer, as_read(features, layer))
        found = float(np.abs(softmax(outputs) - probabilities).max())
    # An output that is one step off changes a probability by a quarter of the step; two may be.
    allowed = 0.05 if layer.logits.type != "INT8" else layer.logits.scale[0] / 2 + 2 * FLOOR
    if not found <= allowed:
        text = message(
            "{file}: its second output is not what its last layer reads (difference {difference})",
            file=bundle.path,
            difference=f"{found:.3g}",
        )
        raise BundleError(text, hint="quantize the run again")


def softmax(outputs: NDArray[np.float64]) -> NDArray[np.float32]:
    """Probabilities ``(n, labels)`` of outputs of the last layer."""
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _learn_unlabelled(bundle: Bundle, manifest: Manifest, site: Site) -> Learned:
    if bundle.ood_detector is None:
        raise BundleError(
            f"{bundle.path}: has no out-of-distribution detector, so it learns nothing from unlabelled images",
            hint="quantize the run again, or give labelled images",
        )
    if len(site) < LEAST_UNLABELLED:
        raise DataError(
            f"{len(site)} unlabelled images, at least {LEAST_UNLABELLED} are needed", hint="give more images"
        )
    novelty, detector, unfamiliar = _refit_detector(bundle, site.features)
    flagged = round(unfamiliar[0] * len(site))
    is_better = _tail(flagged, len(site), float(manifest.novelty.get("target", CLEAN_SHARE))) <= LEVEL
    drift = site_drift(bundle, site, site.probabilities.argmax(axis=1), _refitted(novelty, detector))
    return Learned(bundle.flatbuffer, None, Decisions(novelty=novelty), detector, unfamiliar, is_better, drift)


def _refitted(novelty: Novelty | None, detector: bytes | None) -> OodDetector | None:
    """The detector of the adapted model; None where the old one stays."""
    return None if novelty is None or detector is None else read_ood_detector(novelty.to_json(), detector, "novelty")


def _flatbuffer(
    bundle: Bundle, layer: Layer, fitted: Refit, free: NDArray[np.bool_], features: NDArray[np.float64]
) -> bytes:
    """The model with the new layer, whose output has room for what these features give."""
    outputs = MARGIN * fitted.head.logits(features)
    return patched(bundle.flatbuffer, layer, fitted.head, free, (float(outputs.min()), float(outputs.max())))


def _refit_detector(bundle: Bundle, features: NDArray[np.float32]) -> tuple[Novelty, bytes, tuple[float, float]]:
    """The manifest's ``novelty``, the stored detector, and `Learned.unfamiliar`."""
    assert bundle.ood_detector is not None and bundle.manifest is not None
    home = features[:0] if bundle.exemplars is None else bundle.exemplars.features
    novelty, detector = refit_novelty(features, home, len(bundle.manifest.labels))
    before = float(is_out_of_distribution(features, bundle.ood_detector).mean())
    return novelty, detector, (before, novelty.reviewed)


def _judged(bundle: Bundle, site: Site, fitted: Refit, flatbuffer: bytes) -> Labelled:
    """The figures of the old layer and of the new one, which ``flatbuffer`` holds."""
    manifest, exemplars = bundle.manifest, bundle.exemplars
    assert manifest is not None and site.truth is not None
    labels, truth = manifest.labels, site.truth
    counts = np.bincount(truth, minlength=len(labels))
    old, new = (find_layer(graph, bundle.path) for graph in (bundle.graph, read_graph(flatbuffer, bundle.path)))
    before, after = site.probabilities.argmax(axis=1), fitted.left_out.argmax(axis=1)
    home = None
    if exemplars is not None:
        read = as_read(exemplars.features, old)
        found = computed(bundle.flatbuffer, old, read), computed(flatbuffer, new, read)
        home = tuple(figures(outputs.argmax(axis=1), exemplars.truth, labels) for outputs in found)
    read = as_read(site.features, old)
    exact, rounded = fitted.head.logits(read).argmax(axis=1), computed(flatbuffer, new, read).argmax(axis=1)
    return Labelled(
        per_class={label: int(count) for label, count in zip(labels, counts, strict=True)},
        left_alone=tuple(label for label, n in zip(labels, counts, strict=True) if n < LEAST_PER_CLASS),
        strength=fitted.strength,
        folds=fitted.folds,
        rounded=int((exact != rounded).sum()),
        before=figures(before, truth, labels),
        after=figures(after, truth, labels),
        gained=gain(before, after, truth),
        home=home,
        answers=np.stack([before, after]).astype(np.int64),
    )


def _decisions(
    manifest: Manifest,
    classifier: Classifier,
    site: Site,
    fitted: Refit,
    novelty: Novelty | None,
    detector: OodDetector | None,
) -> Decisions:
    """Temperature and review threshold from the images that were left out; the rule is that of the old model."""
    assert site.truth is not None
    probabilities = softmax(fitted.left_out)
    scale = classifier.model.output.scale
    if scale > 0:  # as an integer model gives them
        probabilities = np.asarray(np.rint(probabilities / scale) * scale, np.float32)
    temperature = fit_temperature(probabilities, site.truth)
    rule = None
    if manifest.decision:
        by_sensitivity = manifest.decision.get("rule") == "target_sensitivity"
        target = manifest.decision.get("target")
        rule = review_rule(
            apply_temperature(probabilities, temperature),
            site.truth,
            [manifest.labels.index(label) for label in manifest.positive_labels],
            target if by_sensitivity else None,
            None if by_sensitivity else target,
            None if detector is None else is_out_of_distribution(site.features, detector),
        )
    return Decisions(Calibration(temperature, "site", len(site)), rule, novelty)


def _tail(hits: int, images: int, share: float) -> float:
    """Probability of at least ``hits`` among ``images`` if each has the probability ``share``."""

    def log_probability(count: int) -> float:
        ways = math.lgamma(images + 1) - math.lgamma(count + 1) - math.lgamma(images - count + 1)
        return ways + count * math.log(share) + (images - count) * math.log1p(-share)

    return 1 - sum(math.exp(log_probability(count)) for count in range(hits))
