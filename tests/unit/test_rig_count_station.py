"""The count of a real station: simulated stages, the cells as drawn, the model of the demo."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_rig import demo_classifier
from stage import Point, Stage, StageCamera, stand, tour
from venvs import HANG_S

from edgeall.edge_runtime.vision.cells import Cell
from edgeall.edge_runtime.vision.finder import Found
from edgeall.edge_runtime.vision.scale import Scale, given_scale
from edgeall.rig import recorder
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.slide import Slide, draw_slide
from edgeall.rig.record.chain import RecordError
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits, SessionNotes
from edgeall.rig.scales import CellSearch
from edgeall.rig.station import Station

NOTES = SessionNotes("S-1")
VIEW = (1280, 960)
STOPS: list[Point] = [(900, 0), (1500, 100), (1700, 700), (900, 600), (910, 20)]


class DrawnCells:
    """Finds the cells that were drawn: what is tested is the count, not how well a network was trained."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._numbers = {_digest(stage.pixels(number)): number for number in range(len(stage.path))}

    def find(self, pixels: np.ndarray, scale: Scale | None = None, /) -> Found:
        """See `edgeall.edge_runtime.vision.finder.Finder`."""
        boxes = self._stage.boxes(self._numbers[_digest(pixels)])
        cells = tuple(
            Cell((a, b, c, d), ((a + c) / 2, (b + d) / 2), (c - a) * (d - b) // 2, False, (c - a) * (d - b), 0.9)
            for a, b, c, d in boxes
        )
        return Found(cells, scale or given_scale(200.0), (), lambda: np.zeros(pixels.shape[:2], np.uint8))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def slide() -> Slide:
    return draw_slide(seed=11, size=(3900, 1700))


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record", limits=Limits(0, 0)) as opened:
        yield opened


@pytest.fixture
def station_on(record: Record, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Stage], Station]]:
    """``station_on(stage)`` starts a station that replays a stage, with the model of the demo."""
    monkeypatch.setattr(recorder, "_RETRY_S", 0.1)
    stations: list[Station] = []

    def start(stage: Stage, unit: str = "cell") -> Station:
        camera = ReconnectingCamera(lambda: StageCamera(stage), stall_s=60.0)
        station = Station(camera, demo_classifier(), record, search=CellSearch(record, DrawnCells(stage)))
        station._judge.unit = unit
        stations.append(station)
        station.start()
        return station

    yield start
    for station in stations:
        station.stop()


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 2 * HANG_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_stage_that_moves_comes_back_and_stands_still_shows_each_cell_once(
    slide: Slide, record: Record, station_on: Callable[..., Station]
) -> None:
    path = tour(STOPS, 250, 2)
    stage = Stage(slide, path, VIEW)
    station = station_on(stage)
    session = station.start_session(NOTES)
    until(lambda: record.session(session).frames == len(path))
    counts = record.summary(session).counts
    assert counts is not None and counts.patches == 1
    assert counts.cells == pytest.approx(stage.truth(), rel=0.1)
    found = record.found(session)
    assert all(each.image and record.image_path(each.image) for each in found.cells.values() if each.counts)
    (ids,) = {tuple(cell["cell_id"] for cell in frame.row.cells) for frame in record.frames(session, limit=1)}
    assert len(set(ids)) == len(ids) and set(ids) <= set(found.cells)
    station.stop()  # the slide stays open, as after a power cut; the stage stands where it stood
    still = Stage(slide, stand(path[-1], 6), VIEW, seed=1)
    station_on(still)
    until(lambda: record.session(session).frames == len(path) + 6)
    after = record.summary(session).counts
    assert after is not None and (after.cells, after.fields, after.patches) == (counts.cells, counts.fields, 1)
    assert check(record.folder).problems == []


def test_a_field_shown_for_long_is_one_field_for_a_model_of_fields(
    slide: Slide, record: Record, station_on: Callable[..., Station]
) -> None:
    station = station_on(Stage(slide, stand((1300, 300), 8), VIEW), unit="field")
    session = station.start_session(NOTES)
    until(lambda: record.session(session).frames == 8)
    (share,) = record.summary(session).labels
    assert (share.count, round(share.low, 2), round(share.high, 2)) == (1, 0.21, 1.0)
    counts = record.summary(session).counts
    assert counts is not None and (counts.fields, counts.patches) == (1, 1)


def test_a_count_that_could_not_be_recorded_is_recorded_later(
    slide: Slide, record: Record, station_on: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failed = recorder.Recorder._write, threading.Event()

    def failing(self: recorder.Recorder, job: Any) -> int:
        if not failed.is_set():
            failed.set()
            job.done.set_exception(RecordError("the disk is away"))
            return 0
        return write(self, job)

    monkeypatch.setattr(recorder.Recorder, "_do", lambda self, job: failing(self, job))
    station = station_on(Stage(slide, stand((1300, 300), 4), VIEW))
    session = station.start_session(NOTES)
    until(lambda: record.session(session).frames == 3)
    found = record.found(session)
    assert set(found.fields) == {1} and set(found.cells) == set(range(1, len(found.cells) + 1)) and found.cells
    station.stop()
