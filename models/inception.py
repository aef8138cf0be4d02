"""InceptionV3 and InceptionResNetV2 (Szegedy et al. 2016, 2017), from ``tf_keras.applications``."""

from __future__ import annotations

from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register


def build_inception_v3(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 2048)`` float32."""
    from .rewrite import rewrite
    from .weights import load_application

    return rewrite(load_application("InceptionV3", args))


def build_inception_resnet_v2(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 1536)`` float32."""
    from .rewrite import rewrite
    from .weights import load_application

    return rewrite(load_application("InceptionResNetV2", args), rule=_scaled_residual)


def _scaled_residual(layer: Any, name: str, tensors: list[Any]) -> Any:
    """``CustomScaleLayer``, ``x + scale * residual``, as `Rescaling` and `Add`."""
    from .keras_compat import keras

    if type(layer).__name__ != "CustomScaleLayer":
        return None
    x, residual = tensors
    if layer.scale != 1.0:
        residual = keras.layers.Rescaling(layer.scale, name=f"{name}_scale")(residual)
    return keras.layers.Add(name=name)([x, residual])


register(
    ModelSpec(
        name="inception_v3",
        build=build_inception_v3,
        input_hw=(299, 299),
        sizes=(75, 512),
        reference="Szegedy et al. 2016, Rethinking the Inception architecture for computer vision",
        facts=Facts(
            parameters=21_802_784,
            macs=5_711_168_096,
            features=2_048,
            layers=312,
            sparsity_weights=21_750_272,
            channel_groups=50,
        ),
    )
)
register(
    ModelSpec(
        name="inception_resnet_v2",
        build=build_inception_resnet_v2,
        input_hw=(299, 299),
        sizes=(75, 512),
        unfreeze=173,  # from mixed_7a on: training the 12 GMACs before it would cost 2.4 times as much per image
        reference="Szegedy et al. 2017, Inception-v4, Inception-ResNet and the impact of residual connections",
        facts=Facts(
            parameters=54_336_736,
            macs=13_154_258_016,
            features=1_536,
            layers=820,
            sparsity_weights=54_199_296,
            channel_groups=105,
        ),
    )
)
