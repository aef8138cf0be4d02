"""The error of an int8 network by layer: the cost of rounding each layer alone.

Like in TensorFlow's QuantizationDebugger, every layer gets the activations of the float network, and its int8 output is
compared with its float output. Here this is done in Keras, for the network of post-training quantization or
quantization-aware training.
Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_debugger (its rmse/scale).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...edge_runtime.results import Result
from ...models.graph import call, copy_of, sources
from ...models.keras_compat import keras, tf
from .placement import (
    UNIT,
    WITH_WEIGHTS,
    Placement,
    Range,
    fake_kernel,
    fused,
    images_at_once,
    parts_of,
    rounded_input,
    rounded_output,
)


@dataclass(frozen=True)
class LayerError(Result):
    """The error of one rounded output.

    Attributes:
        layer: name of the layer.
        kind: Keras class that computes the output.
        scale: its rounding step.
        sqnr_db: signal to quantization noise with this layer alone in int8; None without noise.
        channel_sqnr_db: the same for a mean channel, in which a lost channel counts as all noise. In ``sqnr_db`` a few
            large channels hide it.
        network_sqnr_db: as ``sqnr_db``, with all layers before it in int8 too.
        rmse_scale: root mean square error of the layer alone, in steps; 0.29 is rounding alone.
        clipped_frac: share of values outside its range.
        weights_sqnr_db: of its kernel; None without a kernel.
        kl: Kullback-Leibler divergence in nats of the network's predictions from the float ones with this layer alone
            in int8, mean over the images. None if it is not among the worst.
        max_change: largest change of a probability in the same network.
    """

    layer: str
    kind: str
    scale: float
    sqnr_db: float | None
    channel_sqnr_db: float | None
    network_sqnr_db: float | None
    rmse_scale: float
    clipped_frac: float
    weights_sqnr_db: float | None
    kl: float | None = None
    max_change: float | None = None


def layer_errors(
    folded: Any, placement: Placement, spanned: dict[str, Range], images: Iterable[Any], worst: int = 10
) -> list[LayerError]:
    """Measure the error of every rounded output.

    Args:
        folded: the float network with the weights that are quantized.
        placement: its placement, from `edgeall.optimize.quantization.placement.place`.
        spanned: its ranges, from `edgeall.optimize.quantization.placement.ranges`.
        images: float32 batches ``(n, h, w, 3)``; read several times.
        worst: number of layers with the lowest ``channel_sqnr_db`` whose effect on the predictions is measured; none
            is for a network of several outputs.

    Returns:
        One entry per rounded output: first those whose effect was measured, by falling ``kl``, then the others, by
        rising ``channel_sqnr_db``.
    """
    network = _Network(folded, placement, spanned)
    step = images_at_once(folded) // 3 or 1  # three values of every activation are in memory
    parts = [batch[at : at + step] for batch in images for at in range(0, len(batch), step)]
    rows = network.errors(parts)
    rows.sort(key=lambda row: math.inf if row.channel_sqnr_db is None else row.channel_sqnr_db)
    if len(folded.outputs) > 1:
        return rows
    return network.with_effects(rows[:worst], parts) + rows[worst:]


def layer_error_text(errors: list[LayerError], most: int = 20) -> str:
    """Table of the worst layers."""
    from ...console.tables import table

    columns = ["layer", "kind", "channel dB", "SQNR dB", "network dB", "rmse/scale", "clipped", "weights dB"]
    columns += ["KL", "max change"]
    rows = [
        [
            row.layer,
            row.kind,
            _text(row.channel_sqnr_db, ".1f"),
            _text(row.sqnr_db, ".1f"),
            _text(row.network_sqnr_db, ".1f"),
            f"{row.rmse_scale:.2f}",
            f"{100 * row.clipped_frac:.2f} %",
            _text(row.weights_sqnr_db, ".1f"),
            _text(row.kl, ".1e"),
            _text(row.max_change, ".3f"),
        ]
        for row in errors[:most]
    ]
    left_out = f"\n{len(errors) - most} layers with less error left out" if len(errors) > most else ""
    return table(columns, rows) + left_out


class Int8Layers:
    """The layers of a folded network, computed like in int8, one at a time.

    Args:
        folded: the float network.
        placement: see `layer_errors`.
        spanned: see `layer_errors`.
    """

    def __init__(self, folded: Any, placement: Placement, spanned: dict[str, Range]) -> None:
        self.layers = folded.layers
        self.placement = placement
        self._spanned = spanned
        self._rounding = {layer.name: self._with_rounded_kernel(layer) for layer in self.layers[1:]}

    def compute(self, layer: Any, inputs: list[Any]) -> Any:
        """Output of a layer with a rounded kernel; rounded as well if it exists as a tensor in int8."""
        output = call(self._rounding[layer.name], inputs)
        limits = self.range_of(layer)
        return output if limits is None else rounded_output(layer, output, *limits)

    def range_of(self, layer: Any) -> Range | None:
        """The range to which a layer's output is rounded."""
        name = self.placement.outputs.get(layer.name)
        return None if name is None else self._spanned[name]

    def kernels_of(self, layer: Any) -> tuple[Any, Any] | None:
        """Exact and rounded kernel of a layer; None if it has no rounded kernel."""
        if layer.name not in self.placement.kernels:
            return None
        return layer.get_weights()[0], self._rounding[layer.name].get_weights()[0]

    def _with_rounded_kernel(self, layer: Any) -> Any:
        if layer.name not in self.placement.kernels:
            return layer
        copy = copy_of(layer)
        copy.build(layer.input_shape)
        kernel, *bias = layer.get_weights()
        copy.set_weights([fake_kernel(tf.constant(kernel), WITH_WEIGHTS[type(layer)][1]).numpy(), *bias])
        return copy


