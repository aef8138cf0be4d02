"""A cache on disk for preprocessed images and other arrays, so that training does not decode images.

A cached array is a ``.npy`` file followed by checksums. A damaged file is detected and made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.cache import cache_dir
from ...edge_runtime.errors import DISK_FULL, DataError, NoSpaceError
from ...edge_runtime.network import cores
from ...edge_runtime.preprocess import InputSpec, load_input
from ...edge_runtime.threads import Threads
from ...edge_runtime.tools import atomic
from ...edge_runtime.tools.atomic import atomic_write
from .split import SplitEntry

FORMAT = 2
"""Version of the cached values. It is raised whenever the result of `edge_runtime.preprocess` changes."""
ELSEWHERE = "free some space, or name another folder with --cache-dir"
_CHUNK = 1 << 22
"""Bytes per checksum."""
_END = struct.Struct("<8sQ")
"""The end of a file: `_MAGIC` and the number of checksums before it."""
_MAGIC = b"edgeall1"

_checked: set[tuple[str, int, int, int]] = set()
"""Files whose checksums this process has verified: path, inode, size, time of the last change in nanoseconds."""


def ready(given: Path | None) -> Path:
    """The cache folder. It is created and checked for writing; temporary files of killed processes are removed.

    Args:
        given: ``--cache-dir``; None is the folder of `edgeall.edge_runtime.cache.cache_dir`.

    Raises:
        DataError: it cannot be created or written.
    """
    folder = given or cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        hint = ELSEWHERE if error.errno in DISK_FULL else "name another folder with --cache-dir"
        raise DataError(f"{folder}: preprocessed images can't be kept there ({error.strerror})", hint=hint) from error
    return folder


def pixels(
    root: Path, entries: Sequence[SplitEntry], spec: InputSpec, cache_dir: Path, progress: Progress
) -> NDArray[np.uint8]:
    """The preprocessed images of ``entries``, memory-mapped.

    Args:
        root: the folder that the paths of the entries are relative to.
        entries: images, in the order of the rows.
        spec: input contract.
        cache_dir: the cache folder.
        progress: receives notes and the progress bar.

    Returns:
        uint8 array ``(len(entries), height, width, 3)``, read-only.

    Raises:
        ImageError: an image cannot be read any more.
        NoSpaceError: not enough disk space.
    """
    facts = {"format": FORMAT, "spec": asdict(spec), "images": [entry.sha256 for entry in entries]}
    path = cache_dir / f"pixels-{digest(facts)}.npy"
    shape = (len(entries), spec.height, spec.width, 3)
    found = load(path, shape, np.uint8, progress)
    if found is None:
        save(path, shape, np.uint8, _preprocessed(root, entries, spec, progress))
        found = load(path, shape, np.uint8, progress)
        assert found is not None
    return found


def digest(facts: Any) -> str:
    """A short digest of the JSON value ``facts``, which describes the input of a cached file."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def save(path: Path, shape: tuple[int, ...], dtype: Any, blocks: Iterable[NDArray[Any]]) -> None:
    """Write an array for `load`, atomically.

    Args:
        path: a ``.npy`` file.
        shape: of the array.
        dtype: of the array.
        blocks: its parts in order; they are requested one by one while writing.

    Raises:
        NoSpaceError: not enough disk space; no file is left behind.
    """
    with atomic_write(path, hint=ELSEWHERE) as temporary:
        # A memory map would end the process with SIGBUS when the disk is full.
        header = BytesIO()
        described = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
        np.lib.format.write_array_header_1_0(header, {**described, "shape": shape})
        needed, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
        if needed > free:
            raise NoSpaceError(
                f"{path.parent}: {path.name} needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free",
                hint=ELSEWHERE,
            )
        sums: list[int] = []
        with temporary.open("wb") as file:
            file.write(header.getvalue())
            for chunk in _chunks(blocks):
                file.write(chunk)
                sums.append(zlib.crc32(chunk))
            file.write(np.array(sums, "<u4").tobytes() + _END.pack(_MAGIC, len(sums)))


def load(path: Path, shape: tuple[int, ...] | None, dtype: Any, progress: Progress) -> NDArray[Any] | None:
    """An array written by `save`, memory-mapped and read-only; None if the file is missing or damaged.

    The checksums are verified once per process. A damaged file is removed, with a note.

    Args:
        path: a ``.npy`` file.
        shape: the required shape; None accepts any.
        dtype: the required dtype.
        progress: receives the note.
    """
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            known = (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns)
            at = _data_at(file, facts.st_size, shape, np.dtype(dtype))
            if at is not None and (known in _checked or _is_sound(path, at, facts.st_size)):
                _checked.add(known)
                mapped: NDArray[Any] = np.load(path, mmap_mode="r")
                return mapped
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    progress.note(f"{path}: damaged; it is made again")
    path.unlink(missing_ok=True)
    return None


def _data_at(file: Any, size: int, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> int | None:
    """The offset of the array in a file with this shape and dtype; None for another file."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        found, fortran, kind = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    at = int(file.tell())
    count = int(np.prod(found)) * kind.itemsize
    whole = size == at + count + 4 * -(-count // _CHUNK) + _END.size
    return at if whole and not fortran and kind == dtype and found == (shape or found) else None


def _is_sound(path: Path, at: int, size: int) -> bool:
    """Whether the checksums at the end of a file match its array."""

    def read(begin: int, count: int) -> bytes:
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(count)

    magic, count = _END.unpack(read(size - _END.size, _END.size))
    end = size - _END.size - 4 * count
    if magic != _MAGIC or count != -(-(end - at) // _CHUNK):
        return False
    sums = np.frombuffer(read(end, 4 * count), "<u4")

    def sound(index: int) -> bool:
        begin = at + index * _CHUNK
        return zlib.crc32(read(begin, min(_CHUNK, end - begin))) == sums[index]

    with Threads(cores()) as pool:  # reading and zlib release the interpreter lock
        return all(pool.map(sound, range(count)))


def _chunks(blocks: Iterable[NDArray[Any]]) -> Iterator[bytes]:
    """The bytes of all blocks, `_CHUNK` of them at a time."""
    waiting = bytearray()
    for block in blocks:
        waiting += np.ascontiguousarray(block).tobytes()
        whole = len(waiting) - len(waiting) % _CHUNK
        for begin in range(0, whole, _CHUNK):
            yield bytes(waiting[begin : begin + _CHUNK])
        del waiting[:whole]
    if waiting:
        yield bytes(waiting)


def _preprocessed(
    root: Path, entries: Sequence[SplitEntry], spec: InputSpec, progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """Every preprocessed image, in order. A few are in progress at a time."""
    with Threads(cores()) as pool, progress.task("preprocessing", len(entries)) as advance:
        for done, pixels in enumerate(pool.map(lambda entry: load_input(root / entry.path, spec), entries), start=1):
            yield pixels
            advance(done, "")
