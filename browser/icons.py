"""The app's icons, drawn by code: a stained cell."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

PAPER, CYTOPLASM, OUTLINE, NUCLEUS = "#ffffff", "#efe6ea", "#1b2430", "#5b3f8c"
_SMOOTH = 4
"""Drawn larger by this factor, then reduced."""


def icon(px: int, maskable: bool = False) -> bytes:
    """A square PNG with ``px`` pixels on a side.

    Args:
        px: width and height.
        maskable: with a background to the edges and the cell within the central 80 %, so that a system may cut any
            shape out of it; otherwise transparent around the cell.
    """
    side = px * _SMOOTH
    image = Image.new("RGBA", (side, side), PAPER if maskable else "#ffffff00")
    draw = ImageDraw.Draw(image)
    radius = side * (0.36 if maskable else 0.48)

    def disc(x: float, y: float, size: float, fill: str) -> None:
        draw.ellipse((x - size, y - size, x + size, y + size), fill)

    disc(side / 2, side / 2, radius, OUTLINE)
    disc(side / 2, side / 2, radius * 0.87, CYTOPLASM)
    disc(side / 2 + radius / 16, side / 2 - radius / 16, radius * 0.45, NUCLEUS)
    file = io.BytesIO()
    image.resize((px, px), Image.Resampling.BOX).save(file, "PNG", optimize=True)
    return file.getvalue()
