"""Operations in a Keras graph that are no layers (``x / 127.5``, ``preprocess_input``), as the nodes of `graph`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .calls import Call, Input, plain, tensors
from .graph import AFFINE, CHANNEL, CHANNELS, GREY, IDENTITY, Node
from .refusal import no_twin

Converted = tuple[str, dict[str, Any]]

_LAMBDAS = ("TFOpLambda", "SlicingOpLambda")
"""Classes of Keras 2 for operations; the function is in their configuration. They are layers without weights."""
_BINARY = {
    **dict.fromkeys(("Add", "add", "add_v2", "bias_add"), "add"),
    **dict.fromkeys(("Subtract", "subtract"), "subtract"),
    **dict.fromkeys(("Multiply", "multiply"), "multiply"),
    **dict.fromkeys(("TrueDivide", "Divide", "truediv", "divide", "divide_no_nan"), "divide"),
}
_ACTIVATIONS = {
    **dict.fromkeys(("Relu", "relu"), "relu"),
    **dict.fromkeys(("Relu6", "relu6"), "relu6"),
    **dict.fromkeys(("Sigmoid", "sigmoid"), "sigmoid"),
    **dict.fromkeys(("Silu", "silu", "swish"), "swish"),
    **dict.fromkeys(("Softmax", "softmax"), "softmax"),
    **dict.fromkeys(("HardSigmoid",), "hard_sigmoid"),
    **dict.fromkeys(("HardSilu",), "hard_silu"),
    **dict.fromkeys(("Gelu", "gelu"), "gelu"),
    **dict.fromkeys(("Tanh", "tanh"), "tanh"),
}
_IDENTITIES = ("Cast", "cast", "Identity", "identity", "stop_gradient", "StopGradient", "convert_to_tensor")
OPERATIONS = frozenset(
    {
        *("TrueDivide", "Divide", "GetItem", "Stack", "Mean", "Relu", "Relu6", "Sigmoid", "Silu", "HardSigmoid"),
        *("HardSilu", "Gelu", "Tanh", "Cast", "StopGradient", "ConvertToTensor"),
    }
)
"""Classes of Keras 3 that are operations and not layers. ``Add``, ``Subtract``, ``Multiply``, ``Softmax``, ``Identity``
and ``Reshape`` are both; the module of the class tells."""


def is_operation(config: Mapping[str, Any]) -> bool:
    """Whether an entry among a model's layers is an operation of Keras 3, which has no place among the weights."""
    return ".ops." in str(config.get("module")) or config["class_name"] in OPERATIONS


def operation(kind: str, config: Mapping[str, Any], call: Call, where: str) -> Converted:
    """The kind and the configuration of a node, for a layer or an operation.

    Args:
        kind: class in the file.
        config: its configuration.
        call: of the layer.
        where: file and layer, for messages.

    Raises:
        DataError: an operation that has no twin.
    """
    if kind in _LAMBDAS:
        return _of_function(str(config["function"]).rpartition(".")[2], call, where)
    given = call.arguments or ()
    constants = [value for value in (*given, *(call.named or {}).values()) if not isinstance(value, (Input, list))]
    of_tensor = call.arguments is not None and tensors(given) == 1 and len(given) > 1
    if kind in OPERATIONS or (kind in _BINARY and (of_tensor or (len(given) == 2 and not constants))):
        return _of_function(kind, call, where, config)
    return kind, {key: plain(value) for key, value in config.items()}


def _of_function(name: str, call: Call, where: str, config: Mapping[str, Any] | None = None) -> Converted:
    if name in _BINARY:
        return _binary(_BINARY[name], call, where)
    if name in _ACTIVATIONS:
        return "Activation", {"activation": _ACTIVATIONS[name]}
    if name in _IDENTITIES or name == "ConvertToTensor":
        return IDENTITY, {}
    if name == "rgb_to_grayscale":
        return GREY, {}
    further = _FURTHER.get(name)
    if further is None:
        raise no_twin(where, f"the operation {name}")
    return further(call, config or {}, where)


