"""The record's database: one table of rows that can only be appended to, each chained by SHA-256 to the one before.

A row is a JSON object in canonical form (`canonical`). Its digest is the SHA-256 of the digest before it, a line feed
and that text. Columns to search by are computed from the text by SQLite, so that nothing beside it can disagree.
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

DATABASE = "record.sqlite"
FIRST = "0" * 64
"""What the first row is chained to."""
BUSY_S = 30.0
"""How long a writer waits for another process that writes."""

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
)
"""What leads from each version of the file to the next; the version is SQLite's ``user_version``."""


class RecordError(EdgeallError):
    """A record that can't be opened, read or written."""


class RecordFullError(RecordError):
    """There is no room for another row; nothing was written and nothing overwritten."""


def now() -> str:
    """UTC, ISO 8601 with microseconds: ``2026-11-21T19:20:01.000123Z``. Sorts as text."""
    return timestamp(datetime.now(timezone.utc))


def timestamp(moment: datetime) -> str:
    """``moment`` as `now` writes it. Raises ValueError for one without a time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment}: a time without a time zone")
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """What `timestamp` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def canonical(row: Mapping[str, Any]) -> str:
    """The one text of a row: JSON in ASCII, keys sorted, no blanks. Raises ValueError for NaN and infinity."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)


def chained(previous: str, text: str) -> str:
    """The hex digest of the row ``text`` behind the row with the digest ``previous``."""
    return hashlib.sha256(f"{previous}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()


def open_writer(folder: Path) -> sqlite3.Connection:
    """Open the database for writing; make it, or bring it up to this version, where needed.

    WAL with synchronous=FULL: a COMMIT returns when its rows are on the disk.

    Raises:
        RecordError: not a database, another program's, of a newer version, or on a file system that can't do WAL.
        RecordFullError: no room to make it.
    """
    path = folder / DATABASE
    with translated(path):
        database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _check_version(database, path)
            mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise RecordError(
                    f"{path}: this file system can't keep a write-ahead log",
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
    """A connection to look things up in, which changes nothing; works from a read-only disk as well.

    Raises:
        RecordError: no record there, or one that this version can't read.
    """
    path = folder / DATABASE
    try:
        there = path.is_file()
    except OSError as error:
        raise RecordError(f"{path}: can't be read ({error.strerror})", hint="is its disk in order?") from error
    if not there:
        raise RecordError(f"{folder}: no record here ({DATABASE} is missing)", hint="check the path")
    # A connection to a log needs a file beside it, also to read. Without a log there is nothing to coordinate.
    read_only = not os.access(folder, os.W_OK)
    with_log = path.with_name(f"{DATABASE}-wal").exists()
    how = "mode=rw" if not read_only else "mode=ro" if with_log else "immutable=1"
    with (
        translated(path),
        closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, timeout=BUSY_S)) as database,
    ):
        database.execute("PRAGMA query_only = ON")
        version = _check_version(database, path)
        if version < len(MIGRATIONS):
            raise RecordError(
                f"{path}: written by an older edgeall (format {version}, this version reads {len(MIGRATIONS)})",
                hint="start `edgeall rig` on it once, which brings it up to date",
            )
        database.row_factory = sqlite3.Row
        yield database


@contextmanager
def appending(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """A transaction that holds off every other writer. It is on the disk when the block ends, or has not been at all.

    Raises:
        RecordFullError: no room for it.
        RecordError: the database refuses it.
    """
    with translated(path):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # a full disk has rolled back already
                database.execute("ROLLBACK")
            raise


def append(database: sqlite3.Connection, kind: str, facts: Mapping[str, Any]) -> int:
    """Add a row inside `appending`; returns its number, which counts from 1 over all kinds."""
    last = database.execute("SELECT number, digest FROM entries ORDER BY number DESC LIMIT 1").fetchone()
    number, previous = (last[0] + 1, last[1]) if last else (1, FIRST)
    text = canonical({**facts, "number": number, "kind": kind, "at": now()})
    database.execute(
        "INSERT INTO entries (number, row, digest) VALUES (?, ?, ?)", (number, text, chained(previous, text))
    )
    return number


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """What SQLite says against ``path`` as a RecordError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise full(path) from error
        raise RecordError(f"{path}: {error}", hint="edgeall record verify says whether it is damaged") from error


def full(path: Path) -> RecordFullError:
    """The error of a disk without room."""
    return RecordFullError(
        f"{path}: the disk is full; judging has stopped, what is recorded is kept",
        hint="free some space; `edgeall record prune`, which writes a row itself, then removes old images",
    )


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_version(database: sqlite3.Connection, path: Path) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise RecordError(
            f"{path}: written by a newer edgeall (format {version}, this version knows {len(MIGRATIONS)})",
            hint="update edgeall",
        )
    if version == 0 and database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise RecordError(f"{path}: another program's database", hint="choose another folder")
    return version


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    if _check_version(database, path) == len(MIGRATIONS):
        return
    with appending(database, path):
        # Asked again: another process may have been first.
        for version in range(_check_version(database, path), len(MIGRATIONS)):
            for statement in MIGRATIONS[version]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {version + 1}")
