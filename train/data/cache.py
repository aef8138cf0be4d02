"""Preprocessed images and other arrays on disk, made once: training reads bytes, it never decodes.

A cached array is a ``.npy`` file with checksums behind it. What a power cut or a bad disk made of it is seen before it
is used, and it is made anew.
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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.cache import cache_dir
from ...edge_runtime.errors import DISK_FULL, DataError, NoSpaceError
from ...edge_runtime.preprocess import InputSpec, load_input
from ...edge_runtime.tools import atomic
from ...edge_runtime.tools.atomic import atomic_write
from .split import SplitEntry

FORMAT = 1
"""Raised whenever `edge_runtime.preprocess` changes what it returns."""
ELSEWHERE = "free some space, or name another folder with --cache-dir"
_CHUNK = 1 << 22
"""Bytes of an array under one checksum."""
_END = struct.Struct("<8sQ")
"""The last bytes of a file: `_MAGIC`, and the number of checksums before them."""
_MAGIC = b"edgeall1"

default_cache_dir = cache_dir
"""The device keeps its own things there too."""
_checked: set[tuple[str, int, int, int]] = set()
"""Files whose checksums this process has looked at: path, inode, size, time of the last change."""

__all__ = ["FORMAT", "default_cache_dir", "digest", "load", "pixels", "ready", "save"]


def ready(given: Path | None) -> Path:
    """The folder to keep arrays in, once it is sure that it can be written; leftovers of killed processes are removed.

    Args:
        given: ``--cache-dir``; None takes `default_cache_dir`.

    Raises:
        DataError: it can't be made or written.
    """
    folder = given or default_cache_dir()
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
        root: the data folder the entries' paths are relative to.
        entries: images, in the order of the rows wanted.
        spec: input contract.
        cache_dir: where to look and to write.

    Returns:
        uint8 array ``(len(entries), height, width, 3)``, read-only.

    Raises:
        ImageError: an image that could be read when the split was made no longer can.
        NoSpaceError: there is no space for them.
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
    """A short name for what a cached file was made from."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def save(path: Path, shape: tuple[int, ...], dtype: Any, blocks: Iterable[NDArray[Any]]) -> None:
    """Write an array for `load`: whole, or not at all.

    Args:
        path: a ``.npy`` file.
        shape: of the array.
        dtype: of the array.
        blocks: its parts, one behind the other; they are asked for as they are written.

    Raises:
        NoSpaceError: there is no space for it; nothing is left behind.
    """
    with atomic_write(path, hint=ELSEWHERE) as temporary:
        # Not through a memory map: that ends the process with SIGBUS when the disk is full.
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
    """An array that `save` wrote, memory-mapped and read-only; None where there is none, or none that is sound.

    Its checksums are compared once in a process. A damaged file is named in a note, and removed.

    Args:
        path: a ``.npy`` file.
        shape: that it must have; None takes any.
        dtype: that it must have.
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
    progress.note(f"{path}: damaged; made anew")
    path.unlink(missing_ok=True)
    return None


def _data_at(file: Any, size: int, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> int | None:
    """Where the array begins in a file that may be its; None in any other."""
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
    """Whether the checksums at the end of a file are those of its array."""

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

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # both reading and zlib release Python's lock
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
    """Every image, in order; a few are under way at a time."""
    threads = os.cpu_count() or 1
    pool, window, waiting = ThreadPoolExecutor(threads), deque[Future[NDArray[np.uint8]]](), iter(entries)
    try:
        with progress.task("preprocessing", len(entries)) as advance:
            for done in range(1, len(entries) + 1):
                for entry in islice(waiting, 4 * threads - len(window)):
                    window.append(pool.submit(load_input, root / entry.path, spec))
                yield window.popleft().result()
                advance(done, "")
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt doesn't wait for the rest
