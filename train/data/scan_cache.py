"""Caches the results of a scan between commands. An entry is valid only for an unchanged file.

A file is unchanged if its size, its times of modification and change, and its inode are the same. A file that changed
within `RACY_NS` before it was read is not cached: it could change again without a new time (git: "racy git"). The cache
is optional: if it cannot be read or written, every file is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...edge_runtime.cache import cache_dir
from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.tools.atomic import atomic_write

MAX_BYTES = 1 << 30
"""Maximum size of the cache. The least recently used files are removed first. An image takes 3.4 kB."""
RACY_NS = 2_000_000_000
"""Nanoseconds. FAT stores times with a resolution of two seconds."""

_HEAD = struct.Struct("<8sIQ")  # magic, CRC-32 of everything after the header, bytes of the JSON
_MAGIC = b"edgeall1"


class Stamp(NamedTuple):
    """Identifies the state of a file without reading it. Times are in nanoseconds since 1970."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Known(NamedTuple):
    """The cached facts of a file: the digest of its bytes, and other values (bytes and JSON values) made from them."""

    sha256: str
    values: tuple[Any, ...] | None


class ScanCache:
    """The cached facts of some files. The cache has one file for each of their folders.

    Args:
        paths: the files.
        made_by: identifies the code that makes `Known.values`. Entries of other code are ignored.
    """

    def __init__(self, paths: Sequence[str], made_by: str) -> None:
        self._made_by = made_by
        self._folders: dict[str, dict[str, tuple[Stamp, Known]]] = {}
        self._changed: set[str] = set()
        for folder in {os.path.dirname(path) for path in paths}:
            self._folders[folder] = _load(_file_of(folder), made_by)

    def get(self, path: str) -> tuple[Stamp | None, Known | None]:
        """The current stamp of a file (None if it is missing), and the cached facts for this state."""
        stamp = _stamp(path)
        folder, name = os.path.split(path)
        found = self._folders[folder].get(name)
        return stamp, found[1] if found is not None and found[0] == stamp else None

    def put(self, path: str, stamp: Stamp | None, begun_ns: int, known: Known) -> None:
        """Cache the facts of a file.

        Args:
            path: of the file.
            stamp: from `get`, before the file was read.
            begun_ns: `time.time_ns` when the stamp was taken.
            known: the facts.
        """
        if stamp is None or max(stamp.mtime_ns, stamp.ctime_ns) > begun_ns - RACY_NS:
            return
        folder, name = os.path.split(path)
        self._folders[folder][name] = stamp, known
        self._changed.add(folder)

    def save(self) -> None:
        """Write the cache, without entries of files that changed. Failures are ignored: the cache is optional."""
        for folder in sorted(self._changed):
            rows = {
                name: row for name, row in self._folders[folder].items() if _stamp(os.path.join(folder, name)) == row[0]
            }
            _store(_file_of(folder), _packed(rows, self._made_by))
        self._changed.clear()


def load_result(key: str) -> Any:
    """The value that `save_result` stored under ``key``; None if there is none."""
    found = _read(_folder() / f"{key}.result")
    return None if found is None else found[0]


def save_result(key: str, value: Any) -> None:
    """Store a JSON value. ``key`` is a hexadecimal digest of everything that the value depends on."""
    _store(_folder() / f"{key}.result", _sealed(value, b""))


def _folder() -> Path:
    return cache_dir() / "scans"


def _file_of(folder: str) -> Path:
    return _folder() / f"{hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:32]}.facts"


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _packed(rows: Mapping[str, tuple[Stamp, Known]], made_by: str) -> bytes:
    """The rows as JSON, followed by all values of type bytes. The JSON holds their lengths."""
    blobs: list[bytes] = []
    listed = []
    for name, (stamp, known) in rows.items():
        values = None
        if known.values is not None:
            values = [[len(value)] if isinstance(value, bytes) else value for value in known.values]
            blobs += [value for value in known.values if isinstance(value, bytes)]
        listed.append([name, *stamp, known.sha256, values])
    return _sealed({"made_by": made_by, "rows": listed}, b"".join(blobs))


def _load(path: Path, made_by: str) -> dict[str, tuple[Stamp, Known]]:
    """Rows by file name; empty if the cache file is missing, damaged or of another version."""
    found = _read(path)
    if found is None:
        return {}
    document, blob = found
    if document["made_by"] != made_by:
        return {}
    rows: dict[str, tuple[Stamp, Known]] = {}
    at = 0
    for name, size, mtime_ns, ctime_ns, inode, sha256, packed in document["rows"]:
        values = []
        for value in packed or ():
            if isinstance(value, list):
                values.append(blob[at : at + value[0]])
                at += value[0]
            else:
                values.append(value)
        known = Known(sha256, None if packed is None else tuple(values))
        rows[name] = Stamp(size, mtime_ns, ctime_ns, inode), known
    return rows


def _sealed(document: Any, blob: bytes) -> bytes:
    text = json.dumps(document).encode()
    return _HEAD.pack(_MAGIC, zlib.crc32(blob, zlib.crc32(text)), len(text)) + text + blob


def _read(path: Path) -> tuple[Any, bytes] | None:
    """JSON and bytes of a complete cache file, which is marked as used."""
    try:
        content = path.read_bytes()
        magic, checksum, length = _HEAD.unpack_from(content)
    except (OSError, struct.error):
        return None
    if magic != _MAGIC or zlib.crc32(memoryview(content)[_HEAD.size :]) != checksum:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return json.loads(content[_HEAD.size : _HEAD.size + length]), content[_HEAD.size + length :]


def _store(path: Path, content: bytes) -> None:
    with contextlib.suppress(OSError, EdgeallError):
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        _trim(path.parent, path)


def _trim(folder: Path, newest: Path) -> None:
    """Remove the least recently used files until the rest fits into `MAX_BYTES`."""
    with os.scandir(folder) as entries:
        files = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in entries]
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            return
        if path != str(newest):
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
