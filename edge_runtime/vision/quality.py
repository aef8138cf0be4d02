"""The quality gate: decides whether a frame is good enough to classify. Fast enough for every frame.

It needs no training. It measures sharpness relative to contrast, the covered share of the field, motion since the last
frame, and whether the colours are those of a stained smear. `fit` derives the limits from training images; the model's
manifest holds them.
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
"""Reasons to reject a frame. The first ones suppress later ones that they make meaningless."""
_WIDTH = 320
"""Frames are reduced to about this width, by block means, which also reduce the noise."""
_COARSE = 4
"""Further reduction for the motion measurement."""
_SHADE = 0.82
"""Pixels darker than this fraction of the background are covered. The corners of a lit field are brighter."""
_DIMMING = 0.9
"""Minimum brightness of a field as a fraction of the known lamp; below it the field has no background."""
_LAMP_S = 120.0
"""Time constant of the lamp estimate. A lamp that is dimmed by a quarter is accepted after twenty seconds; a field full
of cells is mistaken for a dimmer lamp after two minutes without any other field."""
_STILL_S = 0.7
"""Maximum time between two frames for a motion measurement."""
_TOP = 3
"""The best focus of a slide is its third best frame, so that one outlier does not set it."""
_MEDIAN_OF_SQUARE = 0.4549
"""Median of the square of a standard normal variable."""
_GREY, _LEAST_GREEN = 0.05, 0.30
"""Shares of the optical density: grey is within the first of 1/3 per channel; stains exceed the second in green."""


@dataclass(frozen=True)
class Thresholds:
    """The gate's limits.

    Attributes:
        focus_min: minimum focus, relative to the best of the slide.
        sharpness_floor: minimum of the slide's best `Quality.sharpness`; otherwise a slide that starts out of focus
            would pass.
        background_min: minimum grey level of the background; below it the frame is dark.
        clipped_max: maximum saturated share of the field; above it the frame is bright.
        covered_min: minimum covered share of the field; below it the field is empty.
        covered_max: maximum covered share of the field; above it the field is thick.
        motion_max_px: maximum motion since the last frame, in pixels of a field 320 wide.
        odd_max: maximum share of the covered area without the colours of a stain; above it, not a smear.
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
    """The gate's result for a frame.

    Attributes:
        ok: good enough to classify.
        reasons: why not: some of `REASONS`.
        focus: 0..1, relative to the slide's best so far; 0 for an empty field.
        sharpness: contrast between neighbouring pixels relative to the whole contrast, in a field 320 wide.
        brightness: grey level of the brightest part of the field, 0..255.
        clipped: saturated share of the field.
        covered: share of the field that is not background.
        motion_px: since the last frame; None if unknown.
        odd: share of the covered area without the colours of a stain.
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
class _Measurements:
    """The measurements of one frame; `Gate` compares them with the other frames of the slide.

    Attributes:
        green: float32 ``(height, width)``, about `_WIDTH` wide: the channel that both dyes absorb.
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
    """Rates the frames of a slide in order. Not thread-safe.

    Args:
        thresholds: the limits.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.new_slide()

    def new_slide(self) -> None:
        """Reset the best focus and the lamp of the slide."""
        self._best: list[float] = []
        self._lamp, self._lamp_at_s = 0.0, 0.0
        self._before: tuple[Floats, float] | None = None

    def judge(self, frame: Frame) -> Quality:
        """Rate a frame, and update the slide's best focus and lamp."""
        limits, measured = self.thresholds, _measure(frame.pixels)
        # A monotonic clock if there is one: setting the system clock must not hide a motion. Separate files have none,
        # and need not show the same place.
        at_s = frame.taken.timestamp() if frame.clock_s is None else frame.clock_s
        motion = None if frame.source and frame.clock_s is None else self._motion_px(measured.green, at_s)
        if measured.clipped <= limits.clipped_max:  # a lamp that is too bright will be dimmed
            self._lamp = self._lamp_now(measured.brightness, at_s)
        # A crowded field has no background; other fields of the slide have shown it.
        covered = measured.covered(max(measured.brightness, _DIMMING * self._lamp))

        reasons = []
        if measured.brightness < limits.background_min:
            reasons.append("dark")
        if measured.clipped > limits.clipped_max:
            reasons.append("bright")
        if covered < limits.covered_min:
            reasons.append("empty")
        elif measured.odd > limits.odd_max:
            reasons.append("not a smear")
        if covered > limits.covered_max:
            reasons.append("thick")
        if not reasons:
            self._best = sorted([*self._best, measured.sharpness])[-_TOP:]
        focus = 0.0
        if "empty" not in reasons:
            seen = self._best[0 if len(self._best) == _TOP else -1] if self._best else 0.0
            best = max(seen, limits.sharpness_floor)
            focus = min(measured.sharpness / best, 1.0)
            if focus < limits.focus_min:
                reasons.append("blurred")
            if motion is not None and motion > limits.motion_max_px:
                reasons.append("moving")
        return Quality(
            ok=not reasons,
            reasons=tuple(reasons),
            focus=focus,
            sharpness=measured.sharpness,
            brightness=measured.brightness,
            clipped=measured.clipped,
            covered=covered,
            motion_px=motion,
            odd=measured.odd,
        )

    def _lamp_now(self, brightness: float, taken_s: float) -> float:
        """The background's grey level on this slide. Each frame counts for at most one second."""
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


