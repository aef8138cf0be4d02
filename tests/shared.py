"""What a test session makes only once, although several processes share its tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of the whole session: every process of pytest-xdist gets the same one.

    EDGEALL_TEST_SHARED names one that outlives the session, for a developer who runs a few tests again and again.
    Remove it after a change of what trains or quantizes.
    """
    base = factory.getbasetemp()
    own = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder = Path(os.environ.get("EDGEALL_TEST_SHARED") or own).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of the session, filled by the first process that asks for it; the others wait.

    Args:
        factory: pytest's.
        name: of the folder.
        make: called with the path of the folder, which does not exist. Files in it may hold that path.
    """
    folder = session_folder(factory) / name
    complete = folder.with_suffix(".complete")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # a process failed half way
            make(folder)
            complete.touch()
    return folder
