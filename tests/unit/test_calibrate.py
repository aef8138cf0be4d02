"""Temperature and review rule: fitted on one side, carried in the file, used where the model runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fixtures_models import manifest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.calibration import FLOOR, apply_temperature
from edgeall.edge_runtime.errors import BundleError, UsageError
from edgeall.edge_runtime.manifest import parse_manifest
from edgeall.edge_runtime.tools.decisions import (
    MARGIN,
    REVIEW_BUDGET,
    TEMPERATURES,
    fit_temperature,
    review_rule,
)
from edgeall.optimize.quantization.calibrate import calibration_of
from edgeall.train.evaluation.metrics import expected_calibration_error

QUIET = Progress(quiet=True)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _drawn(count: int, sharpened: float, seed: int = 0, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and truths drawn from them; then the logits are multiplied by ``sharpened``."""
    generator = np.random.default_rng(seed)
    logits = spread * generator.normal(size=(count, 4))
    honest = _softmax(logits)
    truth = np.array([generator.choice(4, p=row / row.sum()) for row in honest.astype(float)])
    return _softmax(logits * sharpened), truth


@pytest.mark.parametrize("sharpened", [0.5, 1.0, 1.5, 2.0])
def test_the_temperature_undoes_what_made_the_model_too_sure(sharpened: float) -> None:
    probabilities, truth = _drawn(4000, sharpened, spread=1.0)
    assert fit_temperature(probabilities, truth) == pytest.approx(sharpened, rel=0.12)


def test_calibration_helps_on_images_that_it_has_not_seen() -> None:
    fitted = calibration_of(*_drawn(2000, 3.0, seed=1))
    assert fitted.ece_after < 0.3 * fitted.ece_before
    probabilities, truth = _drawn(2000, 3.0, seed=2)
    right = probabilities.argmax(axis=1) == truth
    before = expected_calibration_error(probabilities.max(axis=1).astype(float), right)
    after = expected_calibration_error(
        apply_temperature(probabilities, fitted.temperature).max(axis=1).astype(float), right
    )
    assert after < 0.3 * before


def test_a_model_without_errors_is_not_made_certain() -> None:
    truth = np.arange(200) % 4
    probabilities = np.full((200, 4), 0.02, np.float32)
    probabilities[np.arange(200), truth] = 0.94
    temperature = fit_temperature(probabilities, truth)
    assert TEMPERATURES[0] < temperature < 1
    assert apply_temperature(probabilities, temperature).max() == pytest.approx(1 - 3 / 204, abs=1e-3)


