"""Training tiles of segmentation whose white cells have another size, and which carry print and dirt."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeall.train.segmentation import scene

CLEAR, RED, NUCLEUS = (250, 250, 250), (200, 150, 150), (90, 40, 140)


@pytest.fixture
def tile() -> tuple[np.ndarray, np.ndarray]:
    """A red cell on the left, a nucleus twice as wide on the right, on a clear background."""
    pixels, classes = np.full((192, 192, 3), CLEAR, np.uint8), np.zeros((192, 192), np.uint8)
    cv2.circle(pixels, (30, 30), 14, RED, -1)
    cv2.circle(pixels, (120, 110), 28, NUCLEUS, -1)
    cv2.circle(classes, (120, 110), 28, 2, -1)
    return pixels, classes


def test_white_cells_take_another_size_with_their_mask(
    tile: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene, "RESIZED", 1.0)
    ratios = []
    for seed in range(30):
        pixels, classes = scene.resized_cells(*tile, np.random.default_rng(seed))
        assert pixels.shape == (192, 192, 3) and pixels.dtype == classes.dtype == np.uint8
        ratios.append(np.sqrt((classes == 2).sum() / (tile[1] == 2).sum()))
        violet = np.abs(pixels.astype(int) - NUCLEUS).max(axis=2) < 60
        assert (violet == (classes == 2)).mean() > 0.99, "the mask moves with the image"
        assert (pixels[16:45, 16:45] == tile[0][16:45, 16:45]).all(), "what is far from a white cell stays"
        rows, columns = np.nonzero(classes)
        assert rows.mean() == pytest.approx(110, abs=1) and columns.mean() == pytest.approx(120, abs=1)
    assert min(ratios) < 0.75 and max(ratios) > 1.0
    low, high = scene.RATIO
    assert low * 0.75 < min(ratios) and max(ratios) < high * 1.25


def test_parts_of_cells_keep_their_size(tile: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "RESIZED", 1.0)
    monkeypatch.setattr(scene, "LEAST_AREA", 192 * 192)
    found = scene.resized_cells(*tile, np.random.default_rng(0))
    assert (found[0] == tile[0]).all() and (found[1] == tile[1]).all()


def test_print_and_dirt_are_background(tile: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "PRINTED", 1.0)
    monkeypatch.setattr(scene, "DIRTY", 1.0)
    before = tile[0].copy(), tile[1].copy()
    over_a_cell = 0
    for seed in range(40):
        pixels, classes = scene.painted(*tile, np.random.default_rng(seed))
        assert (pixels != tile[0]).any()
        assert not ((classes > 0) & (tile[1] == 0)).any(), "nothing becomes a cell"
        lost = (classes == 0) & (tile[1] > 0)
        over_a_cell += int(lost.any())
        unchanged = (pixels == tile[0]).all(axis=2)
        assert (classes[unchanged] == tile[1][unchanged]).mean() > 0.999
    assert over_a_cell > 0
    assert (tile[0] == before[0]).all() and (tile[1] == before[1]).all(), "the tile that it was made from stays"


def test_a_share_of_the_tiles_is_painted(tile: tuple[np.ndarray, np.ndarray]) -> None:
    random = np.random.default_rng(0)
    changed = [bool((scene.painted(*tile, random)[0] != tile[0]).any()) for _ in range(200)]
    assert np.mean(changed) == pytest.approx(1 - (1 - scene.PRINTED) * (1 - scene.DIRTY), abs=0.12)
