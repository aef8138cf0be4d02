"""The benchmark of a field's class from the field and from its cells: pooling, and the paired gain."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LABELS = ("a", "b")


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import field_cells

    for name in ("field_cells", "folds", "command"):
        monkeypatch.delitem(sys.modules, name)
    return field_cells


@pytest.fixture
def rows(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of one fold whose networks are not run: the field errs on a/2, its cells on a/4, and a/3 has no cell."""
    entries = [{"path": f"{label}/{n}.jpg", "label": label, "side": "test"} for label in LABELS for n in (1, 2, 3, 4)]
    entries += [{"path": f"{label}/50.jpg", "label": label, "side": "train"} for label in LABELS]
    entries.append({"path": "a/40.jpg", "label": "a", "side": "left out"})
    crops = {entry["path"]: [f"{entry['path']}-1.png", f"{entry['path']}-2.png"] for entry in entries}
    crops["a/3.jpg"] = []
    trained: list[tuple[object, ...]] = []

    def model(arguments: Namespace, run: Path, words: tuple[object, ...]) -> Path:
        run.mkdir(parents=True)
        (run / "split.json").write_text(json.dumps({"entries": entries}))
        trained.append(words)
        return run / "model.tflite"

    def probabilities(model: Path, images: dict[str, Path]) -> dict[str, dict[str, float]]:
        wrong = {"fields": {"a/2.jpg": 0.4}, "crops": {"a/4.jpg-1.png": 0.3, "a/4.jpg-2.png": 0.3}}[model.parent.name]
        right = {name: wrong.get(name, 0.9) for name in images}
        return {n: {n[0]: right[n], LABELS[n[0] == "a"]: 1 - right[n]} for n in images}

    (tmp_path / "cells").mkdir()
    monkeypatch.setattr(bench, "_model", model)
    monkeypatch.setattr(bench, "_probabilities", probabilities)
    found: list[dict[str, Any]] = bench._fold(Namespace(data=tmp_path, work=tmp_path, folds=3), crops, 1)
    assert trained[1] == ("--data", tmp_path / "cells" / "fold-1.csv", "--epochs-finetune", bench.SEEN // 4)
    return found


def test_crops_have_the_label_and_the_subset_of_their_field(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    table = (tmp_path / "cells" / "fold-1.csv").read_text().splitlines()
    assert table[0] == "path,label,side" and "a/50.jpg-1.png,a,train" in table and "b/1.jpg-2.png,b,test" in table
    assert not any("a/40.jpg" in line for line in table)


def test_the_verdicts_of_the_cells_are_pooled(bench: ModuleType, rows: list[dict[str, Any]]) -> None:
    by_path = {row["path"]: row for row in rows}
    assert len(rows) == 8
    assert [by_path["a/2.jpg"][way] for way in bench.WAYS] == ["b", "a", "a"]
    assert [by_path["a/4.jpg"][way] for way in bench.WAYS] == ["a", "b", "a"]
    assert [by_path["a/3.jpg"][way] for way in bench.WAYS] == ["a", None, "a"]


def test_the_gain_is_paired(bench: ModuleType, rows: list[dict[str, Any]]) -> None:
    assert bench.gain(rows, "both")[0] == pytest.approx(1 / 8)
    assert bench.gain(rows, "its cells")[0] == pytest.approx(-1 / 8)
    same = [{**row, "both": row["the field"]} for row in rows]
    assert bench.gain(same, "both") == (0, 0, 0)
    page = bench.report(rows, 3)
    assert "| both | 1.000 (1.000 to 1.000) | +0.125 (" in page and "; 1 without a whole cell:" in page
