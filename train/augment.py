"""Random changes of a training batch that leave its label true, as TensorFlow ops on whole batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..models.keras_compat import tf
from .augment_names import augment_steps
from .config import AUGMENT_STEPS
from .microscope import COMPRESSED, QUALITY, on_some, optics

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
    return _brightness_contrast(images, draw(4, -25.5, 25.5), draw(3, 0.9, 1.1))


STUDIES = {**dict.fromkeys(AUGMENT_STEPS, 1.0), "crop": 0.5}
"""The steps of the comparison studies, each with the share of the images that it changes."""
_GEOMETRY = {"rotation", "flip", "shift", "shear", "zoom", "crop"}


def studies(images: Any, seed: Any, steps: Mapping[str, float] = STUDIES) -> Any:
    """What the comparison studies did to their images, drawn anew for each image of each batch.

    Brightness and contrast of +-10 %, rotation of +-20 degrees, JPEG quality 50 to 100, both mirror images, shifts of
    +-10 %, shear of +-10 degrees, zoom of +-10 %, and for every second image a central crop of 80 to 100 % of the
    sides, enlarged to the whole. How far they shifted, sheared, zoomed and cropped isn't known: those four ranges are
    ours. All geometry is one resampling; what lies outside is mirrored.

    Args:
        images: see `Augment`.
        seed: see `Augment`.
        steps: the steps to do, of `STUDIES`, each with the share of the images that it changes.
    """
    seeds = tf.random.split(seed, 4)
    count = tf.shape(images)[0]
    on = {name: _drawn(count, seed, number, steps.get(name, 0.0)) for number, name in enumerate(STUDIES)}
    if _GEOMETRY & set(steps):
        images = _study_geometry(images, seeds[0], on, steps.get("crop", 0.0))
    if {"brightness", "contrast"} & set(steps):
        shape = (count, 1, 1, 1)
        brightness = tf.random.stateless_uniform(shape, seeds[1], -25.5, 25.5)
        contrast = tf.random.stateless_uniform(shape, seeds[2], 0.9, 1.1)
        images = _brightness_contrast(
            images,
            brightness * tf.reshape(on["brightness"], shape),
            1.0 + (contrast - 1.0) * tf.reshape(on["contrast"], shape),
        )
    share = steps.get("jpeg", 0.0)
    if share == 1.0:
        return _jpeg(images, seeds[3], 50, 100)
    return on_some(images, share, seeds[3], lambda some, seed: _jpeg(some, seed, 50, 100)) if share else images


def _drawn(count: Any, seed: Any, number: int, share: float) -> Any:
    """float32 ``(count,)``: 1 for the images that step ``number`` changes, else 0."""
    if share in (0.0, 1.0):
        return tf.fill((count,), tf.constant(share))
    draw = tf.random.stateless_uniform((count,), tf.random.experimental.stateless_fold_in(seed, number))
    return tf.cast(draw < share, tf.float32)


def microscope(images: Any, seed: Any, strength: float = 1.0) -> Any:
    """What another microscope would make of the same field: see `edgeall.train.microscope`.

    Any rotation and mirror image, magnification of +-20 %, shifts of +-5 %; then stain, focus, lamp, lens, sensor and
    colour; then, for every third image, a JPEG file. With a ``strength`` below 1 the magnification varies less, and
    of every later change only that share is added to the image.
    """
    seeds = tf.random.split(seed, 3)
    turned = _rotate_zoom_shift(images, seeds[0], zoom=1.2**strength)
    images = optics(turned, seeds[1])
    images = on_some(images, COMPRESSED, seeds[2], lambda some, seed: _jpeg(some, seed, *QUALITY))
    return images if strength == 1.0 else turned + strength * (images - turned)


def half_microscope(images: Any, seed: Any) -> Any:
    """Half of a batch as `light` makes it, the other half as `microscope` does.

    Under strong changes alone a small network spends its epochs on them, and learns the fields as they are too late.
    Source: docs/decisions/0016-the-default-recipe.md.
    """
    seeds = tf.random.split(seed, 2)
    half = tf.shape(images)[0] // 2
    return tf.concat([light(images[:half], seeds[0]), microscope(images[half:], seeds[1])], axis=0)


AUGMENTS: dict[str, Augment] = {"none": none, "light": light, "studies": studies, "microscope": half_microscope}


def augment_named(text: str) -> Augment:
    """One of `AUGMENTS`, or the steps of a list, see `edgeall.train.augment_names.augment_steps`."""
    given = augment_steps(text)
    if given is None:
        return AUGMENTS[text]
    steps = {name: STUDIES[name] if share is None else share for name, share in given.items()}
    return lambda images, seed: studies(images, seed, steps)


def _brightness_contrast(images: Any, brightness: Any, contrast: Any) -> Any:
    """Add ``brightness`` (of 255) and stretch by ``contrast`` about each image's own mean."""
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value((images - mean) * contrast + mean + brightness, 0.0, 255.0)


