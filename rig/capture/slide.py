"""A simulated slide: a large synthetic smear, and a camera whose field of view moves over it.

The smear is drawn once. A frame is a window of it, with a drifting focus and lamp. The ground truth of every frame is
known: tests compare the quality gate and the cell finder with it. The images resemble blood, but are no evidence about
blood.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ...edge_runtime.errors import UsageError
from ...edge_runtime.vision.frame import Frame
from ..language import message

Floats = NDArray[np.float32]

PX_PER_UM = 29.0
"""A 100x objective: a red cell is a sixth of a 1280-pixel frame wide, as in public data sets of smears."""
LAMP = np.array((236.0, 232.0, 228.0), np.float32)
"""Colour of the empty field, R, G, B."""
# Absorbance (R, G, B) at density 1, estimated from published smears.
_NUCLEUS = np.array((0.95, 1.55, 0.40), np.float32)
_CYTOPLASM = np.array((0.62, 0.70, 0.22), np.float32)
_RED_CELL = np.array((0.30, 0.55, 0.50), np.float32)
_EMPTY_FRAC, _THICK_FRAC = 0.22, 0.77
"""Fractions of the slide's width: the slide is empty before the first, cells overlap after the second."""
_EDGE_PX = 0.2 * PX_PER_UM
"""Resolution of the objective."""
_RED_CELL_UM2 = 39.6
_DWELL, _MOVE = 30, 6
"""Number of frames that the stage rests, and that it moves to the next place."""
_DETOURS = {5: "empty", 10: "thick"}
"""The places, of every twelve, that are not in the monolayer."""
_NOISE = 3
"""Maximum sensor noise, grey levels."""


@dataclass(frozen=True)
class Kind:
    """One kind of nucleated cell: diameter of the nucleus, its ratio to the cell's diameter, number of segments."""

    nucleus_um: tuple[float, float]
    ratio: tuple[float, float]
    lobes: int = 1


KINDS = {
    "Benign": Kind((5.6, 7.0), (0.54, 0.66)),
    "Early": Kind((6.8, 8.4), (0.88, 0.97)),
    "Pre": Kind((8.6, 10.6), (0.66, 0.78)),
    "Pro": Kind((10.4, 12.8), (0.84, 0.94)),
}
_BYSTANDER = Kind((7.6, 9.2), (0.66, 0.76), lobes=3)


@dataclass(frozen=True)
class DrawnCell:
    """A nucleated cell: its box (left, top, right, bottom) in pixels, and whether all of it is in the view."""

    box: tuple[int, int, int, int]
    whole: bool = True


@dataclass(frozen=True)
class View:
    """The ground truth of a frame of the simulated camera.

    Attributes:
        left, top: position of the window on the slide, pixels.
        blur_px: standard deviation of the defocus, pixels.
        lamp: brightness relative to `LAMP`.
        moving: the stage is moving.
        zone: ``empty``, ``smear`` or ``thick``, at the middle of the window.
        cells: nucleated cells in view, in the window's pixels.
    """

    left: int
    top: int
    blur_px: float
    lamp: float
    moving: bool
    zone: str
    cells: tuple[DrawnCell, ...]


@dataclass(frozen=True)
class Slide:
    """A drawn smear: ``pixels`` uint8 (height, width, 3), sharp, and the boxes of its nucleated cells."""

    pixels: NDArray[np.uint8]
    boxes: tuple[tuple[int, int, int, int], ...]

    def zone(self, x: float) -> str:
        """The zone at column ``x``."""
        place = x / self.pixels.shape[1]
        return "empty" if place < _EMPTY_FRAC else "thick" if place > _THICK_FRAC else "smear"

    def cells(self, left: int, top: int, width: int, height: int) -> tuple[DrawnCell, ...]:
        """The cells in a window, with boxes clipped to it."""
        found = []
        for x0, y0, x1, y1 in self.boxes:
            box = (max(x0 - left, 0), max(y0 - top, 0), min(x1 - left, width), min(y1 - top, height))
            if box[0] < box[2] and box[1] < box[3]:
                found.append(DrawnCell(box, whole=(box[2] - box[0], box[3] - box[1]) == (x1 - x0, y1 - y0)))
        return tuple(found)


