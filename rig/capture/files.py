"""Images from files: a watched folder, and the replay of an image folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import SUFFIXES, USED_BITS, find_images, open_rgb
from ...edge_runtime.vision.frame import Frame
from ..language import N_, Message, message
from .interface import CameraError, NoFrameError, SkippedFileError, check_file_frame
from .replay import Replay, ReplayedImage
from .seen import ListedFile, SeenImages, printable_name

_POLL_S = 0.1
_LISTING_PAUSE_FACTOR = 9.0
"""The pause after listing a folder, in multiples of the time that listing took, if that is longer than `_POLL_S`.
Thousands of files then cost at most a tenth of one core."""
_WRITING_S = 2.0
"""A file that cannot be decoded counts as being written until it has not changed for this long."""


class WatchedFolder:
    """Images that another program puts into a folder, each once, in the order of writing.

    A file that was overwritten is new if its pixels are. The modification time is not used: a copy gets the
    original's time after its last byte, when it may have been read already, and clocks are set back.

    Args:
        folder: subfolders and other files are ignored.
        seen: its files are left out; new files are added to it.
    """

    def __init__(self, folder: Path, seen: SeenImages) -> None:
        self.name: str = message("folder {path}", path=folder)
        self._folder = folder
        self._seen = seen
        self._number = 0
        self._waiting: deque[ListedFile] = deque()
        self._list_at = 0.0
        self._returned: tuple[ListedFile, str, str] | None = None
        self._unfinished: tuple[ListedFile | None, float] = (None, 0.0)
        self._broken: deque[SkippedFileError] = deque()
        self._reported: set[str] = set()
        seen.begin_folder(os.path.abspath(folder), self._images())

    @property
    def waiting(self) -> int:
        """Number of known images that were not returned yet."""
        return len(self._waiting)

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`. A file that cannot be decoded and is not being written is skipped."""
        until = time.monotonic() + timeout_s
        if self._returned:  # marked now: a reader thread that was given up never gets here
            self._seen.add(*self._returned)
            self._returned = None
        while True:
            if self._broken:
                raise self._broken.popleft()
            frame = self._next(until)
            if frame is not None:
                return frame
            time.sleep(max(min(self._list_at, until) - time.monotonic(), 0.0))
            if self._broken:
                continue
            if self._waiting or self._list_at >= until:
                raise NoFrameError(message("{folder}: no new image", folder=self._folder))
            began = time.monotonic()
            images = self._images()
            self._seen.begin_folder(os.path.abspath(self._folder), images)
            self._waiting.extend(image for image in images if not self._seen.has(image))
            self._seen.listed(self._waiting)
            ended = time.monotonic()
            self._list_at = ended + max(_POLL_S, _LISTING_PAUSE_FACTOR * (ended - began))

    def close(self) -> None:
        """Do nothing: no device is held."""

    def _next(self, until: float) -> Frame | None:
        """The first waiting image; None if there is none, it is still being written, or the time is over."""
        while self._waiting and time.monotonic() < until:
            image = self._waiting.popleft()
            path, digest = self._folder / image.name, ""
            if self._seen.has(image):  # a slide was started since it was listed: it belongs to none
                continue
            try:
                digest = _file_digest(path)
                if self._seen.has_content(image.name, digest):
                    self._seen.add(image, digest)
                    continue
                pixels, used_bits = _pixels(path)
            except ImageError as error:
                if not path.exists():  # renamed or removed since
                    continue
                if self._is_being_written(image):
                    self._waiting.clear()  # list again later: the order of the files after it may change
                    return None
                self._seen.add(image, digest)
                name = printable_name(image.name)
                raise SkippedFileError(error.message, error.hint, source=name, digest=digest) from error
            pixels_digest = hashlib.sha256(pixels.data).hexdigest()
            if self._seen.has_content(image.name, digest, pixels_digest):
                self._seen.add(image, digest, pixels_digest)
                continue
            if self._seen.has(image):  # as above, meanwhile
                continue
            self._returned = image, digest, pixels_digest
            taken, source = _file_time(image.changed_ns), printable_name(image.name)
            frame = Frame(pixels, taken, self._number, source, digest, used_bits=used_bits)
            frame = check_file_frame(frame, str(path))
            self._number += 1
            return frame
        return None

    def _is_being_written(self, image: ListedFile) -> bool:
        """Measured with this machine's clock: the folder may be on another machine."""
        if self._unfinished[0] != image:
            self._unfinished = image, time.monotonic()
        return time.monotonic() - self._unfinished[1] < _WRITING_S

    def _report(self, entry: os.DirEntry[str], error: OSError) -> None:
        """Report a name without a file behind it, once. One such entry must not stop the whole folder."""
        if entry.name not in self._reported and (entry.is_symlink() or not isinstance(error, FileNotFoundError)):
            self._reported.add(entry.name)
            reason = _unreadable(self._folder / entry.name, error)
            self._broken.append(SkippedFileError(reason, "remove the link", source=printable_name(entry.name)))

    def _images(self) -> list[ListedFile]:
        """The folder's images, oldest first."""
        images = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
                        try:
                            state = entry.stat()
                        except OSError as error:  # renamed or removed just now; or a link that leads nowhere
                            self._report(entry, error)
                        else:
                            images.append(ListedFile(state.st_mtime_ns, entry.name, state.st_size))
            return sorted(images, key=lambda image: (image.changed_ns, image.name))
        except OSError as error:
            text = message("{folder}: cannot be listed ({reason})", folder=self._folder, reason=error.strerror)
            raise CameraError(text, hint="check the path") from error


class ImageSequence(Replay):
    """Replays the images below a folder, sorted.

    Args:
        folder: see `find_images`.
        rate: images/s.
        seen: see `Replay`.
    """

    def __init__(self, folder: Path, rate: float, seen: SeenImages) -> None:
        super().__init__(folder, rate, N_("images"), seen)
        self._folder = folder
        self._paths = deque(find_images(folder))

    @property
    def waiting(self) -> int:
        """See `Replay`."""
        return len(self._paths)

    def close(self) -> None:
        """Do nothing: no device is held."""

    def _next_image(self) -> ReplayedImage | None:
        if not self._paths:
            return None
        path = self._paths.popleft()
        name = os.path.relpath(path, self._folder)
        try:
            return ReplayedImage(name, _file_digest(path), path)
        except ImageError as error:  # not a CameraError: reopening would start the replay over
            raise self._skipped(name, "", error) from error

    def _decoded(self, image: ReplayedImage) -> Frame:
        assert isinstance(image.content, Path)
        pixels, used_bits = _pixels(image.content)
        return Frame(pixels, datetime.now(timezone.utc), self._number, used_bits=used_bits)


def _pixels(path: Path) -> tuple[NDArray[np.uint8], int | None]:
    """The pixels of an image, and `Frame.used_bits`. Raises ImageError."""
    image = open_rgb(path)
    return np.asarray(image), image.info.get(USED_BITS)


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, hex. Raises ImageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ImageError(_unreadable(path, error), hint="check its owner and mode") from error
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> Message:
    return message("{file}: can't be read ({reason})", file=path, reason=error.strerror)


def _file_time(ns: int) -> datetime:
    """A file's modification time, UTC; the current time if the file system's value is out of range."""
    try:
        return datetime.fromtimestamp(ns / 1e9, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.now(timezone.utc)
