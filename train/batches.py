"""Batches for training and evaluation from cached pixels: shuffled, augmented, normalized."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edge_runtime.preprocess import InputSpec
from ..models.keras_compat import tf
from .augment import augment_named


@dataclass(frozen=True)
class Images:
    """The preprocessed images of one subset.

    Attributes:
        pixels: uint8 ``(total, h, w, 3)``, usually memory-mapped; may hold other subsets too.
        rows: int ``(n,)``, the rows of ``pixels`` in this subset.
        labels: int ``(n,)``, class index of each row.
        spec: the input contract of ``pixels``.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.rows)

    def class_weights(self, classes: int) -> NDArray[np.float32]:
        """A weight per class that gives every class the same total weight: ``n / (classes * count)``, float32."""
        counts = np.maximum(np.bincount(self.labels, minlength=classes), 1)
        return (len(self) / (classes * counts)).astype(np.float32)


def plain(images: Images, batch_size: int) -> Any:
    """tf.data of ``(float32 images, labels)`` in order, preprocessed as on the device."""
    dataset = tf.data.Dataset.from_tensor_slices((images.rows, images.labels)).batch(batch_size)
    return dataset.map(lambda rows, labels: (normalize(_gather(images, rows), images.spec), labels), 2).prefetch(2)


def normalized(images: Images, batch_size: int) -> Any:
    """tf.data of float32 images without labels, in order."""
    return plain(images, batch_size).map(lambda pixels, labels: pixels)


def shuffled(
    images: Images, batch_size: int, *, augment: str, seed: int, epoch: int, class_weights: NDArray[np.float32] | None
) -> Any:
    """tf.data of ``(float32 images, labels, sample weights)`` for one epoch.

    Order and augmentation depend only on ``seed`` and ``epoch``, so a repeated epoch after a restart is identical. An
    incomplete last batch is dropped unless it is the only one: a few images would distort the statistics of
    BatchNormalization.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    labels = images.labels[order]
    weights = np.ones(len(order), np.float32) if class_weights is None else class_weights[labels]
    augmented = _augmented(augment, images.spec)
    stream = np.random.default_rng((seed, epoch, 1)).integers(0, 2**31 - 1)

    def load(step: Any, batch: Any) -> Any:
        rows, labels, weights = batch
        return augmented(_gather(images, rows), tf.stack([tf.cast(stream, tf.int64), step])), labels, weights

    dataset = tf.data.Dataset.from_tensor_slices((images.rows[order], labels, weights))
    dataset = dataset.batch(batch_size, drop_remainder=len(order) >= batch_size)
    return dataset.enumerate().map(load, tf.data.AUTOTUNE).prefetch(2)


def changed(images: Images, batch_size: int, *, augment: str) -> Any:
    """tf.data of ``(float32 images, labels)``: every image once, with the same random changes on every pass."""
    order = np.random.default_rng(0).permutation(len(images))
    augmented = _augmented(augment, images.spec)

    def load(step: Any, batch: Any) -> Any:
        rows, labels = batch
        return augmented(_gather(images, rows), tf.stack([tf.cast(0, tf.int64), step])), labels

    dataset = tf.data.Dataset.from_tensor_slices((images.rows[order], images.labels[order])).batch(batch_size)
    return dataset.enumerate().map(load, tf.data.AUTOTUNE).prefetch(2)


@cache
def _augmented(augment: str, spec: InputSpec) -> Any:
    """A function of (uint8 pixels, seed) that gives the network's input. It is traced once, not for every epoch."""
    change = augment_named(augment)

    def augmented(pixels: Any, seed: Any) -> Any:
        return normalize(change(tf.cast(pixels, tf.float32), seed), spec)

    return tf.function(augmented, autograph=False)


def _gather(images: Images, rows: Any) -> Any:
    pixels = tf.numpy_function(lambda index: images.pixels[index], [rows], tf.uint8, stateful=False)
    pixels.set_shape((None, *images.pixels.shape[1:]))
    return pixels


def normalize(pixels: Any, spec: InputSpec) -> Any:
    """The float network's input from pixels in 0..255."""
    return (tf.cast(pixels, tf.float32) - spec.mean) / spec.std
