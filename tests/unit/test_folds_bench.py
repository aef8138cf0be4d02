"""The pooled figures of the contiguous folds benchmark."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def folds(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import folds

    monkeypatch.delitem(sys.modules, "folds")
    return folds


def answers(wrong: dict[str, set[int]]) -> list[dict[str, Any]]:
    """A hundred images of each class, two folds, those of these numbers called the other class."""
    return [
        {
            "path": f"{label}/{number}.jpg",
            "label": label,
            "predicted": {"a": "b", "b": "a"}[label] if number in wrong.get(label, set()) else label,
            "probability": 0.9,
            "review": number % 10 == 0,
            "fold": 1 if number <= 50 else 2,
        }
        for label in "ab"
        for number in range(1, 101)
    ]


def test_balanced_accuracy_is_the_mean_recall(folds: ModuleType) -> None:
    assert folds.balanced_accuracy(list("aaaab"), [True, True, True, False, False]) == pytest.approx(0.375)


def test_the_interval_knows_that_neighbours_fail_together(folds: ModuleType) -> None:
    """Twenty errors in a row, which may be one slide, say less than twenty that are spread."""
    together = folds.block_interval(answers({"a": set(range(1, 21)), "b": set(range(1, 21))}), 2000)
    spread = folds.block_interval(answers({"a": set(range(1, 101, 5)), "b": set(range(1, 101, 5))}), 2000)
    assert together[0] < spread[0] < 0.8 < spread[1] < together[1]
    assert folds.block_interval(answers({}), 100) == (1.0, 1.0)


def test_the_page_stands_beside_the_reference(folds: ModuleType) -> None:
    split = {"embargo": 37, "train": 90, "validation": 10, "test": 100, "left_out": {"embargo": 3, "duplicate": 1}}
    robust = {"images": 100, "mean": 0.9, "worst": 0.5, "worst_at": "x"}
    facts = [
        {
            "fold": i,
            "split": split,
            "train_s": 60.0,
            "file_bytes": 1000,
            "scheme": "ptq-int8",
            "robustness": {**robust, "worst": 0.5 + i / 10},
        }
        for i in (1, 2)
    ]
    arguments = Namespace(alpha=0.35, folds=2, robustness=True, scheme="qat-int8")
    page = folds.report(arguments, answers({"a": {1, 10}}), facts)
    assert "| ours, int8 | 0.990 |" in page
    assert "| reference | 0.978 | 0.967 to 0.988 |" in page
    assert "2 of 200 wrong, 1 of them not sent to review; 20 images sent to review." in page
    assert "| 1 | 90 | 10 | 100 | 4 | 0.980 | 1.0 | 1,000 | 0.900 | 0.600 |" in page
    assert "mean 0.900 of all folds; worst cell of any fold 0.600" in page
