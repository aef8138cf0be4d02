"""The scale of a field, from the field itself: the diameter of its red cells in pixels.

A segmentation network also returns, for each tile, how much larger its red cells are than those that it was trained
with. It is accurate near that diameter. It stays positive where cells are much larger, and is unreliable where they are
much smaller. So the field is looked at in one window for each of several assumed diameters, from small to large, until
the answers turn negative; the diameter at which they are zero is then refined in several windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError
from ..messages import N_, message
from ..preprocess import window
from .tiles import TileSegmenter, padded

RED_CELL_UM = 7.1
"""Mean diameter of a red cell on a smear, micrometres."""
LEAST_PX, MOST_PX = 4.0, 900.0
"""Range of diameters in pixels."""
_LEAST_SEEN = 7.0
"""Smallest diameter that is assumed, pixels: below it nothing is left of a cell's structure."""
_SMALLEST, _LARGEST = 0.006, 0.45
"""Range of a red cell's diameter as a fraction of the field's longer side: 20x on a large sensor, one cell in view."""
_TYPICAL = 0.16
"""The same, where nothing can be measured: 100x with a usual camera."""
_STEP = 1.6
"""Maximum distance of assumed diameters, octaves."""
_REACH = 1.0
"""Octaves at which the network's answers saturate."""
_WINDOWS = 3
"""Windows in which the scale is refined."""
_AGAIN = 0.3
"""Octaves between two estimates above which the scale is refined once more."""
_UNSURE = 0.3
"""Octaves of disagreement at which the confidence falls to 1/e."""
_CLEAR = 0.3
"""Octaves between the answers on both sides of the diameter below which the confidence falls in proportion."""
_ONE_SIDED = 0.25
"""Confidence where all answers have the same sign."""
LEAST_CONFIDENCE = 0.3
"""Below it, the scale is said to be uncertain."""
MOST_OFF = 0.5
"""Octaves between a given scale and the field's own above which they are said to contradict each other."""

Source = Literal["image", "given", "remembered", "calibrated"]


@dataclass(frozen=True)
class Scale:
    """The scale of a field.

    Attributes:
        red_cell_px: diameter of a red cell in pixels of the field.
        source: ``image``: measured in the field; ``given`` by the user; ``remembered`` from earlier fields;
            ``calibrated`` for the objective.
        confidence: 0..1: 1 for a given scale; otherwise by how well the answers of the windows agree.
        range_px: lowest and highest estimate of the windows.
    """

    red_cell_px: float
    source: Source
    confidence: float
    range_px: tuple[float, float]

    @property
    def um_per_px(self) -> float:
        """Micrometres per pixel, if a red cell measures `RED_CELL_UM`."""
        return RED_CELL_UM / self.red_cell_px

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "red_cell_px": round(self.red_cell_px, 2),
            "um_per_px": round(self.um_per_px, 5),
            "source": self.source,
            "confidence": round(self.confidence, 3),
            "range_px": [round(end, 2) for end in self.range_px],
        }

    def problem(self) -> str:
        """Why the scale is doubtful; empty if it is not."""
        if self.confidence >= LEAST_CONFIDENCE:
            return ""
        low, high = self.range_px
        return message(
            "the scale is uncertain: red cells seem to measure {low} to {high} px, {used} px is used;"
            " give --red-cell-px or --um-per-px",
            low=f"{low:.0f}",
            high=f"{high:.0f}",
            used=f"{self.red_cell_px:.0f}",
        )


def given_scale(red_cell_px: float, source: Source = "given") -> Scale:
    """A scale that is known."""
    return Scale(red_cell_px, source, 1.0, (red_cell_px, red_cell_px))


def wanted_scale(um_per_px: float | None, red_cell_px: float | None) -> Scale | None:
    """The scale from one of the two settings, see `red_cell_from`; None without any: it is measured."""
    diameter = red_cell_from(um_per_px, red_cell_px)
    return None if diameter is None else given_scale(diameter)


