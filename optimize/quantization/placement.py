"""The placement of int8 rounding in a network, shared by PTQ, QAT and the error report.

TFLite quantizes tensors, not layers. A ReLU behind a convolution, a dense layer, an addition or a product is fused into
it, so the tensor between them does not exist. Pooling, resizing, padding, cropping, flattening, reshaping and
concatenation use the scale of their input. A concatenation therefore gives all its inputs one scale, and so do further
concatenations of its result. The scale of a sigmoid is fixed.
Source: https://ai.google.dev/edge/litert/models/quantization_spec, and the converter of TensorFlow 2.21.
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
SAME_RANGE = (
    *(*POOLS, layers.UpSampling2D, layers.ZeroPadding2D, layers.Cropping2D),
    *(layers.Flatten, layers.Reshape),
)
NEW_VALUES = (layers.AveragePooling2D, layers.UpSampling2D, layers.ReLU)
"""Layers in the scale of their input whose output is rounded; the others only move values."""
FUSE_RELU = (*WITH_WEIGHTS, *PAIRWISE)

INPUT, SIGMOID = "(input)", "(sigmoid)"
"""Names of the fixed ranges; the others are named after a layer."""
UNIT: Range = (0.0, 255 / 256)
"""TFLite's range of a sigmoid or softmax: scale 1/256, zero point -128."""
NARROWEST = 1e-6
"""A tensor with a smaller range of values counts as always zero."""
ACTIVATIONS_BYTES = 1e9
"""Largest size of all activations of the images in one step."""


@dataclass(frozen=True)
class Placement:
    """Which tensors are rounded, and to which ranges.

    Attributes:
        outputs: name of its range, by the name of every layer whose output is rounded, the input layer included.
        spans: layers whose values a range spans, by the name of the range.
        fixed: fixed ranges by name.
        kernels: layers whose kernel is quantized.
        floats: layers that compute in float, in execution order.
        movers: layers that only move integers, which one of ``floats`` reads. The converter may move them in float.
    """

    outputs: dict[str, str]
    spans: dict[str, tuple[str, ...]]
    fixed: dict[str, Range]
    kernels: tuple[str, ...]
    floats: tuple[str, ...]
    movers: tuple[str, ...]


def input_range(spec: InputSpec) -> Range:
    """The values of the pixels 0 and 255 after normalization."""
    (mean, *_), (std, *_) = spec.means, spec.stds  # a run has one normalization for all channels
    return (0 - mean) / std, (255 - mean) / std


def place(folded: Any, bounds: Range, float_layers: Collection[str] = ()) -> Placement:
    """Decide where a network is quantized.

    Args:
        folded: from `edgeall.optimize.quantization.fold.fold_batch_normalization`.
        bounds: from `input_range`.
        float_layers: layers whose weights and output stay in float. A layer that reads such an output computes in
            float too, up to the next rounded output. Layers that share a scale with it, such as the inputs of one
            concatenation, stay in float with it.

    Raises:
        UsageError: the network has a layer of unknown quantization, or ``float_layers`` names an unknown layer.
    """
    kept = _checked(folded, float_layers)
    outputs: dict[str, str] = {}
    spans: dict[str, tuple[str, ...]] = {}
    fixed = {INPUT: bounds, SIGMOID: UNIT}
    kernels: list[str] = []
    floats: list[str] = []
    at: dict[str, str | None] = {}  # range of a layer's output; None: it stays in float
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
            if isinstance(
                layer, (layers.AveragePooling2D, layers.UpSampling2D, layers.ReLU)
            ):  # the others compute no new values
                outputs[name] = shared
        else:
            at[name] = outputs[name] = name
            spans[name] = (name,)
    return Placement(outputs, spans, fixed, tuple(kernels), tuple(floats), _movers(folded, outputs, floats))


def _movers(folded: Any, outputs: Collection[str], floats: Collection[str]) -> tuple[str, ...]:
    found: list[str] = []
    for layer in reversed(folded.layers):
        name, in_float = layer.name, (*floats, *found)
        read = any(after.name in in_float for after in targets(layer))
        if read and name not in (*in_float, *outputs) and _keeps_range(layer):
            found.append(name)
    return tuple(found)


