"""Is a frame worth judging? Cheap enough to be asked of every one.

What the gate measures needs no training: how sharp edges are beside their own contrast, how much of the field is
covered, how far it moved since the frame before, and whether its colours are those of a stained smear. The limits are
fitted to images that a model was trained on (`fit`) and travel in its manifest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BundleError
from ..manifest import Manifest
from .frame import Frame

Floats = NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)

REASONS = ("dark", "bright", "not a smear", "empty", "thick", "blurred", "moving")
"""Why a frame may not be worth judging; the first that hold hide those that they make meaningless."""
_WIDTH = 320
"""Frames are looked at in about this width, each pixel the mean of a block: noise is down by the block's side."""
_COARSE = 4
"""Movement is looked for in blocks of so many of those."""
_SHADE = 0.82
"""What is darker than this part of the background is covered; the corners of a lit field are brighter."""
_DIMMING = 0.9
"""How far a slide's lamp may fall before a field without any background is taken for one."""
_LAMP_S = 120.0
"""In so long what is known of the lamp comes two thirds nearer to what is seen: one that is turned down by a quarter is
believed after twenty seconds, a field full of cells held for a darker lamp after two minutes of nothing else."""
_STILL_S = 0.7
"""Two frames further apart than this say nothing about movement: stills from a folder."""
_TOP = 3
"""The slide's best focus is the third best seen: one odd frame doesn't set it."""
_MEDIAN_OF_SQUARE = 0.4549
"""Of a normal variable of unit variance."""
_GREY, _LEAST_GREEN = 0.05, 0.30
"""Shares of the optical density: as near to a third each as this is grey; stains have at least so much in green."""


@dataclass(frozen=True)
class Thresholds:
    """The gate's limits.

    Attributes:
        focus_min: least focus, relative to the slide's best.
        sharpness_floor: no slide's best is taken for less, or a slide that begins out of focus would pass; see
            `Quality.sharpness`.
        background_min: grey level of the empty part of a field; darker is dark.
        clipped_max: share of the field that is at the sensor's end; more is bright.
        covered_min: share of the field that something covers; less is empty.
        covered_max: more is thick.
        motion_max_px: movement since the frame before, in pixels of a field 320 wide.
        odd_max: share of what covers the field that has no stain's colour; more is not a smear.
    """

    focus_min: float = 0.6
    sharpness_floor: float = 0.1
    background_min: float = 90.0
    clipped_max: float = 0.45
    covered_min: float = 0.03
    covered_max: float = 0.8
    motion_max_px: float = 1.0
    odd_max: float = 0.12


@dataclass(frozen=True)
class Quality:
    """What the gate says of a frame.

    Attributes:
        ok: worth judging.
        reasons: why not: some of `REASONS`.
        focus: 0..1 of the slide's best so far; 0 where there is nothing to focus on.
        sharpness: how much of the contrast lies between neighbouring pixels of a field 320 wide.
        brightness: grey level of the field's brightest part, 0..255.
        clipped: share of the field at the sensor's end.
        covered: share of the field that is not background.
        motion_px: since the frame before; None where that is unknown.
        odd: share of what covers the field that has no stain's colour.
    """

    ok: bool
    reasons: tuple[str, ...]
    focus: float
    sharpness: float
    brightness: float
    clipped: float
    covered: float
    motion_px: float | None
    odd: float


@dataclass(frozen=True)
class _Looks:
    """What one frame by itself shows; `Gate` compares it with the slide's others.

    Attributes:
        green: float32 (height, width), about `_WIDTH` wide: the channel that both dyes absorb.
        sharpness, brightness, clipped, odd: see `Quality`.
    """

    green: Floats
    sharpness: float
    brightness: float
    clipped: float
    odd: float

    def covered(self, background: float) -> float:
        """Share of the field that is darker than this background."""
        return float(np.count_nonzero(self.green < _SHADE * background) / self.green.size)


