"""Activation functions as the layers that folding, quantization and pruning support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..keras_compat import keras

layers = keras.layers

LINEAR = "linear"
_SAME = ("tanh", "elu", "selu", "softplus", "softsign", "exponential", "gelu", "sigmoid")
"""Functions that are the same in Keras 2 and 3."""


def activation_name(found: Any) -> str:
    """The name of an activation in a configuration; of an unknown structure, its text."""
    if found is None:
        return LINEAR
    if isinstance(found, Mapping):  # a function, or a layer as the activation
        inner = found.get("config")
        name = inner if isinstance(inner, str) else str(found.get("class_name"))
        return {"ReLU": "relu", "Softmax": "softmax"}.get(name, name) if _is_default(inner) else f"{name} with settings"
    return {"silu": "swish", "hard_swish": "hard_silu"}.get(str(found), str(found))


def _is_default(inner: Any) -> bool:
    if not isinstance(inner, Mapping):
        return True
    known = {"max_value": (None,), "negative_slope": (0, 0.0), "threshold": (0, 0.0), "axis": (-1,)}
    return all(inner.get(key, allowed[0]) in allowed for key, allowed in known.items())


def apply_activation(function: str, name: str, x: Any, keras3: bool) -> Any:
    """Apply an activation to a tensor; the last layer has the name ``name``.

    Raises:
        KeyError: an unknown function.
    """
    if function == LINEAR:
        return x
    if function in _SAME:
        return layers.Activation(function, name=name)(x)
    return _LAYERS[function](name, x, keras3)


def _hard_sigmoid(name: str, x: Any, keras3: bool) -> Any:
    """Keras 3: relu6(x + 3) / 6. Keras 2: x / 5 + 1/2 between 0 and 1, which is relu6(1.2 x + 3) / 6."""
    x = layers.Rescaling(1.0 if keras3 else 1.2, 3.0, name=f"{name}_shift")(x)
    x = layers.ReLU(6.0, name=f"{name}_relu6")(x)
    return layers.Rescaling(1 / 6, name=name)(x)


def _times(inner: Callable[[str, Any, bool], Any]) -> Callable[[str, Any, bool], Any]:
    return lambda name, x, keras3: layers.Multiply(name=name)([x, inner(f"{name}_gate", x, keras3)])


_LAYERS: dict[str, Callable[[str, Any, bool], Any]] = {
    "relu": lambda name, x, _: layers.ReLU(name=name)(x),
    "relu6": lambda name, x, _: layers.ReLU(6.0, name=name)(x),
    "softmax": lambda name, x, _: layers.Softmax(name=name)(x),
    "leaky_relu": lambda name, x, _: layers.LeakyReLU(0.2, name=name)(x),
    "hard_sigmoid": _hard_sigmoid,
    "swish": lambda name, x, _: layers.Multiply(name=name)(
        [x, layers.Activation("sigmoid", name=f"{name}_sigmoid")(x)]
    ),
    "hard_silu": _times(_hard_sigmoid),
}
KNOWN = frozenset({LINEAR, *_SAME, *_LAYERS})
