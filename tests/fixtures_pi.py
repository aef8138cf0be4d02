"""Raspberry Pis for tests: Debian for Arm in a folder, run by QEMU as the kernel starts each of its programs.

They prove that things run there and give the right numbers, never how fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import venvs
from fixtures_ssh import wait_for_port

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "device"
MAKE_ROOT = Path(__file__).resolve().parent / "device" / "make_root.sh"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Pi:
    """One emulated board.

    Attributes:
        root: its file system, a folder here.
        cpu: as QEMU calls it.
        environment: of every program there.
    """

    root: Path
    cpu: str
    environment: dict[str, str]

    def run(self, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program there. Fails the test on another exit status."""
        settings = [f"{key}={value}" for key, value in {**self.environment, "QEMU_CPU": self.cpu}.items()]
        command = ["chroot", self.root, "/usr/bin/env", "-i", *settings, *words]
        return venvs.run([str(word) for word in command], status=status)

    def json(self, *words: object) -> dict[str, Any]:
        """What a program there prints, as JSON."""
        answer: dict[str, Any] = json.loads(self.run(*words).stdout)
        return answer


def make_root(arch: str) -> Path:
    """A root of Debian for that processor, made once for each state of the script; skips where it can't be.

    Args:
        arch: ``arm64`` or ``armhf``, whose programs the kernel is told to start by QEMU; or ``amd64``.
    """
    if os.geteuid() != 0:
        pytest.skip("another system in a folder needs root: chroot, and a handler for Arm programs in the kernel")
    needed = ["mmdebstrap", *([f"{QEMU[arch]}-static"] if arch in QEMU else [])]
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        venvs.unavailable(f"no {' and '.join(missing)} here: apt install mmdebstrap qemu-user-static")
    if arch in QEMU:
        _handle_programs(QEMU[arch])
    root = CACHE / f"{arch}-{hashlib.sha256(MAKE_ROOT.read_bytes()).hexdigest()[:12]}"
    if not root.exists():
        shutil.rmtree(f"{root}.part", ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        made = subprocess.run([MAKE_ROOT, arch, root], capture_output=True, text=True)
        if made.returncode:
            venvs.unavailable(f"{MAKE_ROOT.name} {arch} fails: {made.stderr.strip()[-300:]}")
    return root


def _handle_programs(qemu: str) -> None:
    """Tell the kernel to start programs of that processor with QEMU, as `binfmt-support` would."""
    if not (BINFMT / "register").exists():
        mounted = subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], capture_output=True)
        if mounted.returncode:
            pytest.skip("this kernel has no binfmt_misc: it can't start programs of another processor")
    if not (BINFMT / qemu).exists():
        (BINFMT / "register").write_text(Path(f"/usr/lib/binfmt.d/{qemu}.conf").read_text().strip())


@contextmanager
def fresh_home(root: Path, name: str) -> Iterator[Path]:
    """A user's empty home in the root, removed in the end: the root itself stays as it was made."""
    home = root / "home" / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    yield home
    shutil.rmtree(home)


@contextmanager
def sshd_in(root: Path, keys: Path, port: int, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Debian's own sshd for that processor, listening on loopback, with one host key and one user key."""
    folder = root / "run" / "edgeall"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name in ("server", "user.pub"):
        shutil.copy(keys / name, folder)
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": "/run/edgeall/server",
        "AuthorizedKeysFile": "/run/edgeall/user.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "SetEnv": " ".join(f"{key}={value}" for key, value in environment.items()),
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    command = ["chroot", root, "/usr/sbin/sshd", "-D", "-e", "-f", "/run/edgeall/config"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "QEMU_CPU": environment["QEMU_CPU"]})
    try:
        wait_for_port(port, process, log)
        yield
    finally:
        process.terminate()
        process.wait()


def install_beside(
    site: Path, wheel: Path | str, requirements: Sequence[str], platforms: Sequence[str], dependencies: bool = False
) -> None:
    """Unpack wheels for another processor into a folder; this machine's pip does it, so nothing is emulated.

    With ``dependencies`` also those that the wheels name, by this machine's processor.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += [*([] if dependencies else ["--no-deps"]), "--no-compile", "--target", str(site)]
    command += ["--implementation", "cp"]
    command += ["--python-version", "3.11", "--only-binary", ":all:"]
    for platform in platforms:
        command += ["--platform", platform]
    done = subprocess.run([*command, wheel, *requirements], capture_output=True, text=True)
    if done.returncode:
        venvs.unavailable(f"no wheels for {platforms[0]}: {done.stderr.strip()[-300:]}")
