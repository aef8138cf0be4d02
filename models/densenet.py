"""DenseNet121 (Huang et al. 2017), from ``tf_keras.applications``."""

from __future__ import annotations

from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register


def build(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 1024)`` float32."""
    from .rewrite import TORCH, rewrite
    from .weights import load_application

    return rewrite(load_application("DenseNet121", args), TORCH)


register(
    ModelSpec(
        name="densenet121",
        build=build,
        input_hw=(224, 224),
        reference="Huang et al. 2017, Densely connected convolutional networks",
        facts=Facts(
            parameters=7_037_504,
            macs=2_833_137_664,
            features=1_024,
            layers=429,
            sparsity_weights=6_860_800,
            channel_groups=58,
        ),
    )
)
