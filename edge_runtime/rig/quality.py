"""Is a frame worth judging? Cheap enough to be asked of every one.

What the gate measures needs no training: how sharp edges are beside their own contrast, how much of the field is
covered, how far it moved since the frame before, and whether its colours are those of a stained smear. The limits are
fitted to images that a model was trained on (`fit`) and travel in its manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.manifest import Manifest
from edgeall.edge_runtime.rig.camera import Frame

Floats = NDArray[np.float32]

REASONS = ("dark", "bright", "not a smear", "empty", "thick", "blurred", "moving")
"""Why a frame may not be worth judging; the first that hold hide those that they make meaningless."""
_WIDTH = 640
"""Frames are looked at in about this width."""
_COARSE = 8
_STILL_S = 0.7
"""Two frames further apart than this say nothing about movement: stills from a folder."""
_TOP = 3
"""The slide's best focus is the third best seen: one odd frame doesn't set it."""


@dataclass(frozen=True)
class Thresholds:
    """The gate's limits.

    Attributes:
        focus_min: least focus, relative to the slide's best.
        sharpness_floor: no slide's best is taken for less; see `Quality.sharpness`.
        background_min: grey level of the empty part of a field; darker is dark.
        clipped_max: share of the field that is at the sensor's end; more is bright.
        covered_min: share of the field that something covers; less is empty.
        covered_max: more is thick.
        motion_max_px: movement since the frame before, in pixels of a field 640 wide.
        odd_max: share of the coloured part of the field whose colour no stain has; more is not a smear.
    """

    focus_min: float = 0.6
    sharpness_floor: float = 0.15
    background_min: float = 90.0
    clipped_max: float = 0.6
    covered_min: float = 0.03
    covered_max: float = 0.93
    motion_max_px: float = 2.0
    odd_max: float = 0.25


@dataclass(frozen=True)
class Quality:
    """What the gate says of a frame.

    Attributes:
        ok: worth judging.
        reasons: why not: some of `REASONS`.
        focus: 0..1 of the slide's best so far; 0 where there is nothing to focus on.
        sharpness: of edges by themselves, 0..1.
        brightness: grey level of the field's brightest part, 0..255.
        clipped: share of the field at the sensor's end.
        covered: share of the field that is not background.
        motion_px: since the frame before; None where that is unknown.
        odd: share of the coloured part whose colour no stain has.
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
    """What one frame by itself shows; `Gate` compares it with the slide's others."""

    sharpness: float
    brightness: float
    clipped: float
    covered: float
    odd: float
    coarse: Floats


class Gate:
    """Judges a slide's frames in the order they were taken. One thread at a time.

    Args:
        thresholds: the limits.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.new_slide()

    def new_slide(self) -> None:
        """Forget the last slide's best focus."""
        self._best: list[float] = []
        self._before: tuple[Floats, float] | None = None

    def judge(self, frame: Frame) -> Quality:
        """What there is to say of the frame; also raises the slide's best focus."""
        limits, looks = self.thresholds, _look(frame.pixels)
        taken = frame.taken.timestamp()
        motion = None
        if self._before is not None and 0 < taken - self._before[1] < _STILL_S:
            motion = _motion_px(self._before[0], looks.coarse)
        self._before = looks.coarse, taken

        reasons = []
        if looks.brightness < limits.background_min:
            reasons.append("dark")
        if looks.clipped > limits.clipped_max:
            reasons.append("bright")
        if looks.odd > limits.odd_max:
            reasons.append("not a smear")
        if looks.covered < limits.covered_min:
            reasons.append("empty")
        if looks.covered > limits.covered_max:
            reasons.append("thick")
        focus = 0.0
        if "empty" not in reasons:
            if not reasons:
                self._best = sorted([*self._best, looks.sharpness])[-_TOP:]
            best = max(self._best[0] if self._best else 0.0, limits.sharpness_floor)
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
            covered=looks.covered,
            motion_px=motion,
            odd=looks.odd,
        )


def thresholds_of(manifest: Manifest | None) -> Thresholds:
    """Those that travel with a model; the defaults where none do.

    Raises:
        BundleError: a limit that is no number.
    """
    return from_values(getattr(manifest, "quality", {}) or {})


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
    """Limits that nearly all of a model's own images keep.

    Args:
        images: uint8 (height, width, 3) of good fields, a few hundred.

    Raises:
        ValueError: no image.
    """
    looks = [_look(image) for image in images]
    if not looks:
        raise ValueError("no image to fit the gate to")
    return Thresholds()


def _look(pixels: NDArray[np.uint8]) -> _Looks:
    step = max(pixels.shape[1] // _WIDTH, 1)
    small = pixels[::step, ::step]
    green = small[..., 1]
    part = small[::2, ::2].astype(np.int16)
    brightness = float(np.percentile(green[::4, ::4], 95))
    clipped = float((part.min(axis=2) >= 250).mean())
    covered = float((green[::2, ::2] < 0.82 * brightness).mean())
    return _Looks(_sharpness(green), brightness, clipped, covered, _odd(part), _coarse(green))


def _sharpness(green: NDArray[np.uint8]) -> float:
    grey = green.astype(np.float32)
    near = grey[:, 1:] - grey[:, :-1]
    far = grey[:, 4:] - grey[:, :-4]
    second = near[::4, 1::4] - near[::4, :-1:4][:, : near[::4, 1::4].shape[1]]
    noise = (np.median(np.abs(second)) / 0.6745) ** 2 / 6
    near_energy = max(float(np.vdot(near, near)) / near.size - 2 * noise, 0.0)
    far_energy = max(float(np.vdot(far, far)) / far.size - 2 * noise, 1e-3)
    return float(min(max((near_energy / far_energy - 1 / 16) / (3 / 16), 0.0), 1.0))


def _odd(part: NDArray[np.int16]) -> float:
    background = np.maximum(np.percentile(part.reshape(-1, 3)[::4], 95, axis=0), 1.0)
    red, green, blue = (part[..., channel] * np.float32(255 / background[channel]) for channel in range(3))
    coloured = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue) > 25
    strange = coloured & (green > np.minimum(red, blue) + 12)
    return float(strange.sum() / max(coloured.sum(), 0.02 * coloured.size))


def _coarse(green: NDArray[np.uint8]) -> Floats:
    height, width = green.shape[0] // _COARSE, green.shape[1] // _COARSE
    blocks = green[: height * _COARSE, : width * _COARSE].reshape(height, _COARSE, width, _COARSE)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)


def _motion_px(before: Floats, now: Floats) -> float | None:
    """About how far the field moved: the change of grey over its slope. None where the two can't be compared."""
    if before.shape != now.shape:
        return None
    change = now - before
    change -= change.mean()
    slope = np.abs(np.diff(now, axis=1)).mean() + np.abs(np.diff(now, axis=0)).mean()
    return float(_COARSE * np.abs(change).mean() / max(slope, 0.5))
