"""Drawn pictures of a stage micrometer and of an empty field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 480
Pixels = NDArray[np.uint8]


def ruling(period: float, angle_deg: float = 0.0, *, noise: float = 4.0, missing: int | None = None) -> Pixels:
    """A stage micrometer: every fifth and tenth line is longer; vignetting, dust and noise."""
    rng = np.random.default_rng(round(period))
    x, y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2, np.arange(HEIGHT) - HEIGHT / 2)
    turn = np.radians(angle_deg)
    across, along = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    line = np.round((across - 3.3) / period)
    cover = np.clip(min(1 + period / 40, period / 6) + 0.5 - np.abs(across - 3.3 - line * period), 0, 1)
    cover *= np.abs(along) < np.where(line % 10 == 0, 0.45, np.where(line % 5 == 0, 0.38, 0.3)) * HEIGHT
    cover *= line != missing if missing is not None else 1
    field = (235 - 150 * cover) * (1 - 0.3 * ((x / WIDTH) ** 2 + (y / HEIGHT) ** 2))
    field -= 90 * np.exp(-((x - 100) ** 2 + (y + 60) ** 2) / 80)  # dust
    return np.clip(field[..., None] + rng.normal(0, noise, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


def empty_field(corner: float = 0.6, colour: tuple[float, float, float] = (1.0, 0.9, 0.7), peak: float = 235) -> Pixels:
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
    light = 1 - (1 - corner) * (x**2 + y**2) / 2
    noise = np.random.default_rng(1).normal(0, 2, (HEIGHT, WIDTH, 3))
    return np.clip(peak * light[..., None] * np.array(colour) + noise, 0, 255).astype(np.uint8)
