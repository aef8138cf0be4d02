"""What machine this is: goes beside every measurement."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from edgeall.edge_runtime.interpreter import runtime_version


def describe_device() -> dict[str, Any]:
    """Machine, processor, cores, memory, system, Python and interpreter.

    Returns:
        ``machine`` (e.g. aarch64), ``board`` (a Pi's name; None elsewhere), ``cpu``, ``cores`` (those this
        process may use), ``memory_bytes``, ``os``, ``python``, ``runtime``.

    Raises:
        EdgeallError: no interpreter is installed.
    """
    return {
        "machine": platform.machine(),
        "board": _first_line(Path("/proc/device-tree/model")),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "os": _system(),
        "python": platform.python_version(),
        "runtime": runtime_version(),
    }


def peak_rss_bytes() -> int:
    """The most physical memory this process has held so far.

    Linux counts it afresh for each program (VmHWM); ``getrusage``, the way elsewhere, may carry over the
    parent's from before ``exec``.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu() -> str:
    # x86 says "model name"; Arm kernels say it only on 32 bits, else the part number must do.
    wanted = ("model name", "Model", "CPU part")
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    return next((facts[key] for key in wanted if facts.get(key)), platform.processor() or "unknown")


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError, AttributeError):  # no such file; no such entry; not Linux
        name = platform.system()
    return f"{name}, kernel {platform.release()}"


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").splitlines()[0].rstrip("\0")
    except (OSError, IndexError):
        return None
