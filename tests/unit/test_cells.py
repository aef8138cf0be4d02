"""Crops of cells, the files of `edgeall cells`, and the model of cells that the package has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawn_cells import BLUE, GLASS, SOME_RED, DrawnSegmenter, draw
from PIL import Image

from edgeall import cli
from edgeall.benchmarks.cells import BOXES, boxes
from edgeall.benchmarks.cells_truth import read_boxes
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.edge_runtime.tools.inspect import inspect_model
from edgeall.edge_runtime.vision import DEFAULT_MODEL
from edgeall.edge_runtime.vision.cells import crop, cut_out
from edgeall.edge_runtime.vision.finder import CellFinder, open_finder
from edgeall.rig.capture.slide import draw_slide
from edgeall.train.data.dataset import load_dataset, unit

MOST_BYTES = 400_000


@pytest.fixture
def drawn_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`edgeall cells` reads drawn images."""
    monkeypatch.setattr(
        "edgeall.edge_runtime.vision.cells_files.open_finder",
        lambda model=None, threads=None: CellFinder(DrawnSegmenter()),
    )


def test_a_crop_is_what_the_model_takes() -> None:
    pixels = draw([((300, 120), 0.8)])
    box = (240, 60, 360, 180)
    cut = crop(Image.fromarray(pixels), box, InputSpec(96, 96))
    assert (cut.shape, cut.dtype) == ((96, 96, 3), np.uint8)
    assert np.abs(cut[48, 48].astype(int) - BLUE).max() < 12  # the nucleus is in the middle
    assert np.abs(cut[2, 2].astype(int) - GLASS).max() < 12
    wide = place(box, 2.0)
    assert (wide[2] - wide[0]) / (wide[3] - wide[1]) == pytest.approx(2, rel=0.02)
    left, top, right, bottom = box
    assert wide[0] <= left and wide[1] <= top and wide[2] >= right and wide[3] >= bottom


