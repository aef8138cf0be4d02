"""What differs between one microscope and the next, drawn anew for each image: TensorFlow ops on whole batches.

The road of the light: the stain, the lens, the lamp, the sensor, the camera's own processing, the file. Lamp, exposure,
gamma and stain are one affine change of optical densities (Beer and Lambert), so they cost one logarithm and one
exponential. What is dear - blur, noise, JPEG - falls on some of a batch's images only.
Source: Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
distilled stain-invariant convolutional networks" (stain); Ruifrok and Johnston 2001 (stain vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..models.keras_compat import tf

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
"""Optical densities in red, green and blue of haematoxylin, eosin and what is neither. A smear's azure B lies near the
first one: what is wanted are directions along which stains vary, not concentrations."""

LAMP, GAMMA = 0.15, 0.25
"""Largest natural logarithms of a channel's gain, and of the exponent."""
EXPOSURE = (-0.7, 0.5)
"""Natural logarithms between which the gain of all channels lies: a stop too dark to two thirds of one too bright."""
STAIN, BACKGROUND = 0.2, 0.03
"""Largest natural logarithm of a stain's strength, and largest optical density of stain that is everywhere."""
VIGNETTE = 0.3
"""Largest share of the light that is missing in the corners."""
COLOURLESS, GREY = 0.3, 0.5
"""Share of images that lose colour, and of those the share that lose all of it; the others' saturation varies by
`SATURATION`."""
RESPONSE = 0.1, 1.1
"""Least and largest response to a channel of a camera without colour; the responses are then divided by their sum."""
SATURATION = 0.3
BLURRED, SIGMA = 1 / 2, (0.3, 2.0)
"""Share of images that the focus is changed of; standard deviation in pixels of a 224-pixel field, log-uniform."""
SHARPENED, SHARPENING = 1 / 3, 1.5
"""Of those, the share that a camera sharpens, and the largest weight of what blurring takes away."""
NOISY, NOISE = 1 / 4, 18.0
"""Share of images with sensor noise, and its largest standard deviation in black and, once more, in white, of 255."""
COMPRESSED, QUALITY = 1 / 3, (25, 95)
"""Share of images that go through a JPEG file, and its quality."""


def optics(images: Any, seed: Any) -> Any:
    """Everything but the geometry and the file: float32 ``(batch, h, w, 3)`` in 0..255, the same shape and range."""
    seeds = tf.random.split(seed, 5)
    images = on_some(images, BLURRED, seeds[0], refocused)
    images = lit(images, *_lamp_and_stain(tf.shape(images)[0], seeds[1]), vignette(tf.shape(images), seeds[2]))
    images = on_some(images, NOISY, seeds[3], noisy)
    return tf.clip_by_value(saturated(images, seeds[4]), 0.0, 255.0)


def on_some(images: Any, share: float, seed: Any, change: Callable[[Any, Any], Any]) -> Any:
    """``change(images, seed)`` of a random ``share`` of a batch, rounded up."""
    count = tf.shape(images)[0]
    seeds = tf.random.split(seed, 2)
    some = tf.cast(tf.math.ceil(share * tf.cast(count, tf.float32)), tf.int32)
    chosen = tf.argsort(tf.random.stateless_uniform((count,), seeds[0]))[:some]
    return tf.tensor_scatter_nd_update(images, chosen[:, tf.newaxis], change(tf.gather(images, chosen), seeds[1]))


def lit(images: Any, mixing: Any, offset: Any, shade: Any) -> Any:
    """Images under another lamp, with another stain: optical densities ``d`` become ``d mixing + offset + shade``.

    Args:
        images: ``(batch, h, w, 3)`` in 0..255.
        mixing: ``(batch, 3, 3)``.
        offset: ``(batch, 3)``; negative is brighter.
        shade: ``(batch, h, w, 1)``.

    Returns:
        The same shape, clipped as a sensor does.
    """
    shape = tf.shape(images)
    density = math.log(256.0) - tf.math.log(images + 1.0)
    pixels = tf.reshape(density, (shape[0], -1, 3))
    changed = tf.reshape(tf.matmul(pixels, mixing) + offset[:, tf.newaxis], shape) + shade
    return tf.clip_by_value(256.0 * tf.exp(-changed) - 1.0, 0.0, 255.0)


def _lamp_and_stain(count: Any, seed: Any) -> tuple[Any, Any]:
    """``mixing`` and ``offset`` of `lit`, drawn for ``count`` images."""
    draws = tf.random.stateless_uniform((10, count), seed, -1.0, 1.0)
    strength = tf.exp(STAIN * tf.stack([draws[0], draws[1], tf.zeros_like(draws[0])], axis=1))
    gamma = tf.exp(GAMMA * draws[2])[:, tf.newaxis]
    stains = tf.constant(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True))
    apart = tf.linalg.inv(stains)
    mixing = tf.matmul(apart, (strength * gamma)[:, :, tf.newaxis] * stains)
    everywhere = tf.matmul(BACKGROUND * tf.stack([draws[3], draws[4], draws[5]], axis=1), stains)
    low, high = EXPOSURE
    gain = low + (high - low) * (draws[6:7] + 1.0) / 2.0 + LAMP * draws[7:10]
    return mixing, everywhere - tf.transpose(gain)


