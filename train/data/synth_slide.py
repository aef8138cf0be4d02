"""One synthetic slide: stain, lamp and camera. It is independent of the class.

Colour follows the Beer-Lambert law: each dye has an absorbance per channel, a field holds optical densities, and the
camera records ``lamp * exp(-density)`` with defocus and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# Absorbance (R, G, B) of each dye at its two extremes, measured on published smears. A slide mixes the two.
_NUCLEUS = ((1.30, 1.60, 0.38), (0.55, 1.45, 0.42))  # blue-violet ... magenta
_CYTOPLASM = ((0.85, 0.62, 0.14), (0.42, 0.78, 0.30))  # sky blue ... lilac
_RED_CELL = ((0.62, 0.50, 0.30), (0.22, 0.58, 0.62))  # grey-blue ... salmon


@dataclass(frozen=True)
class Slide:
    """The properties that all images of one subject share.

    Attributes:
        nucleus: absorbance (R, G, B); also ``cytoplasm`` and ``red_cell``.
        lamp: colour of the empty field (R, G, B in 0..1).
        gamma: of the camera.
        vignette: share of the light lost in the corners.
        centre: optical centre of the lamp, x and y in 0..1.
        zoom: factor of the pixels per micrometre.
        blur: standard deviation in pixels of a 224 px field.
        noise: standard deviation in grey levels.
        red_cells: share of the field covered by red cells.
        pallor: of the centres of red cells.
    """

    nucleus: tuple[float, ...]
    cytoplasm: tuple[float, ...]
    red_cell: tuple[float, ...]
    lamp: tuple[float, ...]
    gamma: float
    vignette: float
    centre: tuple[float, float]
    zoom: float
    blur: float
    noise: float
    red_cells: float
    pallor: float


@dataclass(frozen=True)
class Densities:
    """Optical density of each dye, float32 (height, width)."""

    nucleus: Floats
    cytoplasm: Floats
    red_cell: Floats


def _dye(rng: np.random.Generator, extremes: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[float, ...]:
    """A random mix of two extremes with a random strength."""
    mix, strength = rng.uniform(0.0, 1.0), rng.uniform(0.85, 1.15)
    return tuple(float(strength * ((1 - mix) * a + mix * b)) for a, b in zip(*extremes, strict=True))


def make_slide(rng: np.random.Generator, exposure: float = 1.0) -> Slide:
    """Draw the stain, lamp, focus and noise of one subject's slide, taken with a relative ``exposure``."""
    brightness = exposure * rng.uniform(0.87, 0.99)
    warmth, tint = rng.normal(0.0, 0.04), rng.normal(0.0, 0.012)  # lamps vary from yellow to blue, hardly towards green
    lamp = np.clip(brightness * np.array([1.0 + warmth, 1.0 + tint, 1.0 - warmth]), 0.0, 1.0)
    return Slide(
        nucleus=_dye(rng, _NUCLEUS),
        cytoplasm=_dye(rng, _CYTOPLASM),
        red_cell=_dye(rng, _RED_CELL),
        lamp=tuple(float(v) for v in lamp),
        gamma=float(rng.uniform(0.9, 1.12)),
        vignette=float(rng.uniform(0.0, 0.16)),
        centre=(float(rng.uniform(0.35, 0.65)), float(rng.uniform(0.35, 0.65))),
        zoom=float(rng.uniform(0.95, 1.05)),
        blur=float(rng.uniform(0.3, 1.0)),
        noise=float(rng.uniform(0.8, 3.5)),
        red_cells=float(rng.uniform(0.20, 0.50)),
        pallor=float(rng.uniform(0.25, 0.85)),
    )


def _illumination(slide: Slide, size: int) -> Floats:
    """Relative illumination (size, size): 1 at the optical centre, lower towards the corners."""
    along = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = along[None, :] - slide.centre[0], along[:, None] - slide.centre[1]
    return (1.0 - 2.0 * slide.vignette * (x * x + y * y)).astype(np.float32)


def photograph(densities: Densities, slide: Slide, rng: np.random.Generator) -> Pixels:
    """The camera image of a field.

    Args:
        densities: square maps of one size.
        slide: stain, lamp, focus and noise.
        rng: for the differences of this image from its slide, and for sensor noise.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    size = densities.nucleus.shape[0]
    light = _illumination(slide, size)
    exposure = rng.normal(1.0, 0.025)
    focus = max(slide.blur + rng.normal(0.0, 0.15), 0.0) * size / 224
    rgb = np.empty((size, size, 3), np.float32)
    for channel in range(3):
        density = densities.nucleus * np.float32(slide.nucleus[channel])
        density += densities.cytoplasm * np.float32(slide.cytoplasm[channel])
        density += densities.red_cell * np.float32(slide.red_cell[channel])
        # The camera's gamma is part of the exponent, which saves a power per pixel.
        density *= np.float32(-slide.gamma)
        np.exp(density, out=density)
        density *= light
        rgb[..., channel] = density * np.float32(255.0 * exposure * slide.lamp[channel] ** slide.gamma)
    sharp = Image.fromarray(np.clip(rgb + 0.5, 0, 255).astype(np.uint8))
    pixels = np.asarray(sharp.filter(ImageFilter.GaussianBlur(focus)), np.float32)
    grain = rng.standard_normal((size, size, 3), np.float32)
    grain *= np.float32(slide.noise)
    grain += pixels
    grain += np.float32(0.5)
    return np.clip(grain, 0, 255, out=grain).astype(np.uint8)
