"""Training tiles of segmentation whose red cells have another colour."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest

from edgeall.train.segmentation import light
from edgeall.train.segmentation.batches import _seen
from edgeall.train.segmentation.tiles import IGNORED

CLEAR, RED, NUCLEUS = (250, 250, 250), (200, 150, 150), (90, 40, 140)


@pytest.fixture
def tile() -> tuple[np.ndarray, np.ndarray]:
    """A red cell on the left, a nucleus on the right, on a clear background."""
    pixels, classes = np.full((64, 64, 3), CLEAR, np.uint8), np.zeros((64, 64), np.uint8)
    cv2.circle(pixels, (18, 32), 10, RED, -1)
    cv2.circle(pixels, (46, 32), 10, NUCLEUS, -1)
    cv2.circle(classes, (46, 32), 10, 2, -1)
    return pixels, classes


def test_red_cells_take_any_hue_but_that_of_the_nuclei(
    tile: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "RECOLOURED", 1.0)
    monkeypatch.setattr(light, "PALE_SHARE", 0.0)
    own = colorsys.rgb_to_hsv(*NUCLEUS)[0] * 360
    away = []
    for seed in range(60):
        found = light.recoloured(*tile, np.random.default_rng(seed))
        assert found.shape == (64, 64, 3) and found.dtype == np.uint8
        assert np.abs(found[28:37, 42:51].astype(int) - NUCLEUS).max() <= 1, "the inside of the white cell"
        assert np.abs(found[5, 5].astype(int) - CLEAR).max() <= 5, "the clear background stays clear"
        hue, saturation, _ = colorsys.rgb_to_hsv(*found[32, 18].tolist())
        if saturation > 0.1:
            away.append((hue * 360 - own) % 360)
    blue, red = light.OWN_HUE
    assert min(away) > red - 8 and max(away) < 360 - blue + 8
    assert max(away) > 360 - red, "nearer to the nuclei on the side of blue"
    assert np.histogram(away, 4, (0, 360))[0].min() > 0, "every other part of the circle"


def test_white_cells_get_paler(tile: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "RECOLOURED", 0.0)
    monkeypatch.setattr(light, "PALE_SHARE", 1.0)
    found = [light.recoloured(*tile, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.abs(each[32, 18].astype(int) - RED).max() <= 1 for each in found), "red cells keep their colour"
    assert max(int(each[32, 46].mean()) for each in found) > np.mean(NUCLEUS) + 50


def test_a_share_of_the_tiles_is_recoloured(tile: tuple[np.ndarray, np.ndarray]) -> None:
    random = np.random.default_rng(0)
    changed = [bool((light.recoloured(*tile, random) != tile[0]).any()) for _ in range(200)]
    share = 1 - (1 - light.RECOLOURED) * (1 - light.PALE_SHARE)
    assert np.mean(changed) == pytest.approx(share, abs=0.15)


def test_tiles_without_a_counted_mask_keep_their_colours(
    tile: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("recoloured")

    monkeypatch.setattr("edgeall.train.segmentation.batches.recoloured", never)
    far = np.full_like(tile[1], IGNORED)
    for pixels, classes, augment in ((tile[0], far, "microscope"), (*tile, "light"), (*tile, "none")):
        seen, truth = _seen(pixels, classes, augment, np.random.default_rng(0))
        assert seen.shape == (64, 64, 3)
        assert (truth == classes).all()
    with pytest.raises(AssertionError, match="recoloured"):
        _seen(*tile, "microscope", np.random.default_rng(0))
