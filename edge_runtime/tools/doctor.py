"""Whether this machine has what a device needs; what is wrong comes with the command that mends it.

Imports nothing that may be missing or broken here: the interpreter is tried in a process of its own.
"""

from __future__ import annotations

import base64
import contextlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from ..cache import cache_dir
from ..errors import EdgeallError
from ..probe import try_out
from .atomic import leftovers

MODEL = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAAUAEAAAMAAAABAAAABAAAAKj///8BAAAAEAAAAAwAFAAQAAwACAAEAAwAAAAQAAAAVA"
    "AAAFgAAABcAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABQAAAAAAAALEAAAABQAAAAEAAQABAAAAAEAAAABAAAAAgAAAAAAAAAAAAAAAQAA"
    "AAEAAAABAAAAAAAAAAIAAABkAAAABAAAALL///8QAAAAMAAAAAAAAAkwAAAApP///wgAAAAUAAAAAQAAAAAAAAAAAAAAAAAAAAEAAAAAAAA/AQAAAH"
    "kAAAACAAAAAQAAAAQAAAAAAA4AFAAQAA8AAAAIAAQADgAAABwAAAA4AAAAAAAACTgAAAAMAAwAAAAAAAgABAAMAAAACAAAABAAAAABAAAAAAAAAAAA"
    "AAABAAAAAAAAPwEAAAB4AAAAAgAAAAEAAAAEAAAAAQAAABAAAAAAAAoACAAAAAAABAAKAAAAAgAAAA=="
)
"""One int8 addition, small enough to travel here (tests/unit/test_doctor.py makes it anew)."""
LOWEST_NUMPY = "1.23.2"
PACKAGES = {"click": "8.2", "pillow": "10.1", "rich": "13", "flatbuffers": "23"}
"""What else the device install needs besides an interpreter (setup.cfg), and the lowest version of it."""
BUILT = 1_793_491_200
"""2026-11-01, in seconds: a clock that shows less has lost the time."""
LITTLE_BYTES, NO_BYTES = 500_000_000, 100_000_000
_THROTTLED = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "hot"}


@dataclass(frozen=True)
class Wheel:
    """What an interpreter's wheels on PyPI fit.

    Attributes:
        package: name on PyPI.
        install: what pip is given.
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
"""The preferred one first, as `interpreter.RUNTIMES`."""


@dataclass(frozen=True)
class Check:
    """One line: its name, ``ok``, ``warn`` or ``fail``, what was found, and what mends it (empty when ok)."""

    name: str
    state: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """What is asked of a machine; tests make up others.

    Attributes:
        python: version, e.g. ``(3, 11)``.
        implementation: ``CPython``, ...
        bits: of a pointer: 32 under a 32-bit system, whatever the kernel is.
        machine: as the kernel calls it, which is what pip goes by.
        glibc: version; None where the C library is another one.
        venv: whether Python can make an environment with pip in it, which Debian leaves to a package of its own.
        root: where ``dev``, ``proc`` and ``sys`` are.
        path: folders of programs, as in ``PATH``.
        version: that of an installed distribution; None when there is none.
        run: what a program says on stdout; None when it isn't there or fails.
        try_model: runs `MODEL` and returns what `probe.try_out` does.
        free_bytes: where the user's files lie.
        now: seconds since 1970.
        cache: where preprocessed images and the like are kept.
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
        """What wheels are called that this Python can load."""
        narrow = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
        return narrow.get(self.machine, self.machine) if self.bits == 32 else self.machine

    @property
    def is_pi(self) -> bool:
        """Whether the board calls itself a Raspberry Pi."""
        return "Raspberry Pi" in _text(self.root / "proc/device-tree/model")

    def has(self, program: str) -> bool:
        """Whether a program is there; daemons are outside a user's PATH."""
        return shutil.which(program, path=os.pathsep.join([self.path, str(self.root / "usr/sbin")])) is not None


