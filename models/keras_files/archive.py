"""Opens a Keras file: its configuration as JSON and its weights as arrays. Nothing in it is executed."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from ...edge_runtime.errors import DataError
from .weights import ArchiveWeights, LegacyWeights, Weights

MAX_CONFIG_BYTES = 64_000_000
MAX_WEIGHTS_BYTES = 4_000_000_000
PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt"})
"""Suffixes of files that are usually Python pickles."""
EXPORT = "in the notebook: model.save('model.keras')"


@dataclass(frozen=True)
class Opened:
    """The content of a Keras file.

    Attributes:
        path: of the file, for messages.
        config: of the model: ``class_name`` and ``config``.
        version: of Keras.
        weights: finds the variables of a layer.
    """

    path: Path
    config: dict[str, Any]
    version: str
    weights: Weights


def open_keras(path: Path) -> Opened:
    """Open a ``.keras``, ``.h5`` or SavedModel of Keras 2 or 3.

    Raises:
        DataError: no such file, a pickle, or not a Keras model.
    """
    if path.is_dir():
        from .saved_model import open_saved_model  # imports TensorFlow's protocol buffers

        return open_saved_model(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="check the path") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    refuse_pickle(path, head)
    if head == b"\x89HDF\r\n\x1a\n":
        return _legacy(path)
    if head[:4] == b"PK\x03\x04":
        return _archive(path)
    raise DataError(
        f"{path}: neither a Keras file (.keras, .h5) nor a SavedModel",
        hint="`edgeall pack` takes a .tflite file" if head[4:] == b"TFL3" else EXPORT,
    )


def refuse_pickle(path: Path, head: bytes) -> None:
    """Raise DataError for a Python pickle, plain or in a zip as PyTorch writes it."""
    found = head[:1] == b"\x80" and head[1:2] <= b"\x05"
    if not found and head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                found = any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError):
            found = False
    if found or path.suffix.lower() in PICKLES:
        hint = "PyTorch: convert it to TFLite, then `edgeall pack`"
        raise DataError(
            f"{path}: a Python pickle, which runs code when it is read; it was not opened",
            hint=f"{hint}. Keras {EXPORT}",
        )


def parse_config(text: str | bytes, path: Path) -> dict[str, Any]:
    """The JSON of a model. Raises DataError if it is not one."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged (its configuration is not JSON)", hint="copy the file again") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise DataError(f"{path}: holds no model", hint=f"save the whole model, not only its weights; {EXPORT}")
    return config


def _archive(path: Path) -> Opened:
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            if not {"config.json", "model.weights.h5"} <= members:
                raise DataError(f"{path}: a zip archive, not a Keras model", hint=EXPORT)
            for member, limit in (("config.json", MAX_CONFIG_BYTES), ("model.weights.h5", MAX_WEIGHTS_BYTES)):
                if archive.getinfo(member).file_size > limit:
                    raise DataError(f"{path}: {member} is larger than {limit:,} bytes")
            config = parse_config(archive.read("config.json"), path)
            metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in members else {}
            weights = archive.read("model.weights.h5")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise _damaged(path, error) from error
    return Opened(path, config, str(metadata.get("keras_version", "2")), ArchiveWeights(_hdf5(path, weights), path))


def _legacy(path: Path) -> Opened:
    file = _hdf5(path, path)
    text = file.attrs.get("model_config")
    if text is None or "model_weights" not in file:
        raise DataError(f"{path}: holds weights and no model", hint=EXPORT)
    version = file.attrs.get("keras_version", "2")
    version = version.decode() if isinstance(version, bytes) else str(version)
    return Opened(path, parse_config(text, path), version, LegacyWeights(file["model_weights"], path))


def _hdf5(path: Path, content: Path | bytes) -> Any:
    try:
        return h5py.File(io.BytesIO(content) if isinstance(content, bytes) else content, "r")
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path}: damaged ({reason})", hint="copy the file again")