def looks_stained(pixels: NDArray[np.uint8]) -> bool:
    """Whether an image, uint8 ``(height, width, 3)``, has the colours of a stained smear in a bright field."""
    return _measure(pixels).odd <= Thresholds().odd_max


def thresholds_of(manifest: Manifest | None) -> Thresholds:
    """The thresholds in a model's manifest; the defaults if it has none.

    Raises:
        BundleError: a limit is not a number.
    """
    return from_values(manifest.quality if manifest else {})


def from_values(values: Mapping[str, Any]) -> Thresholds:
    """Read a manifest's ``quality`` object. Ignores unknown names. Raises BundleError."""
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
    """Thresholds that nearly all of a model's training images pass, never stricter than the defaults.

    Focus and motion keep their defaults: single images do not show them.

    Args:
        images: uint8 ``(height, width, 3)`` of good fields, a few hundred.

    Raises:
        ValueError: no image.
    """
    measured = [_measure(image) for image in images]
    if not measured:
        raise ValueError("no image to fit the gate to")
    own = Thresholds()
    covered = [one.covered(one.brightness) for one in measured]

    def of(name: str, percent: float) -> float:
        return float(np.percentile([getattr(one, name) for one in measured], percent))

    return dataclasses.replace(
        own,
        sharpness_floor=min(own.sharpness_floor, 0.25 * of("sharpness", 5)),
        background_min=min(own.background_min, 0.8 * of("brightness", 1)),
        clipped_max=max(own.clipped_max, (1 + of("clipped", 99)) / 2),
        covered_min=min(own.covered_min, 0.5 * float(np.percentile(covered, 1))),
        covered_max=max(own.covered_max, (1 + float(np.percentile(covered, 99))) / 2),
        odd_max=max(own.odd_max, (1 + of("odd", 99)) / 2),
    )


def _measure(pixels: NDArray[np.uint8]) -> _Measurements:
    image = Image.fromarray(pixels)
    shrink = max(round(image.width / _WIDTH), 1)
    small = np.asarray(image.reduce(shrink) if shrink > 1 else image)
    green = small[..., 1].astype(np.float32)
    white = np.percentile(small[::2, ::2].reshape(-1, 3), 95, axis=0)
    return _Measurements(
        green=green,
        sharpness=_sharpness(green, float(white[1])),
        brightness=float(white[1]),
        clipped=float(np.count_nonzero(_least(*np.moveaxis(small, 2, 0)) >= 250) / green.size),
        odd=_odd(small[::2, ::2], white),
    )


def _sharpness(green: Floats, background: float) -> float:
    """Square root of the Laplacian's variance over the variance of the field.

    The noise is measured in the background and subtracted.
    """
    middle = green[1:-1, 1:-1]
    laplacian = 4 * middle - green[:-2, 1:-1] - green[2:, 1:-1] - green[1:-1, :-2] - green[1:-1, 2:]
    empty = laplacian[middle > 0.95 * background][::4]
    noise = float(np.median(np.square(empty))) / _MEDIAN_OF_SQUARE if len(empty) else 0.0
    energy = float(np.vdot(laplacian, laplacian)) / laplacian.size
    return float(np.sqrt(max(energy - noise, 0.0) / max(float(green.var()), 1.0)))


def _odd(small: NDArray[np.uint8], white: NDArray[np.float64]) -> float:
    """Share of the covered area that is grey or absorbs too little green, which no blood stain does.

    Uses each channel's share of the optical density, which is independent of the lamp's colour and the stain strength.
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
    """Minimum over the channels; five times as fast as ``min(axis=2)``."""
    least: NDArray[_T] = np.minimum(np.minimum(red, green), blue)
    return least


def _most(red: NDArray[_T], green: NDArray[_T], blue: NDArray[_T]) -> NDArray[_T]:
    most: NDArray[_T] = np.maximum(np.maximum(red, green), blue)
    return most
