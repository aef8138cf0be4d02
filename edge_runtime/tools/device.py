"""Describes this machine and its current condition, for every measurement."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..interpreter import runtime_version
from ..network import cores
from ..results import Result
from .throttle import throttle_reasons, throttled_bits

BUSY_LOAD = 0.25
"""Load per core before a measurement, above which other programs are assumed to disturb it."""


@dataclass(frozen=True)
class Device(Result):
    """A machine.

    Attributes:
        machine: for instance ``aarch64``.
        board: name of a Pi; None elsewhere.
        cores: number of cores that this process may use.
        memory_bytes: None if unknown.
        runtime: interpreter package and version.
    """

    machine: str
    board: str | None
    cpu: str
    cores: int
    memory_bytes: int | None
    os: str
    python: str
    runtime: str


@dataclass(frozen=True)
class MachineState(Result):
    """What may change on a machine during a measurement. Each unknown value is None.

    Attributes:
        governor: of the CPU frequency.
        clock_mhz: of the slowest core.
        temperature_c: of the hottest zone.
        throttled: bits of a Raspberry Pi, see `throttled_bits`.
        throttle_count: thermal throttling events of x86 cores.
        load: one minute, all cores.
    """

    governor: str | None
    clock_mhz: float | None
    max_clock_mhz: float | None
    temperature_c: float | None
    throttled: int | None
    throttle_count: int | None
    load: float | None


def describe_device() -> Device:
    """This machine. Raises EdgeallError if no interpreter is installed."""
    return Device(
        machine=platform.machine(),
        board=_first_line(Path("/proc/device-tree/model")),
        cpu=_cpu(),
        cores=cores(),
        memory_bytes=memory_bytes(),
        os=_system(),
        python=platform.python_version(),
        runtime=runtime_version(),
    )


def machine_state(root: Path = Path("/")) -> MachineState:
    """The state of this machine now. ``root``: folder that holds ``proc`` and ``sys``."""
    cpus = root / "sys/devices/system/cpu"
    clocks = _numbers(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    fastest = _numbers(cpus.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"))
    zones = _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    heat = _numbers(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    load = (_first_line(root / "proc/loadavg") or "").split()
    return MachineState(
        governor=_first_line(cpus / "cpu0/cpufreq/scaling_governor"),
        clock_mhz=min(clocks) / 1000 if clocks else None,
        max_clock_mhz=max(fastest) / 1000 if fastest else None,
        temperature_c=max(zones) / 1000 if zones else None,
        throttled=throttled_bits(root),
        throttle_count=sum(heat) if heat else None,
        load=float(load[0]) if load else None,
    )


def condition_warnings(samples: Sequence[MachineState]) -> list[str]:
    """Reasons to doubt a measurement, from states of the machine: the first taken before it, the last after it."""
    before, after = samples[0], samples[-1]
    warnings = []
    bits = [sample.throttled for sample in samples if sample.throttled is not None]
    if bits:
        now = since = 0
        for value in bits:
            now, since = now | value, since | value & ~bits[0]
        found = throttle_reasons(now | since >> 16)
        if found:
            warnings.append(
                f"the board was slowed down while measuring ({', '.join(found)}): "
                "use a stronger power supply or cooling, and measure again"
            )
    if (after.throttle_count or 0) > (before.throttle_count or 0):
        warnings.append("the processor was slowed down for heat while measuring: cool it and measure again")
    if before.load is not None and before.load > BUSY_LOAD * cores():
        warnings.append(f"other programs were running (load {before.load:g} before the measurement): stop them")
    return warnings


def rss_bytes() -> int | None:
    """Physical memory of this process; None if unknown (not Linux)."""
    return _status_bytes("VmRSS:")


def memory_bytes() -> int | None:
    """Physical memory of the machine; None if unknown."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def peak_rss_bytes() -> int:
    """Peak physical memory of this process.

    On Linux from VmHWM, which starts at zero for each program; elsewhere from ``getrusage``, which may include the
    peak of the parent before ``exec``.
    """
    peak = _status_bytes("VmHWM:")
    if peak is not None:
        return peak
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(name: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _numbers(files: Iterator[Path]) -> list[int]:
    """The integers in these files; some thermal zones cannot be read while asleep."""
    lines = [_first_line(file) for file in files]
    return [int(line) for line in lines if line is not None and line.lstrip("-").isdigit()]


def _cpu() -> str:
    # "model name" on x86 and 32-bit Arm; 64-bit Arm kernels only give the part number.
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
