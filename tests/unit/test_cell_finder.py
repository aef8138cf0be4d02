"""Cells by a segmentation network: scale, tiles, from mask to cells, files. The network is a reader of drawn images."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from drawn_cells import SOME_RED, UNIT, DrawnSegmenter, Point, Read, draw
from numpy.typing import NDArray
from PIL import Image

from edgeall import cli
from edgeall.edge_runtime.errors import BundleError, ImageError, UsageError
from edgeall.edge_runtime.vision import finder as finding
from edgeall.edge_runtime.vision.cells import Cell
from edgeall.edge_runtime.vision.finder import CellFinder
from edgeall.edge_runtime.vision.instances import find_instances
from edgeall.edge_runtime.vision.scale import Scale, contradiction, given_scale, measure_scale, red_cell_from
from edgeall.edge_runtime.vision.tiles import OVERLAP, ClassMap, padded, segment_field, starts

MORE_RED = [*SOME_RED, (250, 60), (60, 60), (400, 250), (220, 360), (450, 420)]


def at_centres(found: Sequence[Cell], truth: Sequence[Point], within: float = 4) -> None:
    """Each drawn cell is found exactly once, and nothing else."""
    assert len(found) == len(truth), [cell.centre for cell in found]
    for point in truth:
        assert min(math.dist(point, cell.centre) for cell in found) <= within


# Scale


@pytest.mark.parametrize("scale", [0.15, 0.35, 0.6, 1.0, 2.0])
def test_the_scale_is_measured_at_any_magnification(scale: float) -> None:
    red = [(round(x * scale), round(y * scale)) for x, y in MORE_RED] if scale > 1 else None
    size = (1280, 960) if scale > 1 else (640, 480)
    if red is None:  # as many as fit
        step = round(1.6 * UNIT * scale)
        red = [(x, y) for x in range(step, 640 - step // 2, step) for y in range(step, 480 - step // 2, step)]
    field = Image.fromarray(draw(red=red, size=size, scale=scale))
    found = measure_scale(field, DrawnSegmenter())
    assert found.red_cell_px == pytest.approx(UNIT * scale, rel=0.08)
    assert found.source == "image" and found.confidence > 0.5 and not found.problem()
    assert found.um_per_px == pytest.approx(7.1 / found.red_cell_px)


def test_the_scale_of_a_large_field_of_small_cells_is_measured() -> None:
    """Smaller than the smallest diameter that is assumed at first."""
    red = [(x, y) for x in range(20, 3980, 24) for y in range(20, 580, 24)]
    field = Image.fromarray(draw(red=red, size=(4000, 600), scale=15 / UNIT))
    found = measure_scale(field, DrawnSegmenter())
    assert found.red_cell_px == pytest.approx(15, rel=0.1) and not found.problem()


class Says:
    """A segmenter whose windows answer in turn what they are told to."""

    def __init__(self, *answers: float) -> None:
        self.input, self.red_cell_px = DrawnSegmenter().input, 28.0
        self._answers, self._next = answers, 0

    def infer(self, pixels: NDArray[np.uint8], /) -> Read:
        self._next += 1
        return Read(np.zeros((*pixels.shape[:2], 3), np.uint8), self._answers[self._next % len(self._answers)])


def test_windows_that_disagree_make_the_scale_uncertain() -> None:
    found = measure_scale(Image.new("RGB", (4000, 3000), "white"), Says(0.9, -0.8, 0.1, -0.4, 0.7))
    assert found.confidence < 0.3
    low, high = found.range_px
    assert f"{low:.0f} to {high:.0f} px" in found.problem() and "--red-cell-px" in found.problem()


def test_without_any_red_cell_the_scale_is_the_usual_one_and_uncertain() -> None:
    found = CellFinder(DrawnSegmenter()).find(draw([((300, 120), 0.8)]))
    assert found.scale.red_cell_px == pytest.approx(UNIT, rel=0.05) and found.scale.confidence == 0
    assert len(found.cells) == 1
    assert "the scale is uncertain" in found.warnings[0]


def test_a_known_scale_is_used_and_a_contradiction_said() -> None:
    pixels = draw([((300, 120), 0.8)], MORE_RED)
    right = CellFinder(DrawnSegmenter()).find(pixels, given_scale(UNIT))
    assert (len(right.cells), right.warnings, right.scale.red_cell_px) == (1, (), UNIT)
    wrong = CellFinder(DrawnSegmenter()).find(pixels, given_scale(UNIT / 2, "remembered"))
    assert len(wrong.warnings) == 1
    assert "the remembered scale looks wrong" in wrong.warnings[0] and "seem to measure" in wrong.warnings[0]
    assert contradiction(Scale(50, "image", 1, (50, 50)), (1.0,)) == ""


def test_scale_settings() -> None:
    assert red_cell_from(None, None) is None
    assert red_cell_from(0.071, None) == pytest.approx(100)
    assert red_cell_from(None, 33.0) == 33
    for um_per_px, red_cell_px in ((0.1, 50.0), (None, 3.0), (0.001, None), (None, math.nan)):
        with pytest.raises(UsageError):
            red_cell_from(um_per_px, red_cell_px)


# Tiles


@pytest.mark.parametrize("length", [192, 193, 300, 320, 321, 1000, 4321])
def test_tiles_cover_a_field_and_overlap(length: int) -> None:
    at = starts(length, 192)
    assert at[0] == 0 and at[-1] == length - 192
    assert all(0 < after - before <= 192 - OVERLAP for before, after in pairwise(at))


class Echo:
    """Gives each pixel's red as nucleus and green as background; with wrong answers at the edges of a tile."""

    def __init__(self, wrong: int = 0) -> None:
        self.input, self.red_cell_px, self._wrong = DrawnSegmenter().input, 28.0, wrong

    def infer(self, pixels: NDArray[np.uint8], /) -> Read:
        probabilities = np.stack([pixels[..., 1], 255 - pixels[..., 1] - pixels[..., 0], pixels[..., 0]], -1)
        if self._wrong:
            edges = np.ones(pixels.shape[:2], np.bool_)
            edges[self._wrong : -self._wrong, self._wrong : -self._wrong] = False
            probabilities[edges] = (0, 0, 255)
        return Read(probabilities, 0.0)


