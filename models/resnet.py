"""ResNet50 and ResNet101V2 (He et al. 2016), from ``tf_keras.applications``."""

from __future__ import annotations

from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register


def build_resnet50(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 2048)`` float32."""
    from .rewrite import CAFFE, rewrite
    from .weights import load_application

    return rewrite(load_application("ResNet50", args), CAFFE)


def build_resnet101v2(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 2048)`` float32."""
    from .rewrite import rewrite
    from .weights import load_application

    return rewrite(load_application("ResNet101V2", args))


register(
    ModelSpec(
        name="resnet50",
        build=build_resnet50,
        input_hw=(224, 224),
        reference="He et al. 2016, Deep residual learning for image recognition",
        facts=Facts(
            parameters=23_587_712,
            macs=3_855_925_248,
            features=2_048,
            layers=177,
            sparsity_weights=23_445_504,
            channel_groups=33,
        ),
    )
)
register(
    ModelSpec(
        name="resnet101v2",
        build=build_resnet101v2,
        input_hw=(224, 224),
        unfreeze=37,  # from stage conv5 on: training the other 7 GMACs would cost 2.5 times as much per image
        reference="He et al. 2016, Identity mappings in deep residual networks",
        facts=Facts(
            parameters=42_626_560,
            macs=7_192_428_544,
            features=2_048,
            layers=378,
            sparsity_weights=42_385_408,
            channel_groups=67,
        ),
    )
)
