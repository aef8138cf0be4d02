"""Random changes of a training batch that leave its label true, as TensorFlow ops on whole batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgeall.models.keras_compat import tf

Augment = Callable[[Any, Any], Any]
"""``augment(images, seed)``: float32 ``(batch, h, w, 3)`` in 0..255, int64 ``(2,)``; returns the same shape."""


def none(images: Any, seed: Any) -> Any:
    """The batch as it is."""
    return images


def light(images: Any, seed: Any) -> Any:
    """Geometry that a slide doesn't have, and small changes of the lamp.

    Any rotation and mirror image (a smear has no up), zoom of +-10 %, shifts of +-5 %, brightness and
    contrast of +-10 % as in the comparison studies; the lamp's colour (each channel by +-5 %) and saturation of
    +-20 %, because a class must not be told by its slide's hue.
    """
    seeds = tf.random.split(seed, 5)
    images = _rotate_zoom_shift(images, seeds[0])
    count = tf.shape(images)[0]

    def draw(number: int, low: float, high: float, channels: int = 1) -> Any:
        return tf.random.stateless_uniform((count, 1, 1, channels), seeds[number], low, high)

    grey = tf.reduce_mean(images, axis=3, keepdims=True)
    images = (grey + (images - grey) * draw(1, 0.8, 1.2)) * draw(2, 0.95, 1.05, channels=3)
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value((images - mean) * draw(3, 0.9, 1.1) + mean + draw(4, -25.5, 25.5), 0.0, 255.0)


AUGMENTS: dict[str, Augment] = {"none": none, "light": light}


def _rotate_zoom_shift(images: Any, seed: Any) -> Any:
    """One affine resampling for all of the geometry; what lies outside is mirrored."""
    shape = tf.shape(images)
    count, height, width = shape[0], tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
    draws = tf.random.stateless_uniform((5, count), seed, -1.0, 1.0)
    angle = draws[0] * math.pi
    scale = tf.exp(draws[1] * math.log(1.1))
    mirror = tf.sign(draws[2])
    cos, sin = tf.cos(angle) * scale, tf.sin(angle) * scale
    a, b, c, d = cos * mirror, -sin, sin * mirror, cos
    center_x, center_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    shift_x = center_x - a * center_x - b * center_y + draws[3] * 0.05 * width
    shift_y = center_y - c * center_x - d * center_y + draws[4] * 0.05 * height
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, shift_x, c, d, shift_y, zero, zero], axis=1),
        output_shape=shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
