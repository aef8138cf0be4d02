"""The classification head of a backbone: dropout, dense logits, softmax."""

from __future__ import annotations

from typing import Any

FEATURES = "features_dropout"
HIDDEN = "head_dense"
LOGITS = "logits"
PROBABILITIES = "probabilities"


def add_head(backbone: Any, classes: int, dropout: float, dense: int | None = None) -> Any:
    """One flat functional graph: backbone, dense layer of ``dense`` units if given, dropout, dense logits, softmax.

    Uses ``backbone.output``, never ``backbone(inputs)``: a nested model breaks quantization-aware training
    (model-optimization #377). Softmax stays in the graph, in float32 even with mixed precision, so that the exported
    file gives probabilities in every TFLite tool.
    """
    from .keras_compat import keras

    return keras.Model(
        backbone.input, _head(backbone.output, classes, dropout, dense), name=f"{backbone.name}_classifier"
    )


def build_head(features: int, classes: int, dropout: float, dense: int | None = None) -> Any:
    """Only the head: input ``(features,)``, output probabilities. For training on cached features."""
    from .keras_compat import keras

    inputs = keras.layers.Input((features,))
    return keras.Model(inputs, _head(inputs, classes, dropout, dense), name="head")


def copy_head(head: Any, model: Any) -> None:
    """Copy the weights of `build_head`'s model into the same layers of `add_head`'s."""
    for layer in head.layers:
        if layer.get_weights():
            model.get_layer(layer.name).set_weights(layer.get_weights())


def _head(x: Any, classes: int, dropout: float, dense: int | None) -> Any:
    from .keras_compat import keras

    if dense is not None:
        x = keras.layers.Dense(dense, name=HIDDEN)(x)
        # A layer of its own, as after convolutions: quantization-aware training treats it like theirs.
        x = keras.layers.ReLU(name=f"{HIDDEN}_relu")(x)
    x = keras.layers.Dropout(dropout, name=FEATURES)(x)
    x = keras.layers.Dense(classes, name=LOGITS, dtype="float32")(x)
    return keras.layers.Softmax(name=PROBABILITIES, dtype="float32")(x)