def vignette(shape: Any, seed: Any) -> Any:
    """Optical density that the lens adds towards the corners, ``(batch, h, w, 1)``; off-centre too."""
    draws = tf.random.stateless_uniform((3, shape[0], 1, 1, 1), seed)
    down = tf.reshape(tf.linspace(-1.0, 1.0, shape[1]), (1, -1, 1, 1)) - 0.6 * (draws[0] - 0.5)
    across = tf.reshape(tf.linspace(-1.0, 1.0, shape[2]), (1, 1, -1, 1)) - 0.6 * (draws[1] - 0.5)
    missing = VIGNETTE * draws[2] ** 2 * tf.minimum((down**2 + across**2) / 2.0, 1.5)  # squared: mostly little
    return -tf.math.log1p(-missing)


def saturated(images: Any, seed: Any) -> Any:
    """Colours nearer to or further from grey; some images are entirely grey.

    What grey a colour becomes depends on the camera: ITU-R BT.601 counts green five times as much as blue, a plain mean
    does not. So each image has its own response to the three channels.
    """
    seeds = tf.random.split(seed, 2)
    draws = tf.random.stateless_uniform((2, tf.shape(images)[0], 1, 1, 1), seeds[0])
    response = tf.random.stateless_uniform((tf.shape(images)[0], 1, 1, 3), seeds[1], *RESPONSE)
    lost = tf.nn.relu(draws[1] - GREY) / (1.0 - GREY)
    kept = tf.where(draws[0] < COLOURLESS, lost, 1.0 + SATURATION * (2.0 * draws[1] - 1.0))
    weights = response / tf.reduce_sum(response, axis=3, keepdims=True)
    grey = tf.reduce_sum(weights * images, axis=3, keepdims=True)
    return grey + kept * (images - grey)


def refocused(images: Any, seed: Any) -> Any:
    """Out of focus, or sharpened by the camera; each image by its own Gaussian."""
    shape = tf.shape(images)
    draws = tf.random.stateless_uniform((3, shape[0]), seed)
    size = tf.cast(tf.maximum(shape[1], shape[2]), tf.float32) / 224.0
    low, high = (math.log(sigma) for sigma in SIGMA)
    sigma = tf.exp(low + (high - low) * draws[0]) * size
    weight = tf.where(draws[1] < SHARPENED, -SHARPENING * draws[2], 1.0)
    return tf.clip_by_value(images + weight[:, None, None, None] * (blurred(images, sigma) - images), 0.0, 255.0)


def blurred(images: Any, sigma: Any) -> Any:
    """Gaussian blur, of each image by its own ``sigma`` in pixels, ``(batch,)``; edges are mirrored."""
    shape = tf.shape(images)
    radius = tf.cast(tf.math.ceil(2.5 * tf.reduce_max(sigma)), tf.int32)
    radius = tf.minimum(radius, tf.minimum(shape[1], shape[2]) - 1)
    place = tf.cast(tf.range(-radius, radius + 1), tf.float32)[:, tf.newaxis]
    bell = tf.exp(-0.5 * (place / sigma) ** 2)
    kernel = tf.repeat(bell / tf.reduce_sum(bell, axis=0), 3, axis=1)[:, tf.newaxis, :, tf.newaxis]  # (taps, 1, 3n, 1)
    wide = tf.reshape(tf.transpose(images, (1, 2, 0, 3)), (1, shape[1], shape[2], 3 * shape[0]))
    edge = [[0, 0], [radius, radius], [radius, radius], [0, 0]]
    wide = tf.pad(wide, edge, "REFLECT")
    for one_way in (kernel, tf.transpose(kernel, (1, 0, 2, 3))):
        wide = tf.nn.depthwise_conv2d(wide, one_way, (1, 1, 1, 1), "VALID")
    return tf.transpose(tf.reshape(wide, (shape[1], shape[2], shape[0], 3)), (2, 0, 1, 3))


def noisy(images: Any, seed: Any) -> Any:
    """Sensor noise: some of it everywhere, some that grows with the square root of the light, as photons do."""
    seeds = tf.random.split(seed, 2)
    read, shot = tf.unstack(NOISE * tf.random.stateless_uniform((2, tf.shape(images)[0], 1, 1, 1), seeds[0]) ** 2)
    spread = tf.sqrt(read**2 + shot**2 * images / 255.0)
    return tf.clip_by_value(images + spread * tf.random.stateless_normal(tf.shape(images), seeds[1]), 0.0, 255.0)
