"""`--by-cells` of `edgeall run` and `evaluate`: a field's class is the mean of its whole cells'."""

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
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.edge_runtime.vision import finder as finding
from edgeall.edge_runtime.vision.cells import crop
from edgeall.edge_runtime.vision.finder import CellFinder, FinderPool
from edgeall.train.data.split import Split, SplitEntry, save_split
from edgeall.train.data.subsets import LEFT_OUT
from edgeall.train.evaluation import fields as evaluated_fields
from edgeall.train.evaluation.config import EvaluateSettings


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A field with two whole cells and one that its border cuts, one without a cell, and a broken file."""

    def drawn(open_one: object, images: int | None, threads: int | None = None) -> FinderPool:
        return FinderPool([CellFinder(DrawnSegmenter()), CellFinder(DrawnSegmenter())])

    monkeypatch.setattr(finding, "finder_pool", drawn)
    monkeypatch.setattr(evaluated_fields, "finder_pool", drawn)
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


@pytest.fixture
def labelled(tmp_path: Path, fields: Path) -> Path:
    """Four fields of each of two classes, one of them without a cell."""
    for label in ("Benign", "Pre"):
        (tmp_path / "labelled" / label).mkdir(parents=True)
        for number in range(4):
            cells = [] if (label, number) == ("Pre", 3) else [((200 + 30 * number, 240), 0.8), ((500, 100), 1.1)]
            image = Image.fromarray(draw(cells, SOME_RED))
            image.save(tmp_path / "labelled" / label / f"{number}.png")
    return tmp_path / "labelled"


def test_fields_are_evaluated_in_the_subset_of_their_crops(
    labelled: Path, pack_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ("train", "validation", "test", "test")
    entries = [
        SplitEntry(f"{label}/{number}.cell{cell}.png", label, None, f"{label}{number}{cell}", sides[number])
        for label in ("Benign", "Pre")
        for number in range(4)
        for cell in (1, 2)
        if (label, number) != ("Pre", 3)
    ]
    entries.append(SplitEntry("Pre/2.cell3.png", "Pre", None, "Pre23", LEFT_OUT, "duplicate"))
    split = Split("block", 0, ("Benign", "Pre"), "0" * 64, tuple(entries))
    save_split(split, tmp_path / "split.json")
    model = pack_tiny("uint8", tmp_path / "m.tflite", unit="cell", training={"split_sha256": split.sha256, "seed": 0})

    def evaluated(*options: str) -> tuple[dict[str, Any], str]:
        words = ["evaluate", str(model), "--data", str(labelled), "--by-cells", "--json", *options]
        assert cli.main(words) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    found, _ = evaluated()
    assert (found["split"], found["split_level"], found["images"]) == ("test", "block", 3)
    assert evaluated("--side", "train")[0]["images"] == 2 and evaluated("--side", "all")[0]["images"] == 7
    assert cli.main(["run", str(model), str(labelled / "Benign"), str(labelled / "Pre"), "--by-cells", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [answer.get("label") == Path(answer["image"]).parent.name for answer in answers]
    assert found["accuracy"] == pytest.approx(np.mean([right[2], right[3], right[6]]))
    (tmp_path / "split.json").unlink()
    found, err = evaluated()
    assert found["images"] == 7 and "if the model was trained on any of them" in err
    assert "1 of 8 fields have no whole cell and are left out" in err
    assert cli.main(["evaluate", str(model), "--data", str(labelled), "--by-cells", "--side", "test"]) == 2
    assert "no split says which fields those are" in capsys.readouterr().err
    (labelled / "Pre" / "1.png").write_bytes(b"no image")
    assert cli.main(["evaluate", str(model), "--data", str(labelled), "--by-cells"]) == 0  # skipped by the scan
    assert "skipped Pre/1.png" in capsys.readouterr().err


def test_what_evaluate_refuses(
    labelled: Path, pack_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pack_tiny("uint8", tmp_path / "m.tflite", unit="cell")
    for options, said in (
        (("--robustness",), "--robustness is not used with --by-cells"),
        (("--site", str(labelled)), "--site is not used with --by-cells"),
        (("--mean", "0", "--std", "1"), "--mean is not used with --by-cells"),
    ):
        assert cli.main(["evaluate", str(model), "--data", str(labelled), "--by-cells", *options]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["evaluate", str(model), "--by-cells"]) == 2
    with pytest.raises(UsageError, match="--by-cells requires a model file"):
        evaluated_fields.open_for_fields(labelled, EvaluateSettings(data=labelled, by_cells=True))
    of_fields = pack_tiny("uint8", tmp_path / "f.tflite")
    assert cli.main(["evaluate", str(of_fields), "--data", str(labelled), "--by-cells"]) == 2
    assert "is not a classifier of cells" in capsys.readouterr().err
