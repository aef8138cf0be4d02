"""The page of objectives: calibration and flat field from the camera's picture, and what then shows them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from fixtures_optics import HEIGHT, WIDTH, Pixels, empty_field, ruling
from fixtures_rig import Rig
from starlette.testclient import TestClient
from venvs import HANG_S

from edgeall.edge_runtime.vision.frame import Frame
from edgeall.edge_runtime.vision.scale import Scale
from edgeall.rig.snapshot import Live
from edgeall.rig.web.live_events import quality_light

PERIOD = 61.2


class Stage:
    """A camera over whatever is put under it."""

    name = "stage"

    def __init__(self) -> None:
        self.pixels: Pixels = ruling(PERIOD, 4.0)
        self.number = 0

    def read(self, timeout_s: float) -> Frame:
        time.sleep(0.01)
        self.number += 1
        return Frame(self.pixels, datetime.now(timezone.utc), self.number, clock_s=time.monotonic())

    def close(self) -> None:
        pass

    def shown(self, live: Live) -> bool:
        """Whether the newest frame is what is under the camera now."""
        return live.picture is not None and np.shares_memory(live.picture.camera_pixels, self.pixels)


def until(rig: Rig, holds: Callable[[Any], object]) -> Any:
    end, live = time.monotonic() + HANG_S, rig.station.live()
    while not holds(live):
        assert time.monotonic() < end, live
        live = rig.station.wait(live.number, 1.0)
    return live


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def rig(make_rig: Callable[..., Rig], stage: Stage) -> Any:
    made = make_rig(camera=lambda: stage, unit="cell")
    made.station.start()
    yield made
    made.station.stop()


@pytest.fixture
def page(rig: Rig) -> Any:
    until(rig, lambda live: live.picture is not None)
    with TestClient(rig.app, base_url="http://localhost", follow_redirects=False) as client:
        client.get("/login")
        client.headers["x-csrf-token"] = rig.access.csrf(next(iter(client.cookies.values())))
        yield client


def test_a_micrometer_gives_the_scale_of_an_objective(rig: Rig, page: TestClient) -> None:
    made = page.post("/objectives/micrometer", data={"objective": "100x oil", "division_um": "10"})
    assert made.status_code == 303
    shown = page.get(made.headers["location"]).text
    (stored,) = rig.station.objectives.scales()
    assert stored.um_per_px == pytest.approx(10 / PERIOD, rel=0.003)
    assert f"{stored.um_per_px:.4g}" in shown and "lines of 10 µm" in shown and 'data-bar-text="20 µm"' in shown
    session = rig.session()  # 100x oil
    live = until(rig, lambda live: live.session_id == session and live.scale is not None)
    assert live.scale == stored.scale and not live.misfit
    rig.station.end_session()
    (frame, *_) = rig.record.frames(session)
    assert (frame.row.um_per_px, frame.row.scale_source) == (pytest.approx(stored.um_per_px, rel=1e-5), "calibrated")
    assert list(frame.row.size or ()) == [WIDTH, HEIGHT]
    assert page.post("/objectives/remove", data={"objective": "100x oil", "what": "scale"}).status_code == 303
    assert not rig.station.objectives.scales()


def test_the_page_explains_why_a_scale_cannot_be_measured(rig: Rig, page: TestClient, stage: Stage) -> None:
    stage.pixels = empty_field()
    until(rig, lambda live: stage.shown(live))
    refused = page.post("/objectives/micrometer", data={"objective": "40x", "division_um": "10"})
    assert refused.status_code >= 400 and "not a ruling" in refused.text
    for wrong in ({"objective": "", "division_um": "10"}, {"objective": "40x", "division_um": "-1"}):
        assert page.post("/objectives/micrometer", data=wrong).status_code in (400, 409, 422)
    rig.session()
    refused = page.post("/objectives/flat-field", data={"objective": "40x"})
    assert refused.status_code == 409 and "a slide is being recorded" in refused.text
    assert not rig.station.objectives.scales() and not rig.station.objectives.empty_fields()


def test_a_flat_field_is_applied_and_both_page_and_record_say_so(rig: Rig, page: TestClient, stage: Stage) -> None:
    stage.pixels = empty_field()
    until(rig, lambda live: stage.shown(live))
    assert page.post("/objectives/flat-field", data={"objective": "100x oil"}).status_code == 303
    (stored,) = rig.station.objectives.empty_fields()
    assert re.search(r"flat field: corners 6\d %", page.get("/objectives").text)
    session = rig.session()
    live = until(rig, lambda live: live.session_id == session and live.flat_field)
    assert live.flat_field == stored.image
    corrected, raw = live.picture.frame.pixels, live.picture.camera_pixels
    assert stage.shown(live) and np.ptp(corrected.mean(axis=(0, 1))) < 4 < np.ptp(raw.mean(axis=(0, 1)))
    rig.station.change_settings(type(rig.station.settings)(flat_field=False))
    live = until(rig, lambda live: live.picture is not None and not live.flat_field)
    assert np.shares_memory(live.picture.frame.pixels, stage.pixels)
    rig.station.end_session()
    corrections = {frame.row.flat_field for frame in rig.record.frames(session)}
    assert corrections == {stored.image, ""}
    assert stored.image in page.get(f"/slides/{session}/frames.csv").text
    assert "flat field and white balance" in page.get(f"/slides/{session}").text


def test_pictures_have_scale_bars(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    rig.frame(session, 1, size=(640, 480), um_per_px=0.0345, scale_source="image")
    rig.frame(session, 2)  # of an older version
    shown = page.get(f"/gallery?session={session}").text
    assert shown.count('aria-label="Scale bar: ≈ 2 µm"') == 1


def test_a_misfit_is_a_red_light(rig: Rig) -> None:
    live = until(rig, lambda live: live.quality is not None)
    good = dict(vars(live)) | {"status": "judged", "scale": Scale(100, "calibrated", 1, (100, 100))}
    assert quality_light(type(live)(**good))[0] == "good"
    assert quality_light(type(live)(**good | {"misfit": True}))[:2] == ("bad", "The scale does not fit")
