"""The record's database: one append-only table of rows, each chained by SHA-256 to the row before it.

A row is a JSON object in canonical form (`canonical`). Its digest is the SHA-256 of the previous digest, a line feed
and the row's text. SQLite computes the columns for searching from the text, so they cannot disagree with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...edge_runtime.errors import EdgeallError
from ..language import message

DATABASE = "record.sqlite"
FIRST = "0" * 64
"""The digest before the first row."""
BUSY_S = 30.0
"""Timeout of a writer that waits for another writing process."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE entries (
            number INTEGER PRIMARY KEY,
            row TEXT NOT NULL,
            digest TEXT NOT NULL,
            kind TEXT GENERATED ALWAYS AS (json_extract(row, '$.kind')) VIRTUAL,
            at TEXT GENERATED ALWAYS AS (json_extract(row, '$.at')) VIRTUAL,
            session INTEGER GENERATED ALWAYS AS (json_extract(row, '$.session')) VIRTUAL,
            frame INTEGER GENERATED ALWAYS AS (json_extract(row, '$.frame')) VIRTUAL,
            cell INTEGER GENERATED ALWAYS AS (json_extract(row, '$.cell')) VIRTUAL,
            status TEXT GENERATED ALWAYS AS (json_extract(row, '$.status')) VIRTUAL,
            label TEXT GENERATED ALWAYS AS (json_extract(row, '$.label')) VIRTUAL,
            review INTEGER GENERATED ALWAYS AS (json_extract(row, '$.review')) VIRTUAL,
            image TEXT GENERATED ALWAYS AS (json_extract(row, '$.image')) VIRTUAL
        )
        """,
        "CREATE INDEX entries_of_kind ON entries (kind, session)",
        "CREATE INDEX entries_about_frame ON entries (frame) WHERE frame IS NOT NULL",
        """
        CREATE TRIGGER entries_stay BEFORE UPDATE ON entries
        BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END
        """,
        """
        CREATE TRIGGER entries_are_kept BEFORE DELETE ON entries
        BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END
        """,
        # INSERT OR REPLACE deletes without firing the trigger above.
        """
        CREATE TRIGGER entries_follow BEFORE INSERT ON entries
        WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM entries)
        BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END
        """,
    ),
    (),  # 2: the kinds reopen, amend and skipped. An older edgeall would take a reopened slide for an ended one.
)
"""The statements that lead from each file version to the next. The version is SQLite's ``user_version``."""


class RecordError(EdgeallError):
    """A record cannot be opened, read or written."""


class NoSuchRowError(RecordError):
    """The record has no slide or frame with this number."""


class RecordGoneError(RecordError):
    """The record's folder or database was removed, replaced or unmounted while it was open."""


class RecordFullError(RecordError):
    """The disk has no room for another row. Nothing was written or overwritten."""


def now() -> str:
    """UTC, ISO 8601 with microseconds: ``2026-11-21T19:20:01.000123Z``. Sorts as text."""
    return timestamp(datetime.now(timezone.utc))


