"""Opens foreign models, which edgeall did not pack: requires missing facts as options, and refuses contradictions."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from . import interpreter
from .bundle import Bundle, read_labels
from .classifier import Classifier
from .errors import BundleError, UsageError
from .flatbuffer import Graph, Tensor
from .network import check_input_contract, input_quantization, last_operator
from .preprocess import Channels, InputSpec, numbers_text
from .probe import ensure_runs

OPEN = -1
"""A variable size of the model's input."""


def open_foreign(
    bundle: Bundle,
    threads: int,
    labels_file: str | os.PathLike[str] | tuple[str, ...] | None,
    normalization: tuple[Channels, Channels] | None,
    input_size: int | None,
    color: str | None = None,
) -> Classifier:
    """See `Classifier.open`.

    ``labels_file`` may be the labels themselves; ``normalization`` is the given ``(mean, std)``, ``color`` that of the
    `InputSpec`.
    """
    name, main = bundle.path, bundle.graph.main
    if len(main.inputs) != 1:
        raise BundleError(f"{name}: it has {len(main.inputs)} inputs, a classifier has one")
    shape, resize = _input_shape(main.tensors[main.inputs[0]], input_size, name)
    for index in (*main.inputs, *main.outputs):
        _check_quantization(main.tensors[index], index in main.outputs, name)
    if isinstance(labels_file, tuple):
        labels: tuple[str, ...] | None = labels_file
    else:
        labels = bundle.labels if labels_file is None else read_labels(labels_file)
    if labels is None:
        raise BundleError(f"{name}: has no labels", hint="give a text file with one label per line: --labels FILE")
    scores = scores_of(bundle.graph, name)
    requested_shape = shape if resize else None
    try:
        ensure_runs(bundle.flatbuffer, name, requested_shape)  # it has no digest
    except BundleError as error:
        if input_size is None:
            raise
        raise BundleError(error.message, hint=f"was it trained with {input_size}x{input_size} pixels?") from error
    model = interpreter.load(bundle.flatbuffer, threads, name, input_shape=requested_shape)
    _check_outputs(model, scores, name)
    color = color or ("RGB" if shape[3] == 3 else "GREY")
    mean, std = _normalization(model.input, normalization, bundle.normalization, color, name)
    return Classifier(
        model,
        _distinct(labels),
        InputSpec(height=shape[1], width=shape[2], mean=mean, std=std, color=color),
        threads=threads,
        logits=scores == "logits",
        sigmoid=scores == "sigmoid",
        bundle=bundle,
    )


def given_normalization(mean: Channels | None, std: Channels | None) -> tuple[Channels, Channels]:
    """Return both values if they are valid. Raises UsageError otherwise."""
    if mean is None or std is None:
        raise UsageError("--mean and --std must be given together", hint="give both or neither")
    for option, value in (("--mean", mean), ("--std", std)):
        values = value if isinstance(value, tuple) else (value,)
        if not all(map(math.isfinite, values)):
            raise UsageError(f"{option} {numbers_text(value)} must be a finite number")
        if option == "--std" and min(values) <= 0:
            raise UsageError(f"--std {numbers_text(std)} must be above 0")
    return mean, std


