"""Channel pruning: finds the channels of a network that can be removed, and builds the network without them.

The channels of a tensor can be removed if all its producers and consumers are convolutions or dense layers. Then the
producers lose output channels and the consumers the matching input channels. Layers in between (BatchNormalization,
depthwise convolutions, pooling, ...) process each channel separately. Tensors that are multiplied (squeeze and
excitation, swish) lose the same channels. Tensors that are added or concatenated keep all channels: a residual stream
is already narrow, and every block would lose its channels.
Source: the dependency groups of Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edge_runtime.errors import UsageError
from .graph import call, copy_of, rebuild, sources
from .head import LOGITS
from .keras_compat import keras

layers = keras.layers

MAKERS = (layers.Conv2D, layers.Dense)
"""Layers that combine all input channels into new ones; exactly these classes, no subclasses."""
CHANNELWISE = (
    layers.DepthwiseConv2D,
    layers.BatchNormalization,
    layers.ReLU,
    layers.Activation,
    layers.Dropout,
    layers.Rescaling,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
)
"""Layers whose output channels depend only on the same input channel."""


@dataclass(frozen=True)
class Group:
    """Channels that are removed together, from all layers listed here.

    Attributes:
        name: of the first producer.
        channels: number of channels.
        producers: layers with these output channels.
        members: layers that process each channel separately.
        consumers: layers with these input channels.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    members: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass
class _Space:
    """The channels of one or several tensors, during the traversal of the graph."""

    channels: int
    fixed: bool = False
    producers: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    part_of: _Space | None = None

    def root(self) -> _Space:
        return self if self.part_of is None else self.part_of.root()

    def absorb(self, other: _Space) -> None:
        if other is self:
            return
        self.fixed |= other.fixed
        self.producers += other.producers
        self.members += other.members
        self.consumers += other.consumers
        other.part_of = self


class Channels:
    """The input and output channels of every layer of a model.

    Args:
        model: flat functional, one input.

    Attributes:
        groups: the removable ones, in the order of the model.
    """

    def __init__(self, model: Any) -> None:
        self._spaces: dict[str, _Space] = {}
        self._repeats: dict[str, int] = {}
        """Values per channel in a tensor's last axis: more than one after a Flatten, where positions come first."""
        self._sources = {layer.name: [source.name for source in sources(layer)] for layer in model.layers[1:]}
        for layer in model.layers:
            self._spaces[layer.name], self._repeats[layer.name] = self._output(layer)
        for name in model.output_names:
            self._spaces[name].root().fixed = True
        order = {layer.name: index for index, layer in enumerate(model.layers)}
        found = {}
        for space in self._spaces.values():
            root = space.root()
            if not root.fixed and root.consumers:
                producers, members, consumers = (
                    tuple(sorted(set(names), key=order.__getitem__))
                    for names in (root.producers, root.members, root.consumers)
                )
                found[id(root)] = Group(producers[0], root.channels, producers, members, consumers)
        self._groups = found
        self.groups = sorted(found.values(), key=lambda group: order[group.name])

    def made(self, layer: str) -> Group | None:
        """The group of a layer's output channels; None if they cannot be removed."""
        return self._groups.get(id(self._spaces[layer].root()))

    def read(self, layer: str) -> Group | None:
        """The group of a layer's input channels; None if they cannot be removed, or the input is the image."""
        found = self._sources.get(layer)
        return self.made(found[0]) if found else None

    def repeats(self, layer: str) -> int:
        """How often a layer's input channels are repeated in the last axis of its input."""
        return self._repeats[self._sources[layer][0]]

    def _output(self, layer: Any) -> tuple[_Space, int]:
        kind = type(layer)
        width = int(layer.output_shape[-1] if kind is not layers.InputLayer else layer.output_shape[0][-1])
        if kind is layers.InputLayer:
            return _Space(width, fixed=True), 1
        taken = [self._spaces[name].root() for name in self._sources[layer.name]]
        repeats = [self._repeats[name] for name in self._sources[layer.name]]
        if kind in MAKERS and getattr(layer, "groups", 1) == 1:
            taken[0].consumers.append(layer.name)
            return _Space(width, layer.name == LOGITS, producers=[layer.name]), 1
        if _is_channelwise(layer):
            taken[0].members.append(layer.name)
            return taken[0], repeats[0]
        if kind is layers.Flatten:
            taken[0].members.append(layer.name)
            return taken[0], width // taken[0].channels
        if kind is layers.Reshape and _keeps_channels(layer):
            taken[0].members.append(layer.name)
            return taken[0], repeats[0]
        if kind is layers.Multiply and set(repeats) == {1} and {space.channels for space in taken} == {width}:
            taken[0].members.append(layer.name)
            for space in taken[1:]:
                taken[0].root().absorb(space.root())
            return taken[0].root(), 1
        for space in taken:
            space.fixed = True
        return _Space(width, fixed=True), 1


