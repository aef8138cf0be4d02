"""The twin in Keras 2 of every layer that a file may hold, and the names of its variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .graph import AFFINE, CHANNEL, CHANNELS, GREY, IDENTITY, INPUT
from .refusal import no_twin

Config = Mapping[str, Any]

KEPT: dict[str, tuple[str, ...]] = {
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "use_bias"),
    "DepthwiseConv2D": ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier", "use_bias"),
    "SeparableConv2D": (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "dilation_rate",
        "depth_multiplier",
        "use_bias",
    ),
    "Conv2DTranspose": ("filters", "kernel_size", "strides", "padding", "output_padding", "dilation_rate", "use_bias"),
    "Dense": ("units", "use_bias"),
    "BatchNormalization": ("momentum", "epsilon", "center", "scale"),
    "LayerNormalization": ("axis", "epsilon", "center", "scale"),
    "Normalization": ("axis", "mean", "variance", "invert"),
    "Rescaling": ("scale", "offset"),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "PReLU": ("shared_axes",),
    "ELU": ("alpha",),
    "Softmax": ("axis",),
    "MaxPooling2D": ("pool_size", "strides", "padding"),
    "AveragePooling2D": ("pool_size", "strides", "padding"),
    "GlobalAveragePooling2D": ("keepdims",),
    "GlobalMaxPooling2D": ("keepdims",),
    "ZeroPadding2D": ("padding",),
    "Cropping2D": ("cropping",),
    "UpSampling2D": ("size", "interpolation"),
    "Flatten": (),
    "Reshape": ("target_shape",),
    "Permute": ("dims",),
    "Concatenate": ("axis",),
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), ()),
}
"""Layers that are the same in both versions, and the settings that decide what they compute at inference."""
IDENTITIES = frozenset(
    {
        *("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization"),
        *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness"),
        *("RandomCrop", "RandomHeight", "RandomWidth", "RandomHue", "RandomSaturation", "RandomColorJitter"),
        *("RandomGrayscale", "RandomSharpness", "RandomShear", "RandomPerspective", "RandomErasing", "RandomInvert"),
        *(
            "RandomPosterization",
            "RandomGaussianBlur",
            "RandomElasticTransform",
            "RandomColorDegeneration",
            "RandAugment",
        ),
        *("AugMix", "MixUp", "CutMix", IDENTITY),
    }
)
"""Layers that pass their input on at inference."""
RESIZING = ("Resizing", "CenterCrop")
"""Layers that edgeall's own resizing replaces at the input."""
OTHERS = ("Activation", "LeakyReLU", *RESIZING, INPUT, AFFINE, CHANNELS, CHANNEL, GREY, "Stack")


def variable_names(kind: str, config: Config, where: str) -> tuple[str, ...]:
    """The variables of a layer in Keras 2, in the order of its ``get_weights``.

    Args:
        kind: its class.
        config: its configuration.
        where: file and layer, for messages.

    Raises:
        DataError: a layer without a twin, or with settings that edgeall does not support.
    """
    if kind not in KEPT and kind not in IDENTITIES and kind not in OTHERS:
        raise no_twin(where, kind)
    _check_settings(kind, config, where)
    if kind not in _VARIABLES:
        return ()
    return tuple(_VARIABLES[kind](config))


def _check_settings(kind: str, config: Config, where: str) -> None:
    if config.get("data_format") == "channels_first":
        raise no_twin(where, f"{kind} with channels first", "is not supported")
    if "int8" in str(config.get("dtype")) or config.get("quantization_config"):
        raise no_twin(where, f"{kind} in integers", "is not supported: save the model before its quantization")
    if kind == "BatchNormalization":
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, (list, tuple)) else axis
        if config.get("renorm") or axis not in (-1, 1, 3):
            raise no_twin(where, f"{kind} with renorm or axis {axis}", "is not supported")
    if kind == "Normalization" and config.get("invert"):
        raise no_twin(where, "an inverted Normalization", "is not supported")
    if kind == "LayerNormalization" and config.get("rms_scaling"):
        raise no_twin(where, "LayerNormalization with rms_scaling", "is not supported")
    from .activations import KNOWN, activation_name

    if "activation" in config:
        function = activation_name(config["activation"])
        if function not in KNOWN:
            raise no_twin(where, f"the activation {function}", "has no twin in Keras 2")


def settings_of(kind: str, config: Config) -> dict[str, Any]:
    """The settings of a layer of `KEPT` for its twin."""
    return {key: _tuples(config[key]) for key in KEPT[kind] if config.get(key) is not None}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _with_bias(*names: str) -> Callable[[Config], list[str]]:
    return lambda config: [*names, *(["bias"] if config.get("use_bias", True) else [])]


def _scale_center(config: Config) -> list[str]:
    return [name for name, key in (("gamma", "scale"), ("beta", "center")) if config.get(key, True)]


_VARIABLES: dict[str, Callable[[Config], list[str]]] = {
    "Conv2D": _with_bias("kernel"),
    "Conv2DTranspose": _with_bias("kernel"),
    "Dense": _with_bias("kernel"),
    "DepthwiseConv2D": _with_bias("depthwise_kernel"),
    "SeparableConv2D": _with_bias("depthwise_kernel", "pointwise_kernel"),
    "BatchNormalization": lambda config: [*_scale_center(config), "moving_mean", "moving_variance"],
    "LayerNormalization": _scale_center,
    "Normalization": lambda config: [] if config.get("mean") is not None else ["mean", "variance"],
    "PReLU": lambda config: ["alpha"],
}
