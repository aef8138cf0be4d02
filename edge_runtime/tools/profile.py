"""Measures the time of each operator of a model with the profiler in LiteRT's shared library.

The profiler has no Python interface, and its C interface is not stable: a new LiteRT may break this module, but no
other. It runs in a child process, because the interface aborts on some processors (that of a Raspberry Pi 4).
Source: litert/c/litert_profiler.h, litert_profiler_event.h and litert_runtime_options.cc of LiteRT 2.2 and 2.3.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import statistics
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EdgeallError
from ..interpreter import runtime_package, runtime_version
from ..results import Result

RUNS = 50
_WARM_UP_RUNS = 5
_CHILD_TIMEOUT_S = 600
_CPU = 1
_OPERATORS = (2, 8)
"""Types of event: an operator of the interpreter; an operator inside XNNPACK."""
_EVENT_HEAD = struct.Struct("=QIxxxxQQ")
"""Address of the name, type, start and duration in microseconds. The rest of the event differs between versions."""
_MOST_EVENT_BYTES = 256
_UNWRITTEN = 0xAB


@dataclass(frozen=True)
class OperatorTime(Result):
    """An operator: its name in XNNPACK or the interpreter, calls in one run, and the time of all of them."""

    operator: str
    calls: int
    ms: float
    percent: float


@dataclass(frozen=True)
class NodeTime(Result):
    """One call of an operator."""

    operator: str
    ms: float


@dataclass(frozen=True)
class OperatorProfile(Result):
    """The time of a model's operators.

    Attributes:
        runs: number of runs.
        threads: of the interpreter.
        ms: sum over all operators of the medians over the runs.
        operators: slowest first.
        nodes: in execution order.
    """

    runs: int
    threads: int
    ms: float
    operators: list[OperatorTime]
    nodes: list[NodeTime]


def profile_model(path: str | os.PathLike[str], threads: int) -> OperatorProfile:
    """Time the operators of a model on an input of zeros. The interpreter must be known to accept the model.

    Raises:
        EdgeallError: this interpreter has no such profiler, or the profiler failed.
    """
    if runtime_package() != "ai_edge_litert":
        raise EdgeallError(f"{runtime_version()} can't time operators", hint="leave --profile out")
    command = [sys.executable, "-m", __name__, os.fspath(path), str(threads)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise _failed(path, f"no result after {_CHILD_TIMEOUT_S} s") from error
    if child.returncode < 0:
        raise _failed(path, f"it died of {signal.Signals(-child.returncode).name}")
    if child.returncode:
        raise _failed(path, (child.stderr.strip().splitlines() or ["no reason given"])[-1])
    nodes = [NodeTime(name, microseconds / 1000) for name, microseconds in json.loads(child.stdout)]
    whole = sum(node.ms for node in nodes)
    names = {node.operator: [each.ms for each in nodes if each.operator == node.operator] for node in nodes}
    operators = [
        OperatorTime(name, len(times), sum(times), 100 * sum(times) / whole if whole else 0.0)
        for name, times in names.items()
    ]
    return OperatorProfile(RUNS, threads, whole, sorted(operators, key=lambda row: -row.ms), nodes)


def _failed(path: str | os.PathLike[str], reason: str) -> EdgeallError:
    return EdgeallError(
        f"{os.fspath(path)}: {runtime_version()} can't time its operators on this machine ({reason})",
        hint="leave --profile out",
    )


def _measure(path: str, threads: int) -> list[tuple[str, float]]:
    """Name and median microseconds of each operator, in order. Raises RuntimeError if the library refuses."""
    package = importlib.util.find_spec("ai_edge_litert")
    assert package is not None
    assert package.origin is not None
    lib = _Library(ctypes.CDLL(str(Path(package.origin).with_name("libLiteRt.so"))))
    environment = lib.make("LiteRtCreateEnvironment", 0, None)
    model = lib.make("LiteRtCreateModelFromFile", environment, os.fsencode(path))
    options = lib.make("LiteRtCreateOptions")
    lib.call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
    settings = {b"runtime_options_string": b"enable_profiling = true\n", b"xnnpack": b"num_threads = %d\n" % threads}
    for identifier, text in settings.items():
        lib.call("LiteRtAddOpaqueOptions", options, lib.make("LiteRtCreateOpaqueOptions", identifier, *_owned(text)))
    compiled = lib.make("LiteRtCreateCompiledModel", environment, model, options)
    main = ctypes.c_size_t()
    lib.call("LiteRtGetMainModelSubgraphIndex", model, ctypes.byref(main))
    graph = lib.make("LiteRtGetModelSubgraph", model, main)
    inputs, outputs = (_buffers(lib, environment, compiled, graph, side) for side in ("Input", "Output"))

    def run() -> None:
        sizes = ctypes.c_size_t(len(inputs)), ctypes.c_size_t(len(outputs))
        lib.call("LiteRtRunCompiledModel", compiled, ctypes.c_size_t(0), sizes[0], inputs, sizes[1], outputs)

    for _ in range(_WARM_UP_RUNS):
        run()
    profiler = lib.make("LiteRtCompiledModelGetProfiler", compiled)
    runs = []
    for _ in range(RUNS):
        lib.call("LiteRtResetProfiler", profiler)
        lib.call("LiteRtStartProfiler", profiler)
        run()
        lib.call("LiteRtStopProfiler", profiler)
        runs.append(_operators(lib, profiler))
    names = [name for name, _ in runs[0]]
    if not names or any([name for name, _ in found] != names for found in runs):
        raise RuntimeError("its runs have different operators")
    return [(name, statistics.median(found[index][1] for found in runs)) for index, name in enumerate(names)]


def _buffers(
    lib: _Library, environment: ctypes.c_void_p, compiled: ctypes.c_void_p, graph: ctypes.c_void_p, side: str
) -> ctypes.Array[ctypes.c_void_p]:
    """Buffers of zeros for all inputs or outputs of a graph: the library refuses to run with fewer."""
    count = ctypes.c_size_t()
    lib.call(f"LiteRtGetNumSubgraph{side}s", graph, ctypes.byref(count))
    buffers = []
    for index in range(count.value):
        tensor = lib.make(f"LiteRtGetSubgraph{side}", graph, ctypes.c_size_t(index))
        # A struct of the library. It has -1 for a variable size (of the batch), for which the buffer needs a number.
        shape = (ctypes.c_int32 * 256)()
        lib.call("LiteRtGetRankedTensorType", tensor, shape)
        shape[:] = [1 if size == -1 else size for size in shape]
        place = ctypes.c_size_t(0), ctypes.c_size_t(index)
        needs = lib.make(f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, *place)
        buffers.append(lib.make("LiteRtCreateManagedTensorBufferFromRequirements", environment, shape, needs))
        lib.call("LiteRtClearTensorBuffer", buffers[-1])
    return (ctypes.c_void_p * count.value)(*buffers)


def _operators(lib: _Library, profiler: ctypes.c_void_p) -> list[tuple[str, int]]:
    """Name and microseconds of each operator of the last run."""
    count = ctypes.c_int()
    lib.call("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(count))
    memory = ctypes.create_string_buffer(bytes([_UNWRITTEN]) * (count.value * _MOST_EVENT_BYTES))
    lib.call("LiteRtGetProfilerEvents", profiler, count, memory)
    # The size of an event differs between versions; it follows from the bytes written. The last word may be padding.
    raw = memory.raw[:-1]
    written = -(-len(raw.rstrip(bytes([_UNWRITTEN]))) // 8) * 8
    size, rest = divmod(written, max(1, count.value))
    if rest or size < _EVENT_HEAD.size:
        raise RuntimeError("its events have an unknown format")
    events = [_EVENT_HEAD.unpack_from(raw, index * size) for index in range(count.value)]
    return [
        (ctypes.string_at(name).decode(errors="replace"), duration)
        for name, kind, _, duration in events
        if kind in _OPERATORS
    ]


def _owned(text: bytes) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """A copy of ``text``, and the function that frees it."""
    libc = ctypes.CDLL(None)
    libc.strdup.restype = ctypes.c_void_p
    return ctypes.c_void_p(libc.strdup(text)), ctypes.cast(libc.free, ctypes.c_void_p)


class _Library:
    """Calls functions of the library by name. Each returns a status, 0 for success."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")

    def make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function whose last argument receives the created object; return that object."""
        made = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(made))
        return made


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
    except (RuntimeError, AttributeError, OSError) as error:  # AttributeError: no such function in this version
        sys.exit(f"{error}")
