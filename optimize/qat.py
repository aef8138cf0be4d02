"""Quantization-aware training: tfmot's wrappers and fake quantization, placed where TFLite will quantize.

tfmot's own placement leaves the weights of a convolution that feeds a ReLU unquantized in training, gives
depthwise kernels one scale for all channels, and starts every activation range at +-6 with a moving average
that needs thousands of steps to leave it. Here every weight is quantized as the converter will do it (per
channel, symmetric), every activation range starts at what was measured on training images, and the network
is folded first (`fold`), so that what is trained is what is stored.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.models.graph import call, copy_of, rebuild, targets
from edgeall.models.keras_compat import keras, load_tfmot, tf

PLACEMENT = 2
"""Raised when what is quantized where, or trained on what, changes: a checkpoint of before is not gone on with."""

layers = keras.layers
tfmot = load_tfmot()
quantizers = tfmot.quantization.keras.quantizers

WITH_WEIGHTS = {
    layers.DepthwiseConv2D: ("depthwise_kernel", 2),  # (h, w, channels, 1)
    layers.Conv2D: ("kernel", 3),  # (h, w, in, out)
    layers.Dense: ("kernel", 1),  # (in, out)
}
"""Attribute and output-channel axis of every layer's kernel."""
OWN_RANGE = (layers.ReLU, layers.Add, layers.Concatenate, layers.GlobalAveragePooling2D, layers.AveragePooling2D)
SAME_RANGE = (layers.MaxPooling2D, layers.ZeroPadding2D, layers.Flatten, layers.Reshape, layers.Softmax)
"""Ops that TFLite runs in their input's scale (or, for softmax, in a fixed one)."""


def input_range(spec: InputSpec) -> tuple[float, float]:
    """What the pixels 0 and 255 become."""
    return (0 - spec.mean) / spec.std, (255 - spec.mean) / spec.std


@dataclass(frozen=True)
class QuantizationAware:
    """A trainable network and the handles that conversion needs.

    Attributes:
        model: float32 in (normalized), probabilities out.
        weights: every layer's own variables (kernel, bias) by layer name.
        outputs: the wrapper of every layer whose output is quantized, by layer name.
    """

    model: Any
    weights: dict[str, list[Any]]
    outputs: dict[str, Any]


def quantization_aware(folded: Any, calibration: Iterable[Any], bounds: tuple[float, float]) -> QuantizationAware:
    """A trainable copy of ``folded`` that computes as the int8 network will.

    Args:
        folded: from `fold_batch_normalization`.
        calibration: float32 batches ``(n, h, w, 3)`` of training images; the ranges of all activations start
            at the mean of their extremes over these batches.
        bounds: from `input_range`.

    Raises:
        UsageError: the model holds a layer whose quantization isn't known; it is named.
    """
    unknown = [layer.name for layer in folded.layers[1:] if type(layer) not in _KNOWN]  # a subclass is another layer
    if unknown:
        raise UsageError(f"layers that can't be quantized: {', '.join(unknown)}", hint="use --scheme ptq-int8")
    weights = {layer.name: layer.get_weights() for layer in folded.layers}
    return _wrapped(folded, weights, _ranges(folded, calibration), bounds, fake_weights=True)


def for_conversion(trained: QuantizationAware, folded: Any, bounds: tuple[float, float]) -> Any:
    """The trained network with its activation ranges, but its weights left to the converter to quantize.

    The converter rounds them with the same symmetric per-channel scales that `quantization_aware` faked;
    handed already faked ones, it would have to recognise the pattern around depthwise kernels.
    """
    weights = {name: [variable.numpy() for variable in held] for name, held in trained.weights.items()}
    ranges = {name: wrapper.output_range() for name, wrapper in trained.outputs.items()}
    return _wrapped(folded, weights, ranges, bounds, fake_weights=False).model


_KNOWN = (*WITH_WEIGHTS, *OWN_RANGE, *SAME_RANGE)


class _Weights(quantizers.Quantizer):  # type: ignore[name-defined]
    """Symmetric, narrow range, one scale per output channel, from the weights of this very step.

    Args:
        channel_axis: axis of the output channels in the kernel.
    """

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        rank = len(inputs.shape)
        order = [axis for axis in range(rank) if axis != self.channel_axis] + [self.channel_axis]
        moved = tf.transpose(inputs, order)
        bound = tf.stop_gradient(tf.reduce_max(tf.abs(moved), axis=tuple(range(rank - 1))))
        bound = tf.maximum(bound, 1e-8)  # a dead channel; the op refuses an empty range
        fake = tf.quantization.fake_quant_with_min_max_vars_per_channel(moved, -bound, bound, narrow_range=True)
        return tf.transpose(fake, np.argsort(order))

    def get_config(self) -> dict[str, Any]:
        return {"channel_axis": self.channel_axis}


