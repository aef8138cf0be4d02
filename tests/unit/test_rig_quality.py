"""Each condition of the gate on drawn frames of known truth, and on real fields and photographs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from fixtures_models import manifest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.manifest import parse_manifest
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.edge_runtime.vision.quality import (
    REASONS,
    Gate,
    Quality,
    Thresholds,
    fit,
    from_values,
    thresholds_of,
    to_values,
)
from edgeall.rig.capture.slide import SimulatedCamera, Slide, draw_slide

Pixels = NDArray[np.uint8]
START = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)
WIDTH, HEIGHT = 1280, 960
PX_PER_UM = 29


@pytest.fixture(scope="module")
def slide() -> Slide:
    return draw_slide(seed=5)


def fields(slide: Slide, zone: str = "smear") -> list[Pixels]:
    """Sharp windows of one zone, without overlap."""
    columns = {"empty": (0,), "smear": (1400, 2700), "thick": (6144 - WIDTH,)}[zone]
    rows = (0, 960, 1920)
    return [np.ascontiguousarray(slide.pixels[y : y + HEIGHT, x : x + WIDTH]) for x in columns for y in rows]


def look(gate: Gate, pixels: Pixels, number: int = 0, apart_s: float = 2.0) -> Quality:
    return gate.judge(Frame(pixels, START + timedelta(seconds=number * apart_s), number))


def blurred(pixels: Pixels, um: float) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(um * PX_PER_UM)))


def lit(pixels: Pixels, light: float) -> Pixels:
    return np.clip(pixels * np.float32(light), 0, 255).astype(np.uint8)


def noisy(pixels: Pixels, deviation: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("light", [0.6, 0.8, 1.0])
@pytest.mark.parametrize("deviation", [0.0, 6.0])
def test_good_fields_pass_under_any_usual_lamp_and_noise(slide: Slide, light: float, deviation: float) -> None:
    gate = Gate()
    for number, pixels in enumerate(fields(slide)):
        quality = look(gate, noisy(lit(pixels, light), deviation), number)
        assert quality.ok and quality.reasons == (), quality


@pytest.mark.parametrize("deviation", [0.0, 4.0])
def test_focus_falls_with_every_step_out_of_focus_whatever_is_in_view(slide: Slide, deviation: float) -> None:
    gate = Gate()
    for number, pixels in enumerate(fields(slide)[:3]):
        assert look(gate, noisy(pixels, deviation), number).ok
    for pixels in fields(slide)[::4]:
        steps = [look(gate, noisy(blurred(pixels, um), deviation), 99) for um in (0.0, 0.05, 0.1, 0.2, 0.3)]
        focus = [quality.focus for quality in steps]
        assert focus == sorted(focus, reverse=True) and focus[0] > 0.75
        assert ["blurred" in quality.reasons for quality in steps[3:]] == [True, True]
        assert not steps[4].ok


def test_focus_is_relative_to_the_slides_own_best(slide: Slide) -> None:
    """Focus is relative to the best of the objective; the next slide may have another one."""
    soft = [blurred(pixels, 0.12) for pixels in fields(slide)]
    gate = Gate()
    assert all(look(gate, pixels, number).ok for number, pixels in enumerate(soft))
    for number, pixels in enumerate(fields(slide)):
        look(gate, pixels, 10 + number)
    assert not any(look(gate, pixels, 30 + number).ok for number, pixels in enumerate(soft))
    gate.new_slide()
    assert all(look(gate, pixels, 50 + number).ok for number, pixels in enumerate(soft))


def test_one_odd_frame_does_not_set_the_best(slide: Slide) -> None:
    gate = Gate()
    first, *others = fields(slide)
    look(gate, noisy(blurred(first, 0.05), 0), 0)
    crisp = first.copy()
    crisp[::40, ::2] //= 2  # lines that no objective draws
    look(gate, crisp, 1)
    assert all(look(gate, blurred(pixels, 0.05), 2 + number).ok for number, pixels in enumerate(others))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda pixels: lit(pixels, 0.25), "dark"),
        (lambda pixels: lit(pixels, 1.6), "bright"),
        (lambda pixels: np.roll(pixels, 1, axis=2), "not a smear"),  # channels in a wrong order
        (lambda pixels: pixels[..., [1, 1, 1]], "not a smear"),  # grey
        (lambda pixels: np.full_like(pixels, (230, 226, 220)), "empty"),
    ],
)
def test_what_is_wrong_is_named(slide: Slide, spoil: Callable[[Pixels], Pixels], reason: str) -> None:
    for pixels in fields(slide):
        quality = look(Gate(), spoil(pixels))
        assert not quality.ok and reason in quality.reasons, quality
        assert set(quality.reasons) <= set(REASONS)


def test_the_slides_ends_are_empty_and_thick(slide: Slide) -> None:
    gate = Gate()
    assert look(gate, fields(slide)[0]).ok
    for number, (zone, pixels) in enumerate((z, p) for z in ("empty", "thick") for p in fields(slide, z)):
        quality = look(gate, pixels, 1 + number)
        assert zone in quality.reasons, quality
        assert quality.focus == 0 or zone == "thick"


def test_a_lamp_that_is_turned_down_is_not_a_thick_field(slide: Slide) -> None:
    gate, field = Gate(), fields(slide)[0]
    assert look(gate, lit(field, 1.6), 0).reasons == ("bright",)
    for number, light in enumerate((1.0, 0.8), 1):  # "too bright: turn the lamp down"
        assert look(gate, lit(field, light), number).ok
    found = [look(gate, lit(field, 0.65), 3 + n, 0.1) for n in range(600)]
    assert found[0].reasons == ("thick",) and found[-1].ok  # darker than before on this slide: accepted within a minute


def test_a_thick_field_stays_thick_while_the_slide_is_moved_over(slide: Slide) -> None:
    gate, (field, *_), (thick, *_) = Gate(), fields(slide), fields(slide, "thick")
    for number in range(300):
        quality = look(gate, field if number % 60 == 0 else thick, number, 1.0)
        assert quality.ok if number % 60 == 0 else "thick" in quality.reasons, (number, quality)


@pytest.mark.parametrize(("pixels", "moves"), [(0, False), (2, False), (12, True), (60, True), (300, True)])
def test_movement_is_told_from_the_sensors_noise_and_the_lamps_flicker(slide: Slide, pixels: int, moves: bool) -> None:
    for top, left in ((0, 1400), (960, 2000), (1900, 2600)):
        gate = Gate()
        here, there = (
            np.ascontiguousarray(slide.pixels[top : top + HEIGHT, left + shift : left + shift + WIDTH])
            for shift in (0, pixels)
        )
        assert look(gate, noisy(here, 4), 0, 1 / 30).motion_px is None
        quality = look(gate, lit(noisy(there, 3), 0.97), 1, 1 / 30)
        assert ("moving" in quality.reasons) is moves, quality
        if pixels == 12:
            assert quality.motion_px == pytest.approx(pixels / 4, rel=0.6)  # of a field 320 wide


@pytest.mark.parametrize("source", ["", "v.mp4 frame 2"])
@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_hides_no_movement(slide: Slide, step_s: float, source: str) -> None:
    """For frames of a camera and of a video, which have a monotonic clock."""
    gate, taken = Gate(), datetime(2026, 11, 21, tzinfo=timezone.utc)
    here, there = (np.ascontiguousarray(slide.pixels[:HEIGHT, left : left + WIDTH]) for left in (1400, 1460))
    gate.judge(Frame(here, taken, 0, source, clock_s=10.0))
    later = taken + timedelta(seconds=step_s)
    assert "moving" in gate.judge(Frame(there, later, 1, source, clock_s=10.0 + 1 / 30)).reasons


def test_files_do_not_move_however_fast_they_come(slide: Slide) -> None:
    gate, taken = Gate(), datetime(2026, 11, 21, tzinfo=timezone.utc)
    told = [
        gate.judge(Frame(pixels, taken + timedelta(seconds=n / 30), n, f"{n}.png"))
        for n, pixels in enumerate(fields(slide))
    ]
    assert [quality.motion_px for quality in told] == [None] * len(told)


def test_stills_far_apart_in_time_do_not_move(slide: Slide) -> None:
    gate = Gate()
    assert [look(gate, pixels, number, 1.0).motion_px for number, pixels in enumerate(fields(slide))] == [None] * 6


def test_the_gate_agrees_with_the_known_state_of_the_simulated_camera(slide: Slide) -> None:
    camera, gate = SimulatedCamera(slide, 2, rate=None), Gate()
    for number, pixels in enumerate(fields(slide)[:3]):
        look(gate, pixels, number - 99)
    wrong: Counter[str] = Counter()
    numbers = range(0, 720, 12)
    for number in numbers:
        view, quality = camera.view(number), look(gate, camera.pixels(number), number, 1 / 30)
        moved = number and (view.left, view.top) != (camera.view(number - 12).left, camera.view(number - 12).top)
        wrong["moving"] += view.zone == "smear" and ("moving" in quality.reasons) != bool(moved)
        wrong["blurred"] += view.zone == "smear" and view.blur_px > 5 and "blurred" not in quality.reasons
        wrong["sharp"] += view.zone == "smear" and view.blur_px < 1 and "blurred" in quality.reasons
        wrong["good"] += view.zone == "smear" and view.blur_px < 1 and not moved and not quality.ok
    assert max(wrong.values()) <= 0.02 * len(numbers), wrong


def test_real_fields_pass(test_data: Path) -> None:
    """Each separately: their slides are unknown."""
    files = [
        *sorted((test_data / "all4").rglob("*.jpg"))[::40],
        *sorted((test_data / "bccd/JPEGImages").iterdir())[::4],
    ]
    verdicts = Counter(look(Gate(), np.asarray(open_rgb(file))).reasons for file in files)
    assert verdicts[()] >= 0.97 * len(files), verdicts


def test_photographs_are_not_smears(test_data: Path) -> None:
    photographs = [file for file in (test_data / "foreign").iterdir() if file.suffix in (".png", ".jpg")]
    assert len(photographs) == 3
    for file in photographs:
        assert "not a smear" in look(Gate(), np.asarray(open_rgb(file))).reasons, file


def test_fitted_thresholds_let_their_own_images_pass(slide: Slide) -> None:
    pale = [np.clip(250 - (250 - pixels.astype(int)) // 8, 0, 255).astype(np.uint8) for pixels in fields(slide)]
    grey = [np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")) for pixels in fields(slide)]
    assert not look(Gate(), grey[0]).ok
    assert all(look(Gate(fit(grey)), pixels).ok for pixels in grey)
    assert not look(Gate(), pale[0]).ok
    assert all(look(Gate(fit(pale)), pixels).ok for pixels in pale)
    with pytest.raises(ValueError, match="no image"):
        fit([])


def test_fitting_never_makes_the_gate_stricter(slide: Slide) -> None:
    own, fitted = Thresholds(), fit(fields(slide))
    assert fitted.focus_min == own.focus_min and fitted.motion_max_px == own.motion_max_px
    for name in ("sharpness_floor", "background_min", "covered_min"):
        assert getattr(fitted, name) <= getattr(own, name)
    for name in ("clipped_max", "covered_max", "odd_max"):
        assert getattr(own, name) <= getattr(fitted, name) < 1


def test_thresholds_survive_the_manifest(slide: Slide) -> None:
    fitted = fit(fields(slide))
    assert from_values(json.loads(json.dumps(to_values(fitted)))) == fitted
    assert from_values({"focus_min": 0.5, "of a later version": "x"}) == Thresholds(focus_min=0.5)
    assert thresholds_of(None) == thresholds_of(manifest()) == Thresholds()
    packed = parse_manifest(manifest(quality=to_values(fitted)).to_json(), "model.tflite")
    assert thresholds_of(packed) == fitted
    older = json.loads(packed.to_json())
    del older["quality"]
    assert thresholds_of(parse_manifest(json.dumps(older), "model.tflite")) == Thresholds()


@pytest.mark.parametrize("value", ["high", None, True, [0.5]])
def test_a_limit_that_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(BundleError, match=r"`quality\.focus_min` must be a number"):
        from_values({"focus_min": value})


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (641, 483), (3280, 2464)])
def test_any_size_of_frame_is_measured(slide: Slide, size: tuple[int, int]) -> None:
    pixels = np.asarray(Image.fromarray(fields(slide)[0]).resize(size))
    gate = Gate()
    first, second = look(gate, pixels, 0, 0.03), look(gate, pixels, 1, 0.03)
    assert first.covered == pytest.approx(look(Gate(), fields(slide)[0]).covered, abs=0.05)
    assert second.motion_px == 0
