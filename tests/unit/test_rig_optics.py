"""Optics of the rig: stage micrometer, scale bar, flat field, and what is stored for each objective."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fixtures_optics import HEIGHT, WIDTH, Pixels, empty_field, ruling

from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.vision.finder import Found
from edgeall.edge_runtime.vision.scale import RED_CELL_UM, Scale
from edgeall.edge_runtime.vision.scale_bar import scale_bar
from edgeall.rig.capture.slide import SimulatedCamera, draw_slide
from edgeall.rig.optics.flat_field import NotEmptyError, flat_field, measure_empty_field
from edgeall.rig.optics.micrometer import NotARulingError, measure_ruling
from edgeall.rig.optics.objectives import MICROMETER, Calibration, Objectives
from edgeall.rig.optics.red_cells import NoRedCellsError, measure_red_cells
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Program, SessionNotes
from edgeall.rig.scales import MISFIT, CellSearch


@pytest.fixture(scope="module")
def smear() -> Pixels:
    camera = SimulatedCamera(draw_slide(seed=0), rate=None)
    number = next(n for n in range(0, 400, 5) if (view := camera.view(n)).zone == "smear" and not view.moving)
    return camera.pixels(number)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record", program=Program("demo", "0" * 64, ("A", "B"))) as opened:
        yield opened


@pytest.mark.parametrize(
    ("period", "angle"), [(9.7, 0.0), (9.7, -20.0), (29.37, 3.3), (61.2, 88.0), (61.2, 45.0), (140.4, -2.2)]
)
def test_the_divisions_of_a_stage_micrometer(period: float, angle: float) -> None:
    found = measure_ruling(ruling(period, angle))
    assert found.period_px == pytest.approx(period, rel=0.003)
    assert found.angle_deg == pytest.approx(angle, abs=0.3)
    assert found.um_per_px(10) == pytest.approx(10 / period, rel=0.003)


def test_what_is_no_ruling_is_refused(smear: Pixels) -> None:
    grid = np.minimum(ruling(40), ruling(40, 90))
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    scratch = np.full((HEIGHT, WIDTH, 3), 230, np.uint8)
    scratch[:, 300:304] = 60
    for image in (smear, grid, noise, scratch, empty_field(), np.zeros((HEIGHT, WIDTH, 3), np.uint8)):
        with pytest.raises(NotARulingError, match="not a ruling"):
            measure_ruling(image)
    with pytest.raises(NotARulingError):
        measure_ruling(ruling(61.2, missing=1))
    with pytest.raises(NotARulingError):
        measure_ruling(ruling(400))  # two lines


@pytest.mark.parametrize(
    ("um_per_px", "width", "text", "um"),
    [
        (0.0345, 1280, "5 µm", 5),
        (0.25, 1280, "50 µm", 50),
        (1.0, 1280, "200 µm", 200),
        (0.1, 100, "2 µm", 2),
        (10, 1280, "2 mm", 2000),
        (0.01, 100, "200 nm", 0.2),
    ],
)
def test_a_scale_bar_has_a_round_length(um_per_px: float, width: int, text: str, um: float) -> None:
    bar = scale_bar(um_per_px, width)
    assert (bar.text, bar.um) == (text, um)
    assert bar.px == pytest.approx(um / um_per_px) and width * 0.2 / 2.5 <= bar.px <= width * 0.2 + 1e-6
    assert scale_bar(um_per_px, width, estimated=True).text == f"≈ {text}"


def test_a_scale_bar_needs_a_scale() -> None:
    with pytest.raises(ValueError, match="needs a scale"):
        scale_bar(0, 100)


def test_the_flat_field_makes_an_empty_field_even_and_neutral() -> None:
    empty = empty_field()
    correction = flat_field(measure_empty_field([empty] * 3), (WIDTH, HEIGHT))
    assert correction.corners == pytest.approx(0.6, abs=0.02)
    assert correction.white == pytest.approx((1, 0.9, 0.7), abs=0.01)
    flat = correction.apply(empty).astype(float)
    parts = [flat[y : y + 40, x : x + 40].mean(axis=(0, 1)) for y in (0, 220, 440) for x in (0, 300, 600)]
    assert np.ptp(parts) < 0.02 * np.mean(parts)
    assert correction.apply(empty).max() < 255


def test_a_field_with_cells_and_wrong_light_are_refused(smear: Pixels) -> None:
    cut = empty_field()
    cut[:, :60] = 20
    for picture, why in (
        (smear, "not empty"),
        (cut, "not empty"),
        (empty_field(peak=300), "saturated"),
        (empty_field(peak=40), "too dark"),
        (empty_field(corner=0.05), "too uneven|not empty|too dark"),
    ):
        with pytest.raises(NotEmptyError, match=why):
            measure_empty_field([picture])


def calibration(objective: str = "100x oil", um_per_px: float = 0.07) -> Calibration:
    return Calibration(objective, um_per_px, MICROMETER, (64, 48), by="olga", measured={"lines": 5})


def test_what_is_stored_for_an_objective_survives_a_restart(record: Record) -> None:
    stored = Objectives(record)
    stored.calibrate(calibration())
    stored.calibrate(calibration("40x", 0.17))
    stored.store_empty_field("40x", [empty_field()], "olga")
    again = Objectives(record)
    for each in (stored, again):
        found = each.scale("100x oil", (64, 48))
        assert found is not None and (found.um_per_px, found.by, found.method) == (0.07, "olga", MICROMETER)
        assert found.at and found.scale.um_per_px == pytest.approx(0.07) and found.scale.source == "calibrated"
        assert each.scale("100x oil", (640, 480)) is None  # another resolution
        assert "is for frames of 64x48" in each.doubts("100x oil", (640, 480))[0]
        assert each.correction("100x oil", (WIDTH, HEIGHT)) is None
        correction = each.correction("40x", (WIDTH, HEIGHT))
        assert correction is not None and record.image_path(correction.digest) is not None
    assert check(record.folder).problems == [] and check(record.folder).images == 1
    again.forget_scale("40x", "olga")
    again.forget_empty_field("40x", "olga")
    for each in (again, Objectives(record)):
        assert [found.objective for found in each.scales()] == ["100x oil"] and not each.empty_fields()


def test_a_removed_image_of_a_flat_field_is_found_by_verify(record: Record) -> None:
    Objectives(record).store_empty_field("40x", [empty_field()], "olga")
    (image,) = (record.folder / "images").rglob("*.jpg")
    image.unlink()
    assert "is missing" in str(check(record.folder).problems[0])


def test_impossible_scales_and_nameless_objectives_are_refused(record: Record) -> None:
    stored = Objectives(record)
    for wrong in (calibration(" "), calibration(um_per_px=50), calibration(um_per_px=0.0001)):
        with pytest.raises(UsageError):
            stored.calibrate(wrong)
    with pytest.raises(UsageError):
        stored.store_empty_field("", [empty_field()], "olga")
    assert record.events() == []


class Cells:
    """A finder whose fields have red cells of these diameters, in turn."""

    def __init__(self, *diameters: float, confidence: float = 0.9) -> None:
        self.diameters, self.confidence, self.calls = diameters, confidence, 0

    def find(self, pixels: Pixels, scale: Scale | None = None, /) -> Found:
        diameter = self.diameters[self.calls % len(self.diameters)]
        self.calls += 1
        wrong = scale is not None and abs(np.log2(scale.red_cell_px / diameter)) > 0.5
        measured = Scale(diameter, "image", self.confidence, (diameter, diameter))
        return Found((), scale or measured, ("wrong",) if wrong else (), lambda: pixels[..., 0])


FIELD = np.zeros((48, 64, 3), np.uint8)


def test_a_scale_from_red_cells() -> None:
    um_per_px, measured = measure_red_cells(Cells(100, 104, 102), [FIELD] * 3)
    assert um_per_px == pytest.approx(RED_CELL_UM / 102) and measured == {"red_cell_px": 102.0, "pictures": 3}
    with pytest.raises(NoRedCellsError, match="uncertain"):
        measure_red_cells(Cells(100, confidence=0.1), [FIELD])
    with pytest.raises(NoRedCellsError, match="seem to measure 80 px in one"):
        measure_red_cells(Cells(80, 100), [FIELD] * 2)


def test_a_calibrated_scale_is_used_and_a_misfit_is_said(record: Record) -> None:
    Objectives(record).calibrate(calibration(um_per_px=RED_CELL_UM / 100))
    record.start_session(SessionNotes("S-1", magnification="100x oil"))
    finder = Cells(100, 100, *[40] * 20)
    search = CellSearch(record, finder)
    assert [search.find(FIELD).scale.source for _ in range(2)] == ["calibrated"] * 2 and not search.misfit
    for number in range(8):  # a calibration is not forgotten, however often frames contradict it
        assert search.find(FIELD).scale.source == "calibrated"
        assert search.misfit == (number + 1 >= MISFIT)
    finder.diameters = (100,)
    search.find(FIELD)
    assert not search.misfit
