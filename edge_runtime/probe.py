"""Runs a model that nobody vouches for once in a process of its own, so that a crash there is an error message here.

A guard against accidents, not a sandbox: a file that takes the interpreter over there would do so here as well.
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
"""Loading Python and the interpreter included: seconds on a small board, so what takes longer hangs."""
MEMORY_BYTES = 2_000_000_000
"""What the model may take at most; half of the machine's memory where that is less."""

_HINT = "get the file again from where it was made, or convert the model anew"
_CODE = "import sys; sys.path[:] = sys.argv[3:]; from edgeall.edge_runtime.probe import answer; answer(*sys.argv[1:3])"


def ensure_runs(flatbuffer: bytes, name: str, input_shape: tuple[int, ...] | None = None) -> None:
    """`try_out` once for each file, shape, interpreter and machine: a run that went well is remembered in the user's
    cache.

    Raises:
        BundleError: see `try_out`.
    """
    marker = _marker(flatbuffer, input_shape)
    if os.path.exists(marker):
        return
    try_out(flatbuffer, name, input_shape)
    with contextlib.suppress(OSError):  # a system without a home that can be written to tries it every time
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def try_out(flatbuffer: bytes, name: str, input_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Build, allocate and invoke a model in a process of its own, on zeros and with one thread.

    Args:
        flatbuffer: a whole model.
        name: how an error calls the file.
        input_shape: see `interpreter.load`.

    Returns:
        ``runtime``: the interpreter's package; ``xnnpack``: whether XNNPACK runs some of the model.

    Raises:
        BundleError: the interpreter refuses the model or crashes on it, takes more than `SECONDS`, or no process
            can be started; or, for want of an interpreter, what `interpreter.runtime_package` says.
    """
    command = [sys.executable, "-c", _CODE, name, json.dumps(input_shape), *sys.path]
    try:
        child = subprocess.run(command, input=flatbuffer, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{name}: a run in a process of its own took more than {SECONDS:g} s", hint=_HINT) from error
    except OSError as error:
        raise BundleError(f"{name}: no process can be started to try it in ({error.strerror})") from error
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        raise BundleError(f"{name}: the interpreter crashes on it ({_end(child)})", hint=_HINT)
    facts: dict[str, Any] = json.loads(lines[-1])
    if "error" in facts:
        raise BundleError(facts["error"], hint=facts["hint"])
    return facts


def answer(name: str, input_shape: str) -> None:
    """The other process: run the model on stdin and say on stdout, as JSON, how it went. The shape is JSON too."""
    flatbuffer = sys.stdin.buffer.read()
    facts: dict[str, Any]
    try:
        # numpy and the interpreter are loaded here alone: `edgeall doctor` works where they don't.
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
        facts = {"error": f"{name}: needs more memory than a model may take here", "hint": _HINT}
    except Exception as error:  # types that an array can't have, sizes that no memory holds, no numpy, ...
        facts = {"error": f"{name}: can't be run ({type(error).__name__}: {error})", "hint": _HINT}
    print(json.dumps(facts), flush=True)


def _marker(flatbuffer: bytes, input_shape: tuple[int, ...] | None) -> Path:
    """An empty file whose name stands for the model, its shape, this machine and its installed interpreter."""
    from .interpreter import installation

    digest = hashlib.sha256(f"{installation()}{'' if input_shape is None else f' {input_shape}'}\n".encode())
    digest.update(flatbuffer)
    return cache_dir() / "opened" / digest.hexdigest()


def _limit() -> None:
    """Bound the memory on top of what Python and the interpreter have mapped already, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        page = os.sysconf("SC_PAGE_SIZE")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * page
        limit = mapped + min(MEMORY_BYTES, os.sysconf("SC_PHYS_PAGES") * page // 2)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end(child: subprocess.CompletedProcess[bytes]) -> str:
    """How a process ended that gave no answer: the signal, else the last it said."""
    if child.returncode < 0:
        return signal.Signals(-child.returncode).name
    said = child.stderr.decode(errors="replace").strip().splitlines()
    return f"exit status {child.returncode}" + (f", {said[-1]}" if said else "")
