"""EfficientNet-B0 (Tan and Le 2019), from ``tf_keras.applications``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..edge_runtime.errors import DataError
from .registry import BuildArgs, Facts, ModelSpec, register

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels divided by 255. Keras' weight file has them as mean and *variance* of a `Normalization` layer,
and its ImageNet graph divides by the square root once more: together, the usual division by the standard deviation
(tensorflow #49930)."""
STEM = "stem_conv_pad"


def build(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 1280)`` float32.

    Raises:
        DataError: the weights are for another normalization of the input. Here the normalization is fixed, so that a
            rebuilt network is always the same.
    """
    from .rewrite import TORCH, rewrite
    from .weights import load_application

    original = load_application("EfficientNetB0", args)
    if args.weights != "none":
        _check_normalization(original, args.weights)
    inside = {layer.name for layer in original.layers[_index(original, STEM) :]}

    def drop_preprocessing(layer: Any, name: str, tensors: list[Any]) -> Any:
        if layer.name in inside or layer.name == original.layers[0].name:
            return None
        return tensors[0]

    return rewrite(original, TORCH, drop_preprocessing)


def _index(model: Any, name: str) -> int:
    return [layer.name for layer in model.layers].index(name)


def _check_normalization(original: Any, weights: str) -> None:
    from .keras_compat import keras

    layer = next(layer for layer in original.layers if type(layer) is keras.layers.Normalization)
    mean, variance, _ = layer.get_weights()
    if not (np.allclose(mean, MEAN, atol=1e-3) and np.allclose(variance, STD, atol=1e-3)):
        raise DataError(
            f"{weights}: an EfficientNetB0 with another input normalization than Keras' ImageNet weights "
            f"(mean {np.ravel(mean).tolist()}, variance {np.ravel(variance).tolist()})",
            hint="give Keras' efficientnetb0_notop.h5, or weights fine-tuned from it",
        )


register(
    ModelSpec(
        name="efficientnet_b0",
        build=build,
        input_hw=(224, 224),
        reference="Tan and Le 2019, EfficientNet: rethinking model scaling for convolutional neural networks",
        facts=Facts(
            parameters=4_049_564,
            macs=384_534_752,
            features=1_280,
            layers=318,
            sparsity_weights=3_773_312,
            channel_groups=35,
        ),
    )
)
