"""The machine that `edgeall doctor` examines, and the interpreter wheels that fit it.

Imports only modules that cannot be missing or broken here.
"""

from __future__ import annotations

import base64
import os
import platform
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from ..cache import cache_dir
from ..probe import try_out
from .throttle import run_program

MODEL = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAAUAEAAAMAAAABAAAABAAAAKj///8BAAAAEAAAAAwAFAAQAAwACAAEAAwAAAAQAAAAVA"
    "AAAFgAAABcAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABQAAAAAAAALEAAAABQAAAAEAAQABAAAAAEAAAABAAAAAgAAAAAAAAAAAAAAAQAA"
    "AAEAAAABAAAAAAAAAAIAAABkAAAABAAAALL///8QAAAAMAAAAAAAAAkwAAAApP///wgAAAAUAAAAAQAAAAAAAAAAAAAAAAAAAAEAAAAAAAA/AQAAAH"
    "kAAAACAAAAAQAAAAQAAAAAAA4AFAAQAA8AAAAIAAQADgAAABwAAAA4AAAAAAAACTgAAAAMAAwAAAAAAAgABAAMAAAACAAAABAAAAABAAAAAAAAAAAA"
    "AAABAAAAAAAAPwEAAAB4AAAAAgAAAAEAAAAEAAAAAQAAABAAAAAAAAoACAAAAAAABAAKAAAAAgAAAA=="
)
"""One int8 addition. tests/unit/test_doctor.py generates it again."""


@dataclass(frozen=True)
class Wheel:
    """The machines that an interpreter's wheels on PyPI support.

    Attributes:
        package: name on PyPI.
        install: arguments for pip.
        pythons: the first and the last CPython.
        machines: the lowest glibc by machine; None where there is no glibc (macOS, Windows).
    """

    package: str
    install: str
    pythons: tuple[tuple[int, int], tuple[int, int]]
    machines: Mapping[str, tuple[int, int] | None]


WHEELS = (
    Wheel(
        "ai-edge-litert",
        "ai-edge-litert",
        ((3, 10), (3, 14)),
        {"x86_64": (2, 27), "aarch64": (2, 27), "arm64": None, "AMD64": None},
    ),
    Wheel(
        "tflite-runtime",
        "'tflite-runtime==2.14.0' 'numpy<2'",
        ((3, 10), (3, 11)),
        {"x86_64": (2, 31), "aarch64": (2, 34), "armv7l": (2, 34)},
    ),
)
"""The preferred one first, as in `interpreter.RUNTIMES`."""


@dataclass(frozen=True)
class Machine:
    """The facts of one machine. Tests create others.

    Attributes:
        python: version, e.g. ``(3, 11)``.
        implementation: ``CPython``, ...
        bits: size of a pointer: 32 on a 32-bit system, whatever its kernel is.
        machine: the kernel's name for it, which pip uses.
        glibc: version; None for another C library.
        venv: whether Python can create a virtual environment with pip. Debian has a separate package for this.
        root: folder that holds ``dev``, ``proc`` and ``sys``.
        path: folders of programs, as in ``PATH``.
        version: returns the version of an installed distribution; None if it is not installed.
        run: returns the stdout of a program; None if it is missing or fails.
        try_model: runs `MODEL`; returns what `probe.try_out` returns.
        free_bytes: on the disk with the user's files.
        now: seconds since 1970.
        cache: folder of the cache.
    """

    python: tuple[int, int]
    implementation: str
    bits: int
    machine: str
    glibc: tuple[int, int] | None
    venv: bool
    root: Path
    path: str
    version: Callable[[str], str | None]
    run: Callable[[Sequence[str]], str | None]
    try_model: Callable[[], Mapping[str, Any]]
    free_bytes: int
    now: float
    cache: Path | None = None

    @property
    def wheels_machine(self) -> str:
        """The machine name in wheels that this Python can load."""
        narrow = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
        return narrow.get(self.machine, self.machine) if self.bits == 32 else self.machine

    @property
    def is_pi(self) -> bool:
        """Whether the board is a Raspberry Pi."""
        try:
            return "Raspberry Pi" in (self.root / "proc/device-tree/model").read_text(errors="replace")
        except OSError:
            return False

    def has(self, program: str) -> bool:
        """Whether a program is installed. Also looks in usr/sbin, which is not in a user's PATH."""
        return shutil.which(program, path=os.pathsep.join([self.path, str(self.root / "usr/sbin")])) is not None


def this_machine() -> Machine:
    """The machine that runs this process."""
    python, home = sys.version_info, os.path.expanduser("~")
    return Machine(
        python=(python.major, python.minor),
        implementation=platform.python_implementation(),
        bits=struct.calcsize("P") * 8,
        machine=platform.machine(),
        glibc=_glibc(),
        venv=_can_create_environments(),
        root=Path("/"),
        path=os.environ.get("PATH", os.defpath),
        version=_version,
        run=run_program,
        try_model=lambda: try_out(MODEL, "a small model"),
        free_bytes=shutil.disk_usage(home if os.path.isdir(home) else os.sep).free,
        now=time.time(),
        cache=cache_dir(),
    )


def fitting_wheel(machine: Machine) -> Wheel | None:
    """The preferred wheel for this machine; None if there is none."""
    return next((wheel for wheel in WHEELS if not why_unfit(wheel, machine)), None)


def why_unfit(wheel: Wheel, machine: Machine) -> str:
    """Why a wheel does not fit a machine; empty if it fits."""
    low, high = wheel.pythons
    if machine.wheels_machine not in wheel.machines:
        return f"no wheel for {machine.wheels_machine}"
    if machine.implementation != "CPython" or not low <= machine.python <= high:
        return f"wheels for CPython {dotted(low)} to {dotted(high)}"
    glibc = wheel.machines[machine.wheels_machine]
    if glibc is not None and (machine.glibc is None or machine.glibc < glibc):
        return f"needs glibc {dotted(glibc)}"
    return ""


def dotted(numbers: Iterable[int]) -> str:
    """A version as text."""
    return ".".join(map(str, numbers))


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version. A release candidate counts as the release."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _glibc() -> tuple[int, int] | None:
    try:
        name, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version_numbers(number)[:2]
    except (AttributeError, ValueError, OSError):  # Windows; macOS, musl
        return None
    return (major, minor) if name == "glibc" else None


def _can_create_environments() -> bool:
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        return False
    return True


def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
