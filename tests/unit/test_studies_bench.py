"""The comparisons of the studies: resumed step by step, and the page of their rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FAILING = "efficientnet_b0"


@pytest.fixture
def studies(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import studies

    monkeypatch.delitem(sys.modules, "studies")
    return studies


def figures(scheme: str, accuracy: float) -> dict[str, Any]:
    return {
        "model": "m",
        "scheme": scheme,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.02,
        "accuracy_high": accuracy + 0.01,
        "weighted_f1": accuracy,
        "sensitivity": None,
        "specificity": 0.9,
        "file_bytes": 600_000,
        "macs": 10_000_000,
        "latency_p50_ms": 1.5,
        "test_images": 390,
        "split_level": "block",
    }


@pytest.fixture
def program(studies: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for the installed program. The models of its `compare` commands, in order."""
    compared: list[str] = []

    def run(*words: object) -> SimpleNamespace:
        given = dict(zip(map(str, words[1::2]), words[2::2], strict=False))
        name, out = str(given["--models"]), Path(str(given["--out"]))
        compared.append(f"{name} {'none' if given['--weights'] == 'none' else 'imagenet'}")
        if name == FAILING:
            return SimpleNamespace(status=1)
        out.mkdir(parents=True)
        model = {
            "input": {"width": 96},
            "training_s": 60.0,
            "by_side": {"validation": {"accuracy": 0.8}},
            "schemes": {"ptq-int8": {"files": ["a.tflite"]}},
        }
        found = {"rows": [figures("ptq-int8", 0.9)], "models": {"m": model}, "source_revision": "abc"}
        found["failures"] = [{"model": "m", "scheme": "qat-int8", "error": "no such layer"}]
        (out / "compare.json").write_text(json.dumps(found))
        return SimpleNamespace(status=1)  # one scheme failed

    monkeypatch.setattr(studies.command, "run", run)
    robustness = {"robustness": {"mean": 0.85, "worst": 0.4}}
    monkeypatch.setattr(studies.command, "answer", lambda *words: robustness)
    return compared


def run_main(studies: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> str:
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "mobilenet_v2_0.35_no_top.h5").touch()
    typed = ["studies.py", str(folder), "--weights", str(weights), "--work", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", [*typed, "--out", str(folder), *words])
    assert studies.main() == 0
    return (folder / "studies.md").read_text()


def test_every_step_is_run_once_and_failures_are_named(
    studies: ModuleType, program: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = run_main(studies, monkeypatch, tmp_path, "--only", "backbones")
    assert program[:3] == ["basic_cnn none", "mobilenet_v2:0.35 none", "mobilenet_v2:0.35 imagenet"]
    assert len(program) == 14 and "nasnet_large none" in program
    assert f"backbones-{FAILING} failed: exit status 1" in page
    assert "backbones-basic_cnn qat-int8 failed: no such layer" in page
    assert "| backbones | basic_cnn | nothing | 96 | ptq-int8 | 90.0 (88.0 to 91.0) |" in page
    assert "85.0, 40.0" in page
    assert "Left out so far: E-mobilenet_v2-1.0, " in page
    run_main(studies, monkeypatch, tmp_path, "--only", "backbones")
    assert len(program) == 14, "nothing is run twice"


def test_an_interrupted_study_goes_on_and_keeps_to_its_hours(
    studies: ModuleType, program: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"step": "backbones-basic_cnn", "part": "backbones", "model": "basic_cnn", "pretrained": False}
    row |= {"day": "2026-11-30", "scheme": None, "failure": "stopped", "seconds": 3600.0}
    (tmp_path / "studies.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(studies, "report", lambda rows, planned: str(len(rows)))
    (tmp_path / "studies.md").write_text("")
    run_main(studies, monkeypatch, tmp_path, "--hours", "1")
    assert program == []
    run_main(studies, monkeypatch, tmp_path, "--only", "E", "--hours", "2")
    assert [name.split()[0] for name in program] == list(studies.STUDIES["E"].figure)
    run_main(studies, monkeypatch, tmp_path, "--only", "B-basic_cnn", "--hours", "2")
    assert [name.split()[0] for name in program[-1:]] == ["basic_cnn"] and len(program) == 5


def test_the_test_subset_does_not_choose_what_stands_beside_a_study(studies: ModuleType) -> None:
    shared = {"step": "s", "part": "backbones", "pretrained": False, "day": "2026-11-30", "cpu": "x"}
    shared |= {"input_px": 96, "training_s": 1.0, "robust_mean": None, "robust_worst": None, "seconds": 1.0}
    chosen = {**figures("ptq-int8", 0.90), **shared, "model": "chosen", "validation_accuracy": 0.9}
    lucky = {**figures("ptq-int8", 0.99), **shared, "model": "lucky", "validation_accuracy": 0.8}
    large = {**chosen, "model": "large", "file_bytes": 700_001, "validation_accuracy": 1.0}
    equal = {**chosen, "model": "equal", "accuracy": 0.8}
    page = studies.report([chosen, lucky, large, equal], [])
    assert "| A | 98.50 | 90.0 (chosen ptq-int8, part backbones); 80.0 (equal ptq-int8, part backbones) |" in page
    assert "| C | 82.75 | not measured |" in page
