"""Converts a SavedModel that Keras 2 cannot rebuild to a float flatbuffer."""

from __future__ import annotations

from pathlib import Path

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle
from ...edge_runtime.errors import DataError, EdgeallError
from ...edge_runtime.flatbuffer import read_graph
from ...models.keras_compat import quiet, tf
from .config import PackConfig

CODE = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "DebugIdentityV2")
"""Operations of a graph that run Python or touch files. A classifier needs none of them."""


def converted(config: PackConfig, scheme: str, progress: Progress) -> Bundle:
    """The flatbuffer of a SavedModel in ``float32``, ``float16`` or ``dynamic``.

    Raises:
        DataError: not a SavedModel, or its graph runs Python or touches files.
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
            progress.note(f"converting to {scheme}")
            flatbuffer: bytes = converter.convert()
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
