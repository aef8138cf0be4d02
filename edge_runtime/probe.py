"""Runs a foreign model once in a child process, so that a crash of the interpreter becomes an error message.

This guards against accidents. It does not protect against malicious files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from .cache import cache_dir
from .errors import BundleError, EdgeallError

SECONDS = 60.0
"""Time limit, including the start of Python and the interpreter, which takes seconds on a small board."""
MEMORY_BYTES = 2_000_000_000
"""Memory limit of the model; half of the machine's memory if that is less."""

_HINT = "copy the file again from its source, or convert the model again"
_CODE = "import sys; sys.path[:] = sys.argv[3:]; from edgeall.edge_runtime.probe import child; child(*sys.argv[1:3])"


def ensure_runs(flatbuffer: bytes, name: str, input_shape: tuple[int, ...] | None = None) -> None:
    """`try_out`, once per file, shape, interpreter and machine. Remembers a success in the user's cache.

    Raises:
        BundleError: see `try_out`.
    """
    marker = _marker(flatbuffer, input_shape)
    if os.path.exists(marker):
        return
    try_out(flatbuffer, name, input_shape)
    with contextlib.suppress(OSError):  # without a writable cache, it runs every time
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def try_out(flatbuffer: bytes, name: str, input_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Build, allocate and invoke a model in a child process, with an input of zeros and one thread.

    Args:
        flatbuffer: a complete model.
        name: of the file, for errors.
        input_shape: see `interpreter.load`.

    Returns:
        ``runtime``: package of the interpreter; ``xnnpack``: whether XNNPACK runs some of the model.

    Raises:
        BundleError: the interpreter refuses the model, crashes, takes more than `SECONDS` or is not installed; or the
            child process cannot be started.
    """
    command = [sys.executable, "-c", _CODE, name, json.dumps(input_shape), *sys.path]
    try:
        child = subprocess.run(command, input=flatbuffer, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{name}: a test run took more than {SECONDS:g} s", hint=_HINT) from error
    except OSError as error:
        raise BundleError(f"{name}: the process for a test run cannot be started ({error.strerror})") from error
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        raise BundleError(f"{name}: the interpreter crashes on it ({_end(child)})", hint=_HINT)
    facts: dict[str, Any] = json.loads(lines[-1])
    if "error" in facts:
        raise BundleError(facts["error"], hint=facts["hint"])
    return facts


def child(name: str, input_shape: str) -> None:
    """The child process: runs the model from stdin and prints the result as JSON. ``input_shape`` is JSON too."""
    flatbuffer = sys.stdin.buffer.read()
    facts: dict[str, Any]
    try:
        # Imported only here, so that `edgeall doctor` works without numpy and the interpreter.
        import numpy as np

        from . import interpreter

        interpreter.runtime_package()
        _limit()
        shape = json.loads(input_shape)
        model = interpreter.load(flatbuffer, 1, name, input_shape=None if shape is None else tuple(shape))
        model.invoke(np.zeros(model.input.shape, model.input.dtype))
        facts = {"runtime": model.runtime, "xnnpack": model.uses_xnnpack()}
    except EdgeallError as error:
        facts = {"error": error.message, "hint": error.hint}
    except MemoryError:
        facts = {"error": f"{name}: needs more memory than the limit on this machine", "hint": _HINT}
    except Exception as error:  # unsupported types, excessive sizes, no numpy, ...
        facts = {"error": f"{name}: can't be run ({type(error).__name__}: {error})", "hint": _HINT}
    print(json.dumps(facts), flush=True)


def _marker(flatbuffer: bytes, input_shape: tuple[int, ...] | None) -> Path:
    """Path of an empty file whose name identifies the model, its shape, the machine and the interpreter."""
    from .interpreter import installation

    digest = hashlib.sha256(f"{installation()}{'' if input_shape is None else f' {input_shape}'}\n".encode())
    digest.update(flatbuffer)
    return cache_dir() / "opened" / digest.hexdigest()


def _limit() -> None:
    """Limit the memory beyond what Python and the interpreter already map, if the system supports it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        page = os.sysconf("SC_PAGE_SIZE")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * page
        limit = mapped + min(MEMORY_BYTES, os.sysconf("SC_PHYS_PAGES") * page // 2)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end(child: subprocess.CompletedProcess[bytes]) -> str:
    """How a process ended without a result: the signal, or the exit status and the last line of stderr."""
    if child.returncode < 0:
        return signal.Signals(-child.returncode).name
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    return f"exit status {child.returncode}" + (f", {lines[-1]}" if lines else "")
