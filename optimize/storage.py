"""Where Optuna keeps a study: a journal file, or whatever URL it takes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from edgeall.edge_runtime.errors import UsageError


def open_storage(storage: str) -> Any:
    """An Optuna storage.

    Args:
        storage: a URL (``sqlite:///FILE``, ``postgresql://...``), or the path of a journal file, which several
            machines may share through a network file system.

    Raises:
        UsageError: it can't be opened.
    """
    import optuna
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    expected: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, *storage_errors())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if "://" in storage:
                return get_storage(storage)
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(storage))
    except expected as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--storage {storage}: can't be opened ({said})", hint="give a URL or a file's path"
        ) from error


def storage_errors() -> tuple[type[Exception], ...]:
    """What a storage that has gone away, or is none, raises."""
    import optuna
    import sqlalchemy.exc

    return optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError
