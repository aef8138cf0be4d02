"""`edgeall doctor`: checks whether this machine can run models, and names the command that repairs each problem.

Imports only modules that cannot be missing or broken here: a separate process tries the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import EdgeallError
from ..results import Result
from .atomic import leftovers
from .machine import WHEELS, Machine, dotted, fitting_wheel, version_numbers, why_unfit
from .throttle import throttle_reasons, throttled_bits

LOWEST_NUMPY = "1.23.2"
PACKAGES = {"click": "8.2", "pillow": "10.1", "rich": "13", "flatbuffers": "23"}
"""Packages of the device install besides an interpreter and numpy, with the lowest version (see setup.cfg)."""
BUILT = 1_793_491_200
"""2026-11-01 in seconds since 1970: a clock before that has lost the time."""
LITTLE_BYTES, NO_BYTES = 500_000_000, 100_000_000


@dataclass(frozen=True)
class Check(Result):
    """One check: its name, ``ok``, ``warn`` or ``fail``, the finding, and the repair (empty if ok)."""

    name: str
    state: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis(Result):
    """All checks; ``ok`` is False if one fails."""

    ok: bool
    checks: list[Check]


def diagnose(machine: Machine) -> Diagnosis:
    """Run all checks."""
    checks = [check for run_check in _CHECKS if (check := run_check(machine)) is not None]
    return Diagnosis(all(check.state != "fail" for check in checks), checks)


def doctor_text(result: Diagnosis) -> str:
    """One line for each check, with its repair below."""
    lines = []
    for check in result.checks:
        lines.append(f"{check.state:4}  {check.name:11}  {check.found}")
        if check.fix:
            lines.append(f"{'':19}> {check.fix}")
    return "\n".join(lines)


def _python(m: Machine) -> Check:
    found = f"{m.implementation} {dotted(m.python)}, {m.bits} bit"
    wheels = [wheel for wheel in WHEELS if m.wheels_machine in wheel.machines] or list(WHEELS)
    if m.implementation == "CPython" and any(low <= m.python <= high for low, high in (w.pythons for w in wheels)):
        if m.venv:
            return Check("Python", "ok", found)
        return Check("Python", "warn", f"{found}, cannot create virtual environments", "sudo apt install python3-venv")
    newest = dotted(max(wheel.pythons[1] for wheel in wheels))
    found += f": no interpreter wheel on {m.wheels_machine}, CPython {newest} is the last one supported"
    return Check("Python", "fail", found, f"pip install uv && uv venv --python {newest} edgeall-env")


def _c_library(m: Machine) -> Check | None:
    wanted = [glibc for wheel in WHEELS if (glibc := wheel.machines.get(m.wheels_machine))]
    if not wanted:  # macOS and Windows; or a processor without wheels
        return None
    if m.glibc is None:
        return Check(
            "C library",
            "fail",
            "not glibc, which the interpreter wheels need",
            "use a system with glibc, such as Debian",
        )
    found = f"glibc {dotted(m.glibc)}"
    if m.glibc >= min(wanted):
        return Check("C library", "ok", found)
    found += f", the wheels need {dotted(min(wanted))}"
    return Check("C library", "fail", found, "sudo apt update && sudo apt full-upgrade")


def _processor(m: Machine) -> Check:
    if m.wheels_machine not in {name for wheel in WHEELS for name in wheel.machines}:
        fix = "no command repairs this: use a Raspberry Pi 2 or later, or a 64-bit system"
        return Check("machine", "fail", f"{m.wheels_machine}: PyPI has no interpreter for it", fix)
    if m.machine != "aarch64" or m.bits == 64:
        return Check("machine", "ok", m.machine)
    return Check(
        "machine",
        "warn",
        "a 32-bit system with a 64-bit kernel: pip detects aarch64 and finds no wheel",
        _pip("install dist/edgeall-*.whl", m)
        + " (or use a 64-bit system, which runs int8 models several times faster)",
    )


def _runtime(m: Machine) -> Check:
    reasons = {wheel.package: reason for wheel in WHEELS if (reason := why_unfit(wheel, m))}
    fitting = fitting_wheel(m)
    installed = {wheel.package: version for wheel in WHEELS if (version := m.version(wheel.package))}
    without = "".join(f"; {package} does not fit: {reason}" for package, reason in reasons.items())
    if fitting is None:
        if installed:
            return Check(
                "interpreter", "warn", f"{_listed(installed)}, not from a PyPI wheel{without}", "edgeall bench"
            )
        return Check("interpreter", "fail", f"none is installed{without}", "see the lines above")
    install = _pip(f"install {fitting.install}", m)
    if not installed:
        return Check("interpreter", "fail", f"none is installed, {fitting.package} fits{without}", install)
    if fitting.package not in installed:
        return Check("interpreter", "warn", f"{_listed(installed)}, {fitting.package} fits and is faster", install)
    return Check("interpreter", "ok", f"{fitting.package} {installed[fitting.package]}{without}")


def _numpy(m: Machine) -> Check:
    has, older = m.version("numpy"), m.version("tflite-runtime") if m.version("ai-edge-litert") is None else None
    fitting = fitting_wheel(m)
    wanted = "'numpy<2'" if older or (fitting and "numpy<2" in fitting.install) else f"'numpy>={LOWEST_NUMPY}'"
    install = _pip(f"install {wanted}", m)
    if has is None or version_numbers(has) < version_numbers(LOWEST_NUMPY):
        return Check("numpy", "fail", f"numpy {has or 'is missing'}", install)
    if older and version_numbers(has) >= (2,):
        return Check(
            "numpy", "fail", f"{has} is incompatible with tflite-runtime {older}, which was built for numpy 1", install
        )
    return Check("numpy", "ok", has)


def _packages(m: Machine) -> Check:
    found = {package: m.version(package) for package in PACKAGES}
    wrong = [
        name
        for name, low in PACKAGES.items()
        if (has := found[name]) is None or version_numbers(has) < version_numbers(low)
    ]
    if not wrong:
        return Check("packages", "ok", ", ".join(f"{name} {has}" for name, has in found.items()))
    what = ", ".join(f"{name} {found[name] or 'is missing'}" for name in wrong)
    install = " ".join(shlex.quote(f"{name}>={PACKAGES[name]}") for name in wrong)
    return Check("packages", "fail", what, _pip(f"install {install}", m))


def _inference(m: Machine) -> Check:
    fitting = fitting_wheel(m)
    try:
        facts = m.try_model()
    except EdgeallError as error:
        reinstall = _pip(f"install --force-reinstall {fitting.install}", m) if fitting else "see the lines above"
        return Check("inference", "fail", error.message, reinstall)
    if facts["xnnpack"]:
        return Check("inference", "ok", f"{facts['runtime']} runs int8 through XNNPACK")
    what = f"{facts['runtime']} runs int8 without XNNPACK, several times slower"
    if fitting is WHEELS[0]:
        return Check("inference", "warn", what, _pip(f"install --upgrade {fitting.install}", m))
    return Check("inference", "warn", what, f"no command repairs this: {WHEELS[0].package} needs a 64-bit system")


def _power(m: Machine) -> Check | None:
    bits = throttled_bits(m.root, m.run)
    if bits is None:
        return None
    now, before = throttle_reasons(bits), throttle_reasons(bits >> 16)
    if not now and not before:
        return Check("power", "ok", "never throttled since boot")
    what = f"{', '.join(now)} now" if now else f"{', '.join(before)} since boot"
    return Check("power", "warn", what, "use the official power supply and a heat sink; then: vcgencmd get_throttled")


def _camera(m: Machine) -> Check:
    tools = [tool for tool in ("rpicam-still", "libcamera-still", "v4l2-ctl") if m.has(tool)]
    cameras = sorted(f"/dev/{path.name}" for path in (m.root / "dev").glob("video*"))
    if not tools:
        package = "rpicam-apps" if m.is_pi else "v4l-utils"
        return Check(
            "camera", "warn", "no camera tools: the rig can read folders but no camera", f"sudo apt install {package}"
        )
    if not cameras:
        return Check(
            "camera", "warn", f"{', '.join(tools)}, but no /dev/video*", f"connect the camera; then: {_LISTS[tools[0]]}"
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
    what = f"no {' and no '.join(missing)}: `edgeall deploy` needs both"
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
    found = f"{_megabytes(files)} in {m.cache}, which edgeall can regenerate"
    if left:
        found += f"; {_megabytes(left)} of it left by killed processes, which the next training removes"
    return Check("cache", "ok", found)


def _megabytes(files: Iterable[Path]) -> str:
    sizes = []
    for path in files:
        with contextlib.suppress(OSError):  # removed in the meantime
            sizes.append(path.stat().st_size)
    return f"{sum(sizes) / 1e6:,.1f} MB"


def _clock(m: Machine) -> Check:
    found = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(m.now))
    if m.now < BUILT:
        return Check("clock", "fail", f"{found}: before edgeall was built", "sudo timedatectl set-ntp true")
    synchronized = (m.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"]) or "").strip()
    if synchronized == "yes":
        return Check("clock", "ok", f"{found}, synchronized")
    what = f"{found}, not synchronized: records would have a wrong time"
    if synchronized == "no":
        return Check("clock", "warn", what, "sudo timedatectl set-ntp true")
    return Check("clock", "warn", f"{found}, synchronization unknown", "sudo apt install systemd-timesyncd")


_CHECKS: tuple[Callable[[Machine], Check | None], ...] = (
    *(_python, _c_library, _processor, _runtime, _numpy, _packages, _inference),
    *(_power, _camera, _ssh, _disk, _cache, _clock),
)


def _pip(arguments: str, m: Machine) -> str:
    """A pip command for this Python. A 32-bit system with a 64-bit kernel needs ``linux32``."""
    narrow = "linux32 " if m.machine == "aarch64" and m.bits == 32 else ""
    return f"{narrow}{shlex.quote(sys.executable or 'python3')} -m pip {arguments}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())