def fused(layer: Any) -> bool:
    """Whether TFLite fuses the following ReLU into this layer, so that the ReLU's output alone exists as a tensor."""
    after = targets(layer)
    return type(layer) in FUSE_RELU and len(after) == 1 and isinstance(after[0], layers.ReLU)


def parts_of(layer: Any) -> list[Any]:
    """The layers that TFLite runs as one operator, given the last of them."""
    before = sources(layer)[0]
    return [before, layer] if isinstance(layer, layers.ReLU) and fused(before) else [layer]


def extremes(folded: Any, placement: Placement, batches: Iterable[Any]) -> dict[str, Range]:
    """Smallest and largest output of every layer that a range spans, each as a mean over ``batches``.

    Args:
        folded: the network of ``placement``.
        placement: from `place`.
        batches: float32 ``(n, h, w, 3)`` of training images. A batch is processed in parts if its activations do not
            fit into `ACTIVATIONS_BYTES`; its extremes are the same.
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
    """Every range by name: it spans its layers' values and the zero of padding, and is never empty."""
    found = dict(placement.fixed)
    for name, span in placement.spans.items():
        found[name] = range_of([measured[one] for one in span])
    return found


def range_of(extremes: Iterable[Range]) -> Range:
    """The range of all these values and zero, which is never empty."""
    lows, highs = zip(*extremes, strict=True)
    low, high = min(0.0, *lows), max(0.0, *highs)
    return low, high if high - low > NARROWEST else low + 1.0


