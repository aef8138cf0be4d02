"""The record's images: files named by the SHA-256 of their content, on the disk before any row names them.

Models that the rig learned are kept among them, so that a backup has them and a verification reads them.
"""

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

from ..language import message
from .chain import RecordError, full, sync_folder

_PNG = b"\x89PNG\r\n"
_TFLITE = b"TFL3"
"""File identifier of a TFLite flatbuffer, at its fifth byte."""
MODEL_SUFFIX = ".tflite"
SUFFIXES = (".jpg", ".png", MODEL_SUFFIX)
_DIGEST = re.compile("[0-9a-f]{64}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Values of ``errno`` for a full disk."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex. Raises OSError."""
    with open(path, "rb") as file:
        content = hashlib.sha256()
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


class ImageStore:
    """``images/ab/ab12....jpg``, or another of `SUFFIXES`; ``incoming/`` holds files that are being written.

    Args:
        folder: of the record; nothing is created in it before the first image.
    """

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._incoming = folder / "incoming"

    def path(self, digest: str) -> Path | None:
        """The path of an image; None if there is none or ``digest`` is invalid."""
        if not _DIGEST.fullmatch(digest):
            return None
        path = self._place(digest)
        return path if path.is_file() else None

    @staticmethod
    def suffix(image: bytes) -> str:
        """One of `SUFFIXES`, by the content of a file."""
        if image[4:8] == _TFLITE:
            return MODEL_SUFFIX
        return ".png" if image.startswith(_PNG) else ".jpg"

    def save(self, image: bytes) -> str:
        """Write a file and flush it and its name to the disk. An existing one is left unchanged.

        Returns:
            Its digest.

        Raises:
            RecordFullError: the disk is full; no part of the image is left.
            RecordError: it cannot be written, or its file exists with other content.
        """
        digest = hashlib.sha256(image).hexdigest()
        path = self._images / digest[:2] / f"{digest}{self.suffix(image)}"
        try:
            if path.exists():
                if path.read_bytes() != image:
                    text = message("{path}: altered since it was recorded", path=path)
                    raise RecordError(text, hint="check it with `edgeall record verify`")
                sync_folder(path.parent)  # its writer may have been killed before this
                return digest
            self._write(image, path)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise full(path) from error
            text = message("{path}: cannot be written ({reason})", path=path, reason=error.strerror)
            raise RecordError(text, hint="check the disk") from error
        return digest

    def remove(self, digest: str) -> int:
        """Delete an image. Returns the bytes freed, 0 if it did not exist."""
        path = self._place(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def is_intact(self, digest: str) -> bool:
        """Whether the image's content has the digest of its name. Raises OSError if it cannot be read."""
        return file_digest(self._place(digest)) == digest

    def tidy(self) -> None:
        """Remove incomplete files that a power cut left, and flush the folders' names to the disk."""
        for path in self._incomplete():
            path.unlink(missing_ok=True)
        if self._images.is_dir():
            sync_folder(self._images)
            sync_folder(self._images.parent)

    def _place(self, digest: str) -> Path:
        places = [self._images / digest[:2] / f"{digest}{suffix}" for suffix in SUFFIXES]
        return next((place for place in places if place.is_file()), places[0])

    def _write(self, image: bytes, path: Path) -> None:
        for folder in (self._incoming, self._images, path.parent):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
        part = self._incoming / f"{path.stem}.{os.getpid()}.{threading.get_ident()}"
        try:
            with open(part, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is in place, so that `tidy` leaves it alone
                file.write(image)
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def _incomplete(self) -> Iterator[Path]:
        if not self._incoming.is_dir():
            return
        for path in self._incoming.iterdir():
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if a process is writing it
                yield path
