"""Measures the period of a stage micrometer's divisions in its image.

The direction of the lines comes from the structure tensor. The image is averaged along the lines; the autocorrelation
of this profile gives the period, and a straight line through the places of all rulings refines it. What is not a
ruling is refused: a smear, an empty field, a grid, single scratches.

Source: J. Bigun and G. Granlund, Optimal orientation detection of linear symmetry, 1987 (the structure tensor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.vision.instances import opencv
from ..language import N_, message

Floats = NDArray[np.float64]

LEAST_LINES = 3
LEAST_PERIOD_PX = 5.0
_COHERENT = 0.3
"""Minimum coherence of the gradients: 1 where all have one direction, 0 for a smear or a grid."""
_PERIODIC = 0.35
"""Minimum autocorrelation at the period."""
_FUNDAMENTAL = 0.6
"""The period is the first peak of the autocorrelation that reaches this fraction of the highest: in rulings whose
fifth or tenth lines are longer, the highest peak is a multiple of the period."""
_EVEN = 0.03
"""Maximum deviation of the lines from equal distances, root mean square, in periods."""
_PLACED_PX = 0.3
"""Uncertainty of the place of one line, pixels."""
_STEP_PX = 0.8
"""The autocorrelation gives the period to this, pixels."""
_DEPTH = 0.35
"""Minimum depth of every line, relative to the median line."""
_CONTRAST = 6.0
"""Minimum depth of the median line, grey levels."""
_TURNS = np.radians(np.arange(-2.0, 2.01, 0.25)), np.radians(np.arange(-0.25, 0.26, 0.05))
"""Angles that are tried around the first estimate, coarse and fine, radians."""
_SPARSE = 13
"""Of so many pixels, one is enough for these trials."""
_HINT = N_(
    "focus on the lines of a stage micrometer, so that at least three cross the picture and nothing else is in it"
)


class NotARulingError(EdgeallError):
    """The image shows no ruling."""


@dataclass(frozen=True)
class Ruling:
    """The rulings of a stage micrometer.

    Attributes:
        period_px: distance of neighbouring lines, across the lines, pixels.
        angle_deg: direction across the lines, -90..90; 0: the lines are vertical.
        lines: number of lines that were used.
        error: standard error of the period, relative to it.
        coherence: of the gradients, 0..1.
    """

    period_px: float
    angle_deg: float
    lines: int
    error: float
    coherence: float

    def um_per_px(self, division_um: float) -> float:
        """Micrometres per pixel, if neighbouring lines are ``division_um`` apart."""
        return division_um / self.period_px

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "period_px": round(self.period_px, 3),
            "angle_deg": round(self.angle_deg, 2),
            "lines": self.lines,
            "error": round(self.error, 6),
            "coherence": round(self.coherence, 3),
        }


def measure_ruling(pixels: NDArray[np.uint8]) -> Ruling:
    """Measure the ruling in an image, uint8 RGB ``(height, width, 3)``.

    Raises:
        NotARulingError: the image shows no ruling.
    """
    grey = pixels.mean(axis=2, dtype=np.float32)
    angle, coherence = _direction(grey)
    if coherence < _COHERENT:
        raise NotARulingError("this is not a ruling: the lines have no common direction", hint=_HINT)
    profile = _profile(grey, angle)
    period = _period(profile)
    places = _lines(profile, period)
    order = np.arange(len(places))
    slope, start = np.polyfit(order, places, 1)
    off = places - (start + slope * order)
    if float(np.sqrt(np.mean(off**2))) > _EVEN * slope + _PLACED_PX:
        raise NotARulingError("this is not a ruling: its lines are not at equal distances", hint=_HINT)
    spread = float(np.sqrt(np.sum(off**2) / max(len(places) - 2, 1) / np.sum((order - order.mean()) ** 2)))
    return Ruling(float(slope), float(np.degrees(angle)), len(places), spread / float(slope), coherence)


def _direction(grey: NDArray[np.float32]) -> tuple[float, float]:
    """The direction across the lines, radians, -pi/2..pi/2; and the coherence of the gradients."""
    cv2 = opencv()
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    xx, yy, xy = (float(np.vdot(a, b)) for a, b in ((across, across), (down, down), (across, down)))
    if xx + yy < 1e-6 * grey.size:
        return 0.0, 0.0
    angle = 0.5 * float(np.arctan2(2 * xy, xx - yy))
    coherence = float(np.hypot(xx - yy, 2 * xy)) / (xx + yy)
    for turns in _TURNS:
        clear = [float(_profile(grey, angle + turn, _SPARSE).var()) for turn in turns]
        angle += float(turns[int(np.argmax(clear))])
    return float((angle + np.pi / 2) % np.pi - np.pi / 2), coherence


def _profile(grey: NDArray[np.float32], angle: float, every: int = 1) -> Floats:
    """The mean along the lines, by the distance across them in pixels, without the slow change of the lamp.

    ``every``: of so many pixels, one is used.
    """
    width = grey.shape[1]
    row, column = np.divmod(np.arange(0, grey.size, every), width)
    place = column * np.cos(angle) + row * np.sin(angle)
    at = (place - place.min()).astype(np.int32)
    count = np.bincount(at)
    mean = np.bincount(at, grey.ravel()[::every]) / np.maximum(count, 1)
    first, last = np.flatnonzero(count >= 0.3 * count.max())[[0, -1]]  # the corners have few pixels
    kept: Floats = mean[first : last + 1]
    t = np.linspace(-1, 1, len(kept))
    slow: Floats = np.polynomial.legendre.Legendre.fit(t, kept, 4)(t)
    return kept - slow


def _period(profile: Floats) -> float:
    """The distance of neighbouring lines, to the pixel."""
    size = len(profile)
    spectrum = np.fft.rfft(profile, 2 * size)
    together = np.fft.irfft(spectrum * spectrum.conj())[:size]
    same = together / (np.arange(size, 0, -1) / size) / max(together[0], 1e-9)
    lags = np.arange(1, round(0.7 * size))
    peaks = lags[(same[lags] > same[lags - 1]) & (same[lags] >= same[lags + 1]) & (lags >= LEAST_PERIOD_PX)]
    highest = same[peaks].max() if len(peaks) else 0.0
    if highest < _PERIODIC:
        raise NotARulingError("this is not a ruling: nothing in it repeats at equal distances", hint=_HINT)
    return float(peaks[same[peaks] >= _FUNDAMENTAL * highest][0])


def _lines(profile: Floats, period: float) -> Floats:
    """The places of the lines: the centres of the darkest stretch of each period, or the brightest in a dark field."""
    dark = profile if abs(profile.max()) > abs(profile.min()) else -profile
    tried = period + np.linspace(-_STEP_PX, _STEP_PX, 81)
    waves = np.exp(2j * np.pi * np.arange(len(dark)) / tried[:, None]) @ dark.clip(0)
    best = int(np.abs(waves).argmax())
    period = float(tried[best])
    start = float(np.angle(waves[best]) / (2 * np.pi) * period) % period
    found: list[float] = []
    depths: list[float] = []
    centre = start
    while centre <= len(dark) - 1:
        low, high = max(round(centre - period / 2), 0), min(round(centre + period / 2) + 1, len(dark))
        part = dark[low:high]
        peak = int(part.argmax())
        if 0 < low + peak < len(dark) - 1 and high - low > 0.6 * period:
            depth = float(part[peak] - np.median(part))
            weight = (part - part[peak] + depth / 2).clip(0)
            found.append(low + float(np.average(np.arange(len(part)), weights=weight)) if depth > 0 else centre)
            depths.append(depth)
            centre = found[-1] + period
        else:
            centre += period
    if len(found) < LEAST_LINES:
        text = N_("this is not a ruling: {count} lines at equal distances, {least} are needed")
        raise NotARulingError(message(text, count=len(found), least=LEAST_LINES), hint=_HINT)
    middle = float(np.median(depths))
    if middle < _CONTRAST or min(depths) < _DEPTH * middle:
        raise NotARulingError("this is not a ruling: its lines are too faint, or some are missing", hint=_HINT)
    return np.array(found)
