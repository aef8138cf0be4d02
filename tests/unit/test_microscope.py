"""The changes that another microscope makes: each by itself, then all together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from edgeall.models.keras_compat import tf
from edgeall.train import augment, microscope
from edgeall.train.batches import Images, shuffled

SEED = tf.constant([3, 4], tf.int64)


def _fields(count: int = 4, size: int = 48) -> np.ndarray:
    generator = np.random.default_rng(0)
    rough = generator.uniform(20, 235, (count, size, size, 3))
    return np.stack([gaussian_filter(image, (2, 2, 0)) for image in rough]).astype(np.float32)


def _lit(images: np.ndarray, mixing: np.ndarray | None = None, offset: float = 0.0, shade: float = 0.0) -> np.ndarray:
    count = len(images)
    mixing = np.eye(3) if mixing is None else mixing
    given = (
        np.broadcast_to(mixing, (count, 3, 3)),
        np.full((count, 3), offset),
        np.full((*images.shape[:3], 1), shade),
    )
    return np.asarray(microscope.lit(tf.constant(images), *(tf.constant(value, tf.float32) for value in given)))


def test_the_same_lamp_and_stain_leave_an_image_alone() -> None:
    np.testing.assert_allclose(_lit(_fields()), _fields(), atol=0.01)


def test_light_multiplies_and_a_sensor_clips() -> None:
    images = _fields()
    for change in ({"offset": -math.log(1.5)}, {"shade": -math.log(1.5)}):
        np.testing.assert_allclose(_lit(images, **change), np.minimum(1.5 * (images + 1) - 1, 255), atol=0.01)


def test_gamma_is_an_exponent() -> None:
    images = _fields()
    expected = 256 * ((images + 1) / 256) ** 1.7 - 1
    np.testing.assert_allclose(_lit(images, 1.7 * np.eye(3)), np.clip(expected, 0, 255), atol=0.02)


def test_a_stain_varies_along_its_own_colour() -> None:
    """A field that is all haematoxylin keeps its hue in optical density, whatever the strengths drawn."""
    vector = microscope.STAINS[0] / np.linalg.norm(microscope.STAINS[0])
    mixing, _ = microscope._lamp_and_stain(tf.constant(64), SEED)
    changed = np.asarray(vector @ np.asarray(mixing))
    directions = changed / np.linalg.norm(changed, axis=1, keepdims=True)
    np.testing.assert_allclose(directions, np.broadcast_to(vector, (64, 3)), atol=1e-5)
    strengths = np.linalg.norm(changed, axis=1)
    most = microscope.STAIN + microscope.GAMMA
    assert math.exp(-most) <= strengths.min() < 0.8
    assert 1.25 < strengths.max() <= math.exp(most)


def test_blur_is_each_images_own_gaussian() -> None:
    images, sigmas = _fields(3), np.array([0.5, 1.5, 3.0], np.float32)
    found = np.asarray(microscope.blurred(tf.constant(images), tf.constant(sigmas)))
    for image, blurred, sigma in zip(images, found, sigmas, strict=True):
        expected = gaussian_filter(image, (sigma, sigma, 0), mode="mirror", truncate=2.5 * 3.0 / sigma)
        np.testing.assert_allclose(blurred, expected, atol=0.3)


def test_focus_changes_the_contrast_of_fine_detail_both_ways() -> None:
    images = _fields(16, 224)
    changed = np.asarray(microscope.refocused(tf.constant(images), SEED))
    detail = np.abs(np.diff(changed, axis=1)).mean(axis=(1, 2, 3)) / np.abs(np.diff(images, axis=1)).mean(
        axis=(1, 2, 3)
    )
    assert (detail < 0.9).sum() >= 4
    assert 1 <= (detail > 1.01).sum() <= 8, "a quarter is sharpened"


def test_noise_leaves_the_mean_and_grows_with_the_light() -> None:
    images = np.broadcast_to(np.array([40.0, 200.0], np.float32)[None, :, None, None], (48, 2, 64, 3))
    changed = np.asarray(microscope.noisy(tf.constant(np.repeat(images, 32, axis=1)), SEED))
    dark, bright = changed[:, :32], changed[:, 32:]
    np.testing.assert_allclose(dark.mean(axis=(1, 2, 3)), 40, atol=1.5)
    assert bright.std(axis=(1, 2, 3)).mean() > 1.2 * dark.std(axis=(1, 2, 3)).mean()
    assert np.ptp(bright.std(axis=(1, 2, 3))) > 5, "some cameras are better"


def test_some_images_lose_their_colour_and_grey_stays_grey() -> None:
    images = _fields(64)
    changed = np.asarray(microscope.saturated(tf.constant(images), SEED))
    colour = (changed - changed.mean(axis=3, keepdims=True)).std(axis=(1, 2, 3))
    kept = colour / (images - images.mean(axis=3, keepdims=True)).std(axis=(1, 2, 3))
    assert 6 <= (kept < 0.69).sum() <= 30
    grey = np.repeat(images.mean(axis=3, keepdims=True), 3, axis=3)
    np.testing.assert_allclose(microscope.saturated(tf.constant(grey), SEED), grey, atol=0.01)


def test_cameras_without_colour_differ_in_their_response_to_the_channels() -> None:
    primaries = 200 * np.broadcast_to(np.eye(3, dtype=np.float32), (256, 1, 3, 3))
    changed = np.asarray(microscope.saturated(tf.constant(primaries), SEED))
    weights = changed[np.ptp(changed, axis=3).max(axis=(1, 2)) < 0.01][:, 0, :, 0] / 200
    assert len(weights) > 20
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-4)
    green_to_blue = weights[:, 1] / weights[:, 2]
    assert green_to_blue.min() < 1 / 2 and green_to_blue.max() > 2


def test_a_lens_darkens_corners_alone() -> None:
    shade = np.asarray(microscope.vignette(tf.constant([200, 32, 48, 3]), SEED))
    assert shade.shape == (200, 32, 48, 1)
    assert shade.min() >= 0
    assert shade[:, 8:24, 12:36].mean() < 0.5 * shade.mean()
    assert 1 - math.exp(-shade.max()) <= 0.75 * 1.0001


@pytest.mark.parametrize(("share", "expected"), [(1 / 3, 4), (0.5, 5), (1.0, 10)])
def test_what_is_dear_falls_on_a_share_of_a_batch(share: float, expected: int) -> None:
    images = np.zeros((10, 2, 2, 3), np.float32)
    changed = [
        np.asarray(microscope.on_some(tf.constant(images), share, seed, lambda some, _: some + 1.0))
        for seed in (SEED, SEED + 1)
    ]
    assert [int((each.max(axis=(1, 2, 3)) == 1).sum()) for each in changed] == [expected, expected]
    assert share == 1.0 or not np.array_equal(*changed), "not always the same ones"


def test_microscope_repeats_itself_and_changes_every_image_by_itself() -> None:
    images = np.repeat(_fields(1), 16, axis=0)
    first, again, other = (np.asarray(augment.microscope(tf.constant(images), seed)) for seed in (SEED, SEED, SEED + 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == images.shape
    assert first.min() >= 0 and first.max() <= 255
    assert len({image.tobytes() for image in first}) == 16


def test_microscope_takes_batches_of_unknown_and_any_size() -> None:
    from edgeall.edge_runtime.preprocess import InputSpec

    pixels = _fields(5, 32).astype(np.uint8)
    images = Images(pixels, np.arange(5), np.zeros(5, np.int64), InputSpec(32, 32))
    for batch_size in (1, 8):
        batches = shuffled(images, batch_size, augment="microscope", seed=0, epoch=0, class_weights=None)
        assert sum(len(labels) for _, labels, _ in batches) == 5