def draw_slide(seed: int, kind: str = "Pre", size: tuple[int, int] = (6144, 3072)) -> Slide:
    """Draw a smear: an empty left edge, then a monolayer of red cells with nucleated cells, then a thick end.

    Args:
        seed: the same seed and arguments give the same pixels.
        kind: of the nucleated cells, one of `KINDS`.
        size: (width, height) in pixels, three bytes per pixel.

    Raises:
        UsageError: unknown ``kind``.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind of cell {kind!r}", hint=f"choose one of: {', '.join(KINDS)}")
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = LAMP
    area = width * height / PX_PER_UM**2
    stamps = [_red_cell(rng) for _ in range(24)]
    monolayer = (_THICK_FRAC - _EMPTY_FRAC) * area * 0.38 / _RED_CELL_UM2
    thick = (1 - _THICK_FRAC) * area * 3.0 / _RED_CELL_UM2
    for low, high, count in ((_EMPTY_FRAC, _THICK_FRAC, monolayer), (_THICK_FRAC, 1.0, thick)):
        for x, y, which in zip(
            rng.uniform(low, high, int(count)) * width,
            rng.uniform(0, height, int(count)),
            rng.integers(0, len(stamps), int(count)),
            strict=True,
        ):
            _multiply(pixels, stamps[which], x, y)
    boxes: list[tuple[int, int, int, int]] = []
    middles: list[tuple[float, float, float]] = []
    for number in range(int(area / 500)):
        x, y = rng.uniform(_EMPTY_FRAC + 0.02, 1.0) * width, rng.uniform(0, height)
        patch, cover = _nucleated(rng, _BYSTANDER if number % 16 == 15 else KINDS[kind])
        reach = len(cover) / 2
        if all(math.hypot(x - a, y - b) > 0.8 * (reach + r) for a, b, r in middles):
            middles.append((x, y, reach))
            boxes.append(_lay(pixels, patch, cover, x, y))
    return Slide(pixels, tuple(boxes))


class SimulatedCamera:
    """A field of view that moves over a slide and rests in between, with drifting focus and lamp. Deterministic.

    Args:
        slide: see `draw_slide`; larger than a frame.
        seed: of the path over the slide, the drifts and the noise.
        size: (width, height) of a frame, pixels.
        rate: frames/s; None returns each frame at once.
        blur_px: maximum defocus, pixels.
        name: shown on the page.
    """

    def __init__(
        self,
        slide: Slide,
        seed: int = 0,
        size: tuple[int, int] = (1280, 960),
        rate: float | None = 30.0,
        blur_px: float = 8.0,
        name: str = message("simulated slide"),
    ) -> None:
        self.name = name
        self.slide = slide
        self._seed, self._size, self._rate, self._worst = seed, size, rate, blur_px
        height, width = slide.pixels.shape[:2]
        if size[0] >= width or size[1] >= height:
            raise UsageError(f"a slide of {width}x{height} pixels is smaller than a frame of {size[0]}x{size[1]}")
        phases = np.random.default_rng((seed, 0)).uniform(0, 2 * math.pi, 2)
        self._focus_phase, self._lamp_phase = float(phases[0]), float(phases[1])
        rng = np.random.default_rng((seed, 1))
        self._noise = rng.integers(-_NOISE, _NOISE + 1, (size[1] + 64, size[0], 3), np.int8).view(np.uint8)
        self._number = 0
        self._due = time.monotonic()
        self._rendered: tuple[tuple[int, int, float, float], NDArray[np.uint8]] | None = None

    def read(self, timeout_s: float) -> Frame:
        """Return the next frame when it is due."""
        if self._rate is not None:
            self._due = max(self._due + 1 / self._rate, time.monotonic())
            time.sleep(max(self._due - time.monotonic(), 0.0))
        number = self._number
        self._number += 1
        return Frame(self.pixels(number), datetime.now(timezone.utc), number)

    def close(self) -> None:
        """Do nothing: no device is held."""

    def view(self, number: int) -> View:
        """The ground truth of frame ``number``."""
        place, step = divmod(number, _DWELL + _MOVE)
        (x0, y0), (x1, y1) = self._place(place), self._place(place + 1)
        progress = max(step - _DWELL + 1, 0) / (_MOVE + 1)
        left, top = round(x0 + (x1 - x0) * progress), round(y0 + (y1 - y0) * progress)
        # Quantized below, so that consecutive frames can share a rendered window.
        blur = self._worst * max(math.sin(2 * math.pi * number / 700 + self._focus_phase), 0.0) ** 2
        lamp = 1.0 + 0.06 * math.sin(2 * math.pi * number / 2400 + self._lamp_phase)
        width, height = self._size
        return View(
            left=left,
            top=top,
            blur_px=round(4 * blur) / 4,
            lamp=round(100 * lamp) / 100,
            moving=progress > 0,
            zone=self.slide.zone(left + width / 2),
            cells=self.slide.cells(left, top, width, height),
        )

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """Frame ``number``: uint8 (height, width, 3)."""
        view = self.view(number)
        width, height = self._size
        key = (view.left, view.top, view.blur_px, view.lamp)
        if self._rendered is None or self._rendered[0] != key:
            window = self.slide.pixels[view.top : view.top + height, view.left : view.left + width]
            if view.blur_px:
                blurred = Image.fromarray(window).filter(ImageFilter.GaussianBlur(view.blur_px))
                window = np.asarray(blurred)
            # Clipped so that adding the noise below cannot overflow.
            levels = np.clip(np.arange(256) * view.lamp + 0.5, _NOISE, 255 - _NOISE).astype(np.uint8)
            self._rendered = key, levels[window]
        shift = (number * 7 + self._seed) % 64
        grainy: NDArray[np.uint8] = self._rendered[1] + self._noise[shift : shift + height]
        return grainy

    def _place(self, place: int) -> tuple[int, int]:
        """Left and top of the window at resting place number ``place``."""
        rng = np.random.default_rng((self._seed, 2, place))
        width, height = self._size
        across, down = self.slide.pixels.shape[1], self.slide.pixels.shape[0]
        zone = _DETOURS.get(place % 12, "smear")
        if zone == "empty":
            left = 0
        elif zone == "thick":
            left = across - width
        else:
            first = min(int(_EMPTY_FRAC * across), across - width)
            left = int(rng.integers(first, max(int(_THICK_FRAC * across) - width, first) + 1))
        return left, int(rng.integers(0, down - height + 1))


def _waves(rng: np.random.Generator, angle: Floats, wobble: float) -> Floats:
    """Relative deviation of an outline as a smooth, periodic function of the angle."""
    total = np.zeros_like(angle)
    for harmonic in range(2, 7):
        amplitude, phase = rng.normal(0, wobble / (harmonic - 1)), rng.uniform(0, 2 * math.pi)
        total += np.float32(amplitude) * np.cos(harmonic * angle + np.float32(phase))
    return total


def _grid(half: int) -> tuple[Floats, Floats]:
    line = np.arange(-half, half + 1, dtype=np.float32)
    x, y = np.broadcast_arrays(line[None, :], line[:, None])
    return x, y


def _soft(distance: Floats, edge: float) -> Floats:
    """Convert a signed distance, positive inside, to a coverage of 0..1 over an edge ``edge`` pixels wide."""
    cover: Floats = np.clip(distance / np.float32(edge) + np.float32(0.5), 0, 1)
    return cover


def _red_cell(rng: np.random.Generator) -> NDArray[np.uint16]:
    """A stamp of transmittance (side, side, 3); 256 is full transmittance."""
    radius = 3.55 * PX_PER_UM * rng.normal(1.0, 0.05)
    x, y = _grid(int(1.2 * radius) + 2)
    rho = np.hypot(x, y)
    cover = _soft(radius * (1 + _waves(rng, np.arctan2(y, x), 0.03)) - rho, _EDGE_PX)
    hollow = np.clip(1 - (rho / (0.66 * radius)) ** 2, 0, 1)
    density = rng.normal(0.7, 0.06) * cover * (1 - rng.uniform(0.3, 0.7) * hollow)
    stamp: NDArray[np.uint16] = np.round(256 * np.exp(-density[..., None] * _RED_CELL)).astype(np.uint16)
    return stamp


def _nucleated(rng: np.random.Generator, kind: Kind) -> tuple[Floats, Floats]:
    """A cell as a colour patch (side, side, 3) and its coverage (side, side)."""
    nucleus = rng.uniform(*kind.nucleus_um) / 2 * PX_PER_UM
    cell = nucleus / rng.uniform(*kind.ratio)
    x, y = _grid(int(1.25 * cell) + 2)
    rho, angle = np.hypot(x, y), np.arctan2(y, x)
    membrane = cell * (1 + _waves(rng, angle, 0.03)) - rho
    off, turn = (cell - nucleus) * rng.uniform(0, 0.75), rng.uniform(0, 2 * math.pi)
    nx, ny = x - np.float32(off * math.cos(turn)), y - np.float32(off * math.sin(turn))
    if kind.lobes > 1:
        inner = np.full_like(x, -1e3)
        for lobe in range(kind.lobes):
            away = turn + lobe * 4.2 / kind.lobes
            lx, ly = nx - 0.58 * nucleus * math.cos(away), ny - 0.58 * nucleus * math.sin(away)
            inner = np.maximum(inner, 0.52 * nucleus - np.hypot(lx, ly))
    else:
        inner = nucleus * (1 + _waves(rng, np.arctan2(ny, nx), 0.04)) - np.hypot(nx, ny)
    core = _soft(np.minimum(inner, membrane - 1), _EDGE_PX)
    grains = int(len(x) / (0.6 * PX_PER_UM)) + 2
    grain = Image.fromarray(rng.standard_normal((grains, grains), np.float32))
    chromatin = 0.92 + 0.2 * np.tanh(np.asarray(grain.resize((len(x), len(x)), Image.Resampling.BICUBIC)))
    plasm = rng.uniform(0.35, 0.6) * (0.75 + 0.5 * np.clip(rho / cell, 0, 1) ** 3)
    density = (core * chromatin)[..., None] * _NUCLEUS
    density += (plasm * (1 - core))[..., None] * _CYTOPLASM
    return LAMP * np.exp(-density), _soft(membrane, _EDGE_PX)


def _window(
    pixels: NDArray[np.uint8], side: int, x: float, y: float
) -> tuple[tuple[slice, slice], tuple[slice, slice], int, int]:
    """Overlap of the slide and a square patch centred at (x, y): slices of both, and the patch's left and top."""
    left, top = round(x) - side // 2, round(y) - side // 2
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)), left, top


def _multiply(pixels: NDArray[np.uint8], stamp: NDArray[np.uint16], x: float, y: float) -> None:
    there, part, _, _ = _window(pixels, len(stamp), x, y)
    pixels[there] = (pixels[there] * stamp[part]) >> 8


def _lay(pixels: NDArray[np.uint8], patch: Floats, cover: Floats, x: float, y: float) -> tuple[int, int, int, int]:
    """Blend a cell into the slide; returns its box on the slide."""
    there, part, left, top = _window(pixels, len(cover), x, y)
    whole = cover[part][..., None]
    pixels[there] = (pixels[there] * (1 - whole) + patch[part] * whole + 0.5).astype(np.uint8)
    height, width = pixels.shape[:2]
    rows, columns = np.flatnonzero((cover > 0.5).any(axis=1)), np.flatnonzero((cover > 0.5).any(axis=0))
    box = (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
    return max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