@pytest.mark.parametrize("size", [(700, 500), (192, 192), (250, 90), (40, 30)])
def test_tiles_are_blended_without_seams(size: Point) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 128, (size[1], size[0], 3)).astype(np.uint8)
    found = segment_field(Image.fromarray(pixels), Echo(), 28.0)
    assert found.cell.shape == pixels.shape[:2] and found.zoom == (1, 1)
    assert np.abs(found.cell.astype(int) - (255 - pixels[..., 1])).max() <= 1
    assert np.abs(found.nucleus.astype(int) - pixels[..., 0]).max() <= 1


def test_the_edges_of_tiles_hardly_count() -> None:
    pixels = np.full((600, 800, 3), 100, np.uint8)
    found = segment_field(Image.fromarray(pixels), Echo(wrong=5), 28.0)
    inside = found.nucleus[5:-5, 5:-5].astype(int)
    assert np.abs(inside - 100).max() <= 2


def test_small_fields_are_mirrored_to_the_size_of_a_tile() -> None:
    pixels = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    filled, (left, top) = padded(pixels, 12)
    assert filled.shape == (12, 12, 3)
    assert (filled[top : top + 5, left : left + 3] == pixels).all()
    assert (filled[top - 1, left : left + 3] == pixels[0]).all()


def test_a_field_that_would_be_enlarged_beyond_measure_is_refused() -> None:
    with pytest.raises(ImageError, match="too large to search") as error:
        segment_field(Image.new("RGB", (4000, 3000)), Echo(), 5.0)
    assert error.value.hint


def test_a_large_field_has_each_cell_once() -> None:
    """Cells everywhere on the edges of tiles."""
    scale = 28 / UNIT
    truth = [(x, y) for x in range(60, 1450, 97) for y in range(60, 1050, 83)]
    segmenter = DrawnSegmenter()
    found = CellFinder(segmenter).find(
        draw([(point, 1.1) for point in truth], size=(1500, 1100), scale=scale), given_scale(28.0)
    )
    assert segmenter.tiles > 50
    at_centres(found.cells, truth, within=1.5)
    ratios = [cell.nc_ratio or 0 for cell in found.cells]
    assert max(ratios) - min(ratios) < 0.08


# From mask to cells


