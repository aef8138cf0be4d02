"""Converts a SavedModel to a flatbuffer: quantization after training for models that Keras 2 cannot rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle
from ...edge_runtime.errors import DataError, EdgeallError, UsageError
from ...edge_runtime.flatbuffer import read_graph
from ...edge_runtime.images import find_images
from ...edge_runtime.preprocess import InputSpec, load_input, normalize
from ...models.keras_compat import quiet, tf
from .config import PackConfig

CODE = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "DebugIdentityV2")
"""Operations of a graph that run Python or touch files. A classifier needs none of them."""
REPRESENTATIVE = 128
"""Images on which the activation ranges are measured."""


def converted(config: PackConfig, scheme: str, progress: Progress) -> Bundle:
    """The flatbuffer of a SavedModel in a scheme of `edgeall.optimize.foreign.config.SCHEMES`.

    Raises:
        DataError: not a SavedModel, or its graph runs Python or touches files.
        UsageError: an integer scheme without a named normalization, which its calibration needs.
        EdgeallError: the converter refuses it.
    """
    folder = config.model
    _refuse_code(folder)
    try:
        with quiet():
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
            if scheme != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if scheme == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if scheme == "ptq-int8":
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                spec = _spec(config, folder)
                converter.representative_dataset = lambda: _representative(config, spec)
            progress.note(f"converting to {scheme}")
            flatbuffer: bytes = converter.convert()
    except (DataError, UsageError):
        raise
    except Exception as error:  # the converter wraps MLIR's errors in many exception types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgeallError(f"{folder}: conversion to {scheme} failed: {reason}") from error
    graph = read_graph(flatbuffer, str(folder))
    return Bundle(str(folder), flatbuffer, graph, None, None, None, (), None, len(flatbuffer))


def _refuse_code(folder: Path) -> None:
    try:
        content = (folder / "saved_model.pb").read_bytes()
    except OSError as error:
        raise DataError(
            f"{folder}: not a SavedModel ({error.strerror})", hint="give a folder with saved_model.pb"
        ) from error
    found = [name for name in CODE if b"\x12" + bytes([len(name)]) + name.encode() in content]
    if found:
        raise DataError(f"{folder}: its graph has the operation {found[0]}; edgeall runs no code of a file")


def _spec(config: PackConfig, folder: Path) -> InputSpec:
    """The input contract for calibration. The interpreter's own trials come later, on the converted model."""
    from .trials import _given

    given = _given(config)
    if given is None:
        raise UsageError(
            f"{folder}: ptq-int8 measures activations, for which the normalization must be known",
            hint="name it: --normalization, --mean and --std, or --normalized-inside",
        )
    (mean, std), color = given[1]
    size = _size(folder, config)
    return InputSpec(*size, mean=mean, std=std, color=color or "RGB")


def _size(folder: Path, config: PackConfig) -> tuple[int, int]:
    """Height and width of the only input."""
    signature = tf.saved_model.load(str(folder)).signatures.get("serving_default")
    inputs = list(signature.structured_input_signature[1].values()) if signature is not None else []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise DataError(f"{folder}: has {len(inputs)} inputs in its serving signature, a classifier has one image")
    height, width = (size or config.input_size for size in inputs[0].shape[1:3])
    if height is None or width is None:
        raise UsageError(f"{folder}: its input has no fixed size", hint="give it with --input-size")
    return int(height), int(width)


def _representative(config: PackConfig, spec: InputSpec) -> Iterator[list[Any]]:
    folder = config.data if config.data.is_dir() else config.data.parent
    images = list(find_images(folder))
    for image in images[:: max(len(images) // REPRESENTATIVE, 1)][:REPRESENTATIVE]:
        yield [normalize(load_input(image, spec), spec)[np.newaxis]]
