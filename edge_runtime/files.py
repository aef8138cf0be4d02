"""Output files and folders: a lock against other processes, and names that fit the file system."""

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
from .messages import Message, message

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST = 255
"""Maximum bytes of a file name on nearly every file system."""


@contextlib.contextmanager
def output_lock(out: Path, command: str) -> Iterator[None]:
    """Lock the output file or folder of a command for this process. The system releases the lock when the process ends.

    The lock is a file next to ``out``, which need not exist; or a file in ``out``, if its parent is not writable.
    Creates missing parent folders, and removes them again if they are empty at the end.

    Args:
        out: the output of the command.
        command: its name, for the error in the other process.

    Raises:
        UsageError: another process holds the lock; or the place is not writable.
    """
    next_to = out.with_name(file_name(".", out.name, ".lock")) if out.name else out / ".lock"
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        path, opened = next_to, _try_lock(next_to)
    except OSError as error:
        inside = out / ".edgeall.lock"
        try:
            path, opened = inside, _try_lock(inside)
        except OSError:
            text = message("{path}: can't be written ({reason})", path=out, reason=error.strerror)
            raise UsageError(text, hint="choose another place") from error
    try:
        if opened is None:
            text = message("{path}: in use by {holder}", path=out, holder=_holder(path))
            raise UsageError(text, hint="wait until it ends, or choose another place")
        holder = {"command": command, "process": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            os.ftruncate(opened, 0)
            os.write(opened, json.dumps(holder).encode())
        yield
    finally:
        if opened is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(opened)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the usual case
                folder.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing except the lock of `output_lock`."""
    return all(child.name == ".edgeall.lock" for child in folder.iterdir())


def _try_lock(path: Path) -> int | None:
    """The descriptor of an open, locked file; None if another process holds the lock."""
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
        if is_same_file(opened, path):  # otherwise its holder has just removed it
            return opened
        os.close(opened)


def _holder(lock: Path) -> Message:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        known = {name: holder[name] for name in ("command", "process", "host", "since")}
        return message("`edgeall {command}` (process {process} on {host}, since {since})", **known)
    except (OSError, ValueError, KeyError, TypeError):  # the other process has not written it yet
        return message("another edgeall")


def is_same_file(opened: int, path: Path) -> bool:
    try:
        named, own = os.stat(path), os.fstat(opened)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)


def file_name(before: str, name: str, after: str) -> str:
    """``before + name + after``, with ``name`` cut to fit `LONGEST`; a cut name ends in a digest."""
    return before + shorten(name, LONGEST - len(os.fsencode(before + after))) + after


def shorten(name: str, most: int) -> str:
    """At most ``most`` bytes of a name. A cut name ends in a digest, so different names stay different."""
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    end = f"~{hashlib.sha256(raw).hexdigest()[:8]}"
    kept = raw[: most - len(end)]
    while kept and (raw[len(kept)] & 0xC0) == 0x80:  # in the middle of a UTF-8 character
        kept = kept[:-1]
    return os.fsdecode(kept) + end
