"""Drawn cells of another laboratory, whose classes differ in size, for tests of the adaptation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

LABELS = ("Benign", "Early", "Pre", "Pro")


def drawn_cell(label: int, random: np.random.Generator) -> Image.Image:
    """A cell of a class; its size alone tells which."""
    background = (int(value) for value in np.array([225, 215, 190]) + random.normal(0, 6, 3))
    image = Image.new("RGB", (70, 64), tuple(background))
    draw = ImageDraw.Draw(image)
    x, y = 35 + random.normal(0, 3), 32 + random.normal(0, 3)
    radius = 8 + 5 * label + random.normal(0, 1)
    for share, colour in ((1.0, (150 - 15 * label, 100 + 20 * label, 170)), (0.6, (90, 40, 120))):
        size = radius * share
        draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    grain = random.normal(0, 8, (64, 70, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def draw_site(folder: Path, counts: tuple[int, int, int, int], seed: int = 0) -> Path:
    """A folder with as many cells of each class, in one folder per class."""
    random = np.random.default_rng(seed)
    for index, (label, count) in enumerate(zip(LABELS, counts, strict=True)):
        for number in range(count):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn_cell(index, random).save(path)
    return folder
