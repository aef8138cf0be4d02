"""Fixtures for the station: a camera of still fields, a record without limits, and a station with short intervals.

Test modules import them; they need the extra ``rig``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from venvs import HANG_S

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.rig import health, recorder
from edgeall.rig import station as station_module
from edgeall.rig.capture.interface import Camera
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.slide import Slide, draw_slide
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits, SessionNotes
from edgeall.rig.snapshot import Live
from edgeall.rig.station import Station

NOTES = SessionNotes(sample="S-1", operator="someone")


class Stills:
    """A camera that cycles through sharp fields, too far apart in time to count as moving; number 3 is empty."""

    name = "stills"

    def __init__(self, slide: Slide, period_s: float = 0.02) -> None:
        self.number, self.period_s, self.closed = 0, period_s, False
        windows = [(1400 + 700 * (n % 4), 500 * (n // 4)) for n in range(8)]
        self.fields = [np.ascontiguousarray(slide.pixels[y : y + 960, x : x + 1280]) for x, y in windows]
        self.fields[3] = np.ascontiguousarray(slide.pixels[:960, :1280])

    def read(self, timeout_s: float) -> Frame:
        time.sleep(self.period_s)
        self.number += 1
        taken = datetime.fromtimestamp(1_800_000_000 + self.number, timezone.utc)
        return Frame(self.fields[(self.number - 1) % len(self.fields)], taken, self.number - 1)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module", name="slide")
def station_slide() -> Slide:
    return draw_slide(seed=1, size=(6144, 2000))


@pytest.fixture(name="record")
def station_record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record", limits=Limits(0, 0)) as opened:
        yield opened


@pytest.fixture(name="make")
def make_station(
    slide: Slide, record: Record, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Station]]:
    """``make(**changes)`` starts a station on `Stills` with short intervals."""
    monkeypatch.setattr(health, "_PERIOD_S", 0.05)
    monkeypatch.setattr(recorder, "_RETRY_S", 0.1)
    for module in (station_module, recorder):
        monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(ReconnectingCamera, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(ReconnectingCamera, "LONGEST_WAIT_S", 0.5)
    stations: list[Station] = []

    def start(
        camera: Callable[[], Camera] | None = None,
        bundle: Path = tiny_bundle,
        to: Record = record,
        stall_s: float = 0.5,
        **named: Any,
    ) -> Station:
        kept = ReconnectingCamera(camera or (lambda: Stills(slide)), stall_s=stall_s)
        station = Station(kept, Classifier.open(bundle, threads=1), to, **named)
        stations.append(station)
        station.start()
        return station

    yield start
    for station in stations:
        station.stop()


def until(station: Station, true: Callable[[Live], object], timeout_s: float = HANG_S) -> Live:
    """The first snapshot for which ``true`` holds."""
    end, live = time.monotonic() + timeout_s, station.live()
    while not true(live):
        assert time.monotonic() < end, live
        live = station.wait(live.number, 0.5)
    return live
