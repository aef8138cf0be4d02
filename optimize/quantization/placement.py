"""What int8 rounds and where, for every backbone: the one table that PTQ, QAT and the error report share.

TFLite quantizes tensors, not layers. A ReLU behind a convolution, a dense layer, an addition or a product is fused into
it, so that what lies between exists nowhere. Pooling, padding, cropping, flattening, reshaping and concatenation run in
their input's scale; concatenation therefore binds its inputs to one, and whatever is concatenated with its result too.
A sigmoid's scale is fixed.
Source: https://ai.google.dev/edge/litert/models/quantization_spec, and what the converter of TensorFlow 2.21 does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...edge_runtime.errors import UsageError
from ...edge_runtime.preprocess import InputSpec
from ...models.graph import call, copy_of, rebuild, sources, targets
from ...models.keras_compat import keras, tf

layers = keras.layers
Range = tuple[float, float]

WITH_WEIGHTS = {
    layers.DepthwiseConv2D: ("depthwise_kernel", 2),  # (h, w, channels, 1)
    layers.Conv2D: ("kernel", 3),  # (h, w, in, out)
    layers.Dense: ("kernel", 1),  # (in, out)
}
"""Attribute and output-channel axis of every layer's kernel."""
PAIRWISE = (layers.Add, layers.Multiply)
OWN_RANGE = (*WITH_WEIGHTS, *PAIRWISE, layers.ReLU, layers.GlobalAveragePooling2D)
POOLS = (layers.MaxPooling2D, layers.AveragePooling2D)
SAME_RANGE = (*POOLS, layers.ZeroPadding2D, layers.Cropping2D, layers.Flatten, layers.Reshape)
FUSE_RELU = (*WITH_WEIGHTS, *PAIRWISE)

INPUT, SIGMOID = "(input)", "(sigmoid)"
"""Names of the ranges that are given; the others are called after a layer."""
UNIT: Range = (0.0, 255 / 256)
"""TFLite's range of a sigmoid or a softmax: scale 1/256, zero point -128."""
NARROWEST = 1e-6
"""A tensor whose values span less is taken for one that is always zero."""
ACTIVATIONS_BYTES = 1e9
"""What the activations of the images in one step may take, were all of them held at once."""


@dataclass(frozen=True)
class Placement:
    """Which tensors are rounded, and to what.

    Attributes:
        outputs: name of every layer whose output is rounded to the name of its range; the input layer is one.
        spans: name of a range to the layers whose values it spans.
        fixed: name of a range that is given, to that range.
        kernels: layers whose kernel is quantized.
        floats: layers that compute in float, in running order.
    """

    outputs: dict[str, str]
    spans: dict[str, tuple[str, ...]]
    fixed: dict[str, Range]
    kernels: tuple[str, ...]
    floats: tuple[str, ...]


def input_range(spec: InputSpec) -> Range:
    """What the pixels 0 and 255 become."""
    return (0 - spec.mean) / spec.std, (255 - spec.mean) / spec.std


def place(folded: Any, bounds: Range, float_layers: Collection[str] = ()) -> Placement:
    """Where a network is quantized.

    Args:
        folded: from `edgeall.optimize.quantization.fold.fold_batch_normalization`.
        bounds: from `input_range`.
        float_layers: layers whose weights and output are left in float. What reads such an output computes in float
            too, up to where the next output is rounded; and what shares a scale with it, as the inputs of one
            concatenation do, is left in float with it.

    Raises:
        UsageError: the network holds a layer whose quantization isn't known, or ``float_layers`` one that it doesn't.
    """
    kept = _checked(folded, float_layers)
    outputs: dict[str, str] = {}
    spans: dict[str, tuple[str, ...]] = {}
    fixed = {INPUT: bounds, SIGMOID: UNIT}
    kernels: list[str] = []
    floats: list[str] = []
    at: dict[str, str | None] = {}  # the range that a layer's output lies in; None: it is left in float
    for layer in folded.layers:
        name = layer.name
        if isinstance(layer, layers.InputLayer):
            at[name] = outputs[name] = INPUT
            continue
        if fused(layer):
            continue
        parts = parts_of(layer)
        before = [at[source.name] for source in sources(parts[0])]
        found = list(dict.fromkeys(one for one in before if one is not None))
        in_float = None in before or any(part.name in kept for part in parts)
        (floats if in_float else kernels).extend(part.name for part in parts if in_float or _has_kernel(part))
        if name in kept:
            at[name] = None
        elif type(layer) is layers.Softmax:
            at[name] = SIGMOID
            if in_float:
                outputs[name] = SIGMOID
        elif _is_sigmoid(layer):
            at[name] = outputs[name] = SIGMOID
        elif _keeps_range(layer) and not (len(found) > 1 and fixed.keys() & found):
            shared, *others = found
            for other in others:
                spans[shared] += spans.pop(other)
                at |= {one: shared for one, its in at.items() if its == other}
                outputs |= {one: shared for one, its in outputs.items() if its == other}
            at[name] = shared
            if isinstance(layer, (layers.AveragePooling2D, layers.ReLU)):  # the others make no new values
                outputs[name] = shared
        else:
            at[name] = outputs[name] = name
            spans[name] = (name,)
    return Placement(outputs, spans, fixed, tuple(kernels), tuple(floats))