def place(box: tuple[int, int, int, int], aspect: float) -> tuple[int, int, int, int]:
    """The position of the crop of `cut_out` in a field of 640x480, whose pixels encode their position."""
    rows, columns = np.mgrid[:480, :640]
    field = Image.fromarray(np.stack([rows // 2, columns // 4, columns % 4 * 2 + rows % 2], -1).astype(np.uint8))
    cut = np.asarray(cut_out(field, box, aspect)).astype(int)
    first, last = ((at[0] * 2 + at[2] % 2, at[1] * 4 + at[2] // 2) for at in (cut[0, 0], cut[-1, -1]))
    assert cut.shape[:2] == (last[0] - first[0] + 1, last[1] - first[1] + 1)
    return first[1], first[0], last[1] + 1, last[0] + 1


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (600, 450, 640, 480), (0, 100, 640, 200)])
def test_a_window_stays_within_the_field(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = place(box, 1.0)
    assert 0 <= left < right <= 640 and 0 <= top < bottom <= 480
    assert right - left == min(max(box[2] - box[0], box[3] - box[1]), 640)


@pytest.mark.usefixtures("drawn_model")
def test_the_command_ignores_its_own_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(draw([((300, 120), 0.8)], SOME_RED)).save(tmp_path / "=1+1.png")
    (tmp_path / "found").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cells", ".", "--out", "found", "--json"]) == 0
    assert [image["image"] for image in json.loads(capsys.readouterr().out)["images"]] == ["=1+1.png"]
    assert "\n'=1+1.png," in (tmp_path / "found" / "cells.csv").read_text()  # no formula


@pytest.mark.usefixtures("drawn_model")
def test_the_command_crops_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smear = tmp_path / "a.png"
    Image.fromarray(draw([((300, 120), 0.8)])).save(smear)
    packed = SimpleNamespace(manifest=SimpleNamespace(input=InputSpec(96, 64)))
    for model, status in ((packed, 0), (SimpleNamespace(manifest=None), 2)):
        monkeypatch.setattr("edgeall.edge_runtime.bundle.open_bundle", lambda path, model=model: model)
        assert cli.main(["cells", str(smear), "--out", str(tmp_path / str(status)), "--model", "m.tflite"]) == status
    with Image.open(tmp_path / "0" / "crops" / "a.cell1.png") as cut:
        assert cut.size == (64, 96)


@pytest.mark.usefixtures("drawn_model")
def test_central_crops_are_a_training_set_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folders of classes stay; an image without a cell at its centre is taken whole, and said to be."""
    off_centre = draw([((120, 100), 0.8)], SOME_RED)
    for label in ("blast", "other"):
        (tmp_path / "smears" / label).mkdir(parents=True)
        Image.fromarray(draw([((320, 240), 0.8), ((120, 100), 0.8)], SOME_RED)).save(
            tmp_path / "smears" / label / "a.bmp"
        )
        Image.fromarray(off_centre).save(tmp_path / "smears" / label / "b.png")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cells", "smears", "--central", "--out", "found", "--json"]) == 0
    printed = capsys.readouterr()
    crops = sorted(path.relative_to("found/crops").as_posix() for path in Path("found/crops").rglob("*.png"))
    assert crops == ["blast/a.png", "blast/b.png", "other/a.png", "other/b.png"]
    first = json.loads(printed.out)["images"][0]["cells"]
    assert [cell["crop"] for cell in first] == [None, "crops/blast/a.png"]
    left, top, right, bottom = (first[1][key] for key in ("left", "top", "right", "bottom"))
    with Image.open("found/crops/blast/a.png") as cut:
        assert cut.size == (max(right - left, bottom - top),) * 2
    with Image.open("found/crops/other/b.png") as whole:
        np.testing.assert_array_equal(np.asarray(whole), off_centre)
    assert printed.err.count("b.png: no cell found at the centre; the crop is the whole image") == 2
    data = load_dataset(Path("found/crops"))
    assert (unit(data), [sample.label for sample in data.samples]) == ("cell", ["blast"] * 2 + ["other"] * 2)
    assert unit(load_dataset(Path("smears"))) == "field"


@pytest.mark.usefixtures("drawn_model")
def test_crops_are_a_training_set_of_the_classes_of_their_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("blast", "other"):
        (tmp_path / "smears" / label).mkdir(parents=True)
        field = draw([((320, 240), 0.8), ((120, 100), 0.8), ((20, 400), 0.8)], SOME_RED)  # the last one is cut
        Image.fromarray(field).save(tmp_path / "smears" / label / "7.bmp")
        Image.fromarray(field).save(tmp_path / "smears" / label / "7.png")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cells", "smears", "--crops", "--out", "found", "--json"]) == 0
    crops = sorted(path.relative_to("found/crops").as_posix() for path in Path("found/crops").rglob("*.png"))
    assert crops == [
        f"{label}/{name}.cell{n}.png" for label in ("blast", "other") for name in ("7-2", "7") for n in (1, 2)
    ]
    rows = json.loads(capsys.readouterr().out)["images"][1]["cells"]
    assert [row["crop"] for row in rows] == ["crops/blast/7-2.cell1.png", "crops/blast/7-2.cell2.png", None]
    data = load_dataset(Path("found/crops"))
    assert (unit(data), [sample.label for sample in data.samples]) == ("cell", ["blast"] * 4 + ["other"] * 4)


# The model of the package


def test_the_default_model_is_small_and_whole() -> None:
    facts = inspect_model(DEFAULT_MODEL)
    assert facts.golden_ok is True
    assert DEFAULT_MODEL.stat().st_size <= MOST_BYTES


def test_on_simulated_slides_most_of_what_is_found_is_a_cell() -> None:
    slide, finder = draw_slide(seed=0, size=(4096, 2048)), open_finder(threads=1)
    wrong = found = 0
    for left in range(1000, 2700, 640):
        for top in (0, 540, 1080):
            drawn = [cell.box for cell in slide.cells(left, top, 1280, 960)]
            for cell in finder.find(np.ascontiguousarray(slide.pixels[top : top + 960, left : left + 1280])).cells:
                x, y = cell.centre
                wrong += not any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for box in drawn)
                found += 1
    assert found > 10 and wrong <= found / 4


def test_white_cells_of_bccd(test_data: Path) -> None:
    if not (test_data / "bccd").is_dir():
        pytest.skip(f"{test_data}: no bccd here")
    found = boxes(open_finder(threads=1), read_boxes(test_data / "bccd", slice(0, None, 6)))
    recall, precision = (each.value for each in found[:2])
    assert recall >= BOXES[0] - 0.03
    assert precision >= BOXES[1] - 0.05
