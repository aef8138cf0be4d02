"""The virtual environment of edgeall on a device: one per wheel, created once."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import package
from .shell import Finished, Reporter, Shell, ask, checked, command_line
from .target import DeviceError
from .upload import upload

PYTHON = "python3"
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON_32 = (3, 11)
"""The last Python with a wheel of tflite-runtime, the interpreter for 32-bit Arm."""
INSTALL_BYTES = 400_000_000
"""Required space: the environment takes 150 MB, and unpacking the wheels takes as much again."""
WHEELS = "wheels"

# Runs in the Python of the environment: its pip knows the supported wheel tags.
_TAGS = """
import json
from pip._vendor.packaging import markers, tags
found = list(tags.sys_tags())
print(json.dumps({
    "markers": markers.default_environment(),
    "platforms": list(dict.fromkeys(tag.platform for tag in found if tag.platform != "any")),
    "abis": list(dict.fromkeys(tag.abi for tag in found)),
    "python": tags.interpreter_version(),
}))
"""


@dataclass(frozen=True)
class Install:
    """How edgeall is installed on a device.

    Attributes:
        wheel: of edgeall, see `edgeall.deploy.package.wheel`; None builds one.
        python: Python executable on the device.
        offline: collect the dependencies on the host and copy them, for a device without a network. Otherwise the
            device's pip downloads them.
    """

    wheel: Path | None = None
    python: str = PYTHON
    offline: bool = False


@dataclass(frozen=True)
class Environment:
    """An environment on a device.

    Attributes:
        name: of its folder in ``~/.edgeall/env``: version and digest of the wheel.
        edgeall: absolute path of the command on the device.
    """

    name: str
    edgeall: str


def check_python(shell: Shell, facts: Mapping[str, Any]) -> None:
    """Refuse a device if no interpreter wheel supports its Python.

    Args:
        shell: the device.
        facts: of `edgeall.deploy.on_device.facts`.

    Raises:
        DeviceError: the hint says which Python is supported.
    """
    version = tuple(facts["python"][:2])
    text = ".".join(map(str, facts["python"]))
    if facts["implementation"] != "cpython" or version < OLDEST_PYTHON:
        raise DeviceError(
            f"{shell.name}: its Python is {facts['implementation']} {text}, edgeall needs CPython 3.10 or later",
            hint="a Raspberry Pi OS of 2023 or later has one; --device-python selects another Python on the device",
        )
    if facts["bits"] == 32 and version > NEWEST_PYTHON_32:
        raise DeviceError(
            f"{shell.name}: a 32-bit system with Python {text}: no TFLite interpreter has a wheel for it",
            hint="use the 64-bit Raspberry Pi OS, or a 32-bit one with Python 3.11 (bookworm)",
        )


def prepare(shell: Shell, install: Install, facts: Mapping[str, Any], progress: Reporter) -> Environment:
    """Install edgeall on the device in a virtual environment, unless the same wheel is already installed.

    Args:
        shell: the device.
        install: wheel, Python and source of the dependencies.
        facts: of `edgeall.deploy.on_device.facts`.
        progress: shows the steps.

    Raises:
        DeviceError: an unsupported Python, not enough disk space, or an install command that fails.
        EdgeallError: the wheel cannot be built, or a dependency has no wheel for this device.
    """
    check_python(shell, facts)
    wheel, python = package.wheel(install.wheel), install.python
    name = package.environment_name(wheel)
    state = ask(shell, python, "environment", name=name)
    environment = Environment(name, f"{state['path']}/bin/edgeall")
    if state["complete"]:
        return environment
    if facts["free_bytes"] < INSTALL_BYTES:
        raise DeviceError(
            f"{shell.name}: {facts['free_bytes'] / 1e6:.0f} MB are free, an install needs {INSTALL_BYTES / 1e6:.0f}",
            hint="free some space on the device",
        )
    progress.note(f"{shell.name}: installing edgeall {name} in {state['path']} (some minutes on a small board)")
    made = shell.run(command_line(python, "-m", "venv", "--clear", state["path"]))
    if made.status:
        raise _no_venv(shell, python, made)
    inside = f"{state['path']}/bin/python"
    pip = [inside, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    if facts["bits"] == 32 and facts["machine"] in ("aarch64", "x86_64"):
        # A 32-bit system with a 64-bit kernel: without this, pip detects a 64-bit system (docs/how-to/install.md).
        pip.insert(0, "linux32")
    folder = f"{WHEELS}/{name}"
    if install.offline:
        remote_path = _send_wheelhouse(shell, python, inside, wheel, folder, progress)
        pip += ["--no-index", "--find-links", remote_path, f"{remote_path}/{wheel.name}"]
    else:
        pip += [upload(shell, python, wheel, f"{folder}/{wheel.name}", progress)]
    checked(shell, pip)
    checked(shell, [environment.edgeall, "--version"])
    ask(shell, python, "environment_done", name=name)
    ask(shell, python, "remove", path=WHEELS)
    return environment


def _send_wheelhouse(shell: Shell, python: str, inside: str, wheel: Path, folder: str, progress: Reporter) -> str:
    """Collect the wheels on the host and copy them as one archive. Returns their folder on the device."""
    device = json.loads(checked(shell, [inside, "-c", _TAGS]).out)
    with tempfile.TemporaryDirectory() as here:
        progress.note(f"collecting wheels for {device['platforms'][0]}, Python {device['python']}")
        house = package.wheelhouse(wheel, device, Path(here) / "wheels")
        archive = Path(here) / "wheels.tar"
        pack(house, Path(here) / "wheels", archive)
        upload(shell, python, archive, f"{folder}.tar", progress)
    return str(ask(shell, python, "unpack", path=f"{folder}.tar")["path"])


def pack(files: list[Path], base: Path, archive: Path) -> None:
    """A tar archive of files, with names relative to ``base``. Reproducible, so that a copy can be resumed."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            entry = tarfile.TarInfo(file.relative_to(base).as_posix())
            entry.size = file.stat().st_size
            with file.open("rb") as stream:
                tar.addfile(entry, stream)


def _no_venv(shell: Shell, python: str, made: Finished) -> DeviceError:
    missing = "ensurepip" in made.out + made.err or "No module named venv" in made.err
    return DeviceError(
        f"{shell.name}: {python} can't make a virtual environment ({made.reason})",
        hint="on the device: sudo apt install python3-venv" if missing else "",
    )
