"""Quantization-aware training: tfmot's wrappers and fake quantization, placed where TFLite will quantize.

tfmot's own placement does not quantize the weights of a convolution that feeds a ReLU in training, gives depthwise
kernels one scale for all channels, and starts every activation range at +-6 with a moving average that needs thousands
of steps to leave it. Here every weight is quantized like in the converter (per channel, symmetric), every activation
range starts at the values measured on training images, and the network is folded first (`fold`), so that the trained
weights are the stored ones. `placement` decides what is rounded. Before the first step the network equals that of
post-training quantization.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ...models.graph import call, copy_of, rebuild
from ...models.keras_compat import keras, load_tfmot, tf
from ..pruning.cluster import clustered, codebook
from ..pruning.sparsity import prunable
from .placement import (
    NARROWEST,
    WITH_WEIGHTS,
    Placement,
    Range,
    fake_kernel,
    rounded_input,
    rounded_output,
)

PLACEMENT = 4
"""Version of placement and training. A checkpoint of another version is not resumed."""
DECAY = 0.999
"""Decay of the moving average of an activation's extremes, per step, as in tfmot."""

layers = keras.layers
tfmot = load_tfmot()
quantizers = tfmot.quantization.keras.quantizers
Masks = Mapping[str, NDArray[Any]]
"""By layer name: 0 and 1 in the shape of the kernel."""
Codebooks = Mapping[str, NDArray[Any]]
"""By layer name: the integers that the weights may take."""


@dataclass(frozen=True)
class QuantizationAware:
    """A trainable network, and what conversion needs of it.

    Attributes:
        model: normalized float32 input, probabilities as output.
        folded: the network that it was made from.
        placement: where it is quantized.
        masks: masks of the sparse kernels.
        codebooks: codebooks of the clustered kernels.
        variables: kernel and bias of every layer, by layer name.
        extremes: moving extremes of every layer that a range spans.
    """

    model: Any
    folded: Any
    placement: Placement
    masks: Masks
    codebooks: Codebooks
    variables: dict[str, list[Any]]
    extremes: dict[str, _Extremes]

    def trained(self) -> Any:
        """The float network with the current weights; masks and codebooks are applied."""

        def make(layer: Any, tensors: list[Any]) -> Any:
            if isinstance(layer, layers.InputLayer):
                return tensors[0]
            copy = copy_of(layer)
            output = call(copy, tensors)
            values = [variable.numpy() for variable in self.variables[layer.name]]
            if layer.name in self.masks:
                values[0] = values[0] * self.masks[layer.name]
            if layer.name in self.codebooks:
                axis = WITH_WEIGHTS[type(layer)][1]
                values[0] = clustered(tf.constant(values[0]), axis, self.codebooks[layer.name]).numpy()
            copy.set_weights(values)
            return output

        return rebuild(self.folded, make)

    def measured(self) -> dict[str, Range]:
        """The current extremes of the activations, in the form of `placement.extremes`."""
        return {name: found.values() for name, found in self.extremes.items()}


def quantization_aware(
    folded: Any,
    placement: Placement,
    measured: Mapping[str, Range],
    masks: Masks | None = None,
    clusters: int | None = None,
) -> QuantizationAware:
    """A trainable copy of ``folded`` that computes like the int8 network.

    Args:
        folded: from `edgeall.optimize.quantization.fold.fold_batch_normalization`.
        placement: from `edgeall.optimize.quantization.placement.place`.
        measured: initial extremes of all activations, from `edgeall.optimize.quantization.placement.extremes`.
        masks: masks of the kernels that keep their zeros.
        clusters: number of values in each prunable kernel, see `edgeall.optimize.pruning.cluster`.
    """
    books: dict[str, NDArray[Any]] = {}
    if clusters:
        axes = {layer.name: WITH_WEIGHTS[type(layer)][1] for layer in prunable(folded)}
        axes = {name: axis for name, axis in axes.items() if name in placement.kernels}
        books = {name: codebook(folded.get_layer(name).kernel.numpy(), axis, clusters) for name, axis in axes.items()}
    variables: dict[str, list[Any]] = {}
    extremes = {name: _Extremes(name, *measured[name]) for span in placement.spans.values() for name in span}

    def place(layer: Any, tensors: list[Any]) -> Any:
        name = layer.name
        range_name = placement.outputs.get(name, "")
        given = placement.fixed.get(range_name)
        if isinstance(layer, layers.InputLayer):
            return rounded_input(tensors[0], placement.fixed[range_name])
        inner = copy_of(layer)
        inner.build(layer.input_shape)
        inner.set_weights(layer.get_weights())
        variables[name] = list(inner.weights)  # the wrapper replaces them with fake-quantized tensors
        weight = _weight(layer, name in placement.kernels, (masks or {}).get(name), books.get(name))
        span = placement.spans.get(range_name, ())
        output = _Range(layer, extremes.get(name), [extremes[one] for one in span]) if span else None
        if weight or output:
            inner = _Wrapper(inner, _Config(weight, output))
        result = call(inner, tensors)
        return tf.quantization.fake_quant_with_min_max_args(result, *given) if given else result

    return QuantizationAware(rebuild(folded, place), folded, placement, masks or {}, books, variables, extremes)