def this_machine() -> Machine:
    """The one that this process runs on."""
    python, home = sys.version_info, os.path.expanduser("~")
    return Machine(
        python=(python.major, python.minor),
        implementation=platform.python_implementation(),
        bits=struct.calcsize("P") * 8,
        machine=platform.machine(),
        glibc=_glibc(),
        venv=_can_make_environments(),
        root=Path("/"),
        path=os.environ.get("PATH", os.defpath),
        version=_version,
        run=_run,
        try_model=lambda: try_out(MODEL, "a small model"),
        free_bytes=shutil.disk_usage(home if os.path.isdir(home) else os.sep).free,
        now=time.time(),
        cache=cache_dir(),
    )


def diagnose(machine: Machine) -> dict[str, Any]:
    """Look at everything.

    Returns:
        ok: False when a check fails; checks: name, state, found and fix of each.
    """
    checks = [check for examine in _EXAMINATIONS if (check := examine(machine)) is not None]
    return {"ok": all(check.state != "fail" for check in checks), "checks": [asdict(check) for check in checks]}


def doctor_text(result: Mapping[str, Any]) -> str:
    """What `diagnose` found, a line each, and what mends it below."""
    lines = []
    for check in result["checks"]:
        lines.append(f"{check['state']:4}  {check['name']:11}  {check['found']}")
        if check["fix"]:
            lines.append(f"{'':19}> {check['fix']}")
    return "\n".join(lines)


def _python(m: Machine) -> Check:
    found = f"{m.implementation} {_dotted(m.python)}, {m.bits} bit"
    wheels = [wheel for wheel in WHEELS if m.wheels_machine in wheel.machines] or list(WHEELS)
    if m.implementation == "CPython" and any(low <= m.python <= high for low, high in (w.pythons for w in wheels)):
        if m.venv:
            return Check("Python", "ok", found)
        return Check("Python", "warn", f"{found}, can't make environments", "sudo apt install python3-venv")
    newest = _dotted(max(wheel.pythons[1] for wheel in wheels))
    found += f": no interpreter wheel for it on {m.wheels_machine}, CPython {newest} is the last that has one"
    return Check("Python", "fail", found, f"pip install uv && uv venv --python {newest} edgeall-env")


def _c_library(m: Machine) -> Check | None:
    wanted = [glibc for wheel in WHEELS if (glibc := wheel.machines.get(m.wheels_machine))]
    if not wanted:  # macOS and Windows; or a processor that has no wheels anyway
        return None
    if m.glibc is None:
        return Check("C library", "fail", "not glibc, which the interpreter's wheels need", "use Debian or its like")
    found = f"glibc {_dotted(m.glibc)}"
    if m.glibc >= min(wanted):
        return Check("C library", "ok", found)
    found += f", the wheels need {_dotted(min(wanted))}"
    return Check("C library", "fail", found, "sudo apt update && sudo apt full-upgrade")


def _processor(m: Machine) -> Check:
    if m.wheels_machine not in {name for wheel in WHEELS for name in wheel.machines}:
        fix = "no command mends it: take a Raspberry Pi 2 or later, or a 64-bit system"
        return Check("machine", "fail", f"{m.wheels_machine}: PyPI has no interpreter for it", fix)
    if m.machine != "aarch64" or m.bits == 64:
        return Check("machine", "ok", m.machine)
    return Check(
        "machine",
        "warn",
        "a 32-bit system under a 64-bit kernel: pip takes it for aarch64 and finds no wheel",
        _pip("install dist/edgeall-*.whl", m) + " (or a 64-bit system, which runs int8 models several times faster)",
    )


def _runtime(m: Machine) -> Check:
    reasons = {wheel.package: reason for wheel in WHEELS if (reason := _why_not(wheel, m))}
    fitting = _fitting(m)
    installed = {wheel.package: version for wheel in WHEELS if (version := m.version(wheel.package))}
    without = "".join(f"; {package} doesn't fit: {reason}" for package, reason in reasons.items())
    if fitting is None:
        if installed:
            return Check(
                "interpreter", "warn", f"{_listed(installed)}, not from PyPI's wheels{without}", "edgeall bench"
            )
        return Check("interpreter", "fail", f"none is installed{without}", "see the lines above")
    install = _pip(f"install {fitting.install}", m)
    if not installed:
        return Check("interpreter", "fail", f"none is installed, {fitting.package} fits{without}", install)
    if fitting.package not in installed:
        return Check("interpreter", "warn", f"{_listed(installed)}, {fitting.package} fits and is faster", install)
    return Check("interpreter", "ok", f"{fitting.package} {installed[fitting.package]}{without}")