def sizes_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape of an input, with `OPEN` for each variable size.

    The shape in the file has a 1 for a variable size. Without a signature, 1x1 pixels mean a variable image size.
    """
    if len(tensor.signature) == len(tensor.shape):
        known = zip(tensor.shape, tensor.signature, strict=True)
        return tuple(OPEN if size < 1 or left_open < 0 else size for size, left_open in known)
    sizes = tuple(OPEN if size < 1 else size for size in tensor.shape)
    return (sizes[0], OPEN, OPEN, sizes[3]) if len(sizes) == 4 and sizes[1:3] == (1, 1) else sizes


def scores_of(graph: Graph, name: str) -> str:
    """The kind of a foreign model's output, by the operator that produces it.

    Returns:
        ``probabilities`` from a SOFTMAX; ``sigmoid`` for one output from a LOGISTIC; ``logits`` otherwise.

    Raises:
        BundleError: several outputs from a LOGISTIC, i.e. a multi-label model.
    """
    last = last_operator(graph, graph.main.outputs[0]) if graph.main.outputs else "nothing"
    if last == "LOGISTIC":
        outputs = math.prod(abs(size) for size in graph.main.tensors[graph.main.outputs[0]].shape)
        if outputs != 1:
            raise BundleError(
                f"{name}: ends in LOGISTIC with {outputs} outputs: multi-label models are not supported",
                hint="end the model in a softmax over all labels, or in one sigmoid for two labels",
            )
        return "sigmoid"
    return "probabilities" if last == "SOFTMAX" else "logits"


def _input_shape(tensor: Tensor, input_size: int | None, name: str) -> tuple[tuple[int, ...], bool]:
    """The input shape, and whether the interpreter must be resized to it."""
    sizes, shown = sizes_of(tensor), _shown(sizes_of(tensor))
    if len(sizes) != 4:
        raise BundleError(f"{name}: the model's input is {shown}, {_NO_IMAGE}")
    batch, height, width, channels = sizes
    if channels not in (1, 3, OPEN) or batch not in (1, OPEN):
        hint = "convert it again for one RGB or grey image"
        if sizes[1] == 3:
            hint = "its layout is channels first: convert it with channels last"
        raise BundleError(f"{name}: the model's input is {shown}, {_NO_IMAGE}", hint=hint)
    for size, promised in zip(tensor.shape, tensor.signature, strict=False):
        if promised > 0 and size > 0 and promised != size:
            raise BundleError(
                f"{name}: its input's shape {_shown(tensor.shape)} contradicts its signature,"
                f" {_shown(tensor.signature)}",
                hint="convert the model again",
            )
    if OPEN in (height, width):
        if input_size is None:
            raise BundleError(
                f"{name}: its input has no fixed size: {shown}",
                hint="give the size that it was trained with in pixels, e.g. --input-size 224",
            )
        height, width = (input_size if size == OPEN else size for size in (height, width))
    elif input_size is not None:
        raise UsageError(
            f"--input-size {input_size}: {name} has a fixed input of {width}x{height} pixels",
            hint="leave --input-size out",
        )
    shape = (1, height, width, 3 if channels == OPEN else channels)
    return shape, shape != tensor.shape


_NO_IMAGE = "not one RGB image (1, height, width, 3) or grey image (1, height, width, 1)"


def _shown(sizes: Sequence[int]) -> str:
    return f"({', '.join('any' if size == OPEN else str(size) for size in sizes)})"


def _check_quantization(tensor: Tensor, is_output: bool, name: str) -> None:
    """Raises BundleError for an invalid scale. The interpreter crashes on some of them and ignores others."""
    scales = tensor.scale
    if tensor.type not in ("INT8", "UINT8"):
        return
    if not scales:
        if not is_output:  # the model's input is the pixel values
            return
        raise BundleError(
            f"{name}: its output is {tensor.type} without a scale, so it has no probabilities",
            hint="convert the model again, with a float or a quantized output",
        )
    if len(scales) > 1:
        raise BundleError(
            f"{name}: {tensor.name} is quantized per channel, an input or output must have one scale",
            hint="convert the model again",
        )
    if not (math.isfinite(scales[0]) and scales[0] > 0):
        raise BundleError(
            f"{name}: {tensor.name} has the invalid scale {scales[0]:g}",
            hint="convert the model again",
        )


def _check_outputs(model: interpreter.Model, scores: str, name: str) -> None:
    """Raises BundleError for a single output that cannot separate two labels."""
    if math.prod(model.output.shape) != 1 or scores == "sigmoid":
        return
    what = "its softmax has one output, which is always 1"
    if scores == "logits":
        what = "its one output does not come from a sigmoid"
    raise BundleError(f"{name}: {what}", hint="end the model in one sigmoid, or in a softmax of two outputs")


def _normalization(
    tensor: interpreter.TensorInfo,
    given: tuple[Channels, Channels] | None,
    by_metadata: tuple[Channels, Channels] | None,
    color: str,
    name: str,
) -> tuple[Channels, Channels]:
    if given is not None:
        return given
    if by_metadata is not None:
        mean, std = by_metadata
        try:
            check_input_contract(tensor, InputSpec(1, 1, mean=mean, std=std, color=color), name)
        except BundleError as error:
            scale, zero_point = input_quantization(tensor)
            first = 0 if tensor.dtype == np.uint8 else 128
            raise BundleError(
                f"{name}: its TFLite metadata says mean {numbers_text(mean)} and std {numbers_text(std)}, which "
                "contradicts its input's scale"
                f" {scale:g} and zero point {zero_point}",
                hint=f"if the quantization is right: --mean {zero_point + first} --std {1 / scale:.7g}",
            ) from error
        return by_metadata
    if tensor.dtype == np.uint8:
        scale, zero_point = input_quantization(tensor)
        return float(zero_point), 1 / scale
    raise BundleError(
        f"{name}: the normalization of its input is unknown",
        hint="give --mean and --std as in training, e.g. --mean 127.5 --std 127.5 for pixels in -1..1",
    )


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    """Add the index to duplicate labels: ImageNet, for example, has two classes named crane."""
    counts = Counter(labels)
    return tuple(label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels))