class _Wrapper(tfmot.quantization.keras.QuantizeWrapperV2):  # type: ignore[name-defined]
    """tfmot's wrapper without AutoGraph, which would parse each layer for seconds and convert nothing."""

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        return super().call(inputs, training=training, **kwargs)


class _Extremes:
    """Moving averages of the smallest and largest output of one layer."""

    def __init__(self, name: str, low: float, high: float) -> None:
        self.low = tf.Variable(low, trainable=False, name=f"{name}_low", dtype=tf.float32)
        self.high = tf.Variable(high, trainable=False, name=f"{name}_high", dtype=tf.float32)

    def update(self, outputs: Any) -> None:
        for variable, found in ((self.low, tf.reduce_min(outputs)), (self.high, tf.reduce_max(outputs))):
            variable.assign_sub((variable - tf.cast(found, tf.float32)) * (1.0 - DECAY))

    def values(self) -> Range:
        return float(self.low.numpy()), float(self.high.numpy())


class _Weights(quantizers.Quantizer):  # type: ignore[name-defined]
    """Quantizes the current weights of a layer with `fake_kernel` or `clustered`.

    Args:
        channel_axis: axis of the output channels in the kernel; None: the kernel stays in float.
        mask: mask of a sparse kernel.
        integers: codebook of a clustered kernel.
    """

    def __init__(
        self, channel_axis: int | None, mask: NDArray[Any] | None, integers: NDArray[Any] | None = None
    ) -> None:
        self.channel_axis, self.mask, self.integers = channel_axis, mask, integers

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        kernel = inputs if self.mask is None else inputs * tf.constant(self.mask, inputs.dtype)
        if self.channel_axis is None:
            return kernel
        if self.integers is not None:
            return clustered(kernel, self.channel_axis, self.integers)
        return fake_kernel(kernel, self.channel_axis)

    def get_config(self) -> dict[str, Any]:
        return {}


class _Range(quantizers.Quantizer):  # type: ignore[name-defined]
    """Rounds an output to the range of all layers that share its scale.

    Args:
        layer: the layer whose output is rounded.
        own: the layer's extremes, updated in training; None for a layer whose values lie between those of its input.
        span: the extremes of all layers of the range.
    """

    def __init__(self, layer: Any, own: _Extremes | None, span: list[_Extremes]) -> None:
        self.layer, self.own, self.span = layer, own, span

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        if self.own:  # attributes of the wrapper are weights of the model, and so in its checkpoints
            layer.output_low, layer.output_high = self.own.low, self.own.high
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        if training and self.own:
            self.own.update(inputs)
        low = tf.minimum(0.0, tf.reduce_min([one.low for one in self.span]))
        high = tf.maximum(0.0, tf.reduce_max([one.high for one in self.span]))
        high = tf.where(high - low > NARROWEST, high, low + 1.0)
        return rounded_output(self.layer, inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        return {}


class _Config(tfmot.quantization.keras.QuantizeConfig):  # type: ignore[name-defined]
    """Quantizers of a layer's weight and output; None: not quantized."""

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


def _weight(
    layer: Any, quantized: bool, mask: NDArray[Any] | None, integers: NDArray[Any] | None
) -> tuple[str, _Weights] | None:
    if not quantized and mask is None:
        return None
    attribute, axis = WITH_WEIGHTS[type(layer)]
    return attribute, _Weights(axis if quantized else None, mask, integers)
