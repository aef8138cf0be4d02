"""Unstructured magnitude pruning: the smallest weights of every layer become zero, step by step.

It uses tfmot's schedule without its wrapper. The wrapper, `prune_low_magnitude`, stores each layer's mask, threshold
and step as weights of the model, where the running average of `edgeall.train.fit` would change them.
Source: Zhu and Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.decoder import RED_CELL, SCORES
from ...models.head import LOGITS
from ...models.keras_compat import keras, load_tfmot

RISING = 0.6
"""Share of all steps in which the sparsity rises. In the other steps the network recovers."""
_LAST = (LOGITS, SCORES, RED_CELL)
"""Names of the layers that compute the outputs."""
UPDATES = 50
"""Number of mask updates while the sparsity rises."""


def prunable(model: Any) -> list[Any]:
    """The layers whose kernels are pruned: convolutions and dense layers.

    Not pruned: depthwise convolutions (1 % of the weights, nine per channel), the first convolution and the last layers
    (small, and no other layer compensates their loss), biases and BatchNormalization. Source: as above, 4.2.
    """
    found = [layer for layer in model.layers if type(layer) in (keras.layers.Conv2D, keras.layers.Dense)]
    first = next((layer for layer in found if isinstance(layer, keras.layers.Conv2D)), None)
    return [layer for layer in found if layer is not first and layer.name not in _LAST]


def sparsity_of(model: Any) -> float:
    """Share of zeros in the kernels of `prunable` layers, 0..1; 0 without such layers."""
    kernels = [layer.kernel.numpy() for layer in prunable(model)]
    weights = sum(kernel.size for kernel in kernels)
    return sum(int((kernel == 0).sum()) for kernel in kernels) / weights if weights else 0.0


class Masks:
    """Sets weights to zero during training; `after_step` is an argument of `edgeall.train.fit.fit`.

    A weight that is zero at the start, or after a restart, stays zero, so no mask has to be stored.

    Args:
        model: float model that is trained in place.
        sparsity: final share of zeros in each kernel, in [0, 1); 0 keeps existing zeros.
        steps: number of steps of the whole training.
    """

    def __init__(self, model: Any, sparsity: float, steps: int) -> None:
        rising = max(int(steps * RISING), 1)
        every = -(-rising // UPDATES)
        self.settled = -(-rising // every) * every
        """Number of steps after which the masks are final."""
        schedule = load_tfmot().sparsity.keras.PolynomialDecay
        self._schedule = schedule(min(sparsity_of(model), sparsity), sparsity, 0, self.settled, frequency=every)
        index = {id(variable): number for number, variable in enumerate(model.weights)}
        self._kernels = {index[id(layer.kernel)]: layer.kernel for layer in prunable(model)}
        self._masks: dict[int, NDArray[np.bool_]] = {}

    def after_step(self, done: int, average: list[NDArray[Any]]) -> None:
        """See `edgeall.train.stage.AfterStep`."""
        if not self._masks:
            self._masks = {at: _mask(kernel.numpy(), 0.0) for at, kernel in self._kernels.items()}
        renew, sparsity = self._schedule(done)
        for at, kernel in self._kernels.items():
            values = kernel.numpy()
            values[~self._masks[at]] = 0  # multiplying would give negative zeros, which do not compress
            if renew:
                self._masks[at] = _mask(values, float(sparsity))
                values[~self._masks[at]] = 0
            kernel.assign(values)
            average[at][~self._masks[at]] = 0


def _mask(kernel: NDArray[np.float32], sparsity: float) -> NDArray[np.bool_]:
    """Boolean mask: False for the share of smallest weights, and for all zeros."""
    zeros = max(round(sparsity * kernel.size), int((kernel == 0).sum()))
    mask = np.ones(kernel.size, np.bool_)
    if zeros:
        mask[np.argpartition(np.abs(kernel), zeros - 1, axis=None)[:zeros]] = False
    return mask.reshape(kernel.shape)
