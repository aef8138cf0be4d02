"""Allows one rig per record: two would judge the same images and continue each other's open slide."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .chain import RecordError, make_folder

LOCK = "rig.lock"
"""In the record's folder. The operating system releases it when the process ends, for whatever reason."""


@contextmanager
def lock_record(record: Path) -> Iterator[None]:
    """Lock the record against every other rig. Tools that verify, prune or export it may still run.

    A rig locks before it opens the record: opening migrates it and removes what a killed rig left.

    Args:
        record: folder of the record; created if it does not exist.

    Raises:
        RecordError: another rig, which the message names, holds the lock; or the lock file cannot be written.
    """
    make_folder(record)
    path = record / LOCK
    try:
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed below
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror})", hint="check its owner and mode") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.readline(200).strip() or "another process"
            raise RecordError(
                f"{record}: another rig uses this record ({holder})", hint="stop that rig, or choose another --record"
            ) from error
        except OSError as error:
            raise RecordError(
                f"{path}: cannot be locked ({error.strerror})", hint="put the record on a local disk"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
