from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import grainy_image, png
from numpy.typing import NDArray

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.calibration import review_reason
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.ood import OodDetector, distance, ood_score, read_ood_detector, roots
from edgeall.edge_runtime.pipeline import classify
from edgeall.edge_runtime.tools.novelty import CLEAN_SHARE, MARGIN, Novelty, fit_novelty, refit_novelty

FEATURES = 96


def drawn(seed: int, count: int, directions: int = 3) -> NDArray[np.float32]:
    """Positive features of ``count`` images that differ in a few directions and a little in all."""
    basis = np.random.default_rng(0).uniform(0, 1, (directions, FEATURES)) ** 4
    random = np.random.default_rng(seed)
    mixed = random.uniform(0.2, 1, (count, directions)) @ basis
    return np.maximum(mixed * (1 + random.normal(0, 0.05, mixed.shape)), 0).astype(np.float32)


def opened(fitted: tuple[Novelty, bytes]) -> OodDetector:
    return read_ood_detector(fitted[0].to_json(), fitted[1], "m")


@pytest.fixture(scope="module")
def fitted() -> tuple[Novelty, bytes]:
    return fit_novelty(drawn(1, 300), drawn(2, 400), classes=3)


def test_the_stated_share_of_validation_is_new(fitted: tuple[Novelty, bytes]) -> None:
    facts, content = fitted
    scores = distance(drawn(2, 400), opened((facts, content)))
    assert (scores > facts.threshold).mean() == pytest.approx(CLEAN_SHARE)
    assert facts.reviewed == pytest.approx(CLEAN_SHARE)
    assert facts.images == {"train": 300, "validation": 400}


def test_the_threshold_is_no_image_s_distance(fitted: tuple[Novelty, bytes]) -> None:
    """Processors differ in the last digits of a distance."""
    distances = distance(drawn(2, 400), opened(fitted)).astype(np.float64)
    apart = np.abs(distances / fitted[0].threshold - 1)
    assert 2e-6 < apart.min() < 2 * MARGIN


def test_others_of_the_kind_are_familiar_and_others_are_not(fitted: tuple[Novelty, bytes]) -> None:
    familiar = opened(fitted)
    assert np.mean([ood_score(one, familiar) > 1 for one in drawn(3, 300)]) < 2.5 * CLEAN_SHARE
    strange = np.random.default_rng(4).uniform(0, 1, (50, FEATURES)).astype(np.float32)
    assert all(ood_score(one, familiar) > 1 for one in strange)
    assert ood_score(np.zeros(FEATURES, np.float32), familiar) > 1, "a black frame may leave no feature at all"


def test_brightness_of_the_features_says_nothing(fitted: tuple[Novelty, bytes]) -> None:
    familiar, some = opened(fitted), drawn(5, 20)
    assert distance(some, familiar) == pytest.approx(distance(3 * some, familiar), abs=1e-6)


def test_roots_keep_signs_and_have_length_one() -> None:
    found = roots(np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float32))
    assert found[0] == pytest.approx(np.array([2, -3, 0]) / np.sqrt(13))
    assert not found[1].any()


def test_few_images_give_fewer_axes() -> None:
    facts, content = fit_novelty(drawn(1, 3), drawn(2, 5), classes=3)
    assert len(facts.scales) == 4
    assert len(content) == 4 * FEATURES


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0},
        {"threshold": "1"},
        {"scales": [1.0]},
        {"scales": "many"},
        {"scales": [1.0, 1.0, 1.0, 1.0, None]},
        {"features": 95},
        {"features": -96},
        {"features": None},
    ],
)
def test_nonsense_is_named(fitted: tuple[Novelty, bytes], change: dict[str, Any]) -> None:
    facts, content = fitted
    with pytest.raises(BundleError, match="novelty score is not what"):
        read_ood_detector(facts.to_json() | change, content, "m")
    for key in change:
        with pytest.raises(BundleError, match="novelty score is not what"):
            read_ood_detector({name: value for name, value in facts.to_json().items() if name != key}, content, "m")


def test_why_somebody_should_look(pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    manifest = open_bundle(pack_tiny("uint8", tmp_path / "m.tflite", decision={"review_below": 0.7})).manifest
    assert review_reason(manifest, 0.6, None) == review_reason(manifest, 0.6, 1.0) == "uncertain"
    assert review_reason(manifest, 0.6, 1.01) == review_reason(manifest, 0.9, 1.01) == "unfamiliar"
    assert review_reason(manifest, 0.7, 0.5) is None
    assert review_reason(None, 0.0, None) is None


def test_a_model_of_one_output_is_silent_about_it(tiny_bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png(grainy_image(1)))
    (found,) = classify(Classifier.open(tiny_bundle), [image])
    assert (found.novelty, found.reason, found.units) == (None, None, None)


def test_a_detector_of_another_laboratory_accepts_it() -> None:
    """Each image is judged without itself, so the threshold holds for others of the kind."""
    old = opened(fit_novelty(drawn(1, 300), drawn(2, 400), classes=3))
    elsewhere = np.random.default_rng(8).uniform(0, 1, (1, FEATURES)).astype(np.float32)
    site, fresh = (drawn(seed, 60) + elsewhere for seed in (5, 6))
    facts, content = refit_novelty(site, drawn(1, 12), classes=3)
    new = opened((facts, content))
    assert np.mean(distance(fresh, old) > old.threshold) > 0.9
    assert np.mean(distance(fresh, new) > new.threshold) < 0.1
    strange = np.random.default_rng(4).uniform(0, 1, (50, FEATURES)).astype(np.float32)
    assert np.mean(distance(strange, new) > new.threshold) > 0.9
    assert facts.images == {"site": 60, "home": 12}
