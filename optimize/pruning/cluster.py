"""Weight clustering: the int8 weights of a layer take a few values only, which compress better.

The clusters are over the integers in the file, which are weights in units of their channel's scale. All channels of a
layer share one codebook and so the same bytes. (Clusters of float weights, as in `tfmot.clustering`, become different
integers in each channel, because the scales are per channel.)
Source: Han et al. 2016, "Deep compression"; here the codebook is fixed, and weights may change their cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from ...models.keras_compat import tf

LARGEST = 127
"""Largest integer of a weight; the largest weight of every channel is plus or minus this."""


def codebook(kernel: NDArray[np.float32], channel_axis: int, clusters: int) -> NDArray[np.float32]:
    """The integers that the weights of a layer may take, by k-means over their current integers.

    Args:
        kernel: float32.
        channel_axis: axis of the output channels, which have one scale each.
        clusters: largest number of clusters, see `edgeall.optimize.quantization.schemes.CLUSTERS`. They include 0,
            which keeps pruned weights pruned, and plus and minus `LARGEST`, which keep the scales.

    Returns:
        Rising integers as float32, at most ``clusters``.
    """
    moved = np.moveaxis(kernel, channel_axis, -1).reshape(-1, kernel.shape[channel_axis])
    units = np.rint(moved / np.maximum(np.abs(moved).max(axis=0), 1e-8) * LARGEST)
    values, counts = np.unique(units, return_counts=True)
    free = ~np.isin(values, (-LARGEST, 0, LARGEST))
    values, counts = values[free], counts[free]
    wanted = min(clusters - 3, len(values))
    fitted: Any = []
    if wanted > 0:
        means = KMeans(wanted, n_init=3, random_state=0).fit(values[:, np.newaxis], sample_weight=counts)
        fitted = np.rint(means.cluster_centers_[:, 0])
    return np.unique([*fitted, -LARGEST, 0, LARGEST]).astype(np.float32)


def clustered(kernel: Any, channel_axis: int, integers: NDArray[np.float32]) -> Any:
    """The kernel with every weight rounded to the nearest of ``integers`` times its channel's scale.

    Gradients pass through unchanged.

    Args:
        kernel: float32 tensor.
        channel_axis: see `codebook`.
        integers: from `codebook`.
    """
    others = [axis for axis in range(len(kernel.shape)) if axis != channel_axis]
    scale = tf.reduce_max(tf.abs(kernel), axis=others, keepdims=True) / LARGEST
    units = kernel / tf.maximum(scale, 1e-10)
    nearest = tf.gather(tf.constant(integers), _bucket(units, (integers[1:] + integers[:-1]) / 2))
    return kernel + tf.stop_gradient(nearest * scale - kernel)


def _bucket(values: Any, edges: NDArray[Any]) -> Any:
    return tf.raw_ops.Bucketize(input=values, boundaries=[float(edge) for edge in edges])
