"""Which channels a network can best do without, for a given share of its multiply-accumulates (MACs)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import UsageError
from ...models.graph import sources
from ...models.head import LOGITS
from ...models.keras_compat import keras, tf
from ...models.macs import layer_macs
from ...models.narrow import Channels

LEAST = 8
LEAST_SHARE = 0.1
"""Of a group's channels at least so many stay, and at least so large a share."""
TILE = 8
"""Kept channels are a multiple of this: XNNPACK's kernels on NEON work on tiles of 8, and a part of one costs all."""
SLOW = 8
"""What one MAC of a depthwise convolution takes, and one value read or written, in MACs of a dense convolution
(docs/decisions/0006)."""


class Budget:
    """MACs of a model as a function of its channels.

    Args:
        model: flat functional.

    Attributes:
        groups: the channels that can be removed.
        total: MACs of the model as it is.
        time_saved: by removing one channel of each group from the model as it is, in MACs of a dense convolution.
    """

    def __init__(self, model: Any) -> None:
        channels = Channels(model)
        self.groups = channels.groups
        self._terms = [
            (count, {group.name: group.channels for group in (channels.read(name), channels.made(name)) if group})
            for name, count in layer_macs(model).items()
        ]
        self.total = sum(count for count, _ in self._terms)
        self.time_saved = dict.fromkeys((group.name for group in self.groups), 0.0)
        for name, count in layer_macs(model).items():
            self._add_time(model.get_layer(name), count, channels)

    def macs(self, kept: Mapping[str, int]) -> int:
        """MACs with so many channels of each group kept; all of a group that isn't named."""
        return sum(
            round(count * float(np.prod([kept.get(name, width) / width for name, width in widths.items()])))
            for count, widths in self._terms
        )

    def smallest(self) -> float:
        """The smallest share of the MACs that pruning can leave."""
        return self.macs({group.name: round_up(group.channels, 0) for group in self.groups}) / self.total

    def check(self, share: float) -> None:
        """Raise UsageError where no network is so small."""
        if self.smallest() > share:
            raise UsageError(
                f"--macs {share:g} can't be reached: with the fewest channels ({100 * LEAST_SHARE:g} % of each "
                f"layer's, at least {LEAST}) {self.smallest():.2f} of the MACs are left",
                hint="ask for more, or train a smaller backbone",
            )

    def allocate(self, scores: Mapping[str, NDArray[np.float64]], share: float) -> dict[str, NDArray[np.int64]]:
        """The channels to keep: the best for the time they take, across the whole network.

        Args:
            scores: how much each channel of each group matters, ``(channels,)``, comparable between groups.
            share: of the MACs, the most that may be left.

        Returns:
            Indices of the channels kept by group, rising; the largest network within the share.

        Raises:
            UsageError: no network is small enough.
        """
        self.check(share)
        worth = {name: values / self.time_saved[name] for name, values in scores.items()}
        thresholds = np.unique(np.concatenate([[0.0], *worth.values()]))

        def kept(threshold: float) -> dict[str, int]:
            wanted = {name: int((values > threshold).sum()) for name, values in worth.items()}
            return {group.name: round_up(group.channels, wanted[group.name]) for group in self.groups}

        low, high = -1, len(thresholds) - 1  # too large at ``low``, small enough at ``high``: above all no channel is
        while high - low > 1:
            middle = (low + high) // 2
            small_enough = self.macs(kept(thresholds[middle])) <= share * self.total
            low, high = (low, middle) if small_enough else (middle, high)
        counts = kept(thresholds[high])
        return {name: np.sort(np.argsort(-scores[name], kind="stable")[:count]) for name, count in counts.items()}

    def _add_time(self, layer: Any, macs: int, channels: Channels) -> None:
        """What a layer takes, shared out among the channels that it reads and makes."""
        read, made = channels.read(layer.name), channels.made(layer.name)
        computing = macs * (SLOW if type(layer) is keras.layers.DepthwiseConv2D else 1)
        for group in {group.name: group for group in (read, made) if group}.values():
            shapes = [shape for of, shape in ((read, layer.input_shape), (made, layer.output_shape)) if of is group]
            moved = sum(math.prod(shape[1:]) for shape in shapes)
            self.time_saved[group.name] += (computing + SLOW * moved) / group.channels


def round_up(channels: int, wanted: int) -> int:
    """How many of ``channels`` to keep where ``wanted`` are worth it."""
    least = min(max(LEAST, round(LEAST_SHARE * channels)), channels)
    wanted = max(wanted, least)
    if channels < 2 * TILE:
        return wanted
    return min(-(-wanted // TILE) * TILE, channels)


def importance(
    model: Any, batches: Callable[[], Iterable[Any]], generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """How far the logits move, to first order, when a channel is held at its mean instead of following the image.

    The mean, because the next bias or BatchNormalization learns at once what a constant channel contributes. The
    logits, because the loss of a trained network has next to no slope. Random signs stand for all logits in one
    backward pass (Hutchinson 1990).
    Source: the Taylor criterion of Molchanov et al. 2017, "Pruning convolutional neural networks for resource
    efficient inference"; docs/decisions/0006 has what it was chosen over.

    Args:
        model: flat functional, trained, with a head.
        batches: float32 images ``(n, h, w, 3)``, the same at each of two calls.
        generator: of the signs.

    Returns:
        For every group of channels that can be removed the mean square over the images, ``(channels,)``.
    """
    channels = Channels(model)
    readers = {sources(model.get_layer(name))[0].name: (g, name) for g in channels.groups for name in g.consumers}
    taken = [model.get_layer(name).input for _, name in readers.values()]
    probe = keras.Model(model.input, [*taken, model.get_layer(LOGITS).output])

    @tf.function  # type: ignore[untyped-decorator]
    def means(images: Any) -> Any:
        return [tf.reduce_mean(value, list(range(len(value.shape) - 1))) for value in probe(images, training=False)]

    @tf.function  # type: ignore[untyped-decorator]
    def moves(images: Any, signs: Any, held: Any) -> Any:
        with tf.GradientTape() as tape:
            *values, logits = probe(images, training=False)
            signed = tf.reduce_sum(signs * logits)
        return [
            tf.reduce_sum((value - mean) * slope, list(range(1, len(value.shape) - 1)))
            for value, mean, slope in zip(values, held, tape.gradient(signed, values), strict=True)
        ]

    measured = [means(images)[:-1] for images in batches()]
    held = [tf.reduce_mean(tf.stack(found), 0) for found in zip(*measured, strict=True)]
    squares = {group.name: np.zeros(group.channels) for group in channels.groups}
    seen = 0
    for images in batches():
        signs = generator.choice(np.array([-1, 1], np.float32), (len(images), model.output_shape[-1]))
        moved = {group.name: np.zeros((len(images), group.channels)) for group in channels.groups}
        for (group, name), value in zip(readers.values(), moves(images, signs, held), strict=True):
            by_position = value.numpy().reshape(len(images), channels.repeats(name), group.channels)
            moved[group.name] += by_position.sum(axis=1)
        for name, value in moved.items():
            squares[name] += (value**2).sum(axis=0)
        seen += len(images)
    return {name: value / seen for name, value in squares.items()}
