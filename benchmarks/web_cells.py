"""Part of `web.py`: the cells that the app finds in real fields, compared with those of `edgeall cells`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from command import answer

from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.vision.finder import Finder, open_finder
from edgeall.edge_runtime.vision.instances import opencv

FIND = """async (name) => {
  const { ask } = await import("./client.js");
  const file = await (await fetch(`fields/${name}`)).blob();
  const begun = performance.now();
  const { prediction, milliseconds } = await ask("classifyFile", { name, file, cells: { redCellPx: null } });
  return { ...prediction, milliseconds: milliseconds.cells, whole: performance.now() - begun };
}"""
TABLE = """async (predictions) => (await import("./export.js")).cellsCsv(predictions)"""
EDGES = ("left", "top", "right", "bottom")
NEAR = 1.0
"""Largest distance of the centres of one cell found twice, in red cell diameters."""


@dataclass(frozen=True)
class Field:
    """The cells of one field by the page and by `edgeall cells`.

    Attributes:
        image: its file.
        cells: number that `edgeall cells` finds.
        identical: whether every number, the scale and the warnings are the same.
        boxes: whether there are as many boxes, and the same ones.
        unmatched: cells that only one of them finds.
        edge: largest deviation of an edge of a box, in pixels.
        area: largest deviation of the area of a nucleus or of a whole cell, as a share.
    """

    image: str
    cells: int
    identical: bool
    boxes: bool
    unmatched: int
    edge: float
    area: float


@dataclass(frozen=True)
class CellTimes:
    """Medians in milliseconds per field: of the page, and of the native finder with one thread, in turns."""

    threads: int
    finder: float
    native_finder: float
    whole: float
    native_whole: float


@dataclass(frozen=True)
class Cells:
    """What was measured. ``table``: whether the page's `cells.csv` has the bytes of that of `edgeall cells`."""

    fields: tuple[Field, ...]
    table: bool
    times: tuple[CellTimes, ...]


def compared(found: dict[str, Any], expected: dict[str, Any]) -> Field:
    """One field's JSON of the page and of `edgeall cells`."""
    ours, theirs = found["cells"] or [], expected["cells"]
    pairs = list(_pairs(ours, theirs, expected["scale"]["red_cell_px"]))
    edges = [abs(one[edge] - other[edge]) for one, other in pairs for edge in EDGES]
    areas = [abs(one[key] / other[key] - 1) for one, other in pairs for key in ("area_px", "cell_area_px")]
    return Field(
        image=Path(expected["image"]).name,
        cells=len(theirs),
        identical=all(found[key] == expected[key] for key in ("cells", "scale", "warnings")),
        boxes=len(pairs) == len(ours) == len(theirs) and not any(edges),
        unmatched=len(ours) + len(theirs) - 2 * len(pairs),
        edge=max(edges, default=0.0),
        area=max(areas, default=0.0),
    )


def _pairs(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], red_cell_px: float
) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """The same cell of both, nearest centres first."""
    away = sorted(
        (math.hypot(one["x"] - other["x"], one["y"] - other["y"]), at, to)
        for at, one in enumerate(ours)
        for to, other in enumerate(theirs)
    )
    left, right = set[int](), set[int]()
    for distance, at, to in away:
        if distance <= NEAR * red_cell_px and at not in left and to not in right:
            left.add(at)
            right.add(to)
            yield ours[at], theirs[to]


class CellFields:
    """The fields, and what `edgeall cells` finds in them, which runs as a program."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder = folder
        self._names = sorted(path.name for path in folder.iterdir())
        self._expected = answer("cells", *(folder / name for name in self._names), "--out", out)["images"]
        self._table = (out / "cells.csv").read_bytes().decode().replace(f"{folder}/", "")

    def measure(self, pages: Sequence[tuple[Any, int]]) -> Cells:
        """The cells by the first page; the times of all.

        Args:
            pages: each an open app with its number of threads.
        """
        opencv().setNumThreads(1)
        native = open_finder(threads=1)
        answers: list[dict[str, Any]] = []
        times = []
        for page, threads in pages:
            found, each = self._one_page(page, threads, native)
            answers = answers or found
            times.append(each)
        fields = tuple(compared(one, other) for one, other in zip(answers, self._expected, strict=True))
        return Cells(fields, pages[0][0].evaluate(TABLE, answers) == self._table, tuple(times))

    def _one_page(self, page: Any, threads: int, native: Finder) -> tuple[list[dict[str, Any]], CellTimes]:
        answers, alone, whole = [], [], []
        page.evaluate(FIND, self._names[0])  # warm
        for name in self._names:
            answers.append(page.evaluate(FIND, name))
            begun = time.perf_counter()
            pixels = np.asarray(open_rgb(self._folder / name))
            read = time.perf_counter()
            native.find(pixels)
            alone.append(1e3 * (time.perf_counter() - read))
            whole.append(1e3 * (time.perf_counter() - begun))
        page_alone, page_whole = (statistics.median(each[key] for each in answers) for key in ("milliseconds", "whole"))
        return answers, CellTimes(threads, page_alone, statistics.median(alone), page_whole, statistics.median(whole))


def cell_limits(cells: Cells, ratios: Sequence[float]) -> list[tuple[str, str, str, bool]]:
    """Rows of the page's table: what, measured, limit, and whether it is met."""
    fields = cells.fields
    boxes = sum(each.boxes for each in fields)
    same = "cells: fields with the boxes of `edgeall cells`"
    rows = [(same, f"{boxes} of {len(fields)}", "all", boxes == len(fields))]
    for each, limit in zip(cells.times, ratios, strict=True):
        ratio = each.finder / each.native_finder
        what = f"cells: time per field, threads: {each.threads}; ratio to native with one"
        rows.append((what, f"{ratio:.2f}", f"{limit:g}", ratio <= limit))
    return rows


def cell_lines(cells: Cells) -> list[str]:
    """Markdown: the deviations, and the times."""
    fields = cells.fields
    identical = sum(each.identical for each in fields)
    total, unmatched = sum(each.cells for each in fields), sum(each.unmatched for each in fields)
    edge, area = max(each.edge for each in fields), max(each.area for each in fields)
    table = "is the same file" if cells.table else "differs"
    return [
        f"Cells: {total} in {len(fields)} fields. In {identical} fields, every number, the scale and the warnings are",
        f"those of `edgeall cells`; `cells.csv` {table}. Largest deviation of an edge of a",
        f"box: {edge:g} px, of an area: {100 * area:.2g} %. Cells that only one of them finds: {unmatched}.",
        *(f"- {each.image}: {each}" for each in fields if not each.identical),
        "",
        "Medians in ms per field, the native finder with one thread, in turns with the page:",
        "",
        "| threads of the page | page: finder | native: finder | page: file to cells | native: file to cells |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {t.threads} | {t.finder:.0f} | {t.native_finder:.0f} | {t.whole:.0f} | {t.native_whole:.0f} |"
            for t in cells.times
        ),
        "",
    ]