def fused(layer: Any) -> bool:
    """Whether TFLite fuses the ReLU that follows into this layer: then only the ReLU's output exists as a tensor."""
    after = targets(layer)
    return type(layer) in FUSE_RELU and len(after) == 1 and isinstance(after[0], layers.ReLU)


def parts_of(layer: Any) -> list[Any]:
    """The layers that TFLite runs as one, given the last of them: the layer itself, behind what it is fused into."""
    before = sources(layer)[0]
    return [before, layer] if isinstance(layer, layers.ReLU) and fused(before) else [layer]


def extremes(folded: Any, placement: Placement, batches: Iterable[Any]) -> dict[str, Range]:
    """Of every layer that a range spans: its smallest and its largest output, each as a mean over ``batches``.

    Args:
        folded: what ``placement`` is of.
        placement: from `place`.
        batches: float32 ``(n, h, w, 3)`` of training images. A batch goes through the network in parts where the
            activations would not fit into `ACTIVATIONS_BYTES`; its extremes are the same.
    """
    named = [name for span in placement.spans.values() for name in span]
    probe = keras.Model(folded.input, [folded.get_layer(name).output for name in named])
    step = images_at_once(folded)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def lowest_and_highest(images: Any) -> Any:
        outputs = probe(images, training=False)
        return tf.stack([tf.stack([-tf.reduce_min(value), tf.reduce_max(value)]) for value in outputs])

    def of_batch(batch: Any) -> Any:
        return np.max([lowest_and_highest(batch[at : at + step]).numpy() for at in range(0, len(batch), step)], axis=0)

    mean = np.mean([of_batch(batch) for batch in batches], axis=0)
    return {name: (-float(low), float(high)) for name, (low, high) in zip(named, mean, strict=True)}


def ranges(placement: Placement, measured: dict[str, Range]) -> dict[str, Range]:
    """Every range by name: what its layers span, with the zero that padding needs, and never empty."""
    found = dict(placement.fixed)
    for name, span in placement.spans.items():
        low, high = min(0.0, *(measured[one][0] for one in span)), max(0.0, *(measured[one][1] for one in span))
        found[name] = (low, high if high - low > NARROWEST else low + 1.0)
    return found


def rounded(network: Any, placement: Placement, spanned: dict[str, Range]) -> Any:
    """The network that the converter makes integers of: its activations rounded, its kernels left to the converter.

    The converter rounds kernels per output channel with the symmetric scales of `fake_kernel`; handed already rounded
    ones, it would have to recognise the pattern around depthwise kernels.

    Args:
        network: what ``placement`` is of, or that with other weights.
        placement: from `place`.
        spanned: from `ranges`.
    """
    number = {layer.name: index for index, layer in enumerate(network.layers, start=1)}

    def make(layer: Any, tensors: list[Any]) -> Any:
        if isinstance(layer, layers.InputLayer):
            output = tensors[0]
        else:
            copy = copy_of(layer)
            output = call(copy, tensors)
            copy.set_weights([_unlike(value, number[layer.name]) for value in layer.get_weights()])
        if layer.name not in placement.outputs:
            return output
        return tf.quantization.fake_quant_with_min_max_args(output, *spanned[placement.outputs[layer.name]])

    return rebuild(network, make)


def rounded_input(images: Any, bounds: Range) -> Any:
    """Normalized images as the int8 network has them.

    A zero point is a whole number: with mean and std 127.5 pixel p is (p - 128) / 127.5 there, half a step darker than
    in float. TensorFlow's own operator, in float32, would round 127.5 down, the converter rounds it up.
    """
    low, high = bounds
    scale = (high - low) / 255
    nudged = -math.floor(-low / scale + 0.5) * scale
    return tf.quantization.fake_quant_with_min_max_args(images + (nudged - low), nudged, nudged + 255 * scale)


def rounded_output(layer: Any, values: Any, low: Any, high: Any) -> Any:
    """A layer's output as the int8 network has it, in the range from ``low`` to ``high``.

    The mean of four int8 values often lies half-way between two others: TFLite takes the one further from int8's zero,
    TensorFlow's operator the upper one. Below the middle of the range they would all be a step apart.
    """
    if isinstance(layer, layers.AveragePooling2D):
        step = (high - low) / 255
        values = tf.where(values < low + 127.5 * step, values - step / 1024, values)
    return tf.quantization.fake_quant_with_min_max_vars(values, low, high)


