"""What differs between the images of two laboratories, drawn anew for each tile: OpenCV on one tile at a time.

The masks of one laboratory are few, and another one has another stain, lens and camera. So more is changed than
`edgeall.train.microscope` changes for classifiers: hues, which a classifier may need, and the resolution, because files
come enlarged. A network that was trained so finds cells in a laboratory that it has never seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import UsageError
from ...edge_runtime.masks import CLASSES

Tile = NDArray[np.float32]
"""One tile, ``(size, size, 3)``, 0..1."""
Change = Callable[[Tile, np.random.Generator], Tile]

BRIGHTNESS, CONTRAST, CHANNEL = 0.1, 0.1, 0.05
"""Largest changes of ``light``: of the level, of the contrast, and of each channel's gain."""
COARSER = 2.4
"""Largest factor by which the resolution is reduced, before the tile is enlarged again."""
SIGMA = (0.4, 1.6)
"""Standard deviation of a blur, pixels."""
MIXING = (0.12, 0.3)
"""Standard deviations of the random part of the matrix that mixes the optical densities, each in half of the cases. The
entries outside the diagonal have `CROSS` of it."""
CROSS = 0.6
STRENGTH = 0.5
"""Largest natural logarithm of the factor of all optical densities."""
HUE, SATURATION = 35.0, (-0.9, 0.6)
"""Largest change of the hue in degrees, and natural logarithms of the factor of the saturation."""
RECOLOURED = 0.5
"""Share of the tiles whose red cells have another colour."""
OWN_HUE = (30.0, 50.0)
"""Least distance of the red cells' hue from that of the nuclei then, degrees, towards blue and towards red: in strongly
stained smears, red cells are blue and nuclei violet."""
RED_SATURATION, RED_DENSITY = (-1.0, 0.7), (-0.3, 0.4)
"""Natural logarithms of the factors of the saturation and of the optical density of the red cells then."""
PALE_SHARE, PALE = 0.4, (-1.0, 0.1)
"""Share of the tiles whose white cells have another optical density, and natural logarithms of its factor."""
CLEAR_PERCENTILE = 95
"""Of each channel: the clear background."""
PURPLE = 270.0
"""Hue of a nucleus in degrees, for a tile without one."""
SEAM = 0.8
"""Standard deviation of the border between recoloured and kept pixels, pixels."""
LAMP, EXPOSURE, GAMMA = 0.12, (-0.5, 0.35), 0.35
"""Standard deviation of the natural logarithm of each channel's gain; range of that of the gain of all; largest one of
the exponent."""
GRADIENT = 0.2
"""Largest change of the light from the centre to a border."""
NOISE = (0.005, 0.05)
"""Standard deviation of sensor noise."""
QUALITY = (35, 95)
"""Of a JPEG file."""


def check_augment(name: str) -> None:
    """Raise UsageError for an augmentation that cannot change image and mask together."""
    if name not in LIGHT:
        raise UsageError(f"--augment {name} does not change masks", hint=f"choose one of {', '.join(LIGHT)}")


