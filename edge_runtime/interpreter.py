"""The only module that uses the TFLite interpreter: LiteRT if available, else tflite-runtime (32-bit Arm)."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, EdgeallError
from .messages import message

RUNTIMES = ("ai_edge_litert", "tflite_runtime")
"""Packages with an ``interpreter`` module, the preferred one first."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output tensor of a model.

    Attributes:
        index: of the tensor in the interpreter.
        shape: with the batch dimension.
        dtype: uint8, int8, float32, ...
        scale: of the quantization; 0.0 if there is none.
        zero_point: see `scale`.
    """

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int


class Model:
    """An allocated interpreter for one input and a batch of one. Not thread-safe.

    Attributes:
        output: the tensor that `invoke` returns.
        second: the other output; None for a model with one output.
    """

    def __init__(self, interpreter: Any, runtime: str, name: str, output: int | None = None) -> None:
        self._interpreter = interpreter
        self.runtime = runtime
        self.name = name
        self.input = _only(interpreter.get_input_details(), "input")
        outputs = interpreter.get_output_details()
        self.second: TensorInfo | None = None
        if output is not None and len(outputs) == 2:
            (self.second,) = [_info(detail) for detail in outputs if detail["index"] != output]
            outputs = [detail for detail in outputs if detail["index"] == output]
        self.output = _only(outputs, "output")

    def invoke(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Run one batch with the input's shape and dtype. Returns a copy of the raw output.

        Raises:
            BundleError: the interpreter fails on it.
        """
        self._interpreter.set_tensor(self.input.index, batch)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise _refused(self.name, error) from error
        output: NDArray[Any] = self._interpreter.get_tensor(self.output.index)
        return output

    def second_units(self) -> NDArray[Any]:
        """A copy of the raw output `second` of the last `invoke`."""
        assert self.second is not None
        units: NDArray[Any] = self._interpreter.get_tensor(self.second.index)
        return units

    def uses_xnnpack(self) -> bool:
        """Whether XNNPACK, the only delegate that is applied by default, runs some of the graph's nodes.

        Source: a private method of the interpreter, which both packages of `RUNTIMES` have.
        """
        return any(node["op_name"] == "DELEGATE" for node in self._interpreter._get_ops_details())


def load(
    flatbuffer: bytes,
    threads: int,
    name: str,
    output: int | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Model:
    """Build an interpreter and allocate its tensors.

    Args:
        flatbuffer: a complete model; not copied.
        threads: of the interpreter, at least 1.
        name: of the file, for errors.
        output: index of the tensor with the probabilities, if the model may have a second output; None for a model
            that must have one output.
        input_shape: for a model with variable sizes, with the batch dimension; None takes the shape in the file.

    Raises:
        EdgeallError: no interpreter is installed, or it is incompatible with the installed numpy.
        BundleError: the interpreter refuses the model or the shape, or the model has too many inputs or outputs.
    """
    package = runtime_package()
    interpreter_class = importlib.import_module(f"{package}.interpreter").Interpreter
    try:
        interpreter = interpreter_class(model_content=flatbuffer, num_threads=threads)
        resized = [detail for detail in interpreter.get_input_details() if input_shape not in (None, _shape(detail))]
        for detail in resized:
            interpreter.resize_tensor_input(detail["index"], input_shape)
        interpreter.allocate_tensors()
        if resized:  # some outputs get their sizes only after a run
            interpreter.invoke()
        return Model(interpreter, package, name, output)
    except (ValueError, RuntimeError) as error:
        raise _refused(name, error) from error
    except SystemError as error:  # tflite-runtime with numpy 2
        raise EdgeallError(
            f"{package} does not work with numpy {np.__version__}",
            hint="run `edgeall doctor`; usually: pip install 'numpy<2'",
        ) from error


def runtime_package() -> str:
    """Name of the installed interpreter package. Raises EdgeallError if none can be imported."""
    broken = ""
    for package in RUNTIMES:
        try:
            importlib.import_module(f"{package}.interpreter")
        except ImportError as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != package:
                broken = f"{package} can't be imported: {error}"  # an incompatible numpy, a missing library
            continue
        return package
    raise EdgeallError(
        broken or "no TFLite interpreter is installed",
        hint="`edgeall doctor` shows which one fits this machine; usually: pip install ai-edge-litert",
    )


def installation() -> str:
    """Identifies the machine type and the installed interpreter, for results that are remembered.

    Uses the modification time of a file: looking up the version takes 1.5 MB of memory and a fifth of the start time.
    """
    module = str(sys.modules[runtime_package()].__file__)
    return f"{platform.machine()} {module} {os.stat(module).st_mtime_ns}"


def runtime_version() -> str:
    """Package and version of the interpreter, e.g. ``ai-edge-litert 2.3.0``."""
    from importlib.metadata import version  # takes a fifth of the time of `edgeall run` on one image

    distribution = runtime_package().replace("_", "-")
    return f"{distribution} {version(distribution)}"


def _refused(name: str, error: Exception) -> BundleError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BundleError(message("{file}: the interpreter refuses the model ({reason})", file=name, reason=reason))


def _only(details: list[dict[str, Any]], what: str) -> TensorInfo:
    if len(details) != 1:
        raise ValueError(f"it has {len(details)} {what}s, a classifier has one")
    return _info(details[0])


def _shape(detail: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in detail["shape"])


def _info(detail: dict[str, Any]) -> TensorInfo:
    scale, zero_point = detail["quantization"]
    return TensorInfo(
        index=detail["index"],
        shape=_shape(detail),
        dtype=np.dtype(detail["dtype"]),
        scale=float(scale),
        zero_point=int(zero_point),
    )
