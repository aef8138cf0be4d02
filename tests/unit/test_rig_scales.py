"""The rig's search for cells: the scale is measured, then remembered for the objective, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeall.edge_runtime.vision.finder import Found
from edgeall.edge_runtime.vision.scale import Scale, given_scale
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Program, SessionNotes
from edgeall.rig.scales import FRAMES, CellSearch

FIELD = np.zeros((48, 64, 3), np.uint8)


class Field:
    """A finder that measures what it is told to."""

    def __init__(self, red_cell_px: float = 100.0, confidence: float = 0.9) -> None:
        self.red_cell_px, self.confidence = red_cell_px, confidence

    def find(self, pixels: NDArray[np.uint8], scale: Scale | None = None, /) -> Found:
        wrong = scale is not None and abs(np.log2(scale.red_cell_px / self.red_cell_px)) > 0.5
        measured = Scale(self.red_cell_px, "image", self.confidence, (self.red_cell_px, self.red_cell_px))
        return Found((), scale or measured, ("wrong",) if wrong else (), lambda: pixels[..., 0])


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record", program=Program("demo", "0" * 64, ("A", "B"))) as opened:
        yield opened


def sources(search: CellSearch, frames: int) -> list[str]:
    return [search.find(FIELD).scale.source for _ in range(frames)]


def test_a_scale_is_remembered_for_its_objective(record: Record) -> None:
    first = record.start_session(SessionNotes("S-1", magnification="100x oil"))
    finder = Field()
    search = CellSearch(record, finder)
    assert sources(search, FRAMES + 2) == ["image"] * FRAMES + ["remembered"] * 2
    record.end_session(first)
    second = record.start_session(SessionNotes("S-2", magnification="40x"))
    search.new_slide()
    finder.red_cell_px = 40.0
    assert sources(search, FRAMES + 1) == ["image"] * FRAMES + ["remembered"]
    record.end_session(second)
    record.start_session(SessionNotes("S-3", magnification="100x oil"))
    again = CellSearch(record, finder)  # after a restart
    found = again.find(FIELD)
    assert (found.scale.source, found.scale.red_cell_px) == ("remembered", 100.0)
    assert found.warnings == ("wrong",)


def test_a_scale_that_frames_contradict_is_measured_anew(record: Record) -> None:
    finder = Field()
    search = CellSearch(record, finder)
    sources(search, FRAMES)
    finder.red_cell_px = 40.0
    assert sources(search, FRAMES + 1) == ["remembered"] * FRAMES + ["image"]
    assert CellSearch(record, finder).find(FIELD).scale.source == "image"  # forgotten after a restart too


@pytest.mark.parametrize("unsure", [True, False])
def test_measurements_that_disagree_or_are_unsure_are_not_remembered(record: Record, unsure: bool) -> None:
    finder = Field(confidence=0.1 if unsure else 0.9)
    search = CellSearch(record, finder)
    for number in range(2 * FRAMES):
        if not unsure:
            finder.red_cell_px = 100.0 if number % 2 else 125.0
        assert search.find(FIELD).scale.source == "image"


def test_a_given_scale_is_used(record: Record) -> None:
    search = CellSearch(record, Field(), given_scale(80.0))
    assert sources(search, FRAMES + 1) == ["given"] * (FRAMES + 1)
    assert record.events(kind="scale") == []
