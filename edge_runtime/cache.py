"""Where what can be made again is kept."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path


def home() -> Path | None:
    """The user's home folder; None where the system doesn't know one (no ``HOME``, no entry for the user)."""
    found = os.path.expanduser("~") if os.environ.get("HOME", "?") else "~"
    return Path(found) if os.path.isabs(found) else None


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/edgeall``, by default ``~/.cache/edgeall``; it may not be there yet.

    Without a home it is a folder of the user's own among the temporary ones.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # as its specification has it; a "~" in it would become a folder of that name
        return Path(base, "edgeall")
    own = home()
    return own / ".cache" / "edgeall" if own else _among_temporary()


@functools.cache
def _among_temporary() -> Path:
    """What lies there is trusted later: it must be nobody else's."""
    folder = Path(tempfile.gettempdir(), f"edgeall-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:  # a link to nowhere, a file
        pass
    made = tempfile.mkdtemp(prefix="edgeall-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
