"""Output files and folders: a lock for one process at a time, and names that fit the file system."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST = 255
"""Bytes of a file's name on nearly every file system."""


@contextlib.contextmanager
def output_lock(out: Path, command: str) -> Iterator[None]:
    """Hold what a command writes, a file or a folder, for this process. The system lets it go however that ends.

    The lock is a file beside ``out``, which need not exist, or in it where nothing can be made beside it; folders
    above ``out`` are made, and removed again if nothing was put there.

    Args:
        out: of the command.
        command: its name, for whoever is refused.

    Raises:
        UsageError: another process holds it; or nothing can be written there.
    """
    beside = out.with_name(_fitted(".", out.name, ".lock")) if out.name else out / ".lock"
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        path, opened = beside, _try_lock(beside)
    except OSError as error:
        inside = out / ".edgeall.lock"
        try:
            path, opened = inside, _try_lock(inside)
        except OSError:
            raise UsageError(f"{out}: can't be written ({error.strerror})", hint="choose another place") from error
    try:
        if opened is None:
            raise UsageError(f"{out}: in use by {_holder(path)}", hint="wait until it ends, or choose another place")
        said = {"command": command, "process": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
        with contextlib.suppress(OSError):  # a full disk; it is the lock that counts
            os.ftruncate(opened, 0)
            os.write(opened, json.dumps(said).encode())
        yield
    finally:
        if opened is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(opened)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, as it should be
                folder.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock of `output_lock`."""
    return all(child.name == ".edgeall.lock" for child in folder.iterdir())


def _try_lock(path: Path) -> int | None:
    """An open, locked file; None where another process holds it."""
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            return None
        except OSError:  # a file system without locks
            pass
        if is_same_file(opened, path):  # else its holder has just removed it
            return opened
        os.close(opened)


def _holder(lock: Path) -> str:
    try:
        said = json.loads(lock.read_text(encoding="utf-8"))
        return f"`edgeall {said['command']}` (process {said['process']} on {said['host']}, since {said['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another edgeall"


def is_same_file(opened: int, path: Path) -> bool:
    try:
        there, own = os.stat(path), os.fstat(opened)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def file_name(before: str, name: str, after: str) -> str:
    """``before + name + after``, with ``name`` cut so that a file can be called that; a cut name ends in a digest."""
    return _fitted(before, name, after)


def _fitted(before: str, name: str, after: str) -> str:
    return before + shorten(name, LONGEST - len(os.fsencode(before + after))) + after


def shorten(name: str, most: int) -> str:
    """At most so many bytes of a name; what was cut differs from every other name all the same."""
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    end = f"~{hashlib.sha256(raw).hexdigest()[:8]}"
    kept = raw[: most - len(end)]
    while kept and (raw[len(kept)] & 0xC0) == 0x80:  # within a character of UTF-8
        kept = kept[:-1]
    return os.fsdecode(kept) + end
