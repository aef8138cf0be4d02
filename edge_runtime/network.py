"""`Network`: an open model of any task. It turns pixels into raw outputs; the tasks give the outputs their meaning."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import interpreter
from .bundle import Bundle
from .errors import BundleError
from .flatbuffer import Graph
from .preprocess import InputSpec, in_color

MAX_DEFAULT_THREADS = 4
"""The cores of a Pi. More threads do not speed up models of this size."""

_PASSING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE"})
"""Operators that may follow the softmax without changing the meaning of the output."""
_MOST_APART = 64
"""Largest distance of the ends of an integer input's range from those of the pixels, where each channel is normalized
in its own way. The calibration images of such a model need not have held black and white."""
_OUTPUT_TYPES = (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.float32))


A = TypeVar("A")


class Network(ABC, Generic[A]):
    """A model with its input contract; ``A`` is the type of its answers. Not thread-safe: it reuses its buffers.

    Attributes:
        model: the interpreter with its tensor descriptions.
        labels: the classes, in the order of the outputs.
        input: the preprocessing contract of the pixels.
        threads: of the interpreter.
        bundle: the model file; None if built from a bare flatbuffer.
    """

    def __init__(
        self,
        model: interpreter.Model,
        labels: Sequence[str],
        spec: InputSpec,
        *,
        threads: int,
        bundle: Bundle | None,
    ) -> None:
        self.model = model
        self.labels = tuple(labels)
        self.input = spec
        self.threads = threads
        self.bundle = bundle
        shape = (1, spec.height, spec.width, spec.channels)
        if model.input.shape != shape:
            raise BundleError(
                f"{model.name}: the model's input is {model.input.shape}, the input contract says {shape}"
            )
        if model.output.dtype not in _OUTPUT_TYPES:
            raise BundleError(f"{model.name}: outputs of type {model.output.dtype} are not supported")
        check_input_contract(model.input, spec, model.name)
        self._buffer = np.empty(model.input.shape, model.input.dtype)
        self._mean, self._std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        self._table = _integers(model.input, spec) if _by_channel(spec) else None

    @abstractmethod
    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The probabilities for one image, uint8 ``(height, width, 3)`` as `preprocess` returns."""

    @abstractmethod
    def infer(self, pixels: NDArray[np.uint8], /) -> A:
        """`predict`, with what else the model says of the image."""

    @abstractmethod
    def clone(self, threads: int) -> Network[A]:
        """A model of the same file with its own interpreter; shares the bytes of the file."""

    def invoke(self, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The raw first output for one image, in the type and shape of the output tensor.

        Args:
            pixels: uint8, ``(height, width, 3)``, as `preprocess` returns.
        """
        spec, buffer = self.input, self._buffer
        if pixels.shape != (spec.height, spec.width, 3) or pixels.dtype != np.uint8:
            shape = (spec.height, spec.width, 3)
            raise ValueError(f"pixels must be uint8 of shape {shape}, not {pixels.dtype} {pixels.shape}")
        pixels = in_color(pixels, spec)
        if self._table is not None and buffer.dtype != np.float32:
            for channel, values in enumerate(self._table):
                buffer[0, ..., channel] = values[pixels[..., channel]]
            return self.model.invoke(buffer)
        if buffer.dtype == np.uint8:
            return self.model.invoke(np.ascontiguousarray(pixels)[np.newaxis])  # the interpreter copies them
        if buffer.dtype == np.int8:
            np.bitwise_xor(pixels, 0x80, out=buffer.view(np.uint8)[0])  # pixel - 128 in two's complement
        else:
            # The same operations in the same order as `normalize`, without its temporaries.
            np.subtract(pixels, self._mean, out=buffer[0], dtype=np.float32)
            np.divide(buffer, self._std, out=buffer)
        return self.model.invoke(buffer)


def check_input_contract(tensor: interpreter.TensorInfo, spec: InputSpec, name: str) -> None:
    """Check that the quantization of a model's input agrees with mean and std.

    An integer input gets the pixels themselves (int8: minus 128). This requires that quantizing
    ``(pixel - mean) / std`` with the tensor's scale and zero point gives the same values to within one step.

    Raises:
        BundleError: it does not agree, or the type of the input is not supported.
    """
    if tensor.dtype == np.float32:
        return
    if tensor.dtype not in (np.uint8, np.int8):
        raise BundleError(f"{name}: inputs of type {tensor.dtype} are not supported")
    scale, zero_point = input_quantization(tensor)
    first = 0 if tensor.dtype == np.uint8 else -128
    if _by_channel(spec):
        ends = [(pixel - m) / s / scale + zero_point for m, s in _pairs(spec) for pixel in (0, 255)]
        if max(abs(min(ends) - first), abs(max(ends) - first - 255)) > _MOST_APART:
            raise BundleError(
                f"{name}: the input's scale {scale:g} and zero point {zero_point} contradict {spec.normalization}",
                hint="give the --mean and --std that the model was trained with",
            )
        return
    (mean, std), *_ = _pairs(spec)
    # Both expressions are linear in the pixel, so the ends of the range suffice.
    for pixel in (0, 255):
        wanted = (pixel - mean) / std / scale + zero_point
        if abs(wanted - (first + pixel)) > 1 + 1e-3:
            raise BundleError(
                f"{name}: the input's scale {scale:g} and zero point {zero_point} contradict"
                f" mean {mean:g} and std {std:g}",
                hint="quantize again, or give the --mean and --std that the model was trained with",
            )


def _by_channel(spec: InputSpec) -> bool:
    return len(set(_pairs(spec))) > 1


def _pairs(spec: InputSpec) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of each channel."""
    return tuple(zip(spec.means, spec.stds, strict=True))


def _integers(tensor: interpreter.TensorInfo, spec: InputSpec) -> NDArray[np.generic] | None:
    """The integer input of every pixel value, ``(channels, 256)``; None for a float input."""
    if tensor.dtype == np.float32:
        return None
    scale, zero_point = input_quantization(tensor)
    limits = np.iinfo(tensor.dtype)
    values = [(np.arange(256) - mean) / std / scale + zero_point for mean, std in _pairs(spec)]
    return np.clip(np.rint(values), limits.min, limits.max).astype(tensor.dtype)


def default_threads() -> int:
    """The cores that this process may use, at most `MAX_DEFAULT_THREADS`."""
    return min(MAX_DEFAULT_THREADS, cores())


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def input_quantization(tensor: interpreter.TensorInfo) -> tuple[float, int]:
    """Scale and zero point of an input; ``(1, 0)`` for an integer input without quantization."""
    return (tensor.scale, tensor.zero_point) if tensor.scale > 0 else (1.0, 0)


def last_operator(graph: Graph, output: int) -> str:
    """The operator that produces an output, apart from those in `_PASSING`."""
    main = graph.main
    operator = main.producer(output)
    for _ in main.operators:
        if operator is None or operator.name not in _PASSING or not operator.inputs:
            break
        operator = main.producer(operator.inputs[0])
    return operator.name if operator else "nothing"


def dequantized(units: NDArray[np.generic], tensor: interpreter.TensorInfo) -> NDArray[np.float32]:
    """Raw values as float32: ``(unit - zero_point) * scale`` where the tensor is quantized."""
    values = units.astype(np.float32)
    if tensor.scale > 0:
        values = (values - np.float32(tensor.zero_point)) * np.float32(tensor.scale)
    return values
