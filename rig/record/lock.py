"""One rig for one record: two would judge the same images and take each other's open slide for their own."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .chain import RecordError

LOCK = "rig.lock"
"""In the record's folder. The system lets go of it when its process ends, however that comes about."""


@contextmanager
def sole_rig(record: Path) -> Iterator[None]:
    """Hold the record against every other rig. Tools that check, prune or export it may run meanwhile.

    Raises:
        RecordError: another rig holds it; says which. Or the file can't be written.
    """
    path = record / LOCK
    try:
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed below
    except OSError as error:
        raise RecordError(f"{path}: can't be written ({error.strerror})", hint="check its owner and mode") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.readline(200).strip() or "another process"
            raise RecordError(
                f"{record}: another rig records into it ({holder})", hint="end that one, or choose another --record"
            ) from error
        except OSError as error:
            raise RecordError(
                f"{path}: can't be locked ({error.strerror})", hint="put the record on a local disk"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
