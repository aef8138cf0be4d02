"""The simulated slide: it is deterministic, and its pixels agree with its ground truth."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from edgeall.edge_runtime.errors import UsageError
from edgeall.rig.capture.slide import LAMP, SimulatedCamera, Slide, draw_slide

FIELD = (480, 360)


@pytest.fixture(scope="module")
def slide() -> Slide:
    return draw_slide(seed=3, size=(2600, 900))


def test_a_seed_gives_the_same_slide_and_frames(slide: Slide) -> None:
    again = draw_slide(seed=3, size=(2600, 900))
    assert np.array_equal(slide.pixels, again.pixels) and slide.boxes == again.boxes
    assert not np.array_equal(slide.pixels, draw_slide(seed=4, size=(2600, 900)).pixels)
    one, two = SimulatedCamera(slide, 1, FIELD, rate=None), SimulatedCamera(again, 1, FIELD, rate=None)
    frames = [one.read(1.0) for _ in range(3)]
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert all(np.array_equal(frame.pixels, two.pixels(frame.number)) for frame in frames)
    assert not np.array_equal(frames[0].pixels, frames[1].pixels)  # the sensor's noise


def test_boxes_hold_dark_nuclei_and_nothing_else_is_as_dark(slide: Slide) -> None:
    """In the monolayer a nucleus transmits less than a third of the red light, a red cell more than half."""
    red = slide.pixels[..., 0] / LAMP[0]
    inside = np.zeros(red.shape, bool)
    for left, top, right, bottom in slide.boxes:
        assert (red[top:bottom, left:right] < 0.55).mean() > 0.2 or min(right - left, bottom - top) < 60
        inside[top:bottom, left:right] = True
    smear = slice(0, int(0.7 * slide.pixels.shape[1]))
    assert (red[:, smear][~inside[:, smear]] < 0.4).mean() < 0.01


def test_cells_in_view_are_in_the_windows_pixels(slide: Slide) -> None:
    x0, y0, x1, y1 = slide.boxes[0]
    (whole,) = [cell for cell in slide.cells(x0 - 5, y0 - 5, x1 - x0 + 10, y1 - y0 + 10) if cell.whole]
    assert whole.box == (5, 5, 5 + x1 - x0, 5 + y1 - y0)
    cut = slide.cells(x0 + 10, y0, x1 - x0, y1 - y0)[0]
    assert (cut.box[0], cut.whole) == (0, False)


def test_the_view_says_what_the_frame_shows(slide: Slide) -> None:
    camera = SimulatedCamera(slide, 1, FIELD, rate=None)
    views = [camera.view(number) for number in range(2400)]
    assert {view.zone for view in views} == {"empty", "smear", "thick"}
    assert max(view.blur_px for view in views) == pytest.approx(8.0, abs=0.3) and min(v.blur_px for v in views) == 0
    assert {view.lamp for view in views} >= {0.95, 1.0, 1.05}
    still = [b.moving or (a.left, a.top) == (b.left, b.top) for a, b in pairwise(views)]
    assert sum(still) > 0.95 * len(still)  # except the frame at arrival
    number = next(number for number, view in enumerate(views) if view.zone == "empty" and not view.moving)
    assert camera.pixels(number).std(axis=(0, 1)).max() < 3 and views[number].cells == ()


def test_it_keeps_its_pace(slide: Slide) -> None:
    begin = time.monotonic()
    camera = SimulatedCamera(slide, 1, FIELD, rate=50.0)
    for _ in range(11):
        camera.read(1.0)
    assert time.monotonic() - begin >= 10 / 50


def test_what_cant_be_drawn_is_refused(slide: Slide) -> None:
    with pytest.raises(UsageError, match="'Blast'") as caught:
        draw_slide(0, kind="Blast")
    assert "Benign, Early, Pre, Pro" in caught.value.hint
    with pytest.raises(UsageError, match="smaller than a frame of 4000x300"):
        SimulatedCamera(slide, size=(4000, 300))
