"""MobileNetV2 (Sandler et al. 2018), from ``tf_keras.applications``, as one flat graph."""

from __future__ import annotations

from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
SKIPS = ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu")


def build(args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 1280 * max(alpha, 1))`` float32."""
    from .keras_compat import keras
    from .rewrite import image_input
    from .weights import load_weights

    def backbone(height: int, width: int, weights: str | None) -> Any:
        base = keras.applications.MobileNetV2(
            input_shape=(height, width, 3),
            input_tensor=image_input(height, width),
            alpha=args.alpha,
            include_top=False,
            weights=weights,
        )
        # Pooled here, with a fixed name: all other layers are in the vocabulary and have fixed names.
        pooled = keras.layers.GlobalAveragePooling2D(name="features")(base.output)
        return keras.Model(base.input, pooled, name=base.name)

    return load_weights(backbone, args, f"mobilenet_v2 alpha {args.alpha:g}")


register(
    ModelSpec(
        name="mobilenet_v2",
        build=build,
        input_hw=(224, 224),
        sizes=(96, 224),
        alphas=ALPHAS,
        skips=SKIPS,
        reference="Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks",
        facts=Facts(
            parameters=2_257_984,
            macs=299_494_272,
            features=1_280,
            layers=155,
            sparsity_weights=2_124_672,
            channel_groups=20,
        ),
    )
)