def _fitting(m: Machine) -> Wheel | None:
    return next((wheel for wheel in WHEELS if not _why_not(wheel, m)), None)


def _why_not(wheel: Wheel, m: Machine) -> str:
    """Empty when it fits."""
    low, high = wheel.pythons
    if m.wheels_machine not in wheel.machines:
        return f"no wheel for {m.wheels_machine}"
    if m.implementation != "CPython" or not low <= m.python <= high:
        return f"wheels for CPython {_dotted(low)} to {_dotted(high)}"
    glibc = wheel.machines[m.wheels_machine]
    if glibc is not None and (m.glibc is None or m.glibc < glibc):
        return f"needs glibc {_dotted(glibc)}"
    return ""


def _numpy(m: Machine) -> Check:
    has, older = m.version("numpy"), m.version("tflite-runtime") if m.version("ai-edge-litert") is None else None
    fitting = _fitting(m)
    wanted = "'numpy<2'" if older or (fitting and "numpy<2" in fitting.install) else f"'numpy>={LOWEST_NUMPY}'"
    install = _pip(f"install {wanted}", m)
    if has is None or _parts(has) < _parts(LOWEST_NUMPY):
        return Check("numpy", "fail", f"numpy {has or 'is missing'}", install)
    if older and _parts(has) >= (2,):
        return Check(
            "numpy", "fail", f"{has} clashes with tflite-runtime {older}, which was built for numpy 1", install
        )
    return Check("numpy", "ok", has)


def _packages(m: Machine) -> Check:
    found = {package: m.version(package) for package in PACKAGES}
    wrong = [name for name, low in PACKAGES.items() if (has := found[name]) is None or _parts(has) < _parts(low)]
    if not wrong:
        return Check("packages", "ok", ", ".join(f"{name} {has}" for name, has in found.items()))
    what = ", ".join(f"{name} {found[name] or 'is missing'}" for name in wrong)
    install = " ".join(shlex.quote(f"{name}>={PACKAGES[name]}") for name in wrong)
    return Check("packages", "fail", what, _pip(f"install {install}", m))


def _inference(m: Machine) -> Check:
    fitting = _fitting(m)
    try:
        facts = m.try_model()
    except EdgeallError as error:
        again = _pip(f"install --force-reinstall {fitting.install}", m) if fitting else "see the lines above"
        return Check("inference", "fail", error.message, again)
    if facts["xnnpack"]:
        return Check("inference", "ok", f"{facts['runtime']} runs int8 through XNNPACK")
    what = f"{facts['runtime']} runs int8 without XNNPACK, several times slower"
    if fitting is WHEELS[0]:
        return Check("inference", "warn", what, _pip(f"install --upgrade {fitting.install}", m))
    return Check("inference", "warn", what, f"no command mends it: {WHEELS[0].package} needs a 64-bit system")