class Gate:
    """Judges a slide's frames in the order they were taken. One thread at a time.

    Args:
        thresholds: the limits.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.new_slide()

    def new_slide(self) -> None:
        """Forget the last slide's best focus and its lamp."""
        self._best: list[float] = []
        self._lamp, self._lamp_at_s = 0.0, 0.0
        self._before: tuple[Floats, float] | None = None

    def judge(self, frame: Frame) -> Quality:
        """What there is to say of the frame; also raises the slide's best focus."""
        limits, looks = self.thresholds, _look(frame.pixels)
        # One file after the other need not show the same place.
        # A clock that is set meanwhile must not hide a motion. Files that stand alone have their own time alone.
        at_s = frame.taken.timestamp() if frame.clock_s is None else frame.clock_s
        motion = None if frame.source and frame.clock_s is None else self._motion_px(looks.green, at_s)
        if looks.clipped <= limits.clipped_max:  # what is too bright is going to be turned down
            self._lamp = self._lamp_now(looks.brightness, at_s)
        # Where cells lie on one another there is no background; the slide's other fields have shown it.
        covered = looks.covered(max(looks.brightness, _DIMMING * self._lamp))

        reasons = []
        if looks.brightness < limits.background_min:
            reasons.append("dark")
        if looks.clipped > limits.clipped_max:
            reasons.append("bright")
        if covered < limits.covered_min:
            reasons.append("empty")
        elif looks.odd > limits.odd_max:
            reasons.append("not a smear")
        if covered > limits.covered_max:
            reasons.append("thick")
        if not reasons:
            self._best = sorted([*self._best, looks.sharpness])[-_TOP:]
        focus = 0.0
        if "empty" not in reasons:
            seen = self._best[0 if len(self._best) == _TOP else -1] if self._best else 0.0
            best = max(seen, limits.sharpness_floor)
            focus = min(looks.sharpness / best, 1.0)
            if focus < limits.focus_min:
                reasons.append("blurred")
            if motion is not None and motion > limits.motion_max_px:
                reasons.append("moving")
        return Quality(
            ok=not reasons,
            reasons=tuple(reasons),
            focus=focus,
            sharpness=looks.sharpness,
            brightness=looks.brightness,
            clipped=looks.clipped,
            covered=covered,
            motion_px=motion,
            odd=looks.odd,
        )

    def _lamp_now(self, brightness: float, taken_s: float) -> float:
        """The background's grey level on this slide; a frame counts for a second at most, however old the last is."""
        passed_s, self._lamp_at_s = min(max(taken_s - self._lamp_at_s, 0.0), 1.0), taken_s
        fallen = brightness + (self._lamp - brightness) * math.exp(-passed_s / _LAMP_S)
        return max(brightness, fallen)

    def _motion_px(self, green: Floats, taken_s: float) -> float | None:
        before, now = self._before, np.asarray(Image.fromarray(green).reduce(_COARSE))
        self._before = now, taken_s
        if before is None or before[0].shape != now.shape or not 0 < taken_s - before[1] < _STILL_S:
            return None
        change = now - before[0]
        change -= change.mean()  # the lamp
        slope = np.abs(np.diff(now, axis=1)).mean() + np.abs(np.diff(now, axis=0)).mean()
        return float(_COARSE * np.abs(change).mean() / max(slope, 1.0))


def thresholds_of(manifest: Manifest | None) -> Thresholds:
    """Those that travel with a model; the defaults where none do.

    Raises:
        BundleError: a limit that is no number.
    """
    return from_values(manifest.quality if manifest else {})


def from_values(values: Mapping[str, Any]) -> Thresholds:
    """A manifest's ``quality`` object; names that this version doesn't know are left aside. Raises BundleError."""
    known = {field.name for field in dataclasses.fields(Thresholds)}
    for name in known & set(values):
        if isinstance(values[name], bool) or not isinstance(values[name], (int, float)):
            raise BundleError(
                f"edgeall.json: `quality.{name}` must be a number", hint="pack the model again with `edgeall quantize`"
            )
    return Thresholds(**{name: float(values[name]) for name in known & set(values)})


def to_values(thresholds: Thresholds) -> dict[str, float]:
    """The manifest's ``quality`` object."""
    return dataclasses.asdict(thresholds)