def groups(model: Any) -> list[Group]:
    """Every removable group of channels of a model, in the order of the model."""
    return Channels(model).groups


def narrow(model: Any, keep: Mapping[str, NDArray[np.int64]]) -> Any:
    """The model without some of its channels and their weights.

    Args:
        model: flat functional.
        keep: by group name, the indices of the channels to keep, in increasing order; other groups keep all.

    Returns:
        A new model with the same layer names. It computes the same if the removed channels had no effect.

    Raises:
        UsageError: an unknown group, or invalid indices.
    """
    channels = Channels(model)
    known = {group.name: group for group in channels.groups}
    for name, indices in keep.items():
        if name not in known:
            raise UsageError(f"{name}: {model.name} has no removable channels with this name")
        rising = len(indices) > 0 and bool((np.diff(indices) > 0).all())
        if not rising or indices[0] < 0 or indices[-1] >= known[name].channels:
            raise UsageError(
                f"{name}: keep at least one of the channels 0 to {known[name].channels - 1}, in increasing order"
            )

    def kept(group: Group | None, repeats: int = 1) -> NDArray[np.int64] | None:
        """Positions to keep in the last axis of a tensor; None for all."""
        if group is None or group.name not in keep:
            return None
        indices = np.asarray(keep[group.name], np.int64)
        return (np.arange(repeats)[:, np.newaxis] * group.channels + indices).ravel()

    def place(layer: Any, tensors: list[Any]) -> Any:
        if isinstance(layer, layers.InputLayer):
            return tensors[0]
        made = kept(channels.made(layer.name))
        changes: dict[str, Any] = {}
        if made is not None:
            if type(layer) is layers.Conv2D:
                changes["filters"] = len(made)
            elif type(layer) is layers.Dense:
                changes["units"] = len(made)
            elif type(layer) is layers.Reshape:
                changes["target_shape"] = (*layer.target_shape[:-1], len(made))
        return call(copy_of(layer, **changes), tensors)

    smaller = rebuild(model, place)
    for layer in model.layers[1:]:
        if not layer.weights:
            continue
        read = kept(channels.read(layer.name), channels.repeats(layer.name))
        made = kept(channels.made(layer.name))
        smaller.get_layer(layer.name).set_weights(_cut(layer, read, made))
    return smaller


def with_channels(model: Any, channels: Mapping[str, int]) -> Any:
    """The model with the channel counts of a model that `narrow` built from it; its weights are meaningless.

    Args:
        model: flat functional.
        channels: number of channels to keep by group name, from ``model.channels`` of a ``run.json``.

    Raises:
        UsageError: as `narrow`.
    """
    return narrow(model, {name: np.arange(count) for name, count in channels.items()})


def _is_channelwise(layer: Any) -> bool:
    kind = type(layer)
    if kind not in CHANNELWISE:
        return False
    if kind is layers.DepthwiseConv2D:
        return bool(layer.depth_multiplier == 1)
    if kind is layers.BatchNormalization:
        return list(layer.axis) == [len(layer.input_shape) - 1]
    if kind is layers.Activation:
        return layer.activation is not keras.activations.softmax
    if kind is layers.Rescaling:
        return np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0
    return True


def _keeps_channels(layer: Any) -> bool:
    """Whether a Reshape only adds or removes axes of length one: ``(c,)`` to ``(1, 1, c)`` or back."""
    shapes = [layer.input_shape[1:], layer.output_shape[1:]]
    return all(math.prod(shape) == shapes[0][-1] == shape[-1] for shape in shapes)


def _cut(layer: Any, read: NDArray[np.int64] | None, made: NDArray[np.int64] | None) -> list[NDArray[Any]]:
    """A layer's weights without the removed input and output channels."""
    weights: list[NDArray[Any]] = layer.get_weights()
    if type(layer) in MAKERS:  # kernel (h, w, in, out) or (in, out), then the bias (out)
        if read is not None:
            weights[0] = np.take(weights[0], read, axis=-2)
        return weights if made is None else [np.take(value, made, axis=-1) for value in weights]
    if read is None:
        return weights
    if type(layer) is layers.DepthwiseConv2D:  # kernel (h, w, channels, 1), then the bias (channels)
        return [np.take(weights[0], read, axis=2), *(np.take(value, read, axis=0) for value in weights[1:])]
    return [np.take(value, read, axis=0) for value in weights]  # BatchNormalization
