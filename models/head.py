"""The classification head of a backbone: dropout, dense logits, softmax."""

from __future__ import annotations

from typing import Any

FEATURES = "features_dropout"
LOGITS = "logits"
PROBABILITIES = "probabilities"


def add_head(backbone: Any, classes: int, dropout: float) -> Any:
    """One flat functional graph: backbone, dropout, dense logits, softmax.

    Uses ``backbone.output``, never ``backbone(inputs)``: a nested model breaks quantization-aware training
    (model-optimization #377). Softmax stays in the graph, in float32 even with mixed precision, so that the exported
    file gives probabilities in every TFLite tool.
    """
    from .keras_compat import keras

    x = keras.layers.Dropout(dropout, name=FEATURES)(backbone.output)
    x = keras.layers.Dense(classes, name=LOGITS, dtype="float32")(x)
    x = keras.layers.Softmax(name=PROBABILITIES, dtype="float32")(x)
    return keras.Model(backbone.input, x, name=f"{backbone.name}_classifier")


def build_head(features: int, classes: int, dropout: float) -> Any:
    """Only the head: input ``(features,)``, output probabilities. For training on cached features."""
    from .keras_compat import keras

    inputs = keras.layers.Input((features,))
    x = keras.layers.Dropout(dropout, name=FEATURES)(inputs)
    x = keras.layers.Dense(classes, name=LOGITS, dtype="float32")(x)
    return keras.Model(inputs, keras.layers.Softmax(name=PROBABILITIES, dtype="float32")(x), name="head")
