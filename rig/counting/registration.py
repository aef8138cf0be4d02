"""Registers two frames: phase correlation proposes shifts, the correlation of the overlap confirms one.

Both use a reduced, band-passed image: lamp, vignetting, noise and slight defocus do not matter there. Dust on the
sensor stays in place while the slide moves: it may propose a shift of zero, which the overlap does not confirm.

Source: C. Kuglin and D. Hines, The phase correlation image alignment method, 1975.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.vision import instances

WIDTH = 160
"""Longer side of the reduced image, pixels."""
COARSE = 2
"""Further reduction for `resembles`."""
CONFIRMED = 0.6
"""Minimum correlation of the overlap."""
LEAST_OVERLAP = 0.15
"""Minimum overlap, as a fraction of the view."""
STILL = 0.8
"""Minimum correlation of the overlap at the position of the last frame."""
_CANDIDATES = 4
_FINE_PX, _BROAD_PX = 0.8, 25
_WEAK = 1e-6

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scan:
    """A frame, reduced for registration.

    Attributes:
        texture: int8 ``(height, width)``: the green channel without its coarse and finest structure.
        scale: pixels of the frame per pixel.
        size: (width, height) of the frame, pixels.
    """

    texture: NDArray[np.int8]
    scale: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Shift:
    """Position of a frame relative to another one, frame pixels; correlation and size of the overlap, 0..1."""

    x: float
    y: float
    correlation: float
    overlap: float


@cache
def opencv() -> Any:
    """OpenCV with one thread: the threads of the interpreter need the cores. Raises EdgeallError without it."""
    cv2 = instances.opencv()
    cv2.setNumThreads(1)
    return cv2


def scan(pixels: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Scan:
    """Reduce a frame, uint8 ``(height, width, 3)``, RGB; ``size`` if it is a picture of a frame of that size."""
    cv2 = opencv()
    height, width = pixels.shape[:2]
    size = size or (width, height)
    scale = max(max(size) / WIDTH, 1.0)
    small = (max(round(size[0] / scale), 1), max(round(size[1] / scale), 1))
    colour = pixels if (width, height) == small else cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    green = cv2.GaussianBlur(np.ascontiguousarray(colour[..., 1], np.float32), (0, 0), _FINE_PX)
    texture = np.clip(np.rint(green - cv2.blur(green, (_BROAD_PX, _BROAD_PX))), -127, 127).astype(np.int8)
    return Scan(texture, scale, size)


def register(known: Scan, new: Scan) -> Shift | None:
    """The position of ``new`` relative to ``known``; None if they do not overlap enough, or it cannot be confirmed."""
    if known.size != new.size:
        return None
    before, after = known.texture.astype(np.float32), new.texture.astype(np.float32)
    best: tuple[float, float, int, int] | None = None
    surface = _phase_correlation(before, after)
    original = surface.copy()
    height, width = surface.shape
    for _ in range(_CANDIDATES):
        y, x = divmod(int(surface.argmax()), width)
        for dx, dy in product((x, x - width), (y, y - height)):  # the surface is periodic
            overlap = (1 - abs(dx) / width) * (1 - abs(dy) / height)
            if overlap >= LEAST_OVERLAP:
                correlation = _correlation(before, after, dx, dy)
                if correlation >= CONFIRMED and (best is None or correlation > best[0]):
                    best = correlation, overlap, dx, dy
        surface[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = -1
    if best is None:
        return None
    correlation, overlap, dx, dy = best
    fine_x, fine_y = _subpixel(original, dx % width, dy % height)
    return Shift((dx + fine_x) * new.scale, (dy + fine_y) * new.scale, correlation, overlap)


def stands(known: Scan, new: Scan, x: float, y: float) -> bool:
    """Whether ``new`` lies where it is expected relative to ``known``; much faster than `register`.

    The overlap must correlate there, and less in each position beside it.
    """
    if known.size != new.size:
        return False
    before, after = known.texture.astype(np.float32), new.texture.astype(np.float32)
    dx, dy = round(x / new.scale), round(y / new.scale)
    height, width = before.shape
    if (1 - (abs(dx) + 1) / width) * (1 - (abs(dy) + 1) / height) < LEAST_OVERLAP:
        return False
    here = _correlation(before, after, dx, dy)
    beside = ((dx - 1, dy), (dx + 1, dy), (dx, dy - 1), (dx, dy + 1))
    return here >= STILL and all(_correlation(before, after, *each) < here for each in beside)


def _phase_correlation(before: Floats, after: Floats) -> Floats:
    cv2 = opencv()
    window = _window(before.shape)
    product_of_spectra = cv2.mulSpectrums(
        cv2.dft(before * window, flags=cv2.DFT_COMPLEX_OUTPUT),
        cv2.dft(after * window, flags=cv2.DFT_COMPLEX_OUTPUT),
        0,
        conjB=True,
    )
    product_of_spectra /= np.sqrt(np.square(product_of_spectra).sum(axis=2, keepdims=True)) + _WEAK
    surface: Floats = cv2.idft(product_of_spectra, flags=cv2.DFT_REAL_OUTPUT | cv2.DFT_SCALE)
    return surface


@cache
def _window(shape: tuple[int, int]) -> Floats:
    """Fades the borders, whose jump would correlate with itself. A Hann window would keep less of the overlap."""
    window: Floats = np.sqrt(np.outer(np.hanning(shape[0]), np.hanning(shape[1]))).astype(np.float32)
    return window


def _correlation(before: Floats, after: Floats, dx: int, dy: int) -> float:
    """Pearson's correlation of the overlap; 0 if one has no texture."""
    height, width = before.shape
    first = before[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    second = after[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    first, second = first - first.mean(), second - second.mean()
    size = float(np.vdot(first, first)) * float(np.vdot(second, second))
    return float(np.vdot(first, second)) / size**0.5 if size > 0 else 0.0


def _subpixel(surface: Floats, x: int, y: int) -> tuple[float, float]:
    """Offset of the true peak from its highest pixel, by a parabola in each direction; within half a pixel."""
    height, width = surface.shape
    row = [float(surface[y, (x + step) % width]) for step in (-1, 0, 1)]
    column = [float(surface[(y + step) % height, x]) for step in (-1, 0, 1)]
    return _vertex(*row), _vertex(*column)


def _vertex(before: float, middle: float, after: float) -> float:
    curvature = before - 2 * middle + after
    return 0.0 if curvature >= 0 else float(np.clip((before - after) / (2 * curvature), -0.5, 0.5))
