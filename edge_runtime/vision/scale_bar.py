"""Scale bars: their length, for every page and file that shows one; and drawn into overlays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .scale import Scale

SHARE = 0.2
"""Maximum length of a bar, relative to the picture's width."""
LEAST_WIDTH = 160
"""Width in pixels of the smallest picture that a bar is drawn into."""
_STEPS = (1, 2, 5)


def is_estimated(source: str) -> bool:
    """Whether a scale of this `edgeall.edge_runtime.vision.scale.Scale.source` rests on the size of red cells."""
    return source not in ("calibrated", "given")


@dataclass(frozen=True)
class ScaleBar:
    """A scale bar: its length in micrometres, a round number; in pixels of the picture; and its text, ``10 µm``."""

    um: float
    px: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {"um": self.um, "px": round(self.px, 2), "text": self.text}


def scale_bar(um_per_px: float, width_px: float, *, estimated: bool = False, share: float = SHARE) -> ScaleBar:
    """The longest bar of 1, 2 or 5 times a power of ten that is at most ``share`` of the picture's width.

    Args:
        um_per_px: micrometres per pixel, above 0.
        width_px: of the picture, above 0.
        estimated: the scale comes from red cells, not from a calibration; the text says so.
        share: in (0, 1].
    """
    if not (um_per_px > 0 and width_px > 0 and 0 < share <= 1):
        raise ValueError(f"a scale bar needs a scale and a width, got {um_per_px} um/px and {width_px} px")
    longest = um_per_px * width_px * share
    power = math.floor(math.log10(longest) + 1e-9)
    step = max(each for each in _STEPS if each * 10.0**power <= longest * (1 + 1e-9))
    um = round(step * 10.0**power, 9)
    shown = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm" if um >= 1 else f"{1000 * um:g} nm"
    return ScaleBar(um, um / um_per_px, f"≈ {shown}" if estimated else shown)


def draw_scale_bar(picture: Image.Image, scale: Scale) -> None:
    """Draw a bar with its length into the lower right corner; a picture narrower than `LEAST_WIDTH` stays as it is.

    Pillow's own font has neither the micro sign nor the sign of approximation: the text is ``~ 10 um`` where the scale
    is estimated.

    Args:
        picture: mode ``RGB``, of the size of the field.
        scale: of the field.
    """
    if picture.width < LEAST_WIDTH:
        return
    bar = scale_bar(scale.um_per_px, picture.width)
    text = f"{'~ ' if is_estimated(scale.source) else ''}{bar.um:g} um"
    pen = ImageDraw.Draw(picture)
    thick = max(2, round(max(picture.size) / 320))
    right, bottom = picture.width - 4 * thick, picture.height - 4 * thick
    left = right - round(bar.px)
    pen.rectangle((left - 1, bottom - thick - 1, right + 1, bottom + 1), fill="black")
    pen.rectangle((left, bottom - thick, right, bottom), fill="white")
    font = ImageFont.load_default(8 * thick)
    pen.text(
        (right, bottom - 2 * thick), text, fill="white", font=font, anchor="rb", stroke_width=1, stroke_fill="black"
    )
