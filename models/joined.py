"""Joins several classifiers into one network with one input, whose logits are the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import call, copy_of, sources
from .head import FEATURES, LOGITS, PROBABILITIES
from .keras_compat import keras


def join(members: Sequence[Any], classes: int) -> Any:
    """One flat functional graph: the members side by side, their features concatenated, dense logits, softmax.

    The dense layer holds the members' own weights, divided by their number. Its output is the mean of their logits, so
    the probabilities are the normalized geometric mean of theirs. A mean of probabilities would need a softmax for
    every member, and would have no logits for calibration, class activation or quantization-aware training.

    Args:
        members: classifiers made by `edgeall.models.head.add_head`, with inputs of the same shape. They are copied:
            layer ``name`` of member 0 becomes ``m0_name``.
        classes: outputs of each.

    Returns:
        A Keras model with the layers `FEATURES`, `LOGITS` and `PROBABILITIES`.
    """
    inputs = keras.layers.Input(members[0].input_shape[1:], name="image")
    copies = [_Copy(number, member, inputs) for number, member in enumerate(members)]
    x = keras.layers.Concatenate(name=FEATURES)([copied.features for copied in copies])
    x = keras.layers.Dense(classes, name=LOGITS, dtype="float32")(x)
    x = keras.layers.Softmax(name=PROBABILITIES, dtype="float32")(x)
    model = keras.Model(inputs, x, name="ensemble_classifier")
    for copied in copies:
        copied.take_weights(model)
    kernels, biases = zip(*(member.get_layer(LOGITS).get_weights() for member in members), strict=True)
    model.get_layer(LOGITS).set_weights([np.concatenate(kernels) / len(members), np.mean(biases, axis=0)])
    return model


class _Copy:
    """One member's layers up to its features, in the graph of the ensemble. ``features``: what its logits read."""

    def __init__(self, number: int, member: Any, inputs: Any) -> None:
        self.number, self.member = number, member
        tensors: dict[str, Any] = {}
        for layer in member.layers:
            if isinstance(layer, keras.layers.InputLayer):
                tensors[layer.name] = inputs
            elif layer.name not in (LOGITS, PROBABILITIES):
                renamed = copy_of(layer, name=self._name(layer))
                tensors[layer.name] = call(renamed, [tensors[source.name] for source in sources(layer)])
        self.features = tensors[sources(member.get_layer(LOGITS))[0].name]

    def _name(self, layer: Any) -> str:
        return f"m{self.number}_{layer.name}"

    def take_weights(self, model: Any) -> None:
        """Copy the member's weights into ``model``."""
        for layer in self.member.layers:
            if layer.get_weights() and layer.name != LOGITS:
                model.get_layer(self._name(layer)).set_weights(layer.get_weights())
