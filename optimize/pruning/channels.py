"""Which channels a network can best do without, for a given share of its multiply-accumulates (MACs)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import UsageError
from ...models.graph import sources
from ...models.head import LOGITS
from ...models.keras_compat import keras, tf
from ...models.macs import layer_macs
from ...models.narrow import Channels

MIN_CHANNELS = 8
MIN_SHARE = 0.1
"""Smallest number and share of a group's channels that are kept."""
TILE = 8
"""The number of kept channels is a multiple of this: XNNPACK's NEON kernels compute whole tiles of 8 channels."""
SLOW = 8
"""Time of one MAC of a depthwise convolution, and of one value read or written, in MACs of a dense convolution
(docs/decisions/0006)."""


class Budget:
    """MACs of a model as a function of its channels.

    Args:
        model: flat functional Keras model.

    Attributes:
        groups: groups of channels that can be removed.
        total: MACs of the unpruned model.
        time_saved: time saved by removing one channel of each group from the unpruned model, in MACs of a dense
            convolution.
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
        """MACs with ``kept`` channels by group; a group that is not named keeps all."""
        return sum(
            round(count * float(np.prod([kept.get(name, width) / width for name, width in widths.items()])))
            for count, widths in self._terms
        )

    def smallest(self) -> float:
        """Smallest share of the MACs that pruning can leave."""
        return self.macs({group.name: round_up(group.channels, 0) for group in self.groups}) / self.total

    def check(self, share: float) -> None:
        """Raise UsageError for a share below `smallest`."""
        if self.smallest() > share:
            raise UsageError(
                f"--macs {share:g} can't be reached: with the fewest channels ({100 * MIN_SHARE:g} % of each "
                f"layer's, at least {MIN_CHANNELS}) {self.smallest():.2f} of the MACs are left",
                hint="ask for more, or train a smaller backbone",
            )

    def allocate(self, scores: Mapping[str, NDArray[np.float64]], share: float) -> dict[str, NDArray[np.int64]]:
        """The channels to keep: those with the highest score per time, across the whole network.

        Args:
            scores: importance of the channels by group, ``(channels,)``, comparable between groups.
            share: largest share of the MACs that may be left.

        Returns:
            Rising indices of the kept channels by group, of the largest network within the share.

        Raises:
            UsageError: no network is small enough.
        """
        self.check(share)
        worth = {name: values / self.time_saved[name] for name, values in scores.items()}
        thresholds = np.unique(np.concatenate([[0.0], *worth.values()]))

        def kept(threshold: float) -> dict[str, int]:
            wanted = {name: int((values > threshold).sum()) for name, values in worth.items()}
            return {group.name: round_up(group.channels, wanted[group.name]) for group in self.groups}

        low, high = -1, len(thresholds) - 1  # too large at ``low``, small enough at ``high``
        while high - low > 1:
            middle = (low + high) // 2
            small_enough = self.macs(kept(thresholds[middle])) <= share * self.total
            low, high = (low, middle) if small_enough else (middle, high)
        counts = kept(thresholds[high])
        return {name: np.sort(np.argsort(-scores[name], kind="stable")[:count]) for name, count in counts.items()}

    def _add_time(self, layer: Any, macs: int, channels: Channels) -> None:
        """Add the time of a layer to the channels that it reads and writes, per channel."""
        read, made = channels.read(layer.name), channels.made(layer.name)
        computing = macs * (SLOW if type(layer) is keras.layers.DepthwiseConv2D else 1)
        for group in {group.name: group for group in (read, made) if group}.values():
            shapes = [shape for of, shape in ((read, layer.input_shape), (made, layer.output_shape)) if of is group]
            moved = sum(math.prod(shape[1:]) for shape in shapes)
            self.time_saved[group.name] += (computing + SLOW * moved) / group.channels


def round_up(channels: int, wanted: int) -> int:
    """The number of ``channels`` to keep if ``wanted`` are worth keeping."""
    least = min(max(MIN_CHANNELS, round(MIN_SHARE * channels)), channels)
    wanted = max(wanted, least)
    if channels < 2 * TILE:
        return wanted
    return min(-(-wanted // TILE) * TILE, channels)


def importance(
    model: Any, batches: Callable[[], Iterable[Any]], generator: np.random.Generator, scores: Sequence[str] = (LOGITS,)
) -> dict[str, NDArray[np.float64]]:
    """First-order change of the outputs when a channel is replaced with its mean.

    The mean is used because the next bias or BatchNormalization quickly learns the contribution of a constant channel.
    The logits are used because the loss of a trained network has almost no gradient. Random signs represent all logits
    in one backward pass (Hutchinson 1990). Of an output with a value for each pixel the mean over the pixels counts.
    Source: the Taylor criterion of Molchanov et al. 2017, "Pruning convolutional neural networks for resource
    efficient inference"; docs/decisions/0006 lists the alternatives.

    Args:
        model: trained, flat functional Keras model with a head.
        batches: float32 images ``(n, h, w, 3)``, the same at each of two calls.
        generator: generator of the signs.
        scores: names of the layers with the outputs before their last activation.

    Returns:
        The mean square over the images by group, ``(channels,)``.
    """
    channels = Channels(model)
    readers = {sources(model.get_layer(name))[0].name: (g, name) for g in channels.groups for name in g.consumers}
    taken = [model.get_layer(name).input for _, name in readers.values()]
    outputs = [model.get_layer(name).output for name in scores]
    probe = keras.Model(model.input, [*taken, *outputs])
    shapes = [tuple(output.shape[1:]) for output in outputs]

    @tf.function  # type: ignore[untyped-decorator]
    def means(images: Any) -> Any:
        return [tf.reduce_mean(value, list(range(len(value.shape) - 1))) for value in probe(images, training=False)]

    @tf.function  # type: ignore[untyped-decorator]
    def moves(images: Any, signs: Any, held: Any) -> Any:
        with tf.GradientTape() as tape:
            found = probe(images, training=False)
            values, ends = found[: len(taken)], found[len(taken) :]
            signed = tf.add_n([tf.reduce_sum(sign * end) for sign, end in zip(signs, ends, strict=True)])
        return [
            tf.reduce_sum((value - mean) * slope, list(range(1, len(value.shape) - 1)))
            for value, mean, slope in zip(values, held, tape.gradient(signed, values), strict=True)
        ]

    measured = [means(images)[: len(taken)] for images in batches()]
    held = [tf.reduce_mean(tf.stack(found), 0) for found in zip(*measured, strict=True)]
    squares = {group.name: np.zeros(group.channels) for group in channels.groups}
    seen = 0
    for images in batches():
        signs = [
            generator.choice(np.array([-1, 1], np.float32), (len(images), *shape)) / math.sqrt(math.prod(shape[:-1]))
            for shape in shapes
        ]
        moved = {group.name: np.zeros((len(images), group.channels)) for group in channels.groups}
        for (group, name), value in zip(readers.values(), moves(images, signs, held), strict=True):
            by_position = value.numpy().reshape(len(images), channels.repeats(name), group.channels)
            moved[group.name] += by_position.sum(axis=1)
        for name, value in moved.items():
            squares[name] += (value**2).sum(axis=0)
        seen += len(images)
    return {name: value / seen for name, value in squares.items()}
