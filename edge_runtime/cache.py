"""The user's home folder and the cache folder. Everything in the cache can be regenerated."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path


def home() -> Path | None:
    """The user's home folder; None if the system knows none (no ``HOME``, no entry for the user)."""
    found = os.path.expanduser("~") if os.environ.get("HOME", "?") else "~"
    return Path(found) if os.path.isabs(found) else None


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/edgeall``, by default ``~/.cache/edgeall``; it need not exist.

    Without a home folder: a private folder in the system's temporary folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # relative paths are invalid by the XDG specification; "~" is not expanded
        return Path(base, "edgeall")
    own = home()
    return own / ".cache" / "edgeall" if own else _among_temporary()


@functools.cache
def _among_temporary() -> Path:
    """A folder that no other user can write to, because its content is trusted later."""
    folder = Path(tempfile.gettempdir(), f"edgeall-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:  # a dangling link, a file
        pass
    made = tempfile.mkdtemp(prefix="edgeall-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
