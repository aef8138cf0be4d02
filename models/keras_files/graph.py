"""`Network`: a network read from a file, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

INPUT = "InputLayer"
IDENTITY = "Identity"
"""Kind of a node that does nothing at inference."""
AFFINE = "Affine"
"""Kind of a node that multiplies by ``scale`` and adds ``offset``, each one number or one per channel."""
CHANNELS = "PermuteChannels"
"""Kind of a node that puts the channels into the ``order`` of its configuration; None reverses them."""
CHANNEL = "Channel"
"""Kind of a node that takes out the channel ``index``. Only a stack of such nodes is supported."""
GREY = "Grey"
"""Kind of a node that makes one grey channel of RGB."""


@dataclass(frozen=True)
class Node:
    """One call of one layer.

    Attributes:
        name: unique in the network, without slashes.
        kind: the class of the Keras layer, or one of the constants of this module.
        config: the settings of the layer, as in the file.
        inputs: names of the nodes whose outputs it takes.
        variables: weights by their names in Keras 2.
        origin: the name of the layer in the file, for messages.
    """

    name: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    variables: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False)
    origin: str = ""


@dataclass(frozen=True)
class Network:
    """A flat network with one input and one output.

    Attributes:
        name: of the model in the file.
        version: of Keras, as written in the file.
        nodes: in topological order, the input first.
        output: name of the node with the output.
    """

    name: str
    version: str
    nodes: tuple[Node, ...]
    output: str

    @property
    def keras3(self) -> bool:
        """Whether the file was written by Keras 3, which defines some activations differently."""
        return is_keras3(self.version)

    @property
    def input(self) -> Node:
        """The input node; ``shape`` in its configuration is ``(height, width, channels)``, None where variable."""
        return self.nodes[0]

    def node(self, name: str) -> Node:
        """The node of this name."""
        return next(node for node in self.nodes if node.name == name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that take the output of ``name``."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def with_nodes(self, nodes: Iterable[Node], output: str | None = None) -> Network:
        """The network with other nodes, those that the output needs."""
        kept, output = tuple(nodes), output or self.output
        needed, by_name = {output}, {node.name: node for node in kept}
        for node in reversed(kept):
            if node.name in needed:
                needed.update(by_name[name].name for name in node.inputs)
        return replace(self, nodes=tuple(node for node in kept if node.name in needed), output=output)


def is_keras3(version: str) -> bool:
    """Whether a version of Keras is 3 or later."""
    return version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 3
