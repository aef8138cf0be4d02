"""The normalization at a network's input: recognized in its first layers, and put in front of it.

Every affine map of the channels at the input is one `InputMap`. A user's convention (``pixels / 255``) and the first
layers of a network (``Rescaling``, ``Normalization``, ``preprocess_input``) are composed to one, and stored as edgeall
stores the preprocessing of its own backbones: a `Normalization` of the common input, and the order of the channels in
the weights of the first convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import DataError
from .graph import AFFINE, CHANNELS, GREY, IDENTITY, INPUT, Network, Node
from .twins import IDENTITIES, RESIZING

COMMON = 127.5
"""Mean and standard deviation of the pixels in the common input of all backbones, see `edgeall.models.rewrite`."""
LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue, as in Pillow's ``convert("L")``. Source: ITU-R BT.601."""
NORMALIZATION = "normalization"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class InputMap:
    """An affine map of the channels: ``matrix @ pixel + offset``, with pixels in 0..255 in RGB order.

    Attributes:
        matrix: float64 ``(channels, 3)``.
        offset: float64 ``(channels,)``.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Images ``(..., 3)`` as float32 ``(..., channels)``."""
        return np.asarray(images.astype(np.float64) @ self.matrix.T + self.offset, np.float32)

    def then(self, later: InputMap) -> InputMap:
        """This map, and then another one of its channels."""
        return InputMap(later.matrix @ self.matrix, later.matrix @ self.offset + later.offset)


def per_channel(scale: Any, offset: Any = 0.0, channels: int = 3) -> InputMap:
    """The map ``scale * channel + offset``."""
    factors = np.broadcast_to(np.asarray(scale, np.float64).ravel(), channels)
    return InputMap(np.diag(factors), np.broadcast_to(np.asarray(offset, np.float64).ravel(), channels).copy())


def grey() -> InputMap:
    """One grey channel of RGB."""
    return InputMap(np.array([LUMA]), np.zeros(1))


@dataclass(frozen=True)
class Start:
    """The first layers of a network.

    Attributes:
        map: what they do to the channels of the network's input.
        normalizes: whether one of them normalizes.
        last: name of the last of them.
        names: of those that do something, as in the file.
        size: height and width that a ``Resizing`` among them makes; None without one.
    """

    map: InputMap
    normalizes: bool
    last: str
    names: tuple[str, ...]
    size: tuple[int, int] | None


def find_start(network: Network) -> Start:
    """The layers at the input that only map its channels, or do nothing at inference."""
    channels = int(network.input.config["shape"][-1])
    total, last, names, size = per_channel(1.0, channels=channels), network.input.name, [], None
    while len(after := network.consumers(last)) == 1 and last != network.output:
        node = after[0]
        if node.kind in RESIZING:
            size = (int(node.config["height"]), int(node.config["width"]))
        elif node.kind not in IDENTITIES:
            found = _map_of(node, len(total.offset))
            if found is None:
                break
            total = total.then(found)
        if node.kind not in IDENTITIES:
            names.append(node.origin)
        last = node.name
    normalizes = any(network.node(name).kind in _NORMALIZING for name in _between(network, last))
    return Start(total, normalizes, last, tuple(names), size)


_NORMALIZING = (AFFINE, "Rescaling", "Normalization")


def _between(network: Network, last: str) -> list[str]:
    """The nodes from the input, which is left out, to ``last``."""
    names, node = [], network.node(last)
    while node.kind != INPUT:
        names.append(node.name)
        node = network.node(node.inputs[0])
    return names


def _map_of(node: Node, channels: int) -> InputMap | None:
    """The map of a node; None if it does something else."""
    from .build import normalization_of

    if len(node.inputs) != 1:
        return None
    if node.kind == CHANNELS:
        order = node.config["order"] or list(range(channels))[::-1]
        return InputMap(np.eye(channels)[order], np.zeros(len(order)))
    if node.kind == GREY and channels == 3:
        return grey()
    if node.kind == "Normalization":
        mean, variance = (np.asarray(values, np.float64) for values in normalization_of(node))
        scale = 1 / np.maximum(np.sqrt(variance), 1e-7)
        values: tuple[Any, Any] = (scale, -mean * scale)
    elif node.kind in (AFFINE, "Rescaling"):
        values = (node.config["scale"], node.config.get("offset", 0.0))
    else:
        return None
    if any(np.size(value) not in (1, channels) for value in values):
        return None
    return per_channel(*values, channels=channels)


