"""Outlines as signed distances, and textures, for synthetic cells. Lengths are pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from .synth_slide import Floats

Complexes = npt.NDArray[np.complex64]


def outline(x: Floats, y: Floats, waves: Complexes) -> tuple[Floats, Floats]:
    """Distance from the origin, and the relative deviation of the outline in that direction, (..., height, width).

    Args:
        x, y: coordinates, float32 (..., height, width).
        waves: complex amplitude of each harmonic, (..., harmonics).
    """
    rho = np.sqrt(x * x + y * y) + np.float32(1e-6)
    c1, s1 = x / rho, y / rho
    c, s = c1, s1
    deviation = np.zeros_like(rho)
    for k in range(waves.shape[-1]):
        c, s = c * c1 - s * s1, s * c1 + c * s1  # cos and sin of the next harmonic, without trigonometry
        deviation += c * waves[..., k].real[..., None, None] + s * waves[..., k].imag[..., None, None]
    return rho, deviation


def waves(rng: np.random.Generator, wobble: float, harmonics: int = 6, shape: tuple[int, ...] = ()) -> Complexes:
    """Random amplitudes for outlines with 2, 3 ... periods per turn. Higher harmonics are weaker, as in a membrane."""
    fall = 1.0 / np.arange(1, harmonics + 1)
    parts = rng.normal(0.0, wobble, (*shape, harmonics, 2)) * fall[:, None]
    return (parts[..., 0] + 1j * parts[..., 1]).astype(np.complex64)


def grid(half: int, fx: npt.ArrayLike, fy: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Coordinates of patches of ``2 * half + 1`` pixels around sub-pixel centres ``fx``, ``fy`` (any shape)."""
    line = np.arange(-half, half + 1, dtype=np.float32)
    flat = np.zeros_like(line)
    x = line[None, :] + flat[:, None] - np.asarray(fx, np.float32)[..., None, None]
    y = line[:, None] + flat[None, :] - np.asarray(fy, np.float32)[..., None, None]
    return x, y


def soft(distance: Floats, edge: float) -> Floats:
    """Coverage 0..1 from a signed distance (positive inside), with an edge of ``edge`` pixels."""
    cover: Floats = np.clip(distance * np.float32(1.0 / edge) + np.float32(0.5), 0.0, 1.0)
    return cover


def make_texture(rng: np.random.Generator, px_per_um: float) -> Floats:
    """Chromatin textures (2, side, side): fine grains of 0.5 um and clumps of 1.6 um.

    Both have mean 0 and standard deviation 1, so that a histogram does not reveal the age of a nucleus.
    """
    side = max(int(22.0 * px_per_um), 256)  # the largest patch is 18 um
    tiles = np.empty((2, side, side), np.float32)
    for tile, grains in zip(tiles, (((0.5, 1.0), (0.2, 0.6)), ((1.6, 1.0), (0.5, 0.3))), strict=True):
        tile[:] = 0.0
        for grain_um, weight in grains:
            across = max(int(side / (grain_um * px_per_um)), 4)
            small = Image.fromarray(rng.standard_normal((across, across), np.float32))
            tile += weight * np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
        np.tanh(1.2 * tile, out=tile)  # clumps have plateaus
        tile -= tile.mean()
        tile /= tile.std()
    return tiles