def red_cell_from(um_per_px: float | None, red_cell_px: float | None) -> float | None:
    """The diameter of a red cell in pixels from one of the two settings; None without any.

    Raises:
        UsageError: both are given, or the diameter is not in the range that can be searched.
    """
    if um_per_px is not None and red_cell_px is not None:
        raise UsageError("--um-per-px and --red-cell-px both set the scale", hint="give one of them")
    diameter = RED_CELL_UM / um_per_px if um_per_px is not None else red_cell_px
    if diameter is not None and not LEAST_PX <= diameter <= MOST_PX:
        raise UsageError(
            f"the scale must give a red cell of {LEAST_PX:g} to {MOST_PX:g} px, got {diameter:.3g} px",
            hint=f"a red cell measures {RED_CELL_UM:g} micrometres",
        )
    return diameter


def measure_scale(field: Image.Image, segmenter: TileSegmenter) -> Scale:
    """Measure the scale of a field, mode ``RGB``."""
    windows, assumed = _Windows(field, segmenter), _assumed(max(field.size))
    crossing = windows.crossing(assumed)
    if crossing is None:
        return Scale(_TYPICAL * max(field.size), "image", 0.0, (2.0 ** assumed[0], 2.0 ** assumed[-1]))
    found, clear = crossing
    estimates = windows.refined(found)
    refined = float(np.median(estimates))
    moved = abs(refined - found)
    if moved > _AGAIN:
        estimates = windows.refined(refined)
        moved, refined = abs(float(np.median(estimates)) - refined), float(np.median(estimates))
    refined = min(max(refined, math.log2(LEAST_PX)), math.log2(MOST_PX))
    unsure = max(float(np.abs(estimates - refined).max()), moved / 2)
    range_px = float(2.0 ** estimates.min()), float(2.0 ** estimates.max())
    return Scale(2.0**refined, "image", clear * math.exp(-((unsure / _UNSURE) ** 2)), range_px)


_SOURCES = {"given": N_("given"), "remembered": N_("remembered"), "calibrated": N_("calibrated")}


def contradiction(scale: Scale, red_cells: tuple[float, ...]) -> str:
    """A line if a known scale contradicts the answers of the tiles (`ClassMap.red_cells`); otherwise empty."""
    off = float(np.median(red_cells))
    if scale.source == "image" or abs(off) <= MOST_OFF:
        return ""
    seems = scale.red_cell_px * 2.0 ** max(min(off, _REACH), -_REACH)
    seen = N_("{size} px or more") if off >= _REACH else N_("{size} px or less") if off <= -_REACH else N_("{size} px")
    return message(
        "the {source} scale looks wrong: red cells of {known} px, but here they seem to measure {seen}",
        source=message(_SOURCES[scale.source]),
        known=f"{scale.red_cell_px:.0f}",
        seen=message(seen, size=f"{seems:.0f}"),
    )


def implausible(scale: Scale, size: tuple[int, int]) -> str:
    """A line if no field of this size (width, height) has such a scale; otherwise empty."""
    shorter, longer = min(size), max(size)
    if scale.red_cell_px > shorter:
        text = N_(
            "the scale is implausible: red cells of {cell} px, not one whole red cell would fit into an image of"
            " {image} pixels; give --red-cell-px or --um-per-px"
        )
    elif scale.red_cell_px < _SMALLEST / 2 * longer:
        text = N_(
            "the scale is implausible: red cells of {cell} px, which is far below 20x, for an image of {image} pixels;"
            " give --red-cell-px or --um-per-px"
        )
    else:
        return ""
    return message(text, cell=f"{scale.red_cell_px:.0f}", image=f"{size[0]}x{size[1]}")


def _assumed(longer: int) -> list[float]:
    """Assumed diameters for a field with this longer side, log2 pixels."""
    low = math.log2(max(_LEAST_SEEN, _SMALLEST * longer))
    high = math.log2(min(MOST_PX, max(_LARGEST * longer, 2 * _LEAST_SEEN)))
    count = max(2, math.ceil((high - low) / _STEP))
    return [*(low + (high - low) / count * (at + 0.5) for at in range(count)), high]