def changed(pixels: NDArray[np.uint8], augment: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """A tile under another light, uint8 of the same shape.

    Args:
        pixels: uint8 RGB ``(size, size, 3)``.
        augment: a key of `LIGHT`.
        random: of all draws.
    """
    steps = LIGHT[augment]
    if not steps:
        return pixels
    tile: Tile = pixels.astype(np.float32) / np.float32(255)
    for share, change in steps:
        if random.random() < share:
            tile = np.clip(change(tile, random), 0, 1).astype(np.float32, copy=False)
    return np.rint(tile * 255).astype(np.uint8)


def recoloured(pixels: NDArray[np.uint8], classes: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A tile whose red and white cells have been stained independently; see `RECOLOURED` and `PALE_SHARE`.

    Red cells are pink in one laboratory and blue-grey in another, whatever the colour of the nuclei, and nuclei may be
    as pale as red cells. A network that has seen a few laboratories takes their colours for the class. So the red cells
    are turned to any hue but that of the nuclei, and the white cells are made paler. The clear background, which has
    hardly any hue or density, stays as it is.

    Args:
        pixels: uint8 RGB ``(size, size, 3)``.
        classes: index into `edgeall.edge_runtime.masks.CLASSES`, ``(size, size)``.
        random: of all draws.
    """
    recolour, pale = random.random() < RECOLOURED, random.random() < PALE_SHARE
    if not (recolour or pale):
        return pixels
    tile: Tile = pixels.astype(np.float32) / np.float32(255)
    clear = np.maximum(np.percentile(tile.reshape(-1, 3)[::7], CLEAR_PERCENTILE, axis=0), 0.05).astype(np.float32)
    inner = outer = tile
    if recolour:
        outer = _denser(_turned(tile, classes, random), clear, math.exp(random.uniform(*RED_DENSITY)))
    if pale:
        inner = _denser(tile, clear, math.exp(random.uniform(*PALE)))
    outside = _cv(cv2.GaussianBlur((classes == 0).astype(np.float32), (0, 0), SEAM))[..., np.newaxis]
    return np.rint(np.clip(inner + (outer - inner) * outside, 0, 1) * 255).astype(np.uint8)


def _turned(tile: Tile, classes: NDArray[np.uint8], random: np.random.Generator) -> Tile:
    """The tile with another hue of what is outside the cells, at least `OWN_HUE` from that of the nuclei."""
    colour = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    weight = colour[..., 1] * (classes == 0)
    own = _mean_hue(colour[..., 0], colour[..., 1] * (classes == CLASSES.index("nucleus")))
    wanted = own + random.uniform(OWN_HUE[1], 360 - OWN_HUE[0])
    colour[..., 0] = (colour[..., 0] + np.float32(wanted - _mean_hue(colour[..., 0], weight))) % 360
    colour[..., 1] = np.clip(colour[..., 1] * math.exp(random.uniform(*RED_SATURATION)), 0, 1)
    return _cv(cv2.cvtColor(colour, cv2.COLOR_HSV2RGB))


def _mean_hue(hue: NDArray[np.float32], weight: NDArray[np.float32]) -> float:
    """Weighted circular mean in degrees; that of a purple nucleus without any weight."""
    angle = np.deg2rad(hue)
    across, along = float((np.sin(angle) * weight).sum()), float((np.cos(angle) * weight).sum())
    return math.degrees(math.atan2(across, along)) if across or along else PURPLE


def _denser(tile: Tile, clear: NDArray[np.float32], factor: float) -> Tile:
    """Optical density relative to the clear background times ``factor``."""
    result: Tile = clear * np.minimum(tile / clear, 1) ** np.float32(factor) + np.maximum(tile - clear, 0)
    return result


def _dimmed(tile: Tile, random: np.random.Generator) -> Tile:
    mean = tile.mean()
    tile = (tile - mean) * np.float32(1 + random.uniform(-CONTRAST, CONTRAST)) + mean
    gain = 1 + random.uniform(-CHANNEL, CHANNEL, 3).astype(np.float32)
    result: Tile = tile * gain + np.float32(random.uniform(-BRIGHTNESS, BRIGHTNESS))
    return result


def _coarser(tile: Tile, random: np.random.Generator) -> Tile:
    size = tile.shape[0]
    small = max(16, int(size / random.uniform(1, COARSER)))
    enlarge = cv2.INTER_LINEAR if random.random() < 0.5 else cv2.INTER_CUBIC
    reduced = cv2.resize(tile, (small, small), interpolation=cv2.INTER_AREA)
    return _cv(cv2.resize(reduced, (size, size), interpolation=enlarge))


def _blurred(tile: Tile, random: np.random.Generator) -> Tile:
    return _cv(cv2.GaussianBlur(tile, (0, 0), random.uniform(*SIGMA)))


def _stained(tile: Tile, random: np.random.Generator) -> Tile:
    """Optical densities mixed by a matrix near the identity, and scaled (Beer and Lambert)."""
    spread = MIXING[0] if random.random() < 0.5 else MIXING[1]
    part = np.where(np.eye(3) > 0, 1.0, CROSS)
    matrix = (np.eye(3) + random.normal(0, spread, (3, 3)) * part) * math.exp(random.uniform(-STRENGTH, STRENGTH))
    density = -np.log(np.maximum(tile, np.float32(1 / 255))) @ matrix.astype(np.float32).T
    result: Tile = np.exp(-np.maximum(density, 0))
    return result


def _tinted(tile: Tile, random: np.random.Generator) -> Tile:
    colour = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    colour[..., 0] = (colour[..., 0] + random.uniform(-HUE, HUE)) % 360
    colour[..., 1] = np.clip(colour[..., 1] * math.exp(random.uniform(*SATURATION)), 0, 1)
    return _cv(cv2.cvtColor(colour, cv2.COLOR_HSV2RGB))


def _grey(tile: Tile, random: np.random.Generator) -> Tile:
    return np.repeat(tile.mean(axis=2, keepdims=True), 3, axis=2)


def _lamp(tile: Tile, random: np.random.Generator) -> Tile:
    gain = np.exp(random.normal(0, LAMP, 3) + random.uniform(*EXPOSURE))
    result: Tile = tile * gain.astype(np.float32)
    return result


def _gradient(tile: Tile, random: np.random.Generator) -> Tile:
    ramp = np.linspace(-1, 1, tile.shape[0], dtype=np.float32)
    across, down = random.uniform(-GRADIENT, GRADIENT, 2).astype(np.float32)
    result: Tile = tile * (1 + across * ramp[np.newaxis, :, np.newaxis] + down * ramp[:, np.newaxis, np.newaxis])
    return result


def _gamma(tile: Tile, random: np.random.Generator) -> Tile:
    result: Tile = tile ** np.float32(math.exp(random.uniform(-GAMMA, GAMMA)))
    return result


def _noisy(tile: Tile, random: np.random.Generator) -> Tile:
    grain = random.standard_normal(tile.shape, np.float32) * np.float32(random.uniform(*NOISE))
    result: Tile = tile + grain
    return result


def _compressed(tile: Tile, random: np.random.Generator) -> Tile:
    quality = int(random.integers(*QUALITY))
    _, content = cv2.imencode(".jpg", np.rint(tile * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = _cv(cv2.imdecode(content, cv2.IMREAD_COLOR))
    return decoded.astype(np.float32) / np.float32(255)


def _cv(array: Any) -> Tile:
    """What OpenCV returns, whose types are wider than its results."""
    result: Tile = array
    return result


LIGHT: dict[str, tuple[tuple[float, Change], ...]] = {
    "none": (),
    "light": ((1.0, _dimmed),),
    "microscope": (
        (0.35, _coarser),
        (0.3, _blurred),
        (0.9, _stained),
        (0.5, _tinted),
        (0.08, _grey),
        (1.0, _lamp),
        (0.4, _gradient),
        (1.0, _gamma),
        (0.3, _noisy),
        (0.3, _compressed),
    ),
}
"""The changes of each augmentation in their order, each with the share of the tiles that it changes. The geometry of a
tile is that of `edgeall.train.segmentation.tiles.mosaic_tile`; ``none`` has none."""
