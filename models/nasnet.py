"""NASNet-A large (Zoph et al. 2018), from ``tf_keras.applications``."""

from __future__ import annotations

from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register


def build(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 4032)`` float32."""
    from .rewrite import rewrite
    from .weights import load_application

    return rewrite(load_application("NASNetLarge", args), rule=_separable)


def _separable(layer: Any, name: str, tensors: list[Any]) -> Any:
    """A ``SeparableConv2D`` as two convolutions."""
    from .keras_compat import keras
    from .rewrite import put

    if type(layer) is not keras.layers.SeparableConv2D:
        return None
    depthwise, *pointwise = layer.get_weights()  # (h, w, channels, 1); (1, 1, channels, filters) and a bias if any
    x = put(
        keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            depth_multiplier=layer.depth_multiplier,
            use_bias=False,
            name=f"{name}_depthwise",
        ),
        tensors,
        [depthwise],
    )
    return put(
        keras.layers.Conv2D(
            layer.filters, 1, use_bias=layer.use_bias, activation=layer.activation, name=f"{name}_pointwise"
        ),
        [x],
        pointwise,
    )


register(
    ModelSpec(
        name="nasnet_large",
        build=build,
        input_hw=(331, 331),
        unfreeze=336,  # the last six cells: training the 17 GMACs before them would double the cost per image
        reference="Zoph et al. 2018, Learning transferable architectures for scalable image recognition",
        facts=Facts(
            parameters=84_916_818,
            macs=23_779_382_658,
            features=4_032,
            layers=1_260,
            sparsity_weights=83_071_548,
            channel_groups=113,
        ),
    )
)