class _Windows:
    """Windows of a field at assumed scales, and the network's answers to them.

    Args:
        field: mode ``RGB``.
        segmenter: the network.
    """

    def __init__(self, field: Image.Image, segmenter: TileSegmenter) -> None:
        self._segmenter = segmenter
        self._levels = [field]  # each half as large as the one before, which saves time for large windows
        self._places = busiest(self._level(max(field.size) // 512))

    def crossing(self, assumed: list[float]) -> tuple[float, float] | None:
        """The log2 diameter at which the answers first turn from positive to negative; and how clearly, 0..1.

        It may lie just outside the assumed diameters; None if it does not even do that.
        """
        below = np.arange(assumed[0], math.log2(_LEAST_SEEN), -_STEP).tolist()[1:]
        before: tuple[float, float] | None = None
        octave = answer = 0.0
        for octave in assumed:
            answer = self._answer(2.0**octave, self._places[0])
            if answer <= 0:
                break
            before = octave, answer
        while answer <= 0 and before is None and below:  # smaller than in any usual field
            smaller = below.pop(0)
            if (said := self._answer(2.0**smaller, self._places[0])) > 0:
                before = smaller, said
            else:
                octave, answer = smaller, said
        if before is None or answer > 0:
            return (octave + answer, _ONE_SIDED) if abs(answer) <= _AGAIN else None
        steep = before[1] - answer
        return before[0] + (octave - before[0]) * before[1] / steep, min(1.0, steep / _CLEAR)

    def refined(self, octave: float) -> NDArray[np.float64]:
        """Estimates of the log2 diameter in windows where it is assumed to be ``octave``."""
        side = self._segmenter.input.width * 2.0**octave / self._segmenter.red_cell_px
        distinct = 1 if side >= 0.9 * max(self._levels[0].size) else _WINDOWS
        return np.array([octave + self._answer(2.0**octave, place) for place in self._places[:distinct]])

    def _answer(self, red_cell_px: float, centre: tuple[float, float]) -> float:
        """`TileOutputs.red_cell` of a window around ``centre`` at the scale where a red cell has this diameter.

        The centre is in fractions of the field's width and height.
        """
        size = self._segmenter.input.width
        view = self._level(round(red_cell_px / self._segmenter.red_cell_px / 2))
        zoom = self._segmenter.red_cell_px / red_cell_px * self._levels[0].width / view.width
        wide, high = min(size / zoom, view.width), min(size / zoom, view.height)
        left = min(max(centre[0] * view.width - wide / 2, 0), view.width - wide)
        top = min(max(centre[1] * view.height - high / 2, 0), view.height - high)
        shape = max(1, round(wide * zoom)), max(1, round(high * zoom))
        seen = window(view, shape, (left, top, left + wide, top + high))
        return self._segmenter.infer(padded(np.asarray(seen), size)[0]).red_cell

    def _level(self, reduction: int) -> Image.Image:
        """The field at the smallest level that is reduced by at most this."""
        level = max(0, reduction.bit_length() - 1)
        while len(self._levels) <= level:
            self._levels.append(self._levels[-1].reduce(2))
        return self._levels[level]


def busiest(field: Image.Image) -> list[tuple[float, float]]:
    """Centres of up to `_WINDOWS` parts of the field, in fractions of it, those with the highest contrast: cells."""
    parts, inside = 16, 12
    small = field.convert("L").resize((parts * inside, parts * inside), Image.Resampling.BOX)
    blocks = np.asarray(small, np.int64).reshape(parts, inside, parts, inside)
    # From whole numbers, so that equal contrasts are equal on every processor, and in the browser.
    blocks = np.sqrt(inside**2 * (blocks**2).sum(axis=(1, 3)) - blocks.sum(axis=(1, 3)) ** 2)
    near = np.pad(blocks, 1, mode="edge")
    contrast = sum(near[y : y + parts, x : x + parts] for y in range(3) for x in range(3))
    chosen: list[tuple[int, int]] = []
    for at in np.argsort(-np.ravel(contrast), kind="stable").tolist():
        row, column = divmod(at, parts)
        if all(max(abs(row - y), abs(column - x)) >= parts // 4 for y, x in chosen):
            chosen.append((row, column))
        if len(chosen) == _WINDOWS:
            break
    return [((x + 0.5) / parts, (y + 0.5) / parts) for y, x in chosen]