def calibrated(folded: Any, spec: InputSpec, batches: Iterable[Any]) -> Any:
    """Post-training quantization: `rounded`, with ranges measured on ``batches``, see `extremes`."""
    placement = place(folded, input_range(spec))
    return rounded(folded, placement, ranges(placement, extremes(folded, placement, batches)))


def fake_kernel(kernel: Any, channel_axis: int) -> Any:
    """A kernel rounded as the converter does it: symmetric, narrow range, one scale per output channel.

    Args:
        kernel: float32.
        channel_axis: see `WITH_WEIGHTS`.
    """
    rank = len(kernel.shape)
    order = [axis for axis in range(rank) if axis != channel_axis] + [channel_axis]
    moved = tf.transpose(kernel, order)
    bound = tf.stop_gradient(tf.reduce_max(tf.abs(moved), axis=tuple(range(rank - 1))))
    bound = tf.maximum(bound, 1e-8)  # a dead channel; the op refuses an empty range
    fake = tf.quantization.fake_quant_with_min_max_vars_per_channel(moved, -bound, bound, narrow_range=True)
    return tf.transpose(fake, np.argsort(order))


def images_at_once(model: Any, most: int = 32) -> int:
    """How many images may go through ``model`` in one step, at least one."""
    bytes_per_image = 4 * sum(int(np.prod(layer.output_shape[1:])) for layer in model.layers[1:])
    return max(1, min(most, int(ACTIVATIONS_BYTES // bytes_per_image)))


def _checked(folded: Any, float_layers: Collection[str]) -> set[str]:
    """The layers whose output is left in float: those named, what is fused into them, and what shares their scale."""
    names = [layer.name for layer in folded.layers[1:] if not isinstance(layer, layers.Softmax)]
    for name in float_layers:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            raise UsageError(
                f"no layer called {name!r} to leave in float",
                hint=f"did you mean {' or '.join(near)}?" if near else "the layer report lists them",
            )
    unknown = [layer.name for layer in folded.layers[1:] if not _known(layer) and layer.name not in float_layers]
    if unknown:
        raise UsageError(
            f"layers that can't be quantized: {', '.join(unknown)}",
            hint="leave them in float by name, or choose --scheme dynamic",
        )
    kept: set[str] = set()
    reached = [folded.get_layer(name) for name in float_layers]
    while reached:
        layer = reached.pop()
        if layer.name in kept:
            continue
        if isinstance(layer, layers.InputLayer):
            raise UsageError("the input is uint8: what only moves its pixels about can't be left in float")
        if _is_sigmoid(layer):  # its output has one scale, always; it can be computed in float
            reached += sources(layer)
            continue
        kept.add(layer.name)
        reached += targets(layer) if fused(layer) else [after for after in targets(layer) if _keeps_range(after)]
        reached += sources(layer) if _keeps_range(layer) else []
    return kept


def _known(layer: Any) -> bool:
    """Exact types throughout: a subclass is another layer."""
    kind = type(layer)
    if kind in WITH_WEIGHTS:
        return layer.activation in (keras.activations.linear, keras.activations.relu)
    if kind is layers.ReLU:
        return not layer.negative_slope and not layer.threshold
    if kind in PAIRWISE:  # of three, TFLite has a sum in between that no range is known of
        return len(sources(layer)) == 2
    return kind in (*OWN_RANGE, *SAME_RANGE, layers.Concatenate, layers.Softmax) or _is_sigmoid(layer)


def _is_sigmoid(layer: Any) -> bool:
    return type(layer) is layers.Activation and layer.activation is keras.activations.sigmoid


def _has_kernel(layer: Any) -> bool:
    return type(layer) in WITH_WEIGHTS


def _keeps_range(layer: Any) -> bool:
    """Whether TFLite runs it in the scale of its input. It fuses a ReLU into pooling, too, which then stays one."""
    if isinstance(layer, layers.ReLU):
        return isinstance(sources(layer)[0], POOLS)
    return type(layer) in (*SAME_RANGE, layers.Concatenate)


def _unlike(value: Any, number: int) -> Any:
    """The same weights but for the least that float32 can tell apart, where the converter (TensorFlow 2.21) confuses
    equal ones: of a bias whose values are all the same it keeps one, quantized with the scale of the first channel, for
    all channels and their different scales; and of kernels that are all zero it keeps one for several layers, which it
    then leaves in float.
    """
    equal = value.size > 1 and not (value != value.flat[0]).any()
    if not equal or (value.ndim == 1 and value.flat[0] == 0):
        return value
    value = value.copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(np.inf)) if value.flat[0] else number * 1e-30
    return value