def rounded(network: Any, placement: Placement, spanned: dict[str, Range]) -> Any:
    """The network for conversion to integers: its activations are rounded, its kernels are not.

    The converter rounds the kernels per output channel, with the symmetric scales of `fake_kernel`. It would not
    recognise the pattern of rounding around depthwise kernels.

    Args:
        network: the network of ``placement``, possibly with other weights.
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
            copy.set_weights([_distinct(value, number[layer.name]) for value in layer.get_weights()])
        if layer.name not in placement.outputs:
            return output
        return tf.quantization.fake_quant_with_min_max_args(output, *spanned[placement.outputs[layer.name]])

    return rebuild(network, make)


def rounded_second(whole: Any, limits: Range) -> Any:
    """The network with a rounding of its own for the second output, where a layer makes or reads its tensor in float.

    Without it the converter (TensorFlow 2.21) gives the uint8 output to that reader. It merges equal roundings, so the
    range is a quarter of a step wider.

    Args:
        whole: its outputs are the second one and the first one, as in `QuantizationTask.outputs`.
        limits: of the second output.
    """
    second, first = whole.outputs
    low, high = (value * (1 + 1 / 1024) for value in limits)
    return keras.Model(whole.input, [tf.quantization.fake_quant_with_min_max_args(second, low, high), first])


def rounded_input(images: Any, bounds: Range) -> Any:
    """Normalized images as in the int8 network.

    A zero point is an integer: with mean and std 127.5, pixel p becomes (p - 128) / 127.5, half a step darker than in
    float. TensorFlow's own operator rounds 127.5 down in float32, the converter rounds it up.
    """
    low, high = bounds
    scale = (high - low) / 255
    nudged = -math.floor(-low / scale + 0.5) * scale
    return tf.quantization.fake_quant_with_min_max_args(images + (nudged - low), nudged, nudged + 255 * scale)


def rounded_output(layer: Any, values: Any, low: Any, high: Any) -> Any:
    """A layer's output as in the int8 network, in the range from ``low`` to ``high``.

    The mean of four int8 values often lies half-way between two integers. TFLite rounds away from int8's zero,
    TensorFlow's operator rounds up; below the middle of the range the results would differ by one step.
    """
    if isinstance(layer, layers.AveragePooling2D):
        step = (high - low) / 255
        values = tf.where(values < low + 127.5 * step, values - step / 1024, values)
    return tf.quantization.fake_quant_with_min_max_vars(values, low, high)


def ptq(folded: Any, spec: InputSpec, batches: Iterable[Any]) -> Any:
    """Post-training quantization: `rounded`, with ranges measured on ``batches``, see `extremes`."""
    placement = place(folded, input_range(spec))
    return rounded(folded, placement, ranges(placement, extremes(folded, placement, batches)))


def fake_kernel(kernel: Any, channel_axis: int) -> Any:
    """A kernel rounded like in the converter: symmetric, narrow range, one scale per output channel.

    Args:
        kernel: float32.
        channel_axis: see `WITH_WEIGHTS`.
    """
    rank = len(kernel.shape)
    order = [axis for axis in range(rank) if axis != channel_axis] + [channel_axis]
    moved = tf.transpose(kernel, order)
    bound = tf.stop_gradient(tf.reduce_max(tf.abs(moved), axis=tuple(range(rank - 1))))
    bound = tf.maximum(bound, 1e-8)  # a dead channel; the operator refuses an empty range
    fake = tf.quantization.fake_quant_with_min_max_vars_per_channel(moved, -bound, bound, narrow_range=True)
    return tf.transpose(fake, np.argsort(order))


def images_at_once(model: Any, most: int = 32) -> int:
    """Number of images that ``model`` may process in one step, at least one and at most ``most``."""
    bytes_per_image = 4 * sum(int(np.prod(layer.output_shape[1:])) for layer in model.layers[1:])
    return max(1, min(most, int(ACTIVATIONS_BYTES // bytes_per_image)))


def _checked(folded: Any, float_layers: Collection[str]) -> set[str]:
    """Layers whose output stays in float: those named, layers fused into them, and layers that share their scale."""
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
            f"layers that cannot be quantized: {', '.join(unknown)}",
            hint="name them in --float-layers, or use --scheme dynamic",
        )
    kept: set[str] = set()
    reached = [folded.get_layer(name) for name in float_layers]
    while reached:
        layer = reached.pop()
        if layer.name in kept:
            continue
        if isinstance(layer, layers.InputLayer):
            raise UsageError("the input is uint8: a layer that only moves its pixels cannot stay in float")
        if _is_sigmoid(layer):  # its output always has a fixed scale, but it can compute in float
            reached += sources(layer)
            continue
        kept.add(layer.name)
        reached += targets(layer) if fused(layer) else [after for after in targets(layer) if _keeps_range(after)]
        reached += sources(layer) if _keeps_range(layer) else []
    return kept


def _known(layer: Any) -> bool:
    """Whether the quantization of a layer is known. Types are exact, because a subclass is another layer."""
    kind = type(layer)
    if kind in WITH_WEIGHTS:
        return layer.activation in (keras.activations.linear, keras.activations.relu)
    if kind is layers.ReLU:
        return not layer.negative_slope and not layer.threshold
    if kind in PAIRWISE:  # with three inputs TFLite has an intermediate sum of unknown range
        return len(sources(layer)) == 2
    return kind in (*OWN_RANGE, *SAME_RANGE, layers.Concatenate, layers.Softmax) or _is_sigmoid(layer)


def _is_sigmoid(layer: Any) -> bool:
    return type(layer) is layers.Activation and layer.activation is keras.activations.sigmoid


def _has_kernel(layer: Any) -> bool:
    return type(layer) in WITH_WEIGHTS


def _keeps_range(layer: Any) -> bool:
    """Whether TFLite runs a layer in the scale of its input, as pooling and a ReLU that is fused into pooling."""
    if isinstance(layer, layers.ReLU):
        return isinstance(sources(layer)[0], POOLS)
    return type(layer) in (*SAME_RANGE, layers.Concatenate)


def _distinct(value: Any, number: int) -> Any:
    """The same weights, with the first value of constant ones changed by the smallest float32 step.

    The converter (TensorFlow 2.21) merges equal constants. It keeps one value of a constant bias for all channels,
    quantized with the scale of the first; and it keeps one all-zero kernel for several layers, which then stay in
    float.
    """
    equal = value.size > 1 and not (value != value.flat[0]).any()
    if not equal or (value.ndim == 1 and value.flat[0] == 0):
        return value
    value = value.copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(np.inf)) if value.flat[0] else number * 1e-30
    return value
