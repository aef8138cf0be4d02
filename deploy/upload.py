"""Copies files to a device: with progress, resumed where an earlier copy broke off, checked against their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from .shell import Reporter, Shell, ask, command_line
from .target import DeviceError

PIECE_BYTES = 64 * 1024
SPARE_BYTES = 8_000_000
"""Left free on the device beyond what is copied: a full disk stops more than us."""


def upload(shell: Shell, python: str, file: Path, to: str, progress: Reporter) -> str:
    """Copy a file into ``~/.edgeall`` on the device.

    A copy that breaks off leaves its part there, and the next call sends the rest. What arrives is compared with the
    file's digest before it takes its place; a part that turns out to be wrong is thrown away and sent again whole.

    Args:
        shell: the device.
        python: its Python.
        file: here.
        to: below ``~/.edgeall`` there.
        progress: shows the bytes.

    Returns:
        The file's absolute path there.

    Raises:
        DeviceError: the disk there is too full, the connection is lost, or what arrives is not what was sent.
    """
    digest, size = sha256(file), file.stat().st_size
    for _ in range(2):
        state = ask(shell, python, "receive", path=to, size=size, digest=digest)
        have = state["have_bytes"]
        if "free_bytes" not in state:  # it is there, whole
            return str(state["path"])
        if size - have + SPARE_BYTES > state["free_bytes"]:
            raise _full(shell, file, size - have, state["free_bytes"])
        with progress.task(f"copying {file.name}", size, have) as advance:
            command = f"exec cat >> {command_line(state['part'])}"
            done = shell.run(command, stdin=_pieces(file, have, advance))
        if done.status:
            left = ask(shell, python, "free", path=to)["free_bytes"]
            if "space" in done.reason or "quota" in done.reason.lower():
                raise _full(shell, file, size, left)
            raise DeviceError(f"{shell.name}: {file.name} can't be copied ({done.reason})")
        answer = ask(shell, python, "received", path=to, digest=digest)
        if answer["ok"]:
            return str(answer["path"])
    raise DeviceError(
        f"{shell.name}: {file.name} arrives with another digest than it was sent with",
        hint="was the file changed meanwhile? else check the device's disk or SD card",
    )


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pieces(file: Path, start: int, advance: Callable[[int, str], None]) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        while piece := stream.read(PIECE_BYTES):
            yield piece
            advance(stream.tell(), "bytes")


def _full(shell: Shell, file: Path, needed_bytes: int, free_bytes: int) -> DeviceError:
    return DeviceError(
        f"{shell.name}: the disk is too full for {file.name}: {needed_bytes / 1e6:.1f} MB and "
        f"{SPARE_BYTES / 1e6:.0f} MB to spare are needed, {free_bytes / 1e6:.1f} MB are free",
        hint="make room on the device, then give the same command again",
    )
