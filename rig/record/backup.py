"""Backup and restore of a record: a consistent copy of the database, the images that it names, and a verification.

Source: SQLite's online backup API (https://sqlite.org/backup.html): the copy is of one moment, also while a rig writes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...console.progress import QUIET, Progress
from ...edge_runtime.errors import UsageError
from . import chain
from .chain import RecordError
from .check import Verification, check
from .image_store import NO_ROOM, ImageStore, file_digest
from .lock import LOCK, lock_record

_PART = f"{chain.DATABASE}.part"
_LOGS = tuple(f"{name}-{kind}" for name in (chain.DATABASE, _PART) for kind in ("wal", "shm", "journal"))
"""Beside a database whose writer was killed. A new database must not be opened with an old log."""


@dataclass(frozen=True)
class Copied:
    """The result of `back_up` and `restore`.

    Attributes:
        out: the folder of the copy.
        rows: number of rows.
        images: number of images in the copy.
        new_images: of these, copied now; the others were there.
        missing_images: images that rows name, and that neither the source nor the copy has and no ``prune`` row
            explains, or that are altered.
        head: digest of the last row: the same chain has the same head.
    """

    out: str
    rows: int
    images: int
    new_images: int
    missing_images: int
    head: str

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``edgeall record backup --json``."""
        return asdict(self)


def back_up(folder: Path, out: Path, progress: Progress = QUIET) -> Copied:
    """Copy a record into a folder and verify the copy. A rig may write to the record meanwhile.

    ``out`` is new, empty, or an older or interrupted backup of the same record, which is brought up to date. Its
    database is replaced in one step, after the new one was copied whole.

    Raises:
        RecordError: ``folder`` is not a record, ``out`` is another record, or the copy is not intact.
        UsageError: ``out`` has other files, or is inside the record.
        RecordFullError: the disk of ``out`` is full.
    """
    if out.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"--out {out}: is inside the record or around it", hint="choose a folder on another disk")
    with chain.reading(folder):
        pass
    _check_target(out)
    with lock_record(out):  # no rig may write into a backup, nor two backups
        return _copy(folder, out, progress)


def restore(backup: Path, folder: Path, progress: Progress = QUIET) -> Copied:
    """Make a record from a backup, verified before and after. For a ZIP file see `backup_zip.restore_zip`.

    Raises:
        RecordError: the backup is not a record, or was altered, or the copy is not intact.
        UsageError: ``folder`` is not empty.
        RecordFullError: its disk is full.
    """
    found = check(backup, progress=progress)
    if found.problems:
        raise RecordError(
            f"{backup}: {found.problems[0]}", hint="use another backup; `edgeall record verify` lists all"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--record {folder}: is not empty", hint="choose a new folder")
    copied = _copy(backup, folder, progress)
    if copied.head != found.head:
        raise RecordError(f"{folder}: its head is not that of the backup", hint="was the backup written to meanwhile?")
    return copied


def _check_target(out: Path) -> None:
    """Create the folder. Raises UsageError if it holds anything but a backup."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir()}
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}", hint="choose another folder") from error
    ours = {chain.DATABASE, _PART, *_LOGS, "images", "incoming", LOCK}
    if names - ours:
        raise UsageError(f"--out {out}: holds other files", hint="choose a new folder, or an older backup")


def _copy(source: Path, target: Path, progress: Progress) -> Copied:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = target / _PART
        for name in (_PART, *(log for log in _LOGS if log.startswith(_PART))):
            (target / name).unlink(missing_ok=True)
        copy_database(source, part)
        _check_same(target, part)
        new = _copy_images(part, ImageStore(source), ImageStore(target), progress)  # an image is there before its row
        for name in _LOGS:
            (target / name).unlink(missing_ok=True)
        os.replace(part, target / chain.DATABASE)
        chain.sync_folder(target)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise chain.full(target) from error
        raise RecordError(f"{target}: cannot be written ({error.strerror})", hint="check the disk") from error
    found = check(target, progress=progress)
    missing = _missing_images(found)
    others = [problem for problem in found.problems if problem.number is None or "its image" not in problem.text]
    if others:
        raise RecordError(f"{target}: the copy is not intact: {others[0]}", hint="verify the source, then repeat")
    return Copied(str(target), found.rows, found.images - missing, new, missing, found.head)


def _missing_images(found: Verification) -> int:
    return sum("its image" in problem.text for problem in found.problems)


def copy_database(source: Path, part: Path) -> None:
    """Copy the database of one moment into a file without a log, on the disk when this returns."""
    with (
        chain.reading(source) as database,
        chain.translate_errors(part),
        closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        database.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    with open(part, "rb") as file:
        os.fsync(file.fileno())


def _check_same(target: Path, part: Path) -> None:
    """Raise RecordError unless the backup in ``target`` is an earlier state of the copy in ``part``."""
    if not (target / chain.DATABASE).exists():
        return
    with chain.reading(target) as old, chain.translate_errors(part), closing(sqlite3.connect(part)) as new:
        last = old.execute("SELECT number, digest FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        found = last and new.execute("SELECT digest FROM entries WHERE number = ?", (last[0],)).fetchone()
        if last and (found is None or found[0] != last[1]):
            raise RecordError(
                f"{target}: holds another record, or a later state of this one", hint="choose a new folder"
            )


def _copy_images(database: Path, source: ImageStore, target: ImageStore, progress: Progress) -> int:
    """Copy the images that rows name and ``target`` lacks, each compared with its digest. Returns their number."""
    copied, named = 0, list(named_images(database))
    with progress.task("copying images", len(named)) as advance:
        for done, digest in enumerate(named, 1):
            path = source.path(digest)
            # Else pruned, or copied before; a missing one is found by the verification.
            if path is not None and target.path(digest) is None and file_digest(path) == digest:
                target.save(path.read_bytes())
                copied += 1
            advance(done, "")
    return copied


def named_images(database: Path) -> Iterator[str]:
    """Digests of the images that a database names."""
    with chain.translate_errors(database), closing(sqlite3.connect(database)) as opened:
        for (digest,) in opened.execute("SELECT DISTINCT image FROM entries WHERE image IS NOT NULL"):
            yield digest
