"""Validation images as another microscope would show them: which, how strongly, and that they come again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.models.keras_compat import tf
from edgeall.optimize.quantization.mild import (
    BATCH,
    IMAGES,
    MOST_COPIES,
    ValidationPredictions,
    copies_of,
    mildly_changed,
)
from edgeall.train.augment import microscope
from edgeall.train.batches import Images

SPEC = InputSpec(24, 24)


def _side(count: int) -> Images:
    rough = np.random.default_rng(0).uniform(20, 235, (count + 3, 24, 24, 3))
    pixels = np.stack([gaussian_filter(image, (2, 2, 0)) for image in rough]).astype(np.uint8)
    return Images(pixels, np.arange(count)[::-1] + 3, np.arange(count) % 4, SPEC)


def test_every_image_comes_as_often_as_asked_each_time_otherwise_and_again_the_same() -> None:
    side = _side(BATCH + 5)
    drawn, again, other = (np.stack(list(mildly_changed(side, 2, seed))) for seed in (1, 1, 2))
    assert drawn.dtype == np.uint8 and drawn.shape == (2 * len(side), 24, 24, 3)
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    assert len({image.tobytes() for image in drawn}) == len(drawn)
    means = side.pixels[side.rows].mean(axis=(1, 2, 3))
    assert np.abs(drawn.mean(axis=(1, 2, 3)) - np.tile(means, 2)).max() < 60, "in the order of the side"


def test_a_weaker_change_is_a_smaller_one_and_none_at_all_is_geometry() -> None:
    seed = tf.constant([3, 4], tf.int64)
    images = tf.constant(np.tile(np.array([200.0, 90.0, 150.0], np.float32), (8, 24, 24, 1)))

    def moved(strength: float) -> float:
        return float(np.abs(np.asarray(microscope(images, seed, strength)) - images).mean())

    np.testing.assert_array_equal(microscope(images, seed), microscope(images, seed, 1.0))
    assert moved(0.0) == pytest.approx(0, abs=1e-3), "a flat image has no geometry"
    assert 0 < moved(0.25) == pytest.approx(0.25 * moved(1.0), rel=1e-3)


@pytest.mark.parametrize(("count", "copies"), [(1, MOST_COPIES), (40, MOST_COPIES), (260, 3), (IMAGES + 1, 1)])
def test_small_subsets_are_drawn_several_times(count: int, copies: int) -> None:
    assert copies_of(count) == copies


def test_the_images_as_they_are_come_first() -> None:
    rows = np.arange(12)
    fitted = ValidationPredictions(np.zeros((12, 2)), np.zeros((12, 5)), rows % 2, images=3, copies=2)
    assert fitted.unchanged(rows).tolist() == [0, 1, 2]