class _Range(quantizers.MovingAverageQuantizer):  # type: ignore[name-defined]
    """tfmot's moving-average activation quantizer, started at a measured range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
        self.low, self.high = min(low, 0.0), max(high, 0.0)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        constant = keras.initializers.Constant
        return {
            "min_var": layer.add_weight(f"{name}_min", initializer=constant(self.low), trainable=False),
            "max_var": layer.add_weight(f"{name}_max", initializer=constant(self.high), trainable=False),
        }


class _Placement(tfmot.quantization.keras.QuantizeConfig):  # type: ignore[name-defined]
    """Which weight of a layer is quantized, and whether its output is."""

    def __init__(self, weight: tuple[str, _Weights] | None, output: _Range | None) -> None:
        self.weight, self.output = weight, output

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [(getattr(layer, self.weight[0]), self.weight[1])] if self.weight else []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        if self.weight:
            setattr(layer, self.weight[0], quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [self.output] if self.output else []

    def get_config(self) -> dict[str, Any]:
        return {}


class _Wrapper(tfmot.quantization.keras.QuantizeWrapperV2):  # type: ignore[name-defined]
    """tfmot's wrapper, whose output range can be read back."""

    def output_range(self) -> tuple[float, float]:
        held = self._output_quantizer_vars
        return float(held["min_var"].numpy()), float(held["max_var"].numpy())


def _wrapped(
    folded: Any,
    weights: dict[str, list[Any]],
    ranges: dict[str, tuple[float, float]],
    bounds: tuple[float, float],
    fake_weights: bool,
) -> QuantizationAware:
    held: dict[str, list[Any]] = {}
    outputs: dict[str, Any] = {}

    def place(layer: Any, tensors: list[Any]) -> Any:
        if isinstance(layer, layers.InputLayer):
            return tf.quantization.fake_quant_with_min_max_args(tensors[0], *bounds)
        inner = copy_of(layer)
        inner.build(layer.input_shape)
        inner.set_weights(weights[layer.name])
        held[layer.name] = list(inner.weights)  # before the wrapper puts fake-quantized tensors in their place
        output = _Range(*ranges[layer.name]) if layer.name in ranges else None
        weight = _weight_quantizer(layer) if fake_weights else None
        if not (output or weight):
            return call(inner, tensors)
        wrapper = _Wrapper(inner, _Placement(weight, output))
        if output:
            outputs[layer.name] = wrapper
        return call(wrapper, tensors)

    return QuantizationAware(rebuild(folded, place), held, outputs)


def _weight_quantizer(layer: Any) -> tuple[str, _Weights] | None:
    if type(layer) not in WITH_WEIGHTS:
        return None
    attribute, axis = WITH_WEIGHTS[type(layer)]
    return attribute, _Weights(axis)


def _quantizes_output(layer: Any) -> bool:
    """TFLite fuses a ReLU into what feeds it: then only the ReLU's output exists as a tensor."""
    after = targets(layer)
    fused = len(after) == 1 and isinstance(after[0], layers.ReLU) and not isinstance(layer, layers.ReLU)
    return isinstance(layer, (*WITH_WEIGHTS, *OWN_RANGE)) and not fused


def _ranges(folded: Any, calibration: Iterable[Any]) -> dict[str, tuple[float, float]]:
    """Mean over the batches of every quantized output's smallest and largest value."""
    named = [layer.name for layer in folded.layers[1:] if _quantizes_output(layer)]
    probe = keras.Model(folded.input, [folded.get_layer(name).output for name in named])

    @tf.function  # type: ignore[untyped-decorator]
    def extremes(batch: Any) -> Any:
        outputs = probe(batch, training=False)
        return tf.stack([tf.stack([tf.reduce_min(value), tf.reduce_max(value)]) for value in outputs])

    mean = np.mean([extremes(batch).numpy() for batch in calibration], axis=0)
    return {name: (float(low), float(high)) for name, (low, high) in zip(named, mean, strict=True)}
