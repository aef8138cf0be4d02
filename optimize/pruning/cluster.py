"""Weight clustering: the int8 weights of a layer take a few values only, and what repeats compresses.

What is clustered are the integers that the file holds, a weight in units of its channel's scale: one codebook serves
all channels of a layer, and they stay the same bytes in the file. (Clusters of float weights, as
`tfmot.clustering` makes them, are other integers in each channel once the scales are per channel.)
Source: Han et al. 2016, "Deep compression"; here with the codebook fixed and the weights free to change cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from ...models.keras_compat import tf

LARGEST = 127
"""Of the integers that a weight can be; every channel's largest weight is one, or minus one, of these."""
FEWEST, MOST = 8, 128
"""Clusters; with more than half of the 255 integers there is nothing to gain."""


def codebook(kernel: NDArray[np.float32], channel_axis: int, clusters: int) -> NDArray[np.float32]:
    """The integers that the weights of a layer may take, by k-means over those that they take now.

    Args:
        kernel: float32.
        channel_axis: of the output channels, which have a scale each.
        clusters: at most so many, `FEWEST` to `MOST`. Zero, so that what is pruned stays so, and both `LARGEST`,
            so that no scale changes, are among them.

    Returns:
        Rising whole numbers, ``(clusters,)`` or fewer.
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
    """The kernel with every weight at the nearest of its channel's scale times ``integers``; gradients pass through.

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
