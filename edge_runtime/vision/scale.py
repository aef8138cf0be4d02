"""The scale of a field, from the field itself: the diameter of its red cells in pixels.

A segmentation network also returns, for each tile, how much larger its red cells are than those that it was trained
with. It is accurate near that diameter and saturates away from it. So the field is first looked at in one window for
each of several assumed diameters; the diameter that explains all answers best is refined in windows at that scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError
from .tiles import TileSegmenter, padded

RED_CELL_UM = 7.1
"""Mean diameter of a red cell on a smear, micrometres."""
LEAST_PX, MOST_PX = 4.0, 900.0
"""Range of diameters in pixels."""
_SMALLEST, _LARGEST = 0.006, 0.45
"""Range of a red cell's diameter as a fraction of the field's longer side: 20x on a large sensor, one cell in view."""
_STEP = 1.7
"""Maximum distance of assumed diameters, octaves. The network's answers cover an octave on each side."""
_REACH = 1.0
"""Octaves at which the network's answers saturate."""
_WINDOWS = 3
"""Windows in which the scale is refined."""
_AGAIN = 0.3
"""Octaves between two estimates above which the scale is refined once more."""
_UNSURE = 0.3
"""Octaves of disagreement at which the confidence falls to 1/e."""
LEAST_CONFIDENCE = 0.3
"""Below it, the scale is said to be uncertain."""
MOST_OFF = 0.5
"""Octaves between a given scale and the field's own above which they are said to contradict each other."""

Source = Literal["image", "given", "remembered", "assumed"]


@dataclass(frozen=True)
class Scale:
    """The scale of a field.

    Attributes:
        red_cell_px: diameter of a red cell in pixels of the field.
        source: ``image``: measured in the field; ``given`` by the user; ``remembered`` from earlier fields;
            ``assumed``: from the size of the field.
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
        return (
            f"the scale is uncertain: red cells seem to measure {low:.0f} to {high:.0f} px, {self.red_cell_px:.0f} px"
            " is used; give --red-cell-px or --um-per-px"
        )


def given_scale(red_cell_px: float, source: Source = "given") -> Scale:
    """A scale that is known."""
    return Scale(red_cell_px, source, 1.0, (red_cell_px, red_cell_px))


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
    places = _busiest(field)
    assumed = _assumed(max(field.size))
    answers = np.array([_answer(field, segmenter, 2.0**octave, places[0]) for octave in assumed])
    found = _explaining(assumed, answers)
    estimates = _refined(field, segmenter, found, places)
    refined = float(np.median(estimates))
    moved = abs(refined - found)
    if moved > _AGAIN:
        estimates = _refined(field, segmenter, refined, places)
        moved, refined = abs(float(np.median(estimates)) - refined), float(np.median(estimates))
    refined = min(max(refined, math.log2(LEAST_PX)), math.log2(MOST_PX))
    unsure = max(float(np.abs(estimates - refined).max()), moved / 2)
    range_px = float(2.0 ** estimates.min()), float(2.0 ** estimates.max())
    return Scale(2.0**refined, "image", math.exp(-((unsure / _UNSURE) ** 2)), range_px)


def contradiction(scale: Scale, red_cells: tuple[float, ...]) -> str:
    """A line if a known scale contradicts the answers of the tiles (`ClassMap.red_cells`); otherwise empty."""
    off = float(np.median(red_cells))
    if scale.source == "image" or abs(off) <= MOST_OFF:
        return ""
    seems = scale.red_cell_px * 2.0 ** max(min(off, _REACH), -_REACH)
    bound = " or more" if off >= _REACH else " or less" if off <= -_REACH else ""
    return (
        f"the {scale.source} scale looks wrong: red cells of {scale.red_cell_px:.0f} px, but here they seem to measure"
        f" {seems:.0f} px{bound}"
    )


def _assumed(longer: int) -> NDArray[np.float64]:
    """Assumed diameters for a field with this longer side, log2 pixels."""
    low = math.log2(max(LEAST_PX, _SMALLEST * longer))
    high = math.log2(min(MOST_PX, max(_LARGEST * longer, 2 * LEAST_PX)))
    count = max(2, math.ceil((high - low) / _STEP))
    step = (high - low) / count
    octaves: NDArray[np.float64] = low + step * (np.arange(count, dtype=np.float64) + 0.5)
    return octaves


def _explaining(assumed: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    """The log2 diameter with the least sum of absolute differences to the answers, which saturate at `_REACH`."""
    grid = np.arange(assumed[0] - _REACH, assumed[-1] + _REACH, 0.02)
    expected = np.clip(grid[:, None] - assumed, -_REACH, _REACH)
    cost = np.abs(np.clip(answers, -_REACH, _REACH) - expected).sum(axis=1)
    return float(grid[cost <= cost.min() + 1e-6].mean())


def _refined(
    field: Image.Image, segmenter: TileSegmenter, octave: float, places: list[tuple[float, float]]
) -> NDArray[np.float64]:
    """Estimates of the log2 diameter in windows where it is assumed to be ``octave``."""
    side = segmenter.input.width * 2.0**octave / segmenter.red_cell_px
    distinct = 1 if side >= 0.9 * max(field.size) else _WINDOWS
    return np.array([octave + _answer(field, segmenter, 2.0**octave, place) for place in places[:distinct]])


def _answer(field: Image.Image, segmenter: TileSegmenter, red_cell_px: float, centre: tuple[float, float]) -> float:
    """`TileOutputs.red_cell` of a window around ``centre`` at the scale where a red cell would have its diameter."""
    size = segmenter.input.width
    zoom = segmenter.red_cell_px / red_cell_px
    wide, high = min(size / zoom, field.width), min(size / zoom, field.height)
    left = min(max(centre[0] - wide / 2, 0), field.width - wide)
    top = min(max(centre[1] - high / 2, 0), field.height - high)
    window = field.resize(
        (max(1, round(wide * zoom)), max(1, round(high * zoom))),
        Image.Resampling.BILINEAR,
        (left, top, left + wide, top + high),
        reducing_gap=2.0,
    )
    return segmenter.infer(padded(np.asarray(window), size)[0]).red_cell


def _busiest(field: Image.Image) -> list[tuple[float, float]]:
    """Centres of `_WINDOWS` parts of the field in pixels, those with the highest contrast: there are cells."""
    parts = 4
    small = np.asarray(field.convert("L").resize((parts * 24, parts * 24), Image.Resampling.BOX), np.float32)
    contrast = small.reshape(parts, 24, parts, 24).std(axis=(1, 3)).ravel()
    best = np.argsort(-contrast, kind="stable")[:_WINDOWS]
    return [((at % parts + 0.5) / parts * field.width, (at // parts + 0.5) / parts * field.height) for at in best]
