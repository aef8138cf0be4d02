"""How the browser benchmark compares the cells of a page with those of `edgeall cells`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCALE = {"red_cell_px": 50.0, "um_per_px": 0.15, "source": "measured"}


@pytest.fixture
def web_cells(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import web_cells

    monkeypatch.delitem(sys.modules, "web_cells")
    monkeypatch.delitem(sys.modules, "command")
    return web_cells


def cell(x: float, y: float, area: int = 1000) -> dict[str, Any]:
    left, top = int(x) - 20, int(y) - 20
    box = {"left": left, "top": top, "right": left + 40, "bottom": top + 40}
    return {"x": x, "y": y, **box, "area_px": area, "cell_area_px": 2 * area}


def field(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"image": "folder/a.jpg", "cells": list(cells), "scale": SCALE, "warnings": []}


def test_the_same_cells(web_cells: ModuleType) -> None:
    both = cell(100, 100), cell(200, 80)
    found = web_cells.compared(field(*both), field(*both))
    assert found == web_cells.Field("a.jpg", 2, True, True, 0, 0, 0)


def test_a_moved_edge_and_another_order(web_cells: ModuleType) -> None:
    moved = cell(200, 80, 1100) | {"right": 223}
    found = web_cells.compared(field(moved, cell(100, 100)), field(cell(100, 100), cell(200, 80)))
    assert found == web_cells.Field("a.jpg", 2, False, False, 0, 3, pytest.approx(0.1))


def test_cells_that_only_one_finds(web_cells: ModuleType) -> None:
    """A cell is not compared with another one far away; a cell that comes twice has one partner."""
    ours = field(cell(100, 100), cell(104, 100), cell(400, 300))
    found = web_cells.compared(ours, field(cell(101, 100), cell(200, 80)))
    assert (found.boxes, found.unmatched, found.edge) == (False, 3, 1)
    assert web_cells.compared(field() | {"cells": None}, field(cell(9, 9))).unmatched == 1
    assert not web_cells.compared(field(cell(100, 100)), field()).boxes


def test_another_scale_is_not_identical(web_cells: ModuleType) -> None:
    found = web_cells.compared(field(cell(9, 9)) | {"scale": SCALE | {"red_cell_px": 50.1}}, field(cell(9, 9)))
    assert found.boxes and not found.identical


def test_limits(web_cells: ModuleType) -> None:
    same, other = (
        web_cells.Field("a.jpg", 1, True, True, 0, 0, 0),
        web_cells.Field("b.jpg", 1, False, False, 0, 1, 0),
    )
    times = web_cells.CellTimes(1, 290, 100, 0, 1), web_cells.CellTimes(2, 160, 100, 0, 1)
    rows = web_cells.cell_limits(web_cells.Cells((same, other), False, times), (3, 1.5))
    assert [(measured, met) for _, measured, _, met in rows] == [("1 of 2", False), ("2.90", True), ("1.60", False)]
    assert "b.jpg" in "\n".join(web_cells.cell_lines(web_cells.Cells((same, other), False, times)))
