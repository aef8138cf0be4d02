"""Writes files as a whole: a reader finds the old content or the new one. Removes what killed processes left."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import DISK_FULL, NoSpaceError
from ..files import LONGEST, is_same_file, shorten
from ..messages import N_, message

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(
    r"\.(?:.+-(?P<now>\d+)\.\d+|(?:pixels|features)-[0-9a-f]+-(?P<once>\d+))(?:\.[A-Za-z0-9]+)?", re.DOTALL
)
"""``.<name>-<process>.<number><suffix>``; older versions wrote no number."""
_CLOCK_S = 2.0
"""Tolerance: file times and process start times are rounded."""
_numbers = itertools.count(1)


class atomic_write:
    """Context manager: gives a temporary path next to ``path``, and renames it to ``path`` if no error occurred.

    Syncs the file and its folder to the disk: after a power failure a reader finds the old file or the new one.
    Removes temporary files that killed processes left for the same ``path``.

    Args:
        path: the target; its folder is created if missing.
        hint: of the error for a full disk.

    Raises:
        NoSpaceError: the disk is full; the temporary file is removed.
    """

    def __init__(self, path: Path, hint: str = N_("free some space, then give the command again")) -> None:
        self.path = path
        self.hint = hint
        self._begin = f"{shorten('.' + path.stem, LONGEST - len(os.fsencode(path.suffix)) - 24)}-"
        self.temporary = path.with_name(f"{self._begin}{os.getpid()}.{next(_numbers)}{path.suffix}")
        self._lock: int | None = None

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path.parent, self._begin, self.path.suffix)
        try:
            self._lock = _locked(self.temporary)
        except OSError as error:
            self._explain(error)
            raise
        return self.temporary

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                sync(self.temporary)
                os.replace(self.temporary, self.path)
                sync(self.path.parent)
        except OSError as failed:
            self._explain(failed)
            raise
        finally:
            with contextlib.suppress(OSError):  # already renamed, or the folder was removed
                self.temporary.unlink()
            if self._lock is not None:
                os.close(self._lock)
        if isinstance(error, OSError):
            self._explain(error)

    def _explain(self, error: OSError) -> None:
        if error.errno in DISK_FULL:
            text = message(
                "{folder}: no space is left for {name} ({reason})",
                folder=self.path.parent,
                name=self.path.name,
                reason=error.strerror,
            )
            raise NoSpaceError(text, hint=self.hint) from error


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text to a file, see `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors))


def sync(path: Path) -> None:
    """Sync a file or a folder to the disk, if the system supports it."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR  # Windows syncs only writable files
    try:
        opened = os.open(path, flags)
    except OSError:
        if path.is_dir():  # Windows cannot open folders
            return
        raise
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # no fsync here
            raise
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Sync everything in a folder to the disk. Call it before writing a file that marks the folder as complete."""
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sync(Path(where, name))
        sync(Path(where))


# --- leftovers --------------------------------------------------------------------------------------------------------


def leftovers(folder: Path, begin: str = ".", end: str = "") -> list[Path]:
    """Temporary files of `atomic_write` in a folder whose process has ended.

    Args:
        folder: not searched below.
        begin: of the file names.
        end: of the file names.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(begin) and entry.name.endswith(end)]
    except OSError:
        return []
    found = ((name, _TEMPORARY.fullmatch(name)) for name in names)
    return [folder / name for name, match in found if match and _is_left(folder / name, int(match[1] or match[2]))]


def sweep(folder: Path, begin: str = ".", end: str = "") -> int:
    """Remove `leftovers`; returns the number of bytes freed."""
    freed = 0
    for path in leftovers(folder, begin, end):
        with contextlib.suppress(OSError):  # another process has removed it
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _locked(path: Path) -> int | None:
    """Create an empty file and lock it. The system releases the lock when the process ends."""
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        if os.name == "nt":
            os.close(opened)
            return None
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_same_file(opened, path):  # otherwise another process removed it before it was locked
            return opened
        os.close(opened)


def _is_left(path: Path, process: int) -> bool:
    """Whether no process writes this file: it is not locked, and no process with its number is as old as the file."""
    try:
        changed = path.stat().st_mtime
        opened = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    finally:
        os.close(opened)
    return not _runs_since(process, changed)


def _runs_since(process: int, moment: float) -> bool:
    """Whether a process with this number runs since ``moment`` (seconds since 1970) or earlier.

    The start time counts because the system reuses process numbers.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        pass
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        began = int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):  # not Linux
        return True
    return began <= moment + _CLOCK_S


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed at the end. Raises NoSpaceError if its disk is full or becomes full."""
    try:
        folder = tempfile.mkdtemp(prefix="edgeall-")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _no_scratch(error) from error
        raise
    try:
        yield Path(folder)
    except OSError as error:
        if error.errno in DISK_FULL and (error.filename is None or os.fspath(error.filename).startswith(folder)):
            raise _no_scratch(error) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_scratch(error: OSError) -> NoSpaceError:
    text = message(
        "{folder}: no space is left for temporary files ({reason})",
        folder=tempfile.gettempdir(),
        reason=error.strerror,
    )
    return NoSpaceError(text, hint="free some space there, or name another folder in TMPDIR")
