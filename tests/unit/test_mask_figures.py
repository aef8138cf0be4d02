"""Figures of found cells, paired comparison of two networks, and what a segmentation network learns from a teacher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgeall.edge_runtime.masks import CLASSES
from edgeall.models.keras_compat import keras, tf
from edgeall.train.segmentation.cells import jaccard, matches, outline_distance
from edgeall.train.segmentation.objective import RED_CELL_WEIGHT, halfway, mask_loss, soft_dice
from edgeall.train.segmentation.paired import paired_masks, paired_text, signed_ranks
from edgeall.train.segmentation.teaching import make_student
from edgeall.train.segmentation.tiles import IGNORED
from edgeall.train.teacher import TEMPERATURE

layers = keras.layers


def numbered(*boxes: tuple[int, int, int, int]) -> Any:
    """A field of 20x20 pixels with cells as rectangles: top, bottom, left, right."""
    cells = np.zeros((20, 20), np.int32)
    for number, (top, bottom, left, right) in enumerate(boxes, 1):
        cells[top:bottom, left:right] = number
    return cells


def test_the_aggregated_jaccard_index_counts_what_is_in_both_and_in_either() -> None:
    drawn = numbered((0, 4, 0, 4), (10, 14, 10, 14), (0, 4, 10, 14))
    found = numbered((0, 4, 1, 5), (10, 12, 10, 14), (16, 19, 0, 3))
    # joined: 12 of 20 pixels, 8 of 16; the third drawn cell has none (16), the third found one is of none (9)
    assert jaccard(drawn, found) == pytest.approx((12 + 8) / (20 + 16 + 16 + 9))
    assert matches(drawn, found) == pytest.approx([12 / 20]), "half is not enough"
    assert jaccard(drawn, drawn) == 1.0
    empty = numbered()
    assert jaccard(empty, empty) is None
    assert jaccard(drawn, empty) == jaccard(empty, drawn) == 0.0


def test_outlines_are_apart_by_the_shift_of_a_square() -> None:
    drawn, larger = numbered((5, 15, 5, 15)) > 0, numbered((4, 16, 4, 16)) > 0
    assert outline_distance(drawn, drawn, 0.2) == 0.0
    # every pixel of a side is one pixel apart, a corner of the larger one the diagonal
    corners = 4 * (math.sqrt(2) - 1) / 44
    assert outline_distance(drawn, larger, 0.2) == pytest.approx(0.2 * (1 + corners / 2), rel=1e-5)
    assert outline_distance(drawn, larger, None) is None
    assert outline_distance(drawn, numbered() > 0, 0.2) is None


def test_the_border_of_an_image_is_no_outline() -> None:
    half, whole = numbered((0, 20, 0, 10)) > 0, numbered((0, 20, 0, 12)) > 0
    assert outline_distance(half, whole, 1.0) == pytest.approx(2.0)
    assert outline_distance(np.ones((20, 20), np.bool_), half, 1.0) is None


def test_two_networks_are_compared_image_by_image() -> None:
    first = np.array([0.9, 0.8, 0.7, 0.9, 0.95, 0.6])
    second = first - np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.0])
    found = signed_ranks(first, second)
    assert (found.only_first, found.only_second) == (5, 0) and found.p_value < 0.1
    assert signed_ranks(first, first).p_value == 1.0
    paired = paired_masks("other.tflite", first, second, [None] * 6, 0)
    assert paired.gain == pytest.approx(0.025) and paired.dice == pytest.approx(second.mean())
    low, high = paired.gain_ci95
    assert 0 < low < 0.025 < high and paired.ci_unit == "image"
    assert "other.tflite" in paired_text(paired) and "Wilcoxon" in paired_text(paired)


def test_a_target_halfway_leaves_out_what_does_not_count() -> None:
    masks = np.array([[[2, IGNORED], [0, 1]]], np.uint8)
    taught = np.full((1, 2, 2, 3), 1 / 3, np.float32)
    wanted, sizes = halfway((masks, np.array([[math.nan]], np.float32)), (taught, np.array([[0.5]], np.float32)))
    np.testing.assert_allclose(wanted[0, 0], [[1 / 6, 1 / 6, 2 / 3], [0, 0, 0]], atol=1e-6)
    assert float(sizes[0, 0]) == 0.5
    _, sizes = halfway((masks, np.array([[0.1]], np.float32)), (taught, np.array([[0.5]], np.float32)))
    assert float(sizes[0, 0]) == pytest.approx(0.3)
    right = tf.one_hot(np.array([[[2, 0], [0, 1]]]), 3)
    assert float(soft_dice(wanted, right)) == pytest.approx(1.0), "the pixel that does not count may be anything"


def network(seed: int) -> Any:
    """Two outputs as those of a segmentation network; equal in training and at inference."""
    keras.utils.set_random_seed(seed)
    inputs = layers.Input((8, 8, 3))
    mask = layers.Softmax(name="mask")(layers.Conv2D(len(CLASSES), 1)(inputs))
    red_cell = layers.Dense(1, name="red_cell")(layers.GlobalAveragePooling2D()(inputs))
    return keras.Model(inputs, [mask, red_cell])


def softened(probabilities: np.ndarray) -> np.ndarray:
    powers = probabilities ** (1 / TEMPERATURE)
    return powers / powers.sum(axis=-1, keepdims=True)


def test_a_student_learns_from_masks_and_from_the_softened_teacher() -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(4, 8, 8, 3)).astype(np.float32)
    masks = generator.integers(0, 3, (4, 8, 8)).astype(np.uint8)
    masks[0] = IGNORED
    octaves = np.array([[0.9], [0.1], [math.nan], [-0.2]], np.float32)
    model, teacher = network(1), network(2)
    before, size = (each.astype(np.float64) for each in model.predict(images, verbose=0))
    said, said_size = (each.astype(np.float64) for each in teacher.predict(images, verbose=0))
    learner = make_student(model, lambda batch: tuple(teacher(batch)), 0.3)
    learner.compile(optimizer="sgd")
    logs = learner.fit(tf.data.Dataset.from_tensors((images, (masks, octaves))), verbose=0).history
    apart = (softened(said) * np.log(softened(said) / softened(before))).sum(axis=-1)[1:].mean()
    mask = 0.7 * float(mask_loss(masks, before.astype(np.float32))) + 0.3 * TEMPERATURE**2 * apart
    known = ((size - octaves)[[0, 1, 3]] ** 2).mean()
    red_cell = 0.7 * known + 0.3 * ((size - said_size) ** 2).mean()
    assert logs["mask_loss"][0] == pytest.approx(mask, rel=1e-4)
    assert logs["red_cell_loss"][0] == pytest.approx(red_cell, rel=1e-4)
    assert logs["loss"][0] == pytest.approx(mask + RED_CELL_WEIGHT * red_cell, rel=1e-4)
    assert 0 <= logs["mask_dice"][0] <= 1
    assert not np.allclose(model.predict(images, verbose=0)[0], before), "the model itself was to be trained"
