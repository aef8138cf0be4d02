"""`edgeall run --by-cells`: a field's class is the mean of its whole cells'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_cells import SOME_RED, DrawnSegmenter, draw
from PIL import Image

from edgeall import cli
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.edge_runtime.vision import finder as finding
from edgeall.edge_runtime.vision.cells import crop
from edgeall.edge_runtime.vision.finder import CellFinder, FinderPool


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A field with two whole cells and one that its border cuts, one without a cell, and a broken file."""
    drawn = FinderPool([CellFinder(DrawnSegmenter()), CellFinder(DrawnSegmenter())])
    monkeypatch.setattr(finding, "finder_pool", lambda bundle, images, threads=None: drawn)
    folder = tmp_path / "fields"
    folder.mkdir()
    cells = [((320, 240), 0.8), ((120, 100), 1.1), ((20, 400), 0.8)]
    Image.fromarray(draw(cells, SOME_RED)).save(folder / "a.png")
    Image.fromarray(draw(red=SOME_RED)).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def lines(fields: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    def run(model: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
        status = cli.main(["run", str(model), str(fields), "--by-cells", "--json", *options])
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


def test_a_field_has_the_mean_of_its_whole_cells(
    lines: Callable[..., Any], fields: Path, pack_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    decided = {"calibration": {"temperature": 2.0}, "decision": {"review_below": 0.999}}
    model = pack_tiny("uint8", tmp_path / "m.tflite", unit="cell", **decided)
    status, (first, second, third), err = lines(model)
    assert status == 0 and "2 of 3 images could not be classified" in err
    assert second["error"].endswith("b.png: no whole cell was found in it") and "c.png" in third["error"]
    classifier, field = Classifier.open(model), Image.open(fields / "a.png")
    found = CellFinder(DrawnSegmenter()).find(np.asarray(field))
    whole = [cell for cell in found.cells if not cell.touches_border]
    cells = []
    for cell in whole:
        Image.fromarray(crop(field, cell.box, classifier.input)).save(tmp_path / "cell.png")
        cells.append(classify_one(classifier, str(tmp_path / "cell.png")).probabilities)
    assert first["cells"] == len(cells) == 2
    for label, probability in first["probabilities"].items():
        assert probability == pytest.approx(np.mean([cell[label] for cell in cells]))
    assert first["probability"] == max(first["probabilities"].values()) == first["probabilities"][first["label"]]
    assert first["reason"] == "uncertain"


def test_what_is_refused(lines: Callable[..., Any], pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    of_fields = pack_tiny("uint8", tmp_path / "f.tflite", unit="field")
    status, _, err = lines(of_fields)
    assert status == 2 and "is not a classifier of cells" in err and "edgeall cells --crops" in err
    of_cells = pack_tiny("uint8", tmp_path / "c.tflite", unit="cell")
    status, _, err = lines(of_cells, "--workers", "2")
    assert status == 2 and "--workers is not used with --by-cells" in err
    assert cli.main(["run", str(of_cells), str(tmp_path), "--red-cell-px", "20"]) == 2
    assert lines(of_cells, "--red-cell-px", "50")[0] == 0