def test_calibration_keeps_the_order_and_sums_to_one() -> None:
    units = np.random.default_rng(0).integers(0, 256, (50, 4))
    probabilities = (units / 256).astype(np.float32)
    for temperature in (0.3, 1.7, 5.0):
        found = apply_temperature(probabilities, temperature)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
        assert (found.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert apply_temperature(probabilities, 1.0) is probabilities
    assert np.isfinite(apply_temperature(np.array([1.0, 0, 0, 0], np.float32), 0.2)).all()
    assert np.isnan(apply_temperature(np.array([np.nan, 0.5], np.float32), 2.0)).any(), "not hidden"
    assert FLOOR < 1 / 256


def test_a_budget_is_kept_on_the_subset_it_was_set_on() -> None:
    probabilities, truth = _drawn(1000, 1.0)
    rule = review_rule(probabilities, truth, [1, 2, 3], None, 0.1)
    assert rule.reviewed == pytest.approx(0.1, abs=0.002) and rule.reviewed <= 0.1
    assert rule.accuracy_of_the_rest > (probabilities.argmax(axis=1) == truth).mean()


def test_without_a_word_there_is_a_budget_and_0_turns_it_off() -> None:
    probabilities, truth = _drawn(1000, 1.0)
    rule = review_rule(probabilities, truth, [], None, None)
    assert rule == review_rule(probabilities, truth, [], None, REVIEW_BUDGET)
    assert rule.rule == "review_budget" and 0 < rule.reviewed <= rule.target == REVIEW_BUDGET
    assert review_rule(probabilities, truth, [], None, 0) is None


def test_unfamiliar_images_are_sent_anyway_and_leave_the_budget_to_the_others() -> None:
    probabilities, truth = _drawn(1000, 1.0)
    strange = np.arange(1000) < 200
    rule = review_rule(probabilities, truth, [], None, 0.1, strange)
    sent = probabilities.max(axis=1).astype(float) < rule.review_below
    assert sent[~strange].sum() == 80
    assert rule.reviewed == pytest.approx(0.28)
    assert review_rule(probabilities, truth, [], None, 0.1, np.ones(1000, bool)).reviewed == 1.0


def test_a_sensitivity_counts_the_unfamiliar_as_found() -> None:
    probabilities, truth = _drawn(1000, 1.0)
    positive = [1, 2, 3]
    missed = np.isin(truth, positive) & ~np.isin(probabilities.argmax(axis=1), positive)
    assert review_rule(probabilities, truth, positive, 0.99, None).review_below > 0
    assert review_rule(probabilities, truth, positive, 0.99, None, missed).review_below == 0


@pytest.mark.parametrize(("sure", "below"), [(930, 0.9), (960, 255 / 256), (1000, 255 / 256)])
def test_a_model_without_errors_whose_outputs_are_at_the_end_of_8_bits(sure: int, below: float) -> None:
    """Of 1,000 all right, so many at 255/256: neither all of them nor more than the budget are sent."""
    top = np.r_[np.linspace(0.5, 0.89, 40), np.full(960 - min(sure, 960), 0.9), np.full(sure, 255 / 256)][-1000:]
    top = top.astype(np.float32)
    probabilities = np.stack([top, 1 - top], axis=1)
    rule = review_rule(probabilities, np.zeros(1000, np.int64), [], None, None)
    assert rule.review_below == pytest.approx(below, abs=2 * MARGIN)
    assert rule.reviewed == pytest.approx((top < np.float32(below)).mean()) and rule.reviewed <= 0.05
    assert rule.accuracy_of_the_rest == 1.0


@pytest.mark.parametrize("count", [1, 3, 19, 40])
def test_a_handful_of_images_gives_a_rule_within_the_budget(count: int) -> None:
    top = np.linspace(0.6, 0.99, count).astype(np.float32)
    rule = review_rule(np.stack([top, 1 - top], axis=1), np.zeros(count, np.int64), [], None, None)
    assert rule.reviewed <= 0.05
    wanted = pytest.approx(top[int(0.05 * count)], abs=2 * MARGIN)
    assert rule.review_below == wanted, "what is less sure than these is sent"


def test_copies_of_an_image_do_not_change_the_temperature() -> None:
    truth = np.arange(40) % 4
    probabilities = np.full((40, 4), 0.02, np.float32)
    probabilities[np.arange(40), truth] = 0.94
    once = fit_temperature(probabilities, truth)
    many, labels = np.tile(probabilities, (8, 1)), np.tile(truth, 8)
    assert fit_temperature(many, labels, images=40) == pytest.approx(once)
    assert fit_temperature(many, labels) < once


@pytest.mark.parametrize("target", [0.9, 0.98, 0.999])
def test_a_sensitivity_is_reached_with_as_little_review_as_possible(target: float) -> None:
    probabilities, truth = _drawn(1000, 1.0)
    positive = [1, 2, 3]

    def sensitivity(below: float) -> float:
        ill = np.isin(truth, positive)
        found = np.isin(probabilities.argmax(axis=1), positive) | (probabilities.max(axis=1).astype(float) < below)
        return float(found[ill].mean())

    below = review_rule(probabilities, truth, positive, target, None).review_below
    assert sensitivity(below) >= target > sensitivity(below - 2 * MARGIN)


@pytest.mark.parametrize(("sensitivity", "budget"), [(None, 0.1), (0.98, None)])
def test_the_last_digit_of_a_probability_sends_nothing_to_review(sensitivity: float | None, budget: float) -> None:
    """Integer outputs give many images the same probability, and processors differ in its last digit."""
    probabilities, truth = _drawn(1000, 1.0)
    calibrated = apply_temperature(np.round(probabilities * 256) / np.float32(256), 1.08)
    below = review_rule(calibrated, truth, [1, 2, 3], sensitivity, budget).review_below
    top = calibrated.max(axis=1)
    assert 0 < (top < below).mean() < 1
    for end in (np.float32(0), np.float32(1)):
        np.testing.assert_array_equal(np.nextafter(np.nextafter(top, end), end) < below, top < below)


def test_a_sensitivity_that_is_reached_already_sends_nothing_to_review() -> None:
    truth = np.array([0, 1, 2, 3])
    rule = review_rule(np.eye(4, dtype=np.float32), truth, [1, 2, 3], 0.9, None)
    assert (rule.review_below, rule.reviewed, rule.accuracy_of_the_rest) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("positive", "sensitivity", "budget", "message"),
    [
        ([1], 0.9, 0.1, "exclude each other"),
        ([1], 1.0, None, r"must be in \(0, 1\), got 1"),
        ([1], 0.0, None, r"must be in \(0, 1\), got 0"),
        ([1], None, 1.0, r"must be in \[0, 1\), got 1"),
        ([1], None, -0.1, r"must be in \[0, 1\), got -0.1"),
        ([1], None, float("nan"), r"must be in \[0, 1\), got nan"),
        ([], 0.9, None, "requires a positive class"),
    ],
)
def test_invalid_review_rules_are_refused(positive: Any, sensitivity: Any, budget: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        review_rule(np.eye(4, dtype=np.float32), np.arange(4), positive, sensitivity, budget)


@pytest.mark.parametrize("temperature", [0, -1, "warm", 1e9])
def test_a_temperature_that_cannot_be_is_refused(temperature: Any) -> None:
    document = json.loads(manifest(flatbuffer_sha256="0" * 64, flatbuffer_bytes=1).to_json())
    document["calibration"] = {"temperature": temperature}
    with pytest.raises(BundleError, match="temperature"):
        parse_manifest(json.dumps(document).encode(), "model.tflite")
