"""Reads how a layer is called, in the formats of Keras 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TENSOR = "__keras_tensor__"


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        inputs: names of the nodes that it takes.
        arguments: positional arguments; `Input` stands for a tensor.
        named: further arguments by name.
        references: layer and call number of every tensor, in order.
    """

    inputs: tuple[str, ...]
    arguments: tuple[Any, ...] | None
    named: Mapping[str, Any] | None = None
    references: tuple[tuple[str, int], ...] = ()


class Input:
    """Stands for a tensor among the arguments of a call."""


INPUT = Input()


def call_of(node: Any) -> Call:
    """Read one entry of ``inbound_nodes``. Raises KeyError, TypeError or ValueError for another structure."""
    references: list[tuple[str, int]] = []
    node = plain(node)
    if isinstance(node, Mapping):  # Keras 3

        def keras3(value: Any) -> Any:
            if isinstance(value, Mapping) and value.get("class_name") == TENSOR:
                name, number, output = value["config"]["keras_history"]
                return _found(name, number, output, references)
            return [keras3(item) for item in value] if isinstance(value, list) else value

        arguments = tuple(keras3(value) for value in node["args"])
        named = {key: keras3(value) for key, value in node.get("kwargs", {}).items()}
        return Call((), arguments, named, tuple(references))
    return _keras2([node] if isinstance(node[0], str) else node, references)


def _keras2(entries: Sequence[Any], references: list[tuple[str, int]]) -> Call:
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    for name, number, output, *rest in entries:
        constant = name == "_CONSTANT_VALUE"
        arguments.append(output if constant else _found(name, number, output, references))
        for key, value in (rest[0] if rest else {}).items():
            tensor = isinstance(value, list) and len(value) == 3 and isinstance(value[0], str)
            named[key] = _found(value[0], value[1], value[2], references) if tensor else value
    return Call((), tuple(arguments), named, tuple(references))


def plain(value: Any) -> Any:
    """A value without Keras' marks of tuples, tensors, arrays and shapes."""
    if isinstance(value, Mapping):
        kind = value.get("class_name")
        if kind in ("__tuple__", "TensorShape"):
            return [plain(item) for item in value["items"]]
        if kind in ("__tensor__", "__numpy__"):
            return np.asarray(value["config"]["value"], np.float32).tolist()
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def tensors(arguments: Sequence[Any]) -> int:
    """Number of tensors among arguments, those in lists included."""
    return sum(
        tensors(argument) if isinstance(argument, (list, tuple)) else isinstance(argument, Input)
        for argument in arguments
    )


def _found(name: Any, number: Any, output: Any, references: list[tuple[str, int]]) -> Input:
    if int(output) != 0:
        raise ValueError(f"layer {name} has several outputs")
    references.append((str(name), int(number)))
    return INPUT
