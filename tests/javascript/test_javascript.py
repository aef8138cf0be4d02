"""The page's JavaScript computes what Python computes: pixels bit for bit, probabilities, CSV and JSON lines."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cell_vectors import digest, drawn, found_in, opened, scaled, separated, tiled
from PIL import Image
from pixel_vectors import decoded, make

from edgeall.edge_runtime.calibration import apply_temperature
from edgeall.edge_runtime.pipeline import Prediction
from edgeall.edge_runtime.preprocess import InputSpec, preprocess
from edgeall.edge_runtime.tools.predictions import prediction_lines
from edgeall.edge_runtime.vision.cells_files import COLUMNS
from edgeall.edge_runtime.vision.scale import busiest

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "vectors.json").read_text(encoding="utf-8"))
TYPESCRIPT = "typescript@5.9.3"
LABELS = ("Benign", 'Pro, "blasts"')
PREDICTIONS = (
    Prediction("a.png", "Benign", 0.75, dict(zip(LABELS, (0.75, 0.25), strict=True)), None, None),
    Prediction('b, "2".png', LABELS[1], 0.5, dict(zip(LABELS, (0.5, 0.5), strict=True)), "uncertain", 0.0625),
    Prediction("c.png", "Benign", 0.875, dict(zip(LABELS, (0.875, 0.125), strict=True)), "unfamiliar", 1.5),
    Prediction("d.png", error="d.png: the file is empty"),
)
FOUND = ({"image": "=1+1.png", "cells": VECTORS["fields"][0]["cells"]}, {"image": "none.png", "cells": None})


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    """What `compute.mjs` prints."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    folder = tmp_path_factory.mktemp("javascript")
    for file in (repository / "browser" / "static").glob("*.js"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    command = [node, HERE / "compute.mjs", folder, HERE / "vectors.json"]
    given = json.dumps({"predictions": [each.as_json() for each in PREDICTIONS], "labels": LABELS, "found": FOUND})
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_preprocessing_is_that_of_the_vectors() -> None:
    """On every version of Pillow: the order of the passes is ours."""
    for case in VECTORS["preprocess"]:
        spec = InputSpec(*reversed(case["input"]), fit=case["fit"])
        assert digest(preprocess(Image.fromarray(drawn(*case["image"])), spec)) == case["sha256"], case


def test_decoding_is_that_of_the_vectors() -> None:
    for case in VECTORS["png"]:
        found = decoded(base64.b64decode(case["png"]))
        assert found == {key: case[key] for key in ("size", "sha256")}, case["what"]


def test_finding_cells_is_that_of_the_vectors() -> None:
    for case in VECTORS["scaling"]:
        assert scaled(*case["image"], case["size"], case["box"]) == case["sha256"], case
    for case in VECTORS["tiles"]:
        assert tiled(*case["image"], case["red_cell_px"]).items() <= case.items()
    for number, case in enumerate(VECTORS["busiest"]):
        assert [list(place) for place in busiest(Image.fromarray(drawn(*case["image"])))] == case["places"], number
    for number, case in enumerate(VECTORS["instances"]):
        found = json.loads(json.dumps(separated(opened(case))))
        assert found["labels"] == case["labels"], number
        same_instances(found["instances"], case["instances"])
    for number, case in enumerate(VECTORS["fields"]):
        assert found_in(opened(case), case["red_cell_px"]).items() <= case.items(), number


def same_instances(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """All is equal but the last digits of the moments, whose additions differ in their order."""
    for one, other in zip(found, expected, strict=True):
        assert one.pop("roundness") == pytest.approx(other["roundness"], abs=1e-9)
        assert one.pop("centre") == pytest.approx(other["centre"], abs=1e-9)
        assert one.items() <= other.items()


def test_the_vectors_cover_what_the_command_makes() -> None:
    made = make()
    assert {key: len(cases) for key, cases in made.items()} == {key: len(cases) for key, cases in VECTORS.items()}
    assert [case["what"] for case in made["png"]] == [case["what"] for case in VECTORS["png"]]


def test_javascript_preprocesses_bit_for_bit(computed: dict[str, Any]) -> None:
    for case, found in zip(VECTORS["preprocess"], computed["preprocess"], strict=True):
        assert found == case["sha256"], case


def test_javascript_decodes_png_bit_for_bit(computed: dict[str, Any]) -> None:
    for case, found in zip(VECTORS["png"], computed["png"], strict=True):
        assert found == {key: case[key] for key in ("size", "sha256")}, case["what"]


def test_javascript_scales_and_blends_bit_for_bit(computed: dict[str, Any]) -> None:
    assert computed["scaling"] == [case["sha256"] for case in VECTORS["scaling"]]
    assert computed["busiest"] == [case["places"] for case in VECTORS["busiest"]]
    for case, found in zip(VECTORS["tiles"], computed["tiles"], strict=True):
        assert found.items() <= case.items(), case


def test_javascript_separates_cells_pixel_for_pixel(computed: dict[str, Any]) -> None:
    for case, found in zip(VECTORS["instances"], computed["instances"], strict=True):
        assert found["labels"] == case["labels"]
        same_instances(found["instances"], case["instances"])


def test_javascript_finds_the_cells_of_edgeall_cells(computed: dict[str, Any]) -> None:
    """Boxes, areas, scale and warnings; from colours, instead of by a network."""
    for number, (case, found) in enumerate(zip(VECTORS["fields"], computed["fields"], strict=True)):
        assert found.items() <= case.items(), number


def test_javascript_writes_the_table_of_cells(computed: dict[str, Any]) -> None:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    table.writerows({"image": "'=1+1.png", **row} for row in FOUND[0]["cells"])
    assert computed["cellsCsv"] == file.getvalue()


def test_javascript_calibrates(computed: dict[str, Any]) -> None:
    for case, found in zip(VECTORS["calibration"], computed["calibration"], strict=True):
        expected = apply_temperature(np.float32(case["units"]) / 256, case["temperature"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)
        np.testing.assert_allclose(case["probabilities"], expected, rtol=0, atol=3e-7)


def test_javascript_exports_as_run_prints(computed: dict[str, Any]) -> None:
    assert computed["csv"].splitlines() == list(prediction_lines(PREDICTIONS, LABELS, "csv"))
    lines = [json.loads(line) for line in computed["json"].splitlines()]
    assert lines == [json.loads(line) for line in prediction_lines(PREDICTIONS, LABELS, "json")]
    assert [list(line) for line in lines] == [list(each.as_json()) for each in PREDICTIONS]


def test_types_of_the_javascript() -> None:
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("no npx on this machine")
    tsc = [npx, "--yes", "--package", TYPESCRIPT, "tsc"]
    if subprocess.run([*tsc, "--version"], capture_output=True).returncode != 0:
        pytest.skip(f"{TYPESCRIPT} can't be fetched from the npm registry")
    done = subprocess.run([*tsc, "--project", HERE / "jsconfig.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
