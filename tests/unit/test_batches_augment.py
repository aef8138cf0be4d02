"""Batches from cached pixels, and their augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime import preprocess
from edgeall.edge_runtime.preprocess import InputSpec, load_input, normalize
from edgeall.models.keras_compat import tf
from edgeall.train import augment
from edgeall.train.augment import STUDIES
from edgeall.train.batches import Images, plain, shuffled
from edgeall.train.data import cache
from edgeall.train.data.split import SplitEntry

SPEC = InputSpec(24, 24)
QUIET = Progress(quiet=True)


def _images(count: int = 40) -> Images:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count + 5, 24, 24, 3)).astype(np.uint8)
    return Images(pixels, np.arange(5, count + 5), generator.integers(0, 3, count), SPEC)


def _all(dataset: object) -> list[np.ndarray]:
    return [np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True)]  # type: ignore[attr-defined]


def test_plain_batches_are_what_the_device_sees() -> None:
    images = _images()
    pixels, labels = _all(plain(images, 16))
    np.testing.assert_array_equal(pixels, normalize(images.pixels[5:], SPEC))
    np.testing.assert_array_equal(labels, images.labels)


def test_an_epoch_is_the_same_again_and_another_epoch_is_not() -> None:
    images = _images()

    def epoch(number: int, seed: int = 1) -> list[np.ndarray]:
        return _all(shuffled(images, 8, augment="light", seed=seed, epoch=number, class_weights=None))

    first, again, second, other = epoch(0), epoch(0), epoch(1), epoch(0, seed=2)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


def test_every_image_comes_once_with_its_own_label_and_weight() -> None:
    images = _images()
    weights = images.class_weights(3)
    pixels, labels, given = _all(shuffled(images, 8, augment="none", seed=0, epoch=0, class_weights=weights))
    by_content = {
        normalize(images.pixels[row], SPEC).tobytes(): label
        for row, label in zip(images.rows, images.labels, strict=True)
    }
    assert [by_content[image.tobytes()] for image in pixels] == labels.tolist()
    np.testing.assert_allclose(given, weights[labels])


def test_class_weights_make_classes_count_alike() -> None:
    images = Images(np.zeros((10, 2, 2, 3), np.uint8), np.arange(10), np.array([0] * 8 + [1] * 2), SPEC)
    weights = images.class_weights(2)
    assert 8 * weights[0] == pytest.approx(2 * weights[1])
    assert 8 * weights[0] + 2 * weights[1] == pytest.approx(10)


def test_a_partial_batch_is_left_out_unless_it_is_the_only_one() -> None:
    def count(batch_size: int) -> int:
        return len(_all(shuffled(_images(), batch_size, augment="none", seed=0, epoch=0, class_weights=None))[1])

    assert count(16) == 32
    assert count(64) == 40


def test_light_keeps_shape_range_and_most_of_the_picture() -> None:
    column = np.linspace(60, 200, 64)
    pixels = np.broadcast_to(column[None, :, None, None], (16, 64, 64, 3)).astype(np.float32)
    changed = augment.light(tf.constant(pixels), tf.constant([3, 4], tf.int64)).numpy()
    assert changed.shape == pixels.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert np.abs(changed.mean(axis=(1, 2, 3)) - pixels.mean()).max() < 40, "brightness alone may move the mean"
    assert len({image.tobytes() for image in changed}) == 16, "every image of a batch is changed by itself"
    directions = np.abs(np.diff(changed, axis=1)).mean(axis=(1, 2, 3)) > np.abs(np.diff(changed, axis=2)).mean(
        axis=(1, 2, 3)
    )
    assert 2 <= directions.sum() <= 14, "rotations are full circles"


def _ramps(count: int) -> np.ndarray:
    """Images whose brightness increases from left to right."""
    column = np.linspace(60, 200, 64)
    return np.broadcast_to(column[None, :, None, None], (count, 64, 64, 3)).transpose(0, 2, 1, 3).astype(np.float32)


def test_studies_keeps_what_is_up_up_and_most_of_the_picture() -> None:
    pixels = _ramps(16)
    changed = augment.studies(tf.constant(pixels), tf.constant([3, 4], tf.int64)).numpy()
    assert changed.shape == pixels.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert np.abs(changed.mean(axis=(1, 2, 3)) - pixels.mean()).max() < 40, "brightness alone may move the mean"
    assert len({image.tobytes() for image in changed}) == 16, "every image of a batch is changed by itself"
    again = augment.studies(tf.constant(pixels), tf.constant([3, 4], tf.int64)).numpy()
    np.testing.assert_array_equal(changed, again)
    middle = changed[:, 16:48, 16:48].mean(axis=3)  # what is mirrored at the edges turns back there
    down, across = np.diff(middle, axis=1).mean(axis=(1, 2)), np.diff(middle, axis=2).mean(axis=(1, 2))
    turned = np.degrees(np.arctan2(np.abs(down), np.abs(across)))
    assert turned.max() < 32, "20 degrees of rotation and 10 of shear"
    assert turned.max() > 5
    assert 2 <= (across < 0).sum() <= 14, "half of them are mirrored"


@pytest.mark.parametrize("step", STUDIES)
def test_each_step_of_the_studies_can_be_done_alone(step: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.float32)
    changed = augment.augment_named(step)(tf.constant(pixels), tf.constant([3, 4], tf.int64)).numpy()
    by_image = np.abs(changed - pixels).max(axis=(1, 2, 3)) > 0
    assert 0 < by_image.sum() <= 16
    moved = np.abs(changed.mean(axis=(1, 2, 3)) - pixels.mean(axis=(1, 2, 3))).max() > 5
    assert moved == (step == "brightness"), "only brightness moves the mean of noise"


def test_all_steps_together_are_the_augmentation_studies() -> None:
    pixels, seed = tf.constant(_ramps(4)), tf.constant([3, 4], tf.int64)
    listed = augment.augment_named(", ".join(STUDIES))(pixels, seed)
    np.testing.assert_array_equal(listed, augment.studies(pixels, seed))


@pytest.mark.parametrize("step", ["rotation:0.25", "jpeg:0.25", "crop:0.25"])
def test_a_share_says_how_many_images_a_step_changes(step: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3)).astype(np.float32)
    changed = augment.augment_named(step)(tf.constant(pixels), tf.constant([3, 4], tf.int64)).numpy()
    assert 30 <= (np.abs(changed - pixels).max(axis=(1, 2, 3)) > 0).sum() <= 70


def test_studies_puts_every_image_through_a_jpeg_of_its_own_quality() -> None:
    generator = np.random.default_rng(0)
    grey = np.clip(128 + 40 * generator.standard_normal((1, 64, 64, 1)), 0, 255)  # JPEG halves the colour's resolution
    noisy = np.broadcast_to(grey, (12, 64, 64, 3))
    changed = augment._jpeg(tf.constant(noisy, tf.float32), tf.constant([1, 2], tf.int64), 50, 100).numpy()
    errors = np.abs(changed - noisy).mean(axis=(1, 2, 3))
    assert len(np.unique(errors.round(3))) > 6, "twelve equal images came out alike"
    assert 0.2 < errors.min() < errors.max() < 40
    best = augment._jpeg(tf.constant(noisy, tf.float32), tf.constant([1, 2], tf.int64), 100, 100).numpy()
    assert np.abs(best - noisy).mean() < errors.max() / 2


def _entries(folder: Path) -> list[SplitEntry]:
    generator = np.random.default_rng(0)
    entries = []
    for number in range(6):
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(path)
        entries.append(SplitEntry(path.name, "a", None, f"digest {number}", "train"))
    return entries


def test_the_cache_holds_what_the_device_would_make_of_each_file(tmp_path: Path) -> None:
    entries = _entries(tmp_path)
    pixels = cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET)
    for entry, row in zip(entries, pixels, strict=True):
        np.testing.assert_array_equal(row, load_input(tmp_path / entry.path, SPEC))
    assert cache.load_input is preprocess.load_input, "training has no preprocessing of its own"


def test_the_cache_is_filled_once_and_again_for_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = _entries(tmp_path)
    cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET)
    decoded = []
    monkeypatch.setattr(cache, "load_input", lambda path, spec: decoded.append(path) or load_input(path, spec))
    cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET)
    assert decoded == []
    assert cache.pixels(tmp_path, entries, InputSpec(8, 8), tmp_path / "cache", QUIET).shape == (6, 8, 8, 3)
    assert len(decoded) == 6


def test_an_interrupted_fill_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, spec: InputSpec) -> np.ndarray:
        raise KeyboardInterrupt

    entries = _entries(tmp_path)
    monkeypatch.setattr(cache, "load_input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET)
    assert list((tmp_path / "cache").iterdir()) == []