def class_map(discs: Sequence[tuple[float, float, float, float]], size: Point = (240, 200)) -> ClassMap:
    """Discs: x, y, radius of the cell, radius of the nucleus."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    cell, nucleus = np.zeros((2, size[1], size[0]), np.uint8)
    for at_x, at_y, outer, inner in discs:
        away = np.hypot(x - at_x, y - at_y)
        cell[away < outer], nucleus[away < inner] = 255, 255
    return ClassMap(cell, nucleus, (1, 1), ())


def test_a_cell_is_measured() -> None:
    labels, (cell,) = find_instances(class_map([(100, 80, 30, 20)]), 28)
    assert cell.box == (70, 50, 130, 110)
    assert cell.centre == (pytest.approx(100, abs=0.6), pytest.approx(80, abs=0.6))
    assert cell.cell == pytest.approx(math.pi * 900, rel=0.01) == (labels == 1).sum()
    assert cell.nucleus == pytest.approx(math.pi * 400, rel=0.01)
    assert cell.roundness > 0.98 and not cell.cut


def test_an_oval_nucleus_is_less_round() -> None:
    found = class_map([(100, 80, 45, 0)])
    y, x = np.mgrid[:200, :240]
    found.nucleus[((x - 100) / 40) ** 2 + ((y - 80) / 20) ** 2 < 1] = 255
    _, (cell,) = find_instances(found, 28)
    assert cell.roundness == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("turn", [0.0, 0.5, 1.1, math.pi / 2])
@pytest.mark.parametrize(("outer", "inner"), [((26, 26), (20, 20)), ((30, 20), (16, 17)), ((22, 22), (21, 21))])
def test_touching_cells_are_split(turn: float, outer: tuple[float, float], inner: tuple[float, float]) -> None:
    apart = sum(outer) * 0.93
    second = (100 + apart * math.cos(turn), 80 + apart * math.sin(turn))
    labels, found = find_instances(class_map([(100, 80, outer[0], inner[0]), (*second, outer[1], inner[1])]), 28)
    assert len(found) == 2
    for (x, y), radius in zip(((100, 80), second), outer, strict=True):
        near = min(found, key=lambda cell: math.dist(cell.centre, (x, y)))
        assert math.dist(near.centre, (x, y)) < 3
        assert near.cell == pytest.approx(math.pi * radius**2, rel=0.08)
    drawn = class_map([(100, 80, outer[0], 0), (*second, outer[1], 0)]).cell > 0
    assert (labels[drawn] > 0).all() and (labels > 0).sum() <= drawn.sum() + 2  # a corner between them may be filled


def test_three_in_a_row_are_three() -> None:
    assert len(find_instances(class_map([(50, 80, 24, 18), (95, 80, 24, 18), (140, 90, 24, 18)]), 28)[1]) == 3


def test_lobes_in_one_cell_are_one_nucleus() -> None:
    found = class_map([(100, 80, 32, 0), (88, 70, 0, 11), (112, 72, 0, 11), (100, 96, 0, 11)])
    _, cells = find_instances(found, 28)
    assert len(cells) == 1
    assert cells[0].nucleus == pytest.approx(3 * math.pi * 121, rel=0.03)


def test_what_has_no_nucleus_of_a_cell_is_none() -> None:
    platelet, smudge = (40, 40, 8, 7), (150, 60, 30, 0)
    assert find_instances(class_map([platelet, smudge]), 28)[1] == []
    assert len(find_instances(class_map([platelet, smudge]), 12)[1]) == 1  # at another scale it is a small cell


def test_an_uncertain_nucleus_is_none() -> None:
    found = class_map([(100, 80, 30, 20)])
    found.nucleus[found.nucleus > 0] = 150
    assert find_instances(found, 28)[1] == []
    found.nucleus[found.nucleus > 0] = 180
    assert len(find_instances(found, 28)[1]) == 1


def test_holes_are_filled() -> None:
    found = class_map([(100, 80, 30, 20)])
    found.cell[60:66, 90:96] = found.nucleus[60:66, 90:96] = 0
    labels, (cell,) = find_instances(found, 28)
    assert (labels[60:66, 90:96] == 1).all()
    assert cell.cell == pytest.approx(math.pi * 900, rel=0.01)


@pytest.mark.parametrize("centre", [(5, 80), (235, 80), (100, 4), (100, 196)])
def test_a_cell_at_the_border_is_marked_as_cut(centre: Point) -> None:
    _, found = find_instances(class_map([(*centre, 30, 22), (120, 100, 26, 20)]), 28)
    assert sorted(cell.cut for cell in found) == [False, True]


def test_the_mask_has_the_size_of_the_field() -> None:
    truth = [((300, 120), 0.8), ((450, 330), 1.2)]
    found = CellFinder(DrawnSegmenter()).find(draw(truth, MORE_RED[:5], platelets=[(200, 60)]), given_scale(UNIT))
    mask = found.mask()
    assert mask.shape == (480, 640) and set(np.unique(mask)) == {0, 128, 255}
    y, x = np.mgrid[:480, :640]
    for rim, values in ((0.0, (255,)), (0.3, (128, 255))):
        drawn = np.zeros(mask.shape, np.bool_)
        for (at_x, at_y), diameter in truth:
            drawn |= np.hypot(x - at_x, y - at_y) < (diameter + rim) * UNIT / 2
        same = np.isin(mask, values) & drawn
        assert 2 * same.sum() / (np.isin(mask, values).sum() + drawn.sum()) > 0.95
    for cell, (_, diameter) in zip(found.cells, truth, strict=True):
        assert cell.area_px == pytest.approx(math.pi / 4 * (diameter * UNIT) ** 2, rel=0.08)
        assert cell.nc_ratio == pytest.approx((diameter / (diameter + 0.3)) ** 2, abs=0.05)


# Files


@pytest.fixture
def drawn_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`edgeall cells` reads drawn images."""
    monkeypatch.setattr(
        "edgeall.edge_runtime.vision.cells_files.open_finder",
        lambda model=None, threads=None: CellFinder(DrawnSegmenter()),
    )


