"""Storage of Optuna studies: a journal file, or a URL that Optuna takes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import UsageError


def open_storage(storage: str) -> Any:
    """Open an Optuna storage.

    Args:
        storage: a URL (``sqlite:///FILE``, ``postgresql://...``), or the path of a journal file, which several
            machines may share through a network file system.

    Raises:
        UsageError: it cannot be opened.
    """
    import optuna
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    expected: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, *storage_errors())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if "://" in storage:
                return get_storage(storage)
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            _truncate(Path(storage), JournalFileSymlinkLock(storage))
            return JournalStorage(JournalFileBackend(storage))
    except expected as error:
        raise UsageError(
            f"--storage {storage}: can't be opened ({first_line(error)})", hint="give a URL or the path of a file"
        ) from error


def _truncate(journal: Path, lock: Any) -> None:
    """Remove an incomplete last line, left by a power cut or a kill. The next line would be joined to it.

    Raises:
        UsageError: another line is damaged.
    """
    if not journal.exists():
        return
    lock.acquire()  # held by every writer
    try:
        whole = journal.read_bytes()
        lines = whole[: whole.rfind(b"\n") + 1].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    f"{journal}, line {number}: damaged ({error})",
                    hint="restore the file; or remove it to start the trials anew, complete runs are kept",
                ) from error
        if not whole.endswith(b"\n") and whole:
            os.truncate(journal, whole.rfind(b"\n") + 1)
    finally:
        lock.release()


def first_line(error: Exception) -> str:
    """First line of an exception's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def storage_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a storage that is out of reach or invalid."""
    import optuna
    import sqlalchemy.exc

    return optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, as text; empty if none does."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return ", ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)
