"""The record's images: files named by the SHA-256 of their content, on the disk before anything speaks of them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .chain import RecordError, full, sync_folder

_DIGEST = re.compile("[0-9a-f]{64}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class ImageStore:
    """``images/ab/ab12....jpg``; ``incoming/`` holds what is being written.

    Args:
        folder: the record's; nothing is made in it before the first image.
    """

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._incoming = folder / "incoming"

    def path(self, digest: str) -> Path | None:
        """Where the image lies; None for what is no digest, or of no image here."""
        if not _DIGEST.fullmatch(digest):
            return None
        path = self._place(digest)
        return path if path.is_file() else None

    def save(self, jpeg: bytes) -> str:
        """Write an image and have it, and its name, on the disk; one that is there already is left as it is.

        Returns:
            Its digest.

        Raises:
            RecordFullError: no room; nothing of it is left.
            RecordError: it can't be written, or a file of its name with other content is in its place.
        """
        digest = hashlib.sha256(jpeg).hexdigest()
        path = self._place(digest)
        try:
            if path.exists():
                if path.read_bytes() != jpeg:
                    raise RecordError(f"{path}: altered since it was recorded", hint="edgeall record verify says more")
                sync_folder(path.parent)  # whoever wrote it may have been killed before this
                return digest
            self._write(jpeg, path)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise full(path) from error
            raise RecordError(f"{path}: can't be written ({error.strerror})", hint="check the disk") from error
        return digest

    def remove(self, digest: str) -> int:
        """Delete an image; returns the bytes freed, 0 where it was gone already."""
        path = self._place(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def is_whole(self, digest: str) -> bool:
        """The image's content is what its name says. Raises OSError where it can't be read."""
        with open(self._place(digest), "rb") as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
                content.update(block)
        return content.hexdigest() == digest

    def tidy(self) -> None:
        """Remove what a power cut left half written, and have the folders' names on the disk."""
        for path in self._half_written():
            path.unlink(missing_ok=True)
        if self._images.is_dir():
            sync_folder(self._images)
            sync_folder(self._images.parent)

    def _place(self, digest: str) -> Path:
        return self._images / digest[:2] / f"{digest}.jpg"

    def _write(self, jpeg: bytes, path: Path) -> None:
        for folder in (self._incoming, self._images, path.parent):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
        part = self._incoming / f"{path.stem}.{os.getpid()}.{threading.get_ident()}"
        try:
            with open(part, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is in place: so `tidy` knows that somebody is at it
                file.write(jpeg)
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def _half_written(self) -> Iterator[Path]:
        if not self._incoming.is_dir():
            return
        for path in self._incoming.iterdir():
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails on one that a process is writing
                yield path