@pytest.mark.usefixtures("drawn_model")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smears, out = tmp_path / "smears", tmp_path / "out"
    for folder in (smears / "one", smears / "two"):
        folder.mkdir(parents=True)
    Image.fromarray(draw([((300, 120), 0.8), ((20, 240), 1.1)], MORE_RED)).save(smears / "one" / "a.png")
    Image.fromarray(draw(red=MORE_RED, size=(640, 400))).save(smears / "two" / "a.png")
    (smears / "two" / "b.jpg").write_bytes(b"no image")
    photo = np.random.default_rng(0).integers(0, 255, (300, 400, 1)).repeat(3, 2).astype(np.uint8)
    Image.fromarray(photo).save(smears / "two" / "photo.png")
    assert cli.main(["cells", str(smears), "--out", str(out), "--masks", "--crops", "--json"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    first, second, broken, odd = answer["images"]
    assert "not an image" in broken["error"]
    assert any("does not look like a stained smear" in warning for warning in odd["warnings"])
    assert "warning: " in printed.err and "does not look like a stained smear" in printed.err
    assert first["scale"]["red_cell_px"] == pytest.approx(UNIT, rel=0.05) and first["warnings"] == []
    assert (second["cells"], second["mask"]) == ([], "masks/0002-a.png")
    with Image.open(out / first["mask"]) as mask:
        assert (first["mask"], mask.size, mask.mode) == ("masks/a.png", (640, 480), "L")
        assert {value for _, value in mask.getcolors() or ()} == {0, 128, 255}
    with Image.open(out / second["mask"]) as mask:
        assert mask.size == (640, 400) and mask.getcolors() == [(640 * 400, 0)]
    with open(out / "cells.csv", newline="") as file:
        whole, cut = csv.DictReader(file)
    assert (whole["touches_border"], whole["crop"]) == ("False", "crops/one/a.cell1.png")
    assert (cut["touches_border"], cut["crop"]) == ("True", "")
    assert float(whole["nc_ratio"]) == pytest.approx(int(whole["area_px"]) / int(whole["cell_area_px"]), abs=0.001)
    assert float(whole["red_cell_px"]) * float(whole["um_per_px"]) == pytest.approx(7.1, abs=0.01)
    assert cli.main(["cells", str(smears), "--out", str(tmp_path / "text"), "--red-cell-px", "52"]) == 0
    printed = capsys.readouterr()
    assert "52 px" in printed.out and "no nucleated cell found" in printed.out
    assert "the given scale looks wrong" in printed.err
    assert sorted(path.name for path in (tmp_path / "text").iterdir() if path.is_dir()) == ["overlays"]
    assert cli.main(["cells", str(smears), "--out", str(tmp_path / "c"), "--red-cell-px", "9", "--um-per-px", "1"]) == 2


def test_a_package_without_its_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finding, "DEFAULT_MODEL", tmp_path / "none.tflite")
    with pytest.raises(BundleError):
        finding.open_finder()
