"""Copies files to a device: shows progress, resumes interrupted copies, verifies the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from .shell import Reporter, Shell, ask, command_line
from .target import DeviceError

PIECE_BYTES = 64 * 1024
SPARE_BYTES = 8_000_000
"""Space that stays free on the device after the copy: a full disk would affect other programs."""


def upload(shell: Shell, python: str, file: Path, to: str, progress: Reporter) -> str:
    """Copy a file into ``~/.edgeall`` on the device.

    An interrupted copy leaves its part on the device, and the next call sends the rest. The digest is verified before
    the file is renamed to its path; a part with a wrong digest is removed, and the complete file is sent again.

    Args:
        shell: the device.
        python: Python executable on the device.
        file: on the host.
        to: path below ``~/.edgeall`` on the device.
        progress: shows the bytes.

    Returns:
        The absolute path on the device.

    Raises:
        DeviceError: the device's disk is too full, the connection is lost, or the digests differ.
    """
    digest, size = sha256(file), file.stat().st_size
    for _ in range(2):
        state = ask(shell, python, "receive", path=to, size=size, digest=digest)
        have = state["have_bytes"]
        if "free_bytes" not in state:  # the device has the complete file
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
        received = ask(shell, python, "received", path=to, digest=digest)
        if received["ok"]:
            return str(received["path"])
    raise DeviceError(
        f"{shell.name}: the digest of {file.name} differs after the copy",
        hint="if the file did not change meanwhile, check the device's disk or SD card",
    )


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file."""
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
        f"{shell.name}: the disk is too full for {file.name}: {needed_bytes / 1e6:.1f} MB and a "
        f"reserve of {SPARE_BYTES / 1e6:.0f} MB are needed, {free_bytes / 1e6:.1f} MB are free",
        hint="free some space on the device, then run the same command again",
    )