def _jpeg(images: Any, seed: Any, low: int, high: int) -> Any:
    """Through a JPEG file of quality ``low`` to ``high``. There is no such op for batches: one image at a time."""
    qualities = tf.random.stateless_uniform((tf.shape(images)[0],), seed, low, high + 1, tf.int32)

    def through_file(item: Any) -> Any:
        image, quality = item
        content = tf.raw_ops.EncodeJpegVariableQuality(images=image, quality=quality)
        return tf.reshape(tf.io.decode_jpeg(content, channels=3), tf.shape(image))

    pixels = tf.cast(tf.round(images), tf.uint8)
    return tf.cast(tf.map_fn(through_file, (pixels, qualities), fn_output_signature=tf.uint8), tf.float32)


def _rotate_zoom_shift(images: Any, seed: Any, zoom: float = 1.1) -> Any:
    """The geometry of `light` and `microscope`."""
    draws = tf.random.stateless_uniform((5, tf.shape(images)[0]), seed, -1.0, 1.0)
    angle = draws[0] * math.pi
    scale = tf.exp(draws[1] * math.log(zoom))
    mirror = tf.sign(draws[2])
    cos, sin = tf.cos(angle) * scale, tf.sin(angle) * scale
    return _resample(images, (cos * mirror, -sin, sin * mirror, cos), draws[3] * 0.05, draws[4] * 0.05)


def _study_geometry(images: Any, seed: Any, on: Mapping[str, Any], crop_share: float) -> Any:
    """The geometry of `studies`. The matrix takes a place in the result to one in the image: it is their inverse."""
    draws = tf.random.stateless_uniform((9, tf.shape(images)[0]), seed, -1.0, 1.0)
    angle = draws[0] * math.radians(20.0) * on["rotation"]
    shear = tf.tan(draws[1] * math.radians(10.0) * on["shear"])
    crop = tf.where(draws[3] > 1.0 - 2.0 * crop_share, 0.9 + 0.1 * draws[2], 1.0)
    scale = tf.exp(draws[4] * math.log(1.1) * on["zoom"]) * crop
    flipped = on["flip"] > 0
    across, down = (tf.where(flipped, tf.sign(draws[number]), 1.0) * scale for number in (5, 6))
    cos, sin = tf.cos(angle), tf.sin(angle)
    matrix = (cos * across, (cos * shear - sin) * down, sin * across, (sin * shear + cos) * down)
    return _resample(images, matrix, draws[7] * 0.1 * on["shift"], draws[8] * 0.1 * on["shift"])


def _resample(images: Any, matrix: tuple[Any, Any, Any, Any], shift_x: Any, shift_y: Any) -> Any:
    """One affine resampling about the centre; what lies outside is mirrored.

    Args:
        images: ``(batch, h, w, 3)``.
        matrix: a, b, c, d, each ``(batch,)``: the pixel at (x, y) from the centre comes from (ax + by, cx + dy).
        shift_x: of where it comes from, as a share of the width, ``(batch,)``.
        shift_y: as a share of the height.
    """
    a, b, c, d = matrix
    shape = tf.shape(images)
    height, width = tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
    center_x, center_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    offset_x = center_x - a * center_x - b * center_y + shift_x * width
    offset_y = center_y - c * center_x - d * center_y + shift_y * height
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, offset_x, c, d, offset_y, zero, zero], axis=1),
        output_shape=shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
