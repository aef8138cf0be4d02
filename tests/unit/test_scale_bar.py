"""Scale bars in overlays, and scales that no field has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.edge_runtime.vision import scale_bar
from edgeall.edge_runtime.vision.scale import Scale, given_scale, implausible
from edgeall.edge_runtime.vision.scale_bar import LEAST_WIDTH, draw_scale_bar


def white_columns(picture: Image.Image) -> int:
    """Length of the longest run of white pixels in the lowest row that has any."""
    rows = (np.asarray(picture) == 255).all(axis=2)
    lowest = rows[np.flatnonzero(rows.any(axis=1))[-1]]
    return int(lowest.sum())


@pytest.mark.parametrize(("red_cell_px", "um"), [(71, 20), (28.4, 50), (355, 5)])
def test_the_bar_is_as_long_as_its_text_says(red_cell_px: float, um: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    class Pen(scale_bar.ImageDraw.ImageDraw):
        def text(self, place: Any, text: str, **words: Any) -> None:  # type: ignore[override]
            texts.append(text)

    monkeypatch.setattr(scale_bar.ImageDraw, "Draw", Pen)
    picture = Image.new("RGB", (1280, 960), (200, 120, 120))
    draw_scale_bar(picture, given_scale(red_cell_px))
    assert texts == [f"{um} um"]
    assert white_columns(picture) == pytest.approx(um * red_cell_px / 7.1, abs=2)
    draw_scale_bar(picture, Scale(red_cell_px, "image", 0.9, (red_cell_px, red_cell_px)))
    assert texts[1] == f"~ {um} um", "a scale of red cells is an estimate"


def test_a_small_picture_has_no_bar() -> None:
    picture = Image.new("RGB", (LEAST_WIDTH - 1, 300), "red")
    draw_scale_bar(picture, given_scale(30))
    assert picture.getcolors() == [((LEAST_WIDTH - 1) * 300, (255, 0, 0))]


@pytest.mark.parametrize(
    ("red_cell_px", "said"), [(300, "not one whole red cell would fit"), (4, "far below 20x"), (20, ""), (239, "")]
)
def test_a_scale_that_no_field_has_is_named(red_cell_px: float, said: str) -> None:
    found = implausible(given_scale(red_cell_px), (2000, 240))
    assert bool(found) == bool(said) and said in found
    if found:
        assert f"{red_cell_px:.0f} px" in found and "2000x240" in found and "--red-cell-px" in found
