"""Nucleated cells: drawn fields with known truth, and the white cells of BCCD if available."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from drawn_cells import BLUE, GLASS, SOME_RED, UNIT, Point, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeall import cli
from edgeall.benchmarks.cells import boxes
from edgeall.benchmarks.cells_truth import read_boxes
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.edge_runtime.vision import colour_rule, regions
from edgeall.edge_runtime.vision.cells import Cell, crop, cut_out
from edgeall.edge_runtime.vision.colour_rule import ColourRule, find_cells, upper_two_of_three
from edgeall.rig.capture.slide import draw_slide


def centres(found: list[Cell]) -> list[tuple[int, int]]:
    return [(round(cell.centre[0]), round(cell.centre[1])) for cell in found]


def assert_at(found: list[Cell], truth: Iterable[Point], within: float = 6) -> None:
    """Each cell is found exactly once, in any order."""
    left = list(truth)
    for cell in found:
        near = [point for point in left if math.dist(point, cell.centre) <= within]
        assert near, f"nothing was drawn at {cell.centre}"
        left.remove(near[0])
    assert not left, f"not found: {left}; found {centres(found)}"


def test_single_cells_are_found_red_cells_and_platelets_are_not() -> None:
    truth = [(300, 120), (450, 330)]
    found = find_cells(draw([(truth[0], 0.8), (truth[1], 1.2)], SOME_RED, platelets=[(200, 60), (250, 350)]))
    assert_at(found, truth)
    for cell, diameter in zip(found, (0.8, 1.2), strict=True):
        assert not cell.touches_border
        assert cell.area_px == pytest.approx(math.pi / 4 * (diameter * UNIT) ** 2, rel=0.15)
        left, top, right, bottom = cell.box
        for low, high, middle in ((left, right, cell.centre[0]), (top, bottom, cell.centre[1])):
            reach = (diameter / 2 + colour_rule.MARGIN) * UNIT
            assert (low, high) == (pytest.approx(middle - reach, abs=8), pytest.approx(middle + reach, abs=8))


@pytest.mark.parametrize("turn", [0.0, 0.5, 1.1, math.pi / 2])
@pytest.mark.parametrize("diameters", [(0.9, 0.9), (1.2, 0.8)])
def test_touching_pairs_are_split(turn: float, diameters: tuple[float, float]) -> None:
    apart = sum(diameters) / 2 * UNIT * 0.9  # they overlap by a tenth
    first = (250, 180)
    second = (round(250 + apart * math.cos(turn)), round(180 + apart * math.sin(turn)))
    assert_at(find_cells(draw([(first, diameters[0]), (second, diameters[1])], SOME_RED)), [first, second], within=10)


def test_three_in_a_row_are_three() -> None:
    truth = [(200, 180), (285, 190), (350, 250)]
    assert_at(find_cells(draw([(point, 0.88) for point in truth], SOME_RED)), truth, within=10)


def test_lobes_are_one_nucleus() -> None:
    lobes = [((300, 200), 0.42), ((348, 214), 0.42), ((330, 258), 0.42)]
    found = find_cells(draw(lobes, SOME_RED))
    assert_at(found, [(326, 224)], within=8)


@pytest.mark.parametrize("centre", [(20, 240), (620, 240), (320, 20), (320, 460), (20, 20)])
def test_what_the_border_cuts_is_said_to_be_cut(centre: Point) -> None:
    found = find_cells(draw([(centre, 1.1), ((300, 240), 0.9)]))
    assert sorted(cell.touches_border for cell in found) == [False, True]
    assert math.dist(next(cell for cell in found if not cell.touches_border).centre, (300, 240)) < 6
    for cell in found:
        assert 0 <= cell.box[0] < cell.box[2] <= 640 and 0 <= cell.box[1] < cell.box[3] <= 480


@pytest.mark.parametrize("pixels", [draw(), draw(red=SOME_RED), np.zeros((480, 640, 3), np.uint8)])
def test_where_there_is_none_none_is_found(pixels: NDArray[np.uint8]) -> None:
    assert find_cells(pixels) == []


def test_red_cells_on_one_another_are_not_a_nucleus() -> None:
    """They absorb as much blue and green light as a nucleus, but transmit red light."""
    pile = Image.fromarray(draw(red=SOME_RED))
    ImageDraw.Draw(pile).ellipse((420, 300, 510, 390), fill=(115, 45, 50))
    assert find_cells(np.asarray(pile)) == []
    with mock.patch.object(colour_rule, "NUCLEUS_RED", 0.0):
        assert len(find_cells(np.asarray(pile))) == 1


def test_on_simulated_slides_what_is_found_is_a_cell() -> None:
    slide = draw_slide(seed=0, size=(4096, 2048))
    wrong = found = 0
    for left in range(1000, 2700, 640):
        for top in (0, 540, 1080):
            drawn = [cell.box for cell in slide.cells(left, top, 1280, 960)]
            for cell in find_cells(np.ascontiguousarray(slide.pixels[top : top + 960, left : left + 1280])):
                x, y = cell.centre
                wrong += not any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for box in drawn)
                found += 1
    assert found > 10 and wrong == 0


@pytest.mark.parametrize(
    "gains",
    [(1.0, 0.85, 0.6), (0.7, 0.9, 1.08), (0.5, 0.5, 0.5), (1.05, 0.95, 1.0)],
    ids=["warm", "cold", "dim", "pink"],
)
def test_the_white_balance_does_not_matter(gains: tuple[float, float, float]) -> None:
    pixels = draw([((300, 120), 0.8), ((450, 330), 1.2)], SOME_RED)
    other = np.clip(pixels * np.array(gains), 0, 255).astype(np.uint8)
    as_it_is, balanced = find_cells(pixels), find_cells(other)
    assert_at(balanced, [(300, 120), (450, 330)])
    for one, two in zip(as_it_is, balanced, strict=True):
        assert two.area_px == pytest.approx(one.area_px, rel=0.1)


@pytest.mark.parametrize(
    ("size", "scale"), [((1280, 960), 2.0), ((320, 240), 0.5), ((224, 224), 0.35), ((480, 640), 1.0)]
)
def test_the_size_of_the_image_does_not_matter(size: Point, scale: float) -> None:
    truth = [(round(130 * scale), round(120 * scale)), (round(300 * scale), round(330 * scale))]
    assert_at(find_cells(draw([(point, 1.0) for point in truth], size=size, scale=scale)), truth, within=6 * scale + 2)


def test_another_magnification_is_a_matter_of_the_red_cell() -> None:
    truth = [(120, 120), (300, 330), (500, 200)]
    pixels = draw([(point, 0.9) for point in truth], scale=0.4)
    assert find_cells(pixels) == []  # at the default scale these are platelets
    assert_at(find_cells(pixels, red_cell_px=0.4 * UNIT), truth)


def test_a_crop_is_what_the_model_takes() -> None:
    pixels = draw([((300, 120), 0.8)])
    (cell,) = find_cells(pixels)
    cut = crop(Image.fromarray(pixels), cell.box, InputSpec(96, 96))
    assert (cut.shape, cut.dtype) == ((96, 96, 3), np.uint8)
    assert np.abs(cut[48, 48].astype(int) - BLUE).max() < 12  # the nucleus is in the middle
    assert np.abs(cut[2, 2].astype(int) - GLASS).max() < 12
    wide = place(cell.box, 2.0)
    assert (wide[2] - wide[0]) / (wide[3] - wide[1]) == pytest.approx(2, rel=0.02)
    left, top, right, bottom = cell.box
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


def test_three_classes() -> None:
    counts = np.zeros(64, np.int64)
    counts[[2, 3, 20, 21, 50, 51]] = (500, 500, 100, 100, 30, 30)
    assert upper_two_of_three(counts) == (20.5, 50.5)
    assert upper_two_of_three(np.bincount([7] * 9, minlength=16))[1] in (0.0, 7.0)  # a single value is no error


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_regions_are_those_of_a_flood(mask: NDArray[np.bool_]) -> None:
    found = regions.label(mask)
    left = {(y, x) for y, x in zip(*np.nonzero(mask), strict=True)}
    expected: list[set[tuple[Any, Any]]] = []
    while left:
        flood = [min(left)]
        left.remove(flood[0])
        for y, x in flood:
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            flood += sorted(near)
        expected.append(set(flood))
    assert len(found.areas) == len(expected)
    for number, pixels in enumerate(expected):
        assert {(y, x) for y, x in zip(*np.nonzero(found.labels == number + 1), strict=True)} == pixels
        assert found.areas[number] == len(pixels)
        rows, columns = zip(*pixels, strict=True)
        assert tuple(found.boxes[number]) == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 10), st.integers(1, 10))), st.integers(1, 12))
def test_distances_are_the_nearest_pixels(mask: NDArray[np.bool_], limit: int) -> None:
    outside = np.argwhere(~mask)
    found = regions.squared_distances(mask, limit)
    for y, x in np.ndindex(*mask.shape):
        nearest = min((int(((point - (y, x)) ** 2).sum()) for point in outside), default=limit * limit + 1)
        assert found[y, x] == nearest if nearest <= limit * limit else found[y, x] > limit * limit


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14))), st.integers(0, 3))
def test_closing_adds_and_never_again(mask: NDArray[np.bool_], radius: int) -> None:
    closed = regions.close(mask, radius)
    assert closed.shape == mask.shape
    assert (closed | mask == closed).all()
    assert (regions.close(closed, radius) == closed).all()


def test_small_holes_are_filled() -> None:
    mask = np.ones((20, 20), np.bool_)
    mask[3:5, 3:5] = mask[10:15, 10:15] = mask[0, 8] = False
    filled = regions.fill_holes(mask, 4)
    assert filled[3:5, 3:5].all() and not filled[10:15, 10:15].any() and not filled[0, 8]


def test_splitting_covers_the_region() -> None:
    y, x = np.mgrid[:40, :80]
    mask = ((x - 22) ** 2 + (y - 20) ** 2 < 300) | ((x - 54) ** 2 + (y - 20) ** 2 < 300)
    parts = regions.split(mask, 0.7, 5)
    assert ((parts > 0) == mask).all() and set(np.unique(parts)) == {0, 1, 2}
    assert len(np.unique(parts[:, :36])) == len(np.unique(parts[:, 41:])) == 2
    assert set(np.unique(regions.split(mask, 0.2, 5))) == {0, 1}  # the neck is wider
    assert set(np.unique(regions.split(mask, 0.7, 30))) == {0, 1}  # nothing is as wide
    assert (regions.split(np.ones((5, 9), np.bool_), 0.7, 1) == 1).all()


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_large_regions_are_split_alike(scale: int) -> None:
    y, x = np.mgrid[: 40 * scale, : 80 * scale]
    mask = ((x / scale - 22) ** 2 + (y / scale - 20) ** 2 < 300) | ((x / scale - 54) ** 2 + (y / scale - 20) ** 2 < 200)
    parts = regions.split(mask, 0.75, 5 * scale)
    assert ((parts > 0) == mask).all()
    areas = sorted(np.bincount(parts.ravel())[1:] / scale**2)
    assert areas == [pytest.approx(math.pi * 200, rel=0.1), pytest.approx(math.pi * 300, rel=0.1)]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    st.sampled_from([0, 4, 3000]),
    st.floats(0.1, 1),
    st.floats(0, 4),
)
def test_every_pixel_of_a_region_gets_a_label(mask: NDArray[np.bool_], large: int, neck: float, least: float) -> None:
    with mock.patch.object(regions, "LARGE", max(large, 1)):
        parts = regions.split(mask, neck, least)
    assert ((parts > 0) == mask).all()


# Files


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smears = tmp_path / "smears"
    smears.mkdir()
    Image.fromarray(draw([((300, 120), 0.8), ((20, 240), 1.1)], SOME_RED)).save(smears / "a.png")
    (smears / "b.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert cli.main(["cells", str(smears), "--out", str(out), "--crops", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cells"], answer["whole_cells"]) == (2, 1)
    assert "not an image" in answer["images"][1]["error"]
    with open(out / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["touches_border"], row["crop"]) for row in rows] == [
        ("1", "False", "crops/0001-a-1.png"),
        ("2", "True", ""),
    ]
    assert sorted(path.name for path in (out / "crops").iterdir()) == ["0001-a-1.png"]
    with Image.open(out / "crops" / "0001-a-1.png") as crop_file:
        assert crop_file.width == crop_file.height
    with Image.open(out / "overlays" / "0001-a.png") as drawn:
        assert drawn.getpixel((int(rows[0]["left"]), int(rows[0]["bottom"]) - 1)) == (0, 160, 60)
        assert drawn.getpixel((int(rows[1]["right"]) - 1, int(rows[1]["bottom"]) - 1)) == (230, 120, 0)
    assert cli.main(["cells", str(smears), "--out", str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert cli.main(["cells", str(smears / "b.jpg"), "--out", str(tmp_path / "none")]) == 1


def test_what_the_command_writes_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(draw([((300, 120), 0.8)], SOME_RED)).save(tmp_path / "=1+1.png")
    (tmp_path / "found").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cells", ".", "--out", "found", "--json"]) == 0
    assert [image["image"] for image in json.loads(capsys.readouterr().out)["images"]] == ["=1+1.png"]
    assert "\n'=1+1.png," in (tmp_path / "found" / "cells.csv").read_text()  # no formula


def test_the_command_crops_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smear = tmp_path / "a.png"
    Image.fromarray(draw([((300, 120), 0.8)])).save(smear)
    packed = SimpleNamespace(manifest=SimpleNamespace(input=InputSpec(96, 64)))
    for model, status in ((packed, 0), (SimpleNamespace(manifest=None), 2)):
        monkeypatch.setattr("edgeall.edge_runtime.bundle.open_bundle", lambda path, model=model: model)
        assert cli.main(["cells", str(smear), "--out", str(tmp_path / str(status)), "--model", "m.tflite"]) == status
    with Image.open(tmp_path / "0" / "crops" / "0001-a-1.png") as cut:
        assert cut.size == (64, 96)


# Real smears


def test_white_cells_of_bccd(test_data: Path) -> None:
    """The accuracy limit on fields that were not used for tuning; every third, to save time."""
    if not (test_data / "bccd").is_dir():
        pytest.skip(f"{test_data}: no bccd here")
    found = boxes(ColourRule(), read_boxes(test_data / "bccd", slice(61, None, 3)))
    recall, precision = (each.value for each in found[:2])
    assert recall >= 0.9
    assert precision >= 0.8
