"""Refuses what would be code: lambdas, custom classes, layers without a twin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import DataError

PTQ = (
    "for quantization after training only: in the notebook model.export('folder'), then `edgeall pack folder --scheme "
    "ptq-int8`"
)
_CODE = ("Lambda",)
_KERAS = ("keras", "tf_keras", "tensorflow.python.keras", "tensorflow.keras")


def check_layer(config: Mapping[str, Any], path: Path) -> None:
    """Raise DataError for a layer that is code of its own, or that is stored as code."""
    kind, name = str(config["class_name"]), str(config.get("name") or config["config"].get("name", ""))
    if kind in _CODE:
        raise DataError(
            f"{path}: layer {name} is a {kind}, which is Python code; edgeall runs no code of a file", hint=PTQ
        )
    module, registered = config.get("module"), config.get("registered_name") or ""
    foreign = module is not None and str(module).split(".")[0] not in ("keras", "tf_keras", "builtins")
    if (foreign and not str(module).startswith(_KERAS)) or (">" in registered and not registered.startswith("keras")):
        raise DataError(
            f"{path}: layer {name} is a custom class, {registered or f'{module}.{kind}'}; edgeall runs no code of a "
            "file",
            hint=PTQ,
        )


def no_twin(where: str, kind: str, why: str = "") -> DataError:
    """The error for a layer that has no twin here. ``where`` names file and layer."""
    return DataError(f"{where}: {kind} {why or 'is not a layer that edgeall can rebuild'}", hint=PTQ)