def timestamp(moment: datetime) -> str:
    """``moment`` in the format of `now`. Raises ValueError if it has no time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment}: has no time zone")
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """The inverse of `timestamp`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def canonical(row: Mapping[str, Any]) -> str:
    """The canonical text of a row: ASCII JSON, sorted keys, no spaces. Raises ValueError for NaN and infinity."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)


def chained(previous: str, text: str) -> str:
    """The hex digest of the row ``text`` that follows the row with the digest ``previous``."""
    return hashlib.sha256(f"{previous}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()


def open_writer(folder: Path) -> sqlite3.Connection:
    """Open the database for writing. Creates it, or migrates it to this version, if needed.

    WAL with synchronous=FULL: a COMMIT returns when its rows are on the disk.

    Raises:
        RecordError: not a database, another program's, of a newer version, or on a file system without WAL support.
        RecordFullError: the disk is full.
    """
    path = folder / DATABASE
    with translate_errors(path):
        database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _check_version(database, path)
            mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise RecordError(
                    message("{path}: this file system does not support a write-ahead log", path=path),
                    hint="put the record on a local disk, not on a network share",
                )
            database.execute("PRAGMA synchronous = FULL")
            _migrate(database, path)
        except BaseException:
            database.close()
            raise
    sync_folder(folder)
    return database


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection; also works on a read-only disk.

    Raises:
        RecordError: there is no record, or this version cannot read it.
    """
    path = folder / DATABASE
    try:
        there = path.is_file()
    except OSError as error:
        text = message("{file}: can't be read ({reason})", file=path, reason=error.strerror)
        raise RecordError(text, hint="check its disk") from error
    if not there:
        raise RecordGoneError(
            message("{folder}: no record here ({file} is missing)", folder=folder, file=DATABASE), hint="check the path"
        )
    # With a write-ahead log, even a reader needs write access to the file beside it. Without a log it does not.
    read_only = not os.access(folder, os.W_OK)
    with_log = path.with_name(f"{DATABASE}-wal").exists()
    how = "mode=rw" if not read_only else "mode=ro" if with_log else "immutable=1"
    with (
        translate_errors(path),
        closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, timeout=BUSY_S)) as database,
    ):
        database.execute("PRAGMA query_only = ON")
        version = _check_version(database, path)
        if version < len(MIGRATIONS):
            raise RecordError(
                message(
                    "{path}: written by an older edgeall (format {format}, this version reads {newest})",
                    path=path,
                    format=version,
                    newest=len(MIGRATIONS),
                ),
                hint="start `edgeall rig` on it once to migrate it",
            )
        database.row_factory = sqlite3.Row
        yield database


@contextmanager
def appending(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """A transaction that excludes every other writer. At the end of the block it is on the disk, or was rolled back.

    Raises:
        RecordFullError: the disk is full.
        RecordError: the database refuses it.
    """
    with translate_errors(path):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # on a full disk SQLite has rolled back already
                database.execute("ROLLBACK")
            raise


def append(database: sqlite3.Connection, kind: str, facts: Mapping[str, Any]) -> int:
    """Add a row inside `appending`. Returns its number, which counts from 1 over all kinds."""
    last = database.execute("SELECT number, digest FROM entries ORDER BY number DESC LIMIT 1").fetchone()
    number, previous = (last[0] + 1, last[1]) if last else (1, FIRST)
    text = canonical({**facts, "number": number, "kind": kind, "at": now()})
    database.execute(
        "INSERT INTO entries (number, row, digest) VALUES (?, ?, ?)", (number, text, chained(previous, text))
    )
    return number


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as RecordError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise full(path) from error
        raise RecordError(f"{path}: {error}", hint="run `edgeall record verify`") from error


def full(path: Path) -> RecordFullError:
    """The error for a full disk."""
    return RecordFullError(
        message("{path}: the disk is full; judging has stopped, recorded data is kept", path=path),
        hint="free some space, then remove old images with `edgeall record prune`, which has to write a row itself",
    )


def make_folder(folder: Path) -> None:
    """Create the folder of a record, for its owner alone, if it does not exist. Raises RecordError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            message("{path}: cannot be created ({reason})", path=folder, reason=error.strerror)
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush the file names in ``folder`` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_version(database: sqlite3.Connection, path: Path) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise RecordError(
            message(
                "{path}: written by a newer edgeall (format {format}, this version knows {newest})",
                path=path,
                format=version,
                newest=len(MIGRATIONS),
            ),
            hint="update edgeall",
        )
    if version == 0 and database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise RecordError(message("{path}: the database of another program", path=path), hint="choose another folder")
    return version


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    if _check_version(database, path) == len(MIGRATIONS):
        return
    with appending(database, path):
        # Checked again inside the transaction: another process may have migrated it.
        for version in range(_check_version(database, path), len(MIGRATIONS)):
            for statement in MIGRATIONS[version]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {version + 1}")
