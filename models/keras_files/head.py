"""The end of a network, as the end that edgeall gives its own: dense logits, then a softmax over all labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...edge_runtime.errors import DataError
from ..head import LOGITS, PROBABILITIES
from .activations import LINEAR, activation_name
from .build import build
from .graph import IDENTITY, Network, Node

SOFTMAX, SIGMOID = "softmax", "sigmoid"


@dataclass(frozen=True)
class Head:
    """What a network ended in.

    Attributes:
        end: ``softmax``, ``sigmoid`` or ``linear``.
        outputs: number of its outputs; one stands for two labels.
    """

    end: str
    outputs: int

    @property
    def labels(self) -> int:
        """Number of labels."""
        return max(self.outputs, 2)


def with_head(network: Network, size: tuple[int, int]) -> tuple[Network, Head]:
    """The network with the layers ``logits`` and ``probabilities`` at its end.

    One output z of a sigmoid becomes two logits, -z/2 and z/2, whose softmax is the same: 1 - p and p.

    Args:
        network: any.
        size: height and width of its input.

    Raises:
        DataError: it does not end in one score for each label.
    """
    node, end = _end(network)
    dense = node.kind == "Dense"
    if dense and end == LINEAR:
        end = activation_name(node.config.get("activation"))
    if end not in (SOFTMAX, SIGMOID, LINEAR):
        raise DataError(f"its last layer {node.origin} ends in {end}", hint="end the model in a softmax or a sigmoid")
    own = activation_name(node.config.get("activation")) if dense else ""
    if not dense or own not in (LINEAR, end):
        node, network = _identity(network, node, size)
    outputs = int(node.config["units"])
    _check(end, outputs, node.origin)
    logits = replace(node, name=LOGITS, config={**node.config, "activation": LINEAR})
    if outputs == 1:
        logits = _two(logits)
    others = [one for one in network.nodes if one.name != node.name]
    before = [_clear(one) for one in others]
    renamed = {one.name: new.name for one, new in zip(others, before, strict=True) if one.name != new.name}
    last = Node(PROBABILITIES, "Softmax", {}, (LOGITS,), {}, PROBABILITIES)
    nodes = [*before, replace(logits, inputs=tuple(renamed.get(name, name) for name in logits.inputs)), last]
    nodes = [replace(one, inputs=tuple(renamed.get(name, name) for name in one.inputs)) for one in nodes]
    return network.with_nodes(nodes, PROBABILITIES), Head(end, outputs)


def _end(network: Network) -> tuple[Node, str]:
    """The last node that is not an activation, and the activation behind it."""
    node, end = network.node(network.output), LINEAR
    while True:
        function = None
        if node.kind == "Activation":
            function = activation_name(node.config["activation"])
        elif node.kind == "Softmax":
            function = SOFTMAX
        elif node.kind not in (IDENTITY, "Dropout"):
            return node, end
        if function in (SOFTMAX, SIGMOID) and end == LINEAR:
            end = function
        elif function not in (None, LINEAR):
            return node, end
        node = network.node(node.inputs[0])


def _check(end: str, outputs: int, origin: str) -> None:
    if end == SOFTMAX and outputs == 1:
        raise DataError(
            f"its last layer {origin} is a softmax of one output, which is always 1",
            hint="end the model in one sigmoid, or in a softmax of two outputs",
        )
    if end == SIGMOID and outputs > 1:
        raise DataError(
            f"its last layer {origin} is a sigmoid of {outputs} outputs: multi-label models are not supported",
            hint="end the model in a softmax over all labels, or in one sigmoid for two labels",
        )


def _two(node: Node) -> Node:
    """The logit z as the two logits -z/2 and z/2."""
    values: dict[str, Any] = {name: np.asarray(value) / 2 for name, value in node.variables.items()}
    doubled = {name: np.concatenate((-value, value), axis=-1) for name, value in values.items()}
    return replace(node, config={**node.config, "units": 2}, variables=doubled)


def _identity(network: Network, node: Node, size: tuple[int, int]) -> tuple[Node, Network]:
    """A dense layer that passes on the scores of ``node``, which is not a dense layer itself."""
    shape = build(replace(network, output=node.name).with_nodes(network.nodes, node.name), size).output_shape
    if len(shape) != 2:
        raise DataError(
            f"its last layer {node.origin} gives {shape[1:]}, not one score for each label",
            hint="edgeall imports classifiers: end the model in one vector",
        )
    units = int(shape[-1])
    variables = {"kernel": np.eye(units, dtype=np.float32), "bias": np.zeros(units, np.float32)}
    added = Node(LOGITS, "Dense", {"units": units}, (node.name,), variables, node.origin)
    return added, network.with_nodes([*network.nodes, added], LOGITS)


def _clear(node: Node) -> Node:
    """The node under another name if its own is needed."""
    return replace(node, name=f"{node.name}_before") if node.name in (LOGITS, PROBABILITIES) else node