def _binary(name: str, call: Call, where: str) -> Converted:
    arguments, named = list(call.arguments or ()), call.named or {}
    arguments += [named[key] for key in ("y", "x2", "bias", "other") if key in named]
    if len(arguments) != 2:
        raise no_twin(where, name, f"of {len(arguments)} arguments is not supported")
    first, second = arguments
    if isinstance(first, Input) and isinstance(second, Input):
        if name == "divide":
            raise no_twin(where, "a division of two tensors")
        return name.capitalize(), {}
    value = np.asarray(second if isinstance(first, Input) else first, np.float64)
    if value.ndim > 1 and value.size != value.shape[-1]:
        raise no_twin(where, name, f"by a constant of shape {value.shape} is not supported")
    value = value.ravel() if value.ndim else value
    reversed_ = not isinstance(first, Input)
    if name == "divide" and reversed_:
        raise no_twin(where, "the division of a constant")
    scale: Any = {"multiply": value, "divide": 1 / value if name == "divide" else 1.0}.get(name, 1.0)
    offset: Any = {"add": value, "subtract": -value}.get(name, 0.0)
    if name == "subtract" and reversed_:
        scale, offset = -1.0, value
    return AFFINE, {"scale": np.asarray(scale).tolist(), "offset": np.asarray(offset).tolist()}


def _slice(call: Call, config: Mapping[str, Any], where: str) -> Converted:
    named = call.named or {}
    spec = named.get("slice_spec", named.get("key"))
    if spec is None and call.arguments is not None and len(call.arguments) > 1:
        spec = call.arguments[1]
    spec = plain(spec)
    last = spec[-1] if isinstance(spec, list) and spec else None
    if isinstance(last, Mapping):
        last = {**last, **last.get("config", {})}
        before = all(_is_all(one) for one in spec[:-1])
        if before and last.get("step") == -1 and last.get("start") is None and last.get("stop") is None:
            return CHANNELS, {"order": None}
    if isinstance(last, int) and all(_is_all(one) for one in spec[:-1]):
        return CHANNEL, {"index": last}
    raise no_twin(where, "a slice", "that does not reverse or take channels is not supported")


def _is_all(one: Any) -> bool:
    """Whether a part of a slice takes everything: an ellipsis, or a colon."""
    if not isinstance(one, Mapping):
        return one is None
    inner = {**one, **one.get("config", {})}
    return inner.get("class_name") == "__ellipsis__" or all(inner.get(key) is None for key in ("start", "stop", "step"))


def _stack(call: Call, config: Mapping[str, Any], where: str) -> Converted:
    axis = config.get("axis", (call.named or {}).get("axis"))
    if axis not in (-1, 3):
        raise no_twin(where, "a stack", "along another axis than the channels is not supported")
    return "Stack", {}


def _mean(call: Call, config: Mapping[str, Any], where: str) -> Converted:
    named = {**config, **(call.named or {})}
    axes = plain(named.get("axis"))
    if sorted(axes or ()) not in ([1, 2], [-3, -2]):
        raise no_twin(where, "a mean", "over other axes than height and width is not supported")
    return "GlobalAveragePooling2D", {"keepdims": bool(named.get("keepdims", False))}


def _concat(call: Call, config: Mapping[str, Any], where: str) -> Converted:
    return "Concatenate", {"axis": (call.named or {}).get("axis", config.get("axis", -1))}


_FURTHER: dict[str, Callable[[Call, Mapping[str, Any], str], Converted]] = {
    **dict.fromkeys(("getitem", "GetItem"), _slice),
    **dict.fromkeys(("stack", "Stack"), _stack),
    **dict.fromkeys(("Mean", "mean", "reduce_mean"), _mean),
    **dict.fromkeys(("concat", "concatenate"), _concat),
}


def join_channels(nodes: Sequence[Node]) -> Iterable[Node]:
    """The nodes, with every stack of channels of one tensor as one node that permutes its channels.

    Raises:
        DataError: a channel that is not stacked again.
    """
    by_name = {node.name: node for node in nodes}
    joined: list[Node] = []
    for node in nodes:
        if node.kind != "Stack":
            joined.append(node)
            continue
        parts = [by_name[name] for name in node.inputs]
        sources = {part.inputs for part in parts}
        if len(sources) != 1 or any(part.kind != CHANNEL for part in parts):
            raise no_twin(f"layer {node.origin}", "a stack", "of other tensors than channels is not supported")
        order = [int(part.config["index"]) for part in parts]
        joined.append(replace(node, kind=CHANNELS, config={"order": order}, inputs=sources.pop()))
    return joined