def _power(m: Machine) -> Check | None:
    said = _text(m.root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    said = said or (m.run(["vcgencmd", "get_throttled"]) or "").strip().removeprefix("throttled=")
    try:
        bits = int(said, 16)
    except ValueError:  # no Raspberry Pi, or one that doesn't say
        return None
    now = [what for bit, what in _THROTTLED.items() if bits >> bit & 1]
    before = [what for bit, what in _THROTTLED.items() if bits >> bit + 16 & 1]
    if not now and not before:
        return Check("power", "ok", "never throttled since it was switched on")
    what = f"{', '.join(now)} now" if now else f"{', '.join(before)} since it was switched on"
    return Check("power", "warn", what, "the board's own power supply and a heat sink; then: vcgencmd get_throttled")


def _camera(m: Machine) -> Check:
    tools = [tool for tool in ("rpicam-still", "libcamera-still", "v4l2-ctl") if m.has(tool)]
    cameras = sorted(f"/dev/{path.name}" for path in (m.root / "dev").glob("video*"))
    if not tools:
        package = "rpicam-apps" if m.is_pi else "v4l-utils"
        return Check("camera", "warn", "no camera tools: folders work, a camera doesn't", f"sudo apt install {package}")
    if not cameras:
        return Check(
            "camera", "warn", f"{', '.join(tools)}, but no /dev/video*", f"plug it in; then: {_LISTS[tools[0]]}"
        )
    return Check("camera", "ok", f"{', '.join(tools)}; {', '.join(cameras[:3])}")


_LISTS = {
    "rpicam-still": "rpicam-still --list-cameras",
    "libcamera-still": "libcamera-still --list-cameras",
    "v4l2-ctl": "v4l2-ctl --list-devices",
}


def _ssh(m: Machine) -> Check:
    missing = [
        package for program, package in (("ssh", "openssh-client"), ("sshd", "openssh-server")) if not m.has(program)
    ]
    if not missing:
        return Check("ssh", "ok", "client and server are installed")
    what = f"no {' and no '.join(missing)}: `edgeall deploy` reaches a device through its ssh server"
    return Check("ssh", "warn", what, f"sudo apt install {' '.join(missing)}")


def _disk(m: Machine) -> Check:
    found = f"{m.free_bytes / 1e9:.1f} GB free"
    state = "fail" if m.free_bytes < NO_BYTES else "warn" if m.free_bytes < LITTLE_BYTES else "ok"
    return Check("disk", state, found, "" if state == "ok" else f"sudo apt clean && {_pip('cache purge', m)}")


def _cache(m: Machine) -> Check | None:
    if m.cache is None or not m.cache.is_dir():
        return None
    files = [Path(where, name) for where, _, names in os.walk(m.cache) for name in names]
    left = [path for where, _, _ in os.walk(m.cache) for path in leftovers(Path(where))]
    found = f"{_megabytes(files)} in {m.cache}, all of which can be made again"
    if left:
        found += f"; {_megabytes(left)} of it left by killed processes: the next training removes that"
    return Check("cache", "ok", found)


def _megabytes(files: Iterable[Path]) -> str:
    sizes = []
    for path in files:
        with contextlib.suppress(OSError):  # gone in the meantime
            sizes.append(path.stat().st_size)
    return f"{sum(sizes) / 1e6:,.1f} MB"


def _clock(m: Machine) -> Check:
    found = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(m.now))
    if m.now < BUILT:
        return Check("clock", "fail", f"{found}: before edgeall was built", "sudo timedatectl set-ntp true")
    said = (m.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"]) or "").strip()
    if said == "yes":
        return Check("clock", "ok", f"{found}, synchronized")
    what = f"{found}, not synchronized: records would bear a wrong time"
    if said == "no":
        return Check("clock", "warn", what, "sudo timedatectl set-ntp true")
    return Check(
        "clock", "warn", f"{found}, nothing here says whether it is right", "sudo apt install systemd-timesyncd"
    )


_EXAMINATIONS: tuple[Callable[[Machine], Check | None], ...] = (
    *(_python, _c_library, _processor, _runtime, _numpy, _packages, _inference),
    *(_power, _camera, _ssh, _disk, _cache, _clock),
)


def _pip(arguments: str, m: Machine) -> str:
    """With this Python; under a 64-bit kernel a 32-bit system has to say what it is."""
    narrow = "linux32 " if m.machine == "aarch64" and m.bits == 32 else ""
    return f"{narrow}{shlex.quote(sys.executable or 'python3')} -m pip {arguments}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def _parts(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; a release candidate counts as the release."""
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
        major, minor = _parts(number)[:2]
    except (AttributeError, ValueError, OSError):  # Windows; macOS, musl
        return None
    return (major, minor) if name == "glibc" else None


def _can_make_environments() -> bool:
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


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip().rstrip("\0")
    except OSError:
        return ""
