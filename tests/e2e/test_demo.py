"""`make demo`'s own work, which takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import binomtest

from edgeall.console.progress import Progress
from edgeall.optimize import demo as module
from edgeall.optimize.demo import SCHEMES, demo


def test_the_demo_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step, with too few images and epochs to learn anything, and a network that is made in seconds."""
    monkeypatch.setattr(module, "NETWORK", {"model": "basic_cnn", "input_size": 32})
    monkeypatch.setattr(module, "BENCH_S", 0.1)
    result = demo(tmp_path, Progress(quiet=True), images=128, epochs=1)
    assert [row.scheme for row in result.rows] == list(SCHEMES)
    assert result.split_level == "subject"
    assert all(Path(getattr(result, key)).exists() for key in ("report", "model"))


@pytest.mark.slow
def test_the_demo_ends_with_models_that_work(tmp_path: Path) -> None:
    result = demo(tmp_path, Progress(quiet=True))
    rows = {row.scheme: row for row in result.rows}
    assert tuple(rows) == SCHEMES
    for row in rows.values():
        right = round(row.accuracy * result.test_images)
        assert binomtest(right, result.test_images, 0.25, "greater").pvalue < 1e-3, "it has learnt something"
        assert row.drop_points == pytest.approx(100 * (result.float_accuracy - row.accuracy))
    assert rows["qat-int8"].file_bytes < 0.5 * rows["float32"].file_bytes
    assert Path(result.report).exists()
