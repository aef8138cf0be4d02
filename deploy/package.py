"""The wheels that a device installs: edgeall's, built on the host, and optionally its dependencies."""

from __future__ import annotations

import configparser
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email.parser import BytesParser
from pathlib import Path

from ..edge_runtime.cache import cache_dir
from ..edge_runtime.errors import EdgeallError, UsageError
from ..edge_runtime.tools.atomic import atomic_write

ROOT_FILES = ("__init__.py", "__main__.py", "api.py", "cli.py", "py.typed", "setup.cfg", "pyproject.toml", "README.md")


def wheel(given: Path | None = None, checkout: Path | None = None) -> Path:
    """The wheel of edgeall: the given one, else one built from this checkout, once per state of the source.

    Args:
        given: a wheel file.
        checkout: top folder of the source; None takes the one that contains this file.

    Raises:
        UsageError: ``given`` is not a wheel of edgeall; or this edgeall was installed from a wheel.
        EdgeallError: the build fails.
    """
    if given is not None:
        if not given.is_file() or not given.name.startswith("edgeall-") or given.suffix != ".whl":
            raise UsageError(
                f"{given}: not a wheel of edgeall", hint="build one in a checkout: python -m build --wheel"
            )
        return given
    source = checkout or Path(__file__).resolve().parent.parent
    if not (source / "setup.cfg").exists():
        raise UsageError(
            "this edgeall was installed from a wheel and can't build another",
            hint="give that wheel with --wheel FILE, or run this command in a checkout",
        )
    files = sorted(_sources(source))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(source).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    folder = cache_dir() / "wheels" / digest.hexdigest()[:16]
    built = sorted(folder.glob("*.whl"))
    return built[0] if built else _build(source, files, folder)


def environment_name(wheel: Path) -> str:
    """Name of the environment for this wheel: version and start of the wheel's digest."""
    return f"{wheel.name.split('-')[1]}-{hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]}"


def requirements(wheel: Path, markers: Mapping[str, str]) -> list[str]:
    """The requirements of a wheel on a machine with the environment ``markers`` (PEP 508), without extras."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(archive.read(name))
    needed = []
    for text in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({**markers, "extra": ""}):
            needed.append(f"{requirement.name}{requirement.specifier}")
    return needed


def wheelhouse(wheel: Path, device: Mapping[str, object], folder: Path) -> list[Path]:
    """Collect on the host the wheels that a device needs, for the device's platform and Python.

    Args:
        wheel: of edgeall.
        device: `markers` (PEP 508), `platforms` (tags, best first), `python` (``3.11``) and `abis`, from the device's
            pip.
        folder: for the wheels; wheels that it already has are not downloaded again.

    Returns:
        All wheels, including edgeall's.

    Raises:
        EdgeallError: a wheel does not exist for that device; with pip's message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    markers: Mapping[str, str] = device["markers"]  # type: ignore[assignment]
    options: list[str] = []
    for platform in device["platforms"]:  # type: ignore[attr-defined]
        options += ["--platform", platform]
    for abi in device["abis"]:  # type: ignore[attr-defined]
        options += ["--abi", abi]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"),
            *("--only-binary", ":all:", "--implementation", "cp", "--python-version", str(device["python"])),
            *("--find-links", str(folder), "--dest", str(folder)),
            *options,
            *requirements(wheel, markers),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise EdgeallError(f"the device's packages can't be collected on this host ({_last_lines(done.stderr)})")
    shutil.copy(wheel, folder)
    return sorted(folder.glob("*.whl"))


def _sources(source: Path) -> Iterator[Path]:
    """The source files of the wheel: those of the packages, without tests and benchmarks."""
    config = configparser.ConfigParser()
    config.read(source / "setup.cfg", encoding="utf-8")
    yield from (source / name for name in ROOT_FILES if (source / name).is_file())
    for package in config["options"]["packages"].split():
        folder = source.joinpath(*package.split(".")[1:])
        if folder != source:
            yield from (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _build(source: Path, files: Sequence[Path], folder: Path) -> Path:
    # A copy: the build leaves folders in its source, and would include those of an earlier build.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        copy = Path(made) / "edgeall"
        for file in set(files):
            target = copy / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        # Zip files contain times: with a fixed time, the wheel is the same on each machine.
        done = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", Path(made) / "dist", copy],
            env={**os.environ, "SOURCE_DATE_EPOCH": "946684800"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise EdgeallError(
                f"edgeall's wheel can't be built on this host ({_last_lines(done.stderr or done.stdout)})",
                hint="build one on a host with a network (python -m build --wheel) and give it with --wheel FILE",
            )
        (built,) = (Path(made) / "dist").glob("*.whl")
        with atomic_write(folder / built.name) as temporary:
            shutil.copyfile(built, temporary)
        return folder / built.name


def _last_lines(text: str) -> str:
    return " / ".join(line.strip() for line in text.strip().splitlines()[-3:])