def fit(images: Iterable[NDArray[np.uint8]]) -> Thresholds:
    """Limits that nearly all of a model's own images keep, and never stricter than the defaults.

    What no single image shows, how far focus may fall and how much a field may move, stays as it is by default.

    Args:
        images: uint8 (height, width, 3) of good fields, a few hundred.

    Raises:
        ValueError: no image.
    """
    looks = [_look(image) for image in images]
    if not looks:
        raise ValueError("no image to fit the gate to")
    own = Thresholds()
    covered = [each.covered(each.brightness) for each in looks]

    def of(name: str, percent: float) -> float:
        return float(np.percentile([getattr(each, name) for each in looks], percent))

    return dataclasses.replace(
        own,
        sharpness_floor=min(own.sharpness_floor, 0.25 * of("sharpness", 5)),
        background_min=min(own.background_min, 0.8 * of("brightness", 1)),
        clipped_max=max(own.clipped_max, (1 + of("clipped", 99)) / 2),
        covered_min=min(own.covered_min, 0.5 * float(np.percentile(covered, 1))),
        covered_max=max(own.covered_max, (1 + float(np.percentile(covered, 99))) / 2),
        odd_max=max(own.odd_max, (1 + of("odd", 99)) / 2),
    )


def _look(pixels: NDArray[np.uint8]) -> _Looks:
    image = Image.fromarray(pixels)
    shrink = max(round(image.width / _WIDTH), 1)
    small = np.asarray(image.reduce(shrink) if shrink > 1 else image)
    green = small[..., 1].astype(np.float32)
    white = np.percentile(small[::2, ::2].reshape(-1, 3), 95, axis=0)
    return _Looks(
        green=green,
        sharpness=_sharpness(green, float(white[1])),
        brightness=float(white[1]),
        clipped=float(np.count_nonzero(_least(*np.moveaxis(small, 2, 0)) >= 250) / green.size),
        odd=_odd(small[::2, ::2], white),
    )


def _sharpness(green: Floats, background: float) -> float:
    """How much of the contrast lies between neighbours: the root of the Laplacian's variance over the field's own.

    The noise is measured in the background, where there is nothing else, and taken off.
    """
    middle = green[1:-1, 1:-1]
    laplacian = 4 * middle - green[:-2, 1:-1] - green[2:, 1:-1] - green[1:-1, :-2] - green[1:-1, 2:]
    empty = laplacian[middle > 0.95 * background][::4]
    noise = float(np.median(np.square(empty))) / _MEDIAN_OF_SQUARE if len(empty) else 0.0
    energy = float(np.vdot(laplacian, laplacian)) / laplacian.size
    return float(np.sqrt(max(energy - noise, 0.0) / max(float(green.var()), 1.0)))


def _odd(small: NDArray[np.uint8], white: NDArray[np.float64]) -> float:
    """Share of what covers the field that is grey, or absorbs too little green: no stain of blood does either.

    By each channel's share of the optical density, so that neither the lamp's colour nor the stain's strength matters.
    """
    covering = small[small[..., 1] < _SHADE * white[1]].astype(np.float32)
    if len(covering) < 0.01 * small[..., 1].size:
        return 0.0
    red, green, blue = (
        np.maximum(np.log(np.float32(max(white[i], 1.0)) / np.maximum(covering[:, i], 4.0)), 0.0) for i in range(3)
    )
    whole = red + green + blue
    grey = np.maximum(_most(red, green, blue), 2 / 3 * whole - _least(red, green, blue)) < (1 / 3 + _GREY) * whole
    return float(np.count_nonzero(grey | (green < _LEAST_GREEN * whole)) / len(covering))


def _least(red: NDArray[_T], green: NDArray[_T], blue: NDArray[_T]) -> NDArray[_T]:
    """The same as ``min(axis=2)``, in a fifth of the time."""
    least: NDArray[_T] = np.minimum(np.minimum(red, green), blue)
    return least


def _most(red: NDArray[_T], green: NDArray[_T], blue: NDArray[_T]) -> NDArray[_T]:
    most: NDArray[_T] = np.maximum(np.maximum(red, green), blue)
    return most
