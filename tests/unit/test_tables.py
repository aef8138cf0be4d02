"""Text tables show the values of the dictionaries behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgeall.console import tables
from edgeall.edge_runtime.pipeline import Prediction
from edgeall.edge_runtime.results import from_json
from edgeall.edge_runtime.tools.bench_card import single_stream_text
from edgeall.edge_runtime.tools.bench_result import BenchResult
from edgeall.edge_runtime.tools.inspect import Inspection, inspect_text
from edgeall.edge_runtime.tools.predictions import prediction_lines
from edgeall.optimize.demo import Demo, demo_text
from edgeall.optimize.quantization.result import AutoFloat, QuantizationResult, Trial
from edgeall.optimize.quantization.summary import quantize_text
from edgeall.train.data.listing import DataListing, data_text
from edgeall.train.evaluation.metrics import compute_metrics
from edgeall.train.evaluation.text import metrics_text

SCORES = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.0, 0.2, 0.8]])


def metrics(level: str, positive: tuple[str, ...]) -> str:
    found = compute_metrics(("Benign", "Early", "Pro"), [0, 1, 1, 2], SCORES, positive, split="test", split_level=level)
    return metrics_text(found)


def test_columns_line_up() -> None:
    text = tables.table(["name", "n"], [["a", 1234], ["a longer one", None]])
    assert text.splitlines() == [
        "name              n",
        "────────────  ─────",
        "a             1,234",
        "a longer one      -",
    ]


def test_empty_table_and_record() -> None:
    assert len(tables.table(["name", "n"], []).splitlines()) == 2
    assert tables.record({}) == ""


def test_metrics_show_confusion_and_what_the_split_is_worth() -> None:
    text = metrics("image", ("Early", "Pro"))
    assert "4 (test, image-level split: optimistic)" in text
    assert "75.00 %" in text
    assert "sensitivity (Early, Pro against the rest)  66.67 %" in text
    assert "specificity (Early, Pro against the rest)  100.00 %" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["Early", "1", "1", "0"] in rows
    assert ["Early", "100.00", "%", "50.00", "%", "0.6667", "2"] in rows


def test_subjects_come_with_their_figures_the_worst_first() -> None:
    labels, true = ("all", "hem"), [number // 2 % 2 for number in range(40)]
    scores = np.array([[0.3, 0.7] if number in (0, 4, 5) else np.eye(2)[true[number]] for number in range(40)])
    names = [f"s{number // 2:02d}" for number in range(40)]
    found = compute_metrics(labels, true, scores, ("all",), split="test", split_level="subject", subjects=names)
    text = metrics_text(found)
    low, high = found.subjects.figures.sensitivity_ci95
    assert f"sensitivity by subject  90.00 % ({100 * low:.2f} % to {100 * high:.2f} %)" in text
    assert "by subject, as those below" in text
    rows = [line.split() for line in text.splitlines()]
    place = rows.index(["s02", "all", "hem", "2", "0.00", "%"])
    assert rows[place + 1] == ["s00", "all", "all", "2", "50.00", "%"]
    assert "and 8 more with the same or a higher accuracy" in text


def test_metrics_without_positive_classes_have_no_sensitivity() -> None:
    text = metrics("subject", ())
    assert "subject-level split" in text
    assert "optimistic" not in text
    assert "sensitivity" not in text


def test_a_quantized_model_s_cost_is_shown() -> None:
    values: dict[str, Any] = {
        "scheme": "qat-int8",
        "synthetic": False,
        "test_images": 512,
        "split_level": "block",
        "float_accuracy": 0.995,
        "accuracy": 0.9925,
        "drop_points": 0.25,
        "agreement": 0.99,
        "max_abs_difference": 0.1234,
        "tflite_float": {"agreement": 1.0, "max_abs_difference": 1e-6},
        "per_class": {"Pro": {"support": 100, "reference_recall": 1.0, "recall": None}},
        "flatbuffer_bytes": 600_000,
        "float_flatbuffer_bytes": 1_700_000,
        "compressed_bytes": 450_000,
        "sparsity_frac": 0.75,
        "clusters": 16,
        "calibration": {
            "temperature": 1.25,
            "images": 260,
            "changed_images": 780,
            "ece_before": 0.0312,
            "ece_after": 0.0098,
        },
        "novelty": {"reviewed": 0.0231, "images": {"train": 512, "validation": 260}},
        "decision": {
            "review_below": 0.875,
            "reviewed": 0.06,
            "reviewed_unchanged": 0.03,
            "accuracy_of_the_rest": 0.999,
        },
        "review": {"wrong": 12, "wrong_reviewed": 9, "wrong_not_reviewed": 3 / 512},
        "float_layers": ["logits"],
        "layers": None,
        "reliability": {},
        "risk_coverage": {},
        "robustness": None,
        "out": "m.tflite",
        "file_bytes": 700_000,
    }
    result = from_json(QuantizationResult, values)
    text = quantize_text(result)
    for figure in (
        "99.25 %",
        "99.50 %",
        "0.25 points",
        "700,000",
        "600,000",
        "blocks of neighbouring file numbers",
        "99.00 %",
        "450,000",
        "75.00 %",
        "temperature 1.25",
        "0.0312 before, 0.0098 after",
        "below a probability of 0.8750, or out of distribution: 3.00 % of the validation images",
        "6.00 % of them and the changed",
        "9 of 12 sent to review; not sent: 0.59 % of the images",
    ):
        assert figure in text
    assert ["left", "in", "float", "logits"] in [line.split() for line in text.splitlines()]
    assert "left in float" not in quantize_text(replace(result, float_layers=None))
    searched = replace(result, auto_float=AutoFloat(["conv1", "add"], [Trial(0, 2.5), Trial(1, None), Trial(2, 0.25)]))
    assert "--float-layers conv1,add repeats it" in quantize_text(searched)
    assert "points of validation accuracy by number of layers in float: 0: 2.50, 1: not converted, 2: 0.25" in (
        quantize_text(searched)
    )
    assert searched.to_json()["auto_float"]["trials"][2] == {"layers": 2, "drop_points": 0.25}
    assert ["Pro", "100.00", "%", "-", "100"] in [line.split() for line in text.splitlines()]
    written = result.to_json()
    assert set(written) == set(values) - {"layers", "robustness"}
    for name in ("calibration", "novelty", "decision"):
        assert {key: written[name][key] for key in values[name]} == values[name]
    same = set(written) - {"reliability", "risk_coverage", "review", "calibration", "novelty", "decision"}
    assert {key: written[key] for key in same} == {key: values[key] for key in same}
    assert {"layers", "report"} <= set(replace(result, layers=[], report="m.report.html").to_json())


def test_the_demo_ends_with_a_row_for_each_scheme() -> None:
    row = {"scheme": "ptq-int8", "file_bytes": 650_000, "accuracy": 0.9, "drop_points": 1.0}
    result = {
        "rows": [{**row, "p50_ms": 1.5, "end_to_end_p50_ms": 2.5}],
        "float_accuracy": 0.91,
        "test_images": 192,
        "split_level": "subject",
        "report": "build/demo/run/report.html",
        "model": "build/demo/run/qat-int8.tflite",
    }
    text = demo_text(from_json(Demo, result))
    for figure in ("ptq-int8", "0.65 MB", "90.00 %", "1.00 points", "1.50 ms", "SYNTHETIC", "report.html"):
        assert figure in text


def test_long_lists_of_problems_are_cut_in_the_table_alone() -> None:
    facts = {
        "root": "x",
        "layout": "folders",
        "unit": "field",
        "images": 4,
        "labels": {"a": {"images": 4, "subjects": None}},
        "positive_labels": [],
        "subjects": None,
        "sizes": {f"{n}x1": 1 for n in range(8)},
        "exact_duplicates": 0,
        "near_duplicates": 2,
        "conflicts": [["a/1", "b/1"]],
        "problems": [{"path": f"{n}.png", "reason": "empty"} for n in range(25)],
        "split": {"text": "not possible: only one class (a)"},
    }
    text = data_text(from_json(DataListing, facts))
    assert "a/1 = b/1" in text
    assert "19.png: empty" in text
    assert "20.png" not in text
    assert "and 5 more (--json has all)" in text
    assert "and 3 more" in text
    assert "default split" in text and "not possible: only one class (a)" in text


def test_bench_says_what_its_accuracy_is_worth() -> None:
    result = {
        "device": {"cpu": "a", "os": "b", "runtime": "c"},
        "threads": 1,
        "load_ms": 1.0,
        "first_ms": 1.0,
        "images_per_s": 1.0,
        "peak_rss_bytes": 1e6,
        "stages": {},
        "accuracy": 0.5,
        "accuracy_images": 1234,
    }
    measured = from_json(BenchResult, result)
    lines = dict(line.split("  ", 1) for line in single_stream_text(measured).splitlines() if "  " in line)
    assert lines["accuracy"].strip() == "50.00 % on the 1,234 given images (may include training images)"
    assert "unknown (no labelled images)" in single_stream_text(replace(measured, accuracy=None, accuracy_images=0))


EVIL = "a\x1b[31m\n\udcffz"


def test_control_characters_from_files_never_reach_the_terminal() -> None:
    labels = (EVIL, "B")
    found = compute_metrics(labels, [0, 1], np.array([[0.9, 0.1], [0.2, 0.8]]), labels[:1], split="t", split_level="i")
    tensor = {"name": EVIL, "type": EVIL, "shape": [1], "scale": None, "zero_point": None}
    model = {
        "path": EVIL,
        "file_bytes": 1,
        "flatbuffer_bytes": 1,
        "weights_bytes": 1,
        "packed": True,
        "golden": [],
        "manifest": {
            "task": "classification",
            "name": EVIL,
            "created": EVIL,
            "intended_use": EVIL,
            "positive_labels": [EVIL],
            "input": {"fit": EVIL},
            **{key: {EVIL: [EVIL]} for key in ("quantization", "training", "metrics", "calibration", "decision")},
            "novelty": {EVIL: EVIL},
        },
        "labels": [EVIL, "b"],
        "normalization": [1.0, 1.0],
        "input": [tensor],
        "output": [tensor],
        "tflite_metadata": True,
        "scores": "logits",
        "tensor_types": {EVIL: 1},
        "operators": {EVIL: 1},
        "runtime": "r",
    }
    data = {
        "root": EVIL,
        "layout": "folders",
        "unit": "field",
        "images": 1,
        "subjects": None,
        "sizes": {"1x1": 1},
        "labels": {EVIL: {"images": 1, "subjects": None}},
        "positive_labels": [EVIL],
        "exact_duplicates": 0,
        "near_duplicates": 0,
        "conflicts": [[EVIL, EVIL]],
        "problems": [{"path": EVIL, "reason": EVIL}],
        "split": {"text": EVIL, "level": "image", "train": 1, "validation": 1, "test": 1, "across": [[EVIL, EVIL]]},
    }
    texts = [
        metrics_text(found),
        inspect_text(from_json(Inspection, model)),
        data_text(from_json(DataListing, data)),
        *prediction_lines([Prediction(EVIL, EVIL, 0.5), Prediction(EVIL, error=EVIL)], labels, "table"),
        tables.table([EVIL], [[EVIL]]),
        tables.record({EVIL: EVIL}),
    ]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
        assert "a\\x1b[31m\\n\\udcffz" in text
    assert len(tables.table([EVIL], [[EVIL]]).splitlines()) == 3
    assert len({len(line) for line in tables.table([EVIL, "n"], [[EVIL, 1], ["b", 2]]).splitlines()}) == 1


def test_control_characters_of_a_file_name_never_reach_the_terminal() -> None:
    predictions = [Prediction("a\x1b[31m\n.png", "Pro", 0.5), Prediction("b", error="b\r: damaged")]
    lines = list(prediction_lines(predictions, ("Pro",), "table"))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert "a\\x1b[31m\\n.png" in lines[0]