class _Network(Int8Layers):
    """A folded network, compared with itself in int8."""

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers[1:] if layer.name in self.placement.outputs]

    def errors(self, parts: list[Any]) -> list[LayerError]:
        """One entry for every rounded output, without its effect on the predictions."""
        compare = tf.function(self._compare, reduce_retracing=True)
        found = [[sums.numpy().astype(np.float64) for sums in compare(part)] for part in parts]
        return [self._row(name, np.sum(sums, axis=0)) for name, *sums in zip(self.names, *found, strict=True)]

    def with_effects(self, rows: list[LayerError], parts: list[Any]) -> list[LayerError]:
        """The rows with ``kl`` and ``max_change``, by falling ``kl``."""
        chosen = [row.layer for row in rows]
        predict = tf.function(lambda images, which: self._predict(images, which, chosen), reduce_retracing=True)

        def predictions(which: int) -> Any:
            found = [predict(part, tf.constant(which)).numpy().astype(np.float64) for part in parts]
            return np.maximum(np.concatenate(found), keras.backend.epsilon())

        float32 = predictions(-1)
        measured: list[tuple[float, LayerError]] = []
        for which, row in enumerate(rows):
            int8 = predictions(which)
            kl = max(0.0, float((float32 * np.log(float32 / int8)).sum(axis=1).mean()))
            measured.append((kl, replace(row, kl=kl, max_change=float(np.abs(float32 - int8).max()))))
        return [row for _, row in sorted(measured, key=lambda pair: -pair[0])]

    def _compare(self, images: Any) -> Any:
        """For every rounded output ``(5, channels)``: sums over all positions and images of the squares of signal, own
        noise and accumulated noise; number of clipped values, and of all values."""
        first = self.layers[0]
        bounds = self.range_of(first) or UNIT
        exact = {first.name: images}
        whole = {first.name: rounded_input(images, bounds)}
        alone: dict[str, Any] = {}
        rows = []
        for layer in self.layers[1:]:
            name, before = layer.name, sources(layer)
            exact[name] = call(layer, [exact[source.name] for source in before])
            whole[name] = self.compute(layer, [whole[source.name] for source in before])
            given = alone if fused(before[0]) else exact  # a fused ReLU is rounded together with its layer
            alone[name] = self.compute(layer, [given[source.name] for source in before])
            if name in self.placement.outputs:
                low, high = self.range_of(layer) or UNIT
                margin = (high - low) / 510
                clipped = tf.math.logical_or(exact[name] < low - margin, exact[name] > high + margin)
                values = (
                    tf.square(exact[name]),
                    tf.square(alone[name] - exact[name]),
                    tf.square(whole[name] - exact[name]),
                    tf.cast(clipped, tf.float32),
                    tf.ones_like(exact[name]),
                )
                rows.append(tf.stack([tf.reduce_sum(value, tuple(range(len(value.shape) - 1))) for value in values]))
        return rows

    def _row(self, name: str, channels: Any) -> LayerError:
        signal, alone, whole, clipped, count = channels.sum(axis=1).tolist()
        alive = channels[:, channels[0] > 0]
        lost = float(np.minimum(alive[1] / alive[0], 1.0).mean()) if alive.size else 0.0
        layer = next(layer for layer in self.layers if layer.name == name)
        low, high = self.range_of(layer) or UNIT
        scale = (high - low) / 255
        first = parts_of(layer)[0]
        return LayerError(
            layer=name,
            kind=type(first).__name__,
            scale=scale,
            sqnr_db=_db(signal, alone),
            channel_sqnr_db=_db(1.0, lost),
            network_sqnr_db=_db(signal, whole),
            rmse_scale=math.sqrt(alone / count) / scale,
            clipped_frac=clipped / count,
            weights_sqnr_db=self._weights_db(first),
        )

    def _weights_db(self, layer: Any) -> float | None:
        kernels = self.kernels_of(layer)
        if kernels is None:
            return None
        exact, rounded = (kernel.astype(np.float64) for kernel in kernels)
        return _db(float(np.square(exact).sum()), float(np.square(rounded - exact).sum()))

    def _predict(self, images: Any, which: Any, chosen: list[str]) -> Any:
        """Probabilities with the layer at index ``which`` of ``chosen`` in int8; none for a negative index."""
        index = {
            part.name: chosen.index(layer.name)
            for layer in self.layers
            if layer.name in chosen
            for part in parts_of(layer)
        }
        values = {self.layers[0].name: images}
        for layer in self.layers[1:]:
            inputs = [values[source.name] for source in sources(layer)]
            values[layer.name] = (
                tf.cond(which == index[layer.name], *_branches(self, layer, inputs))
                if layer.name in index
                else call(layer, inputs)
            )
        return values[self.layers[-1].name]


def _branches(network: _Network, layer: Any, inputs: list[Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return lambda: network.compute(layer, inputs), lambda: call(layer, inputs)


def _db(signal: float, noise: float) -> float | None:
    """Ratio in decibels; None without noise."""
    return None if noise <= 0 else 10 * math.log10(max(signal, 1e-30) / noise)


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