def without_start(network: Network, start: Start) -> Network:
    """The network from behind its first layers on. Its input has the channels that they make."""
    shape = (*network.input.config["shape"][:2], len(start.map.offset))
    entry = replace(network.input, config={**network.input.config, "shape": shape})
    skipped = {network.input.name, *_between(network, start.last)}
    rest = (_renamed(node, {start.last: entry.name}) for node in network.nodes if node.name not in skipped)
    return network.with_nodes([entry, *rest])


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))


def with_map(network: Network, whole: InputMap, size: tuple[int, int]) -> Network:
    """The network with a map of RGB pixels in front of it, for the common input of all backbones.

    Args:
        network: from `without_start`.
        whole: RGB pixels in 0..255 to the network's input.
        size: height and width of its input.

    Raises:
        DataError: the map is not invertible, or makes more channels than it takes.
    """
    factors, offsets, mixing = _decomposed(whole)
    entry = replace(network.input, config={**network.input.config, "shape": (*size, 3)})
    nodes, names = [entry], dict[str, str]()
    scale, shift = COMMON * factors, COMMON * factors + offsets  # for pixels normalized with `COMMON`
    if np.abs(scale - 1).max() > _ROUNDING or np.abs(shift).max() > _ROUNDING:
        mean, variance = (-shift / scale).tolist(), ((1 / scale) ** 2).tolist()
        nodes.append(Node(NORMALIZATION, "Normalization", {"mean": mean, "variance": variance}, (entry.name,)))
        names[entry.name] = NORMALIZATION
    rest = list(network.nodes[1:])
    if not np.array_equal(mixing, np.eye(3)):
        first = _first_convolution(network)
        if first is None:
            before = nodes[-1].name
            kernel = mixing.T[np.newaxis, np.newaxis]
            config = {"filters": len(mixing), "kernel_size": (1, 1), "use_bias": False}
            nodes.append(Node("channels", "Conv2D", config, (before,), {"kernel": kernel}))
            names[entry.name] = "channels"
        else:
            kernel = np.einsum("hwcf,cd->hwdf", first.variables["kernel"].astype(np.float64), mixing)
            mixed = replace(first, variables={**first.variables, "kernel": kernel.astype(np.float32)})
            rest = [mixed if node.name == first.name else node for node in rest]
    taken = {node.name for node in rest} & {node.name for node in nodes[1:]}
    if taken:
        raise DataError(f"layer {min(taken)}: its name is reserved", hint="rename it in the notebook")
    return network.with_nodes([*nodes, *(_renamed(node, names) for node in rest)])


def _first_convolution(network: Network) -> Node | None:
    """The convolution that alone reads the input, through padding or nothing; None if there is none."""
    name = network.input.name
    while len(after := network.consumers(name)) == 1:
        node = after[0]
        if node.kind == "Conv2D" and int(node.config.get("groups", 1)) == 1:
            return node
        if node.kind not in ("ZeroPadding2D", IDENTITY):
            return None
        name = node.name
    return None


def _decomposed(whole: InputMap) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A map as factors and offsets of the RGB channels, all factors positive, and a matrix without offset behind them.

    A padded convolution pads with zeros behind the offset, so that the offset cannot be behind the matrix.
    """
    matrix, offset = whole.matrix, whole.offset
    count, nonzero = len(matrix), np.abs(matrix) > _ROUNDING
    if count == 3 and (nonzero.sum(axis=0) == 1).all() and (nonzero.sum(axis=1) == 1).all():
        order = nonzero.argmax(axis=0)  # the output channel of each input channel
        factors = matrix[order, np.arange(3)]
        if (factors > 0).all():
            return factors, offset[order], _permutation(order)
    if count == 1 and matrix.sum() > _ROUNDING:
        total = float(matrix.sum())
        return np.full(3, total), np.full(3, offset[0]), matrix / total
    if count == 3 and abs(np.linalg.det(matrix)) > _ROUNDING:
        return np.ones(3), np.asarray(np.linalg.solve(matrix, offset), np.float64), matrix
    raise DataError("the first layers make channels that can't be separated again", hint="normalize outside the model")


def _permutation(order: NDArray[np.int64]) -> NDArray[np.float64]:
    """The matrix that puts input channel ``c`` to output channel ``order[c]``."""
    matrix = np.zeros((3, 3))
    matrix[order, np.arange(3)] = 1.0
    return matrix
