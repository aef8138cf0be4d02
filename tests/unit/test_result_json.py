"""The JSON of every result is what it was when results were dictionaries, key for key and in order.

The files in ``golden/`` were written by the code before that change. `make_figures` made ``figures.json``, and
`make_masks` those entries of ``masks.json`` that it returns. ``averages`` was added since.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.results import Result, from_json
from edgeall.edge_runtime.results import plain as as_plain
from edgeall.edge_runtime.tools.bench_result import BenchResult
from edgeall.edge_runtime.tools.compare_bench import BenchComparison, compare_text
from edgeall.models.listing import listing, models_text
from edgeall.optimize.experiments.compare_result import Comparison
from edgeall.optimize.quantization.result import QuantizationResult, SegmentationResult
from edgeall.optimize.quantization.summary import quantize_text
from edgeall.train.data.audit import AuditReport, audit
from edgeall.train.data.listing import list_data
from edgeall.train.data.split import SplitEntry
from edgeall.train.data.synth import synthesize
from edgeall.train.evaluation.against import paired_comparison
from edgeall.train.evaluation.mcnemar import mcnemar
from edgeall.train.evaluation.metrics import compute_metrics
from edgeall.train.evaluation.reliability import reliability_report
from edgeall.train.evaluation.robustness import _summary
from edgeall.train.run_info import read_run
from edgeall.train.segmentation.assess import Score, figures
from edgeall.train.segmentation.results import MaskEvaluation, MaskMetrics
from edgeall.train.segmentation.robustness import summary

GOLDEN = Path(__file__).with_name("golden")
LABELS = ("Benign", "Early", "Pro")


def make_figures() -> dict[str, Any]:
    """Results of fixed predictions: with and without subjects, positive classes, calibration and review."""
    generator = np.random.default_rng(7)
    rows = generator.dirichlet(np.ones(3), 60).astype(np.float32)
    truth = np.array([generator.choice(3, p=row / row.sum()) for row in rows.astype(float)])
    subjects = [f"p{number // 4}{label}" for number, label in enumerate(truth)]
    mixed = [f"p{number % 2}" for number in range(60)]
    cells = generator.dirichlet(np.ones(3), (2, 5, 60))
    entries = [SplitEntry(f"{n}.png", LABELS[label], subjects[n], "ab", "test") for n, label in enumerate(truth)]
    words = {"split": "test", "split_level": "subject"}
    return {
        "by_image": compute_metrics(LABELS, truth, rows, LABELS[1:], **words),
        "by_subject": compute_metrics(LABELS, truth, rows, LABELS[1:], **words, subjects=subjects),
        "mixed_subjects": compute_metrics(LABELS, truth, rows, (), **words, subjects=mixed),
        "calibrated": reliability_report(rows, truth, [1, 2], 1.5, 0.6, rows[:, 0] > 0.9),
        "uncalibrated": reliability_report(rows, truth, [1, 2]),
        "robustness": _summary(("jpeg", "blur"), truth, cells, cells.max(axis=-1) < 0.5),
        "robustness_without_review": _summary(("jpeg",), truth, cells[:1], None),
        "against": paired_comparison(Path("other.tflite"), entries, LABELS, rows, rows[::-1], 0),
        "mcnemar": mcnemar(rows[:, 0] > 0.5, rows[:, 1] > 0.5),
    }


def same(found: Any, golden: Any, where: str = "") -> None:
    """Equal values (floats of another processor may differ in the last digits), and the same keys in the same order."""
    if isinstance(golden, dict):
        assert isinstance(found, dict) and list(found) == list(golden), where
        for key in golden:
            same(found[key], golden[key], f"{where}.{key}")
    elif isinstance(golden, list):
        assert isinstance(found, list) and len(found) == len(golden), where
        for number, item in enumerate(golden):
            same(found[number], item, f"{where}[{number}]")
    else:
        assert type(found) is type(golden), where
        assert found == (pytest.approx(golden, rel=1e-6, abs=1e-9) if isinstance(golden, float) else golden), where


def make_scores() -> list[Score]:
    """Drawn figures of eight images of two laboratories."""
    generator = np.random.default_rng(11)
    scores = []
    for number in range(8):
        dice = generator.uniform(0.5, 1, 3).tolist()
        pixels = generator.integers(0, 500, 9) * (generator.random(9) > 0.1)
        cells, found = (int(count) for count in generator.integers(1, 9, 2))
        matched = max(0, min(cells, found) - number % 2)
        scores.append(
            Score(
                f"{number}.png",
                "AB"[number % 2],
                *dice,
                iou_background=float(generator.random()),
                nc_error=None if number == 3 else 0.01 * number,
                red_cell_octaves=0.1 * number - 0.3 if number < 4 else None,
                cells=cells,
                found=found,
                matched=matched,
                overlap=0.8 * matched,
                aji=None if number == 5 else 0.1 * number,
                nucleus_outline_um=None if number == 3 else 0.2 + 0.01 * number,
                cell_outline_um=0.3 + 0.01 * number if number < 4 else None,
                pixels=tuple(pixels.tolist()),
            )
        )
    return scores


def make_masks() -> dict[str, Any]:
    """Figures of segmentation: several images, one, and one without a cell; and the robustness of drawn Dice."""
    scores = make_scores()
    none = {"nc_error": None, "red_cell_octaves": None, "cells": 0, "found": 0, "matched": 0, "overlap": 0.0}
    none |= {"aji": None, "nucleus_outline_um": None, "cell_outline_um": None}
    empty = replace(scores[0], **none, pixels=(9, *[0] * 8))
    dice = np.random.default_rng(5).uniform(0.3, 1, 20)
    # Drawn image by image, while the summary has one row for each corruption.
    return {
        "figures": figures(scores, "test", "laboratory", 0),
        "figures_of_one": figures(scores[3:4], "all", "none", 0),
        "figures_without_cells": figures([empty], "test", "image", 0),
        "robustness": summary(("jpeg", "underexposed"), np.moveaxis(dice.reshape(2, 2, 5), 0, 2)),
    }


def make_data(folder: Path) -> dict[str, Any]:
    """Listings and audits of drawn data sets: a copy with another label, a broken file, one class, few images."""
    quiet = Progress(quiet=True)
    synthesize(folder / "fields", 32, seed=3, size=64)
    first = min((folder / "fields" / "Benign").glob("*.*"))
    shutil.copy(first, folder / "fields" / "Pro" / f"copy{first.suffix}")
    (folder / "fields" / "Pro" / "broken.png").write_bytes(b"no")
    shutil.copytree(folder / "fields", folder / "one")
    for name in ("Benign", "Early", "Pre"):
        shutil.rmtree(folder / "one" / name)
    synthesize(folder / "cells", 48, seed=2, size=64, layout="cnmc")
    listed = {name: list_data(folder / name, quiet) for name in ("fields", "one", "cells")}
    return listed | {"audit_few": audit(folder / "fields", quiet).report}


def plain(value: Any) -> Any:
    return value.to_json() if hasattr(value, "to_json") else {key: plain(item) for key, item in value.items()}


def test_a_run_that_is_read_and_written_again_is_the_same() -> None:
    runs = json.loads((GOLDEN / "runs.json").read_text())
    assert set(runs) == {"run", "run_cells", "run_student", "run_sparsity", "run_macs"}
    for name, run in runs.items():
        same(read_run(run).to_json(), run, name)
    assert read_run(runs["run_cells"]).classified["test"].subjects is not None
    assert read_run(runs["run_student"]).teachers and read_run(runs["run_macs"]).model.channels


def test_a_run_of_another_version_can_be_read() -> None:
    run = json.loads((GOLDEN / "runs.json").read_text())["run"]
    older = {key: value for key, value in run.items() if key not in ("workers", "teachers")} | {"later": 1}
    older["split"] = {key: value for key, value in run["split"].items() if key != "embargo"}
    found = read_run(older)
    assert (found.workers, found.teachers, found.split.embargo) == (None, None, None)
    del older["later"], older["split"]
    same({key: value for key, value in found.to_json().items() if key != "split"}, older)


def test_figures_of_fixed_predictions() -> None:
    same(json.loads(json.dumps(plain(make_figures()))), json.loads((GOLDEN / "figures.json").read_text()))


def test_figures_of_masks() -> None:
    golden = json.loads((GOLDEN / "masks.json").read_text())
    for name, found in make_masks().items():
        same(json.loads(json.dumps(plain(found))), golden[name], name)


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        ("masks.json", "quantization", SegmentationResult),
        ("masks.json", "quantization_float", SegmentationResult),
        ("masks.json", "evaluation", MaskEvaluation),
        ("masks.json", "evaluation_of_run", MaskEvaluation),
        ("quantization.json", "quantization", QuantizationResult),
        ("quantization.json", "quantization_without_review", QuantizationResult),
        ("bench.json", "bench", BenchResult),
        ("bench.json", "bench_bare", BenchResult),
        ("compare.json", "two", Comparison),
        ("compare.json", "folds", Comparison),
    ],
)
def test_a_result_that_is_read_and_written_again_is_the_same(file: str, name: str, kind: type[Result]) -> None:
    golden = json.loads((GOLDEN / file).read_text())[name]
    same(from_json(kind, golden).to_json(), golden, name)


@pytest.mark.parametrize("name", ["quantization", "quantization_without_review"])
def test_the_text_of_a_quantization(name: str) -> None:
    golden = json.loads((GOLDEN / "quantization.json").read_text())
    assert quantize_text(from_json(QuantizationResult, golden[name])) == golden[f"{name}_text"]


def test_a_segmentation_run_that_is_read_and_written_again_is_the_same() -> None:
    golden = json.loads((GOLDEN / "masks.json").read_text())["run"]
    run = read_run(golden)
    same(run.to_json(), golden)
    assert isinstance(run.metrics["test"], MaskMetrics) and run.classified == {}


def test_comparison_of_two_benchmarks() -> None:
    golden = json.loads((GOLDEN / "bench.json").read_text())
    found = from_json(BenchComparison, golden["compared"])
    same(found.to_json(), golden["compared"])
    assert compare_text(found) == golden["compared_text"]


def test_backbones_are_listed_as_before() -> None:
    golden = json.loads((GOLDEN / "models.json").read_text())
    found = listing()
    same(as_plain(found), golden["models"])
    assert models_text(found) == golden["models_text"]


def test_listings_and_audits_of_drawn_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(json.dumps(plain(make_data(Path()))))
    golden = json.loads((GOLDEN / "data.json").read_text())
    with_probes = golden.pop("audit")  # takes a minute to make
    same(from_json(AuditReport, with_probes).to_json(), with_probes)
    for drawn in (found, golden):  # a digest depends on the version of Pillow
        for each in drawn.values():
            each["dataset_sha256"] = ""
    same(found, golden)
