"""Calibration, risk-coverage and review: by hand, compared with scikit-learn, and in the pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from edgeall.console.progress import Progress
from edgeall.edge_runtime.calibration import apply_temperature
from edgeall.train.evaluation.metrics import ECE_BINS, compute_metrics
from edgeall.train.evaluation.reliability import POINTS, reliability, reliability_report, review, risk_coverage
from edgeall.train.evaluation.text import metrics_text
from edgeall.train.reports.model_report import write_model_report

QUIET = Progress(quiet=True)


def drawn(count: int, seed: int = 0, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = generator.dirichlet(np.ones(3) * 0.6, count).astype(np.float32)
    truth = np.array([generator.choice(3, p=row / row.sum()) for row in rows.astype(float)])
    return (np.round(rows * levels) / levels if levels else rows).astype(np.float32), truth


def test_bins_are_those_of_scikit_learn_and_give_the_same_error_as_the_metrics() -> None:
    rows, truth = drawn(400)
    found = reliability(rows, truth)
    right, sure = calibration_curve(rows.argmax(axis=1) == truth, rows.max(axis=1), n_bins=ECE_BINS)
    assert [row.accuracy for row in found.bins] == pytest.approx(list(right))
    assert [row.confidence for row in found.bins] == pytest.approx(list(sure))
    assert sum(row.images for row in found.bins) == 400
    assert all(row.low < row.confidence <= row.high for row in found.bins)
    metrics = compute_metrics(("a", "b", "c"), truth, rows, (), split="test", split_level="image")
    assert (found.ece, found.brier) == pytest.approx((metrics.ece, metrics.brier))
    gaps = sum(row.images * abs(row.accuracy - row.confidence) for row in found.bins) / 400
    assert found.ece == pytest.approx(gaps)


def test_risk_and_coverage_by_hand() -> None:
    # Sureness 0.9 right, 0.8 right and wrong (a tie), 0.6 wrong, 0.5 right.
    rows = np.array([[0.8, 0.2], [0.9, 0.1], [0.5, 0.45], [0.8, 0.2], [0.6, 0.4]], np.float32)
    found = risk_coverage(rows, np.array([0, 0, 0, 1, 1]))
    assert found.coverage == [0.2, 0.6, 0.8, 1.0]
    assert found.risk == pytest.approx([0.0, 1 / 3, 0.5, 0.4])
    assert found.threshold == pytest.approx([0.9, 0.8, 0.6, 0.5])
    assert found.aurc == pytest.approx((0 + 1 / 3 + 1 / 3 + 0.5 + 0.4) / 5)
    assert found.error_at == pytest.approx({"1": 0.4, "0.99": 0.4, "0.95": 0.4, "0.9": 0.4, "0.8": 0.5})


def test_area_is_the_mean_over_the_images_and_orders_of_equal_sureness_do_not_matter() -> None:
    rows, truth = drawn(900, levels=32)
    sure, wrong = rows.max(axis=1), rows.argmax(axis=1) != truth
    wanted = np.mean([wrong[sure >= threshold].mean() for threshold in sure])
    shuffled = np.random.default_rng(5).permutation(900)
    assert risk_coverage(rows, truth).aurc == pytest.approx(wanted)
    assert risk_coverage(rows[shuffled], truth[shuffled]) == risk_coverage(rows, truth)
    many = risk_coverage(*drawn(3000))
    assert len(many.coverage) == POINTS and many.coverage[-1] == 1.0
    rows, truth = drawn(3000)
    surest = np.argsort(-rows.max(axis=1))[:2700]
    assert many.error_at["0.9"] == pytest.approx((rows.argmax(axis=1) != truth)[surest].mean())


def test_a_review_rule_is_counted_on_the_images_given() -> None:
    rows = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.6, 0.4], [0.45, 0.55]], np.float32)
    truth = np.array([0, 1, 1, 1, 0])
    found = review(rows, truth, [1], below=0.58)
    assert found is not None and found.to_json() == {
        "below": 0.58,
        "reviewed": pytest.approx(0.4),
        "unfamiliar": None,
        "wrong": 3,
        "wrong_reviewed": 2,
        "wrong_not_reviewed": pytest.approx(0.2),
        "accuracy_of_the_rest": pytest.approx(2 / 3),
        "sensitivity_with_review": pytest.approx(2 / 3),
    }
    assert review(rows, truth, [1], below=1.0).accuracy_of_the_rest is None
    assert review(rows, truth, [], below=0.5).sensitivity_with_review is None
    assert review(rows, truth, [1], below=None) is None
    new = np.array([True, False, False, False, False])  # a sure one
    both, alone = (review(rows, truth, [1], below, new) for below in (0.58, None))
    assert (both.reviewed, both.unfamiliar, both.accuracy_of_the_rest) == pytest.approx((0.6, 0.2, 0.5))
    assert (alone.reviewed, alone.below, alone.accuracy_of_the_rest) == pytest.approx((0.2, None, 0.25))


def test_the_report_uses_calibrated_probabilities_and_shows_both() -> None:
    rows, truth = drawn(500)
    found = reliability_report(rows, truth, [1, 2], 2.5, 0.6)
    assert found.reliability.before == reliability(rows, truth)
    assert found.reliability.after == reliability(apply_temperature(rows, 2.5), truth)
    assert found.review.reviewed == pytest.approx((apply_temperature(rows, 2.5).max(axis=1) < 0.6).mean())
    alone = reliability_report(rows, truth, [], None, None)
    assert (alone.reliability.after, alone.review) == (None, None)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


@pytest.mark.parametrize(("temperature", "below"), [(2.5, 0.6), (None, None), (1.5, 1.0)])
def test_the_page_shows_both_diagrams_and_where_the_threshold_lies(
    tmp_path: Path, temperature: float | None, below: float | None
) -> None:
    rows, truth = drawn(300)
    metrics = compute_metrics(("a", "b", "<c>"), truth, rows, (), split="test", split_level="image")
    report = reliability_report(rows, truth, [], temperature, below)
    text = metrics_text(metrics, report)
    assert ("sent to review" in text) == (below is not None)
    assert ("none; calibration error" in text) == (temperature is None)
    page = tmp_path / "page.html"
    write_model_report(page, "a <model>", [("Figures", text)], report, None, synthetic=True)
    html = page.read_text(encoding="utf-8")
    assert html.count("research use only, not a diagnosis") == 2
    assert "SYNTHETIC" in html and "a &lt;model&gt;" in html and "<c>" not in html
    assert html.count('src="data:image/png;base64,') == 2
    assert "http://" not in html and "https://" not in html and "<script" not in html
    assert ("after calibration error" in html) == (temperature is not None)
