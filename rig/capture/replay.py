"""The replay of files as a camera: each image once, at a pace, without those that the open slide has already."""

from __future__ import annotations

import dataclasses
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ...edge_runtime.errors import ImageError
from ...edge_runtime.vision.frame import Frame
from ..language import N_, Message, message
from .interface import NoFrameError, ReplayEndedError, SkippedFileError, check_file_frame
from .seen import ListedFile, SeenImages, printable_name


@dataclass(frozen=True)
class ReplayedImage:
    """The next image of a replay: its name in the record, its SHA-256 (hex), and its decoded frame or its path."""

    name: str
    digest: str
    content: Frame | Path


class Replay(ABC):
    """Hands out each image once, in order. Leaves out what the record of the open slide has.

    An image counts as seen at the next `read`: a reader thread that was given up never gets there, and the image that
    it holds is handed out again.

    Args:
        path: of the files.
        rate: images/s.
        unit: what it consists of, plural: ``images``.
        seen: its files are left out; new files are added to it.
    """

    def __init__(self, path: Path, rate: float, unit: str, seen: SeenImages) -> None:
        self.name: str = replay_name(path)
        self._pace = Pace(rate)
        self._unit, self._seen = unit, seen
        self._number = self._known = self._unreadable = 0
        self._returned: tuple[ListedFile, str] | None = None
        seen.begin_replay(f"replay:{os.path.abspath(path)}")

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Number of images that were not returned yet."""

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        until = time.monotonic() + timeout_s
        if self._returned:
            self._seen.add(*self._returned)
            self._returned = None
        while True:
            image = self._next_image()
            if image is None:
                time.sleep(max(until - time.monotonic(), 0.0))
                raise ReplayEndedError(message("{replay}: {end}", replay=self.name, end=self._end_message()))
            if not self._seen.has_content(image.name, image.digest):
                return self._hand_out(image)
            self._known += 1
            if time.monotonic() >= until:
                text = N_("{replay}: skipped {count} {unit} that were seen before")
                unit = message(self._unit)
                raise NoFrameError(message(text, replay=self.name, count=self._known, unit=unit))

    @abstractmethod
    def close(self) -> None:
        """Release what is held."""

    @abstractmethod
    def _next_image(self) -> ReplayedImage | None:
        """The next image; None after the last. Raises SkippedFileError for one that cannot be read."""

    @abstractmethod
    def _decoded(self, image: ReplayedImage) -> Frame:
        """The frame of an image. Raises ImageError."""

    def _hand_out(self, image: ReplayedImage) -> Frame:
        listed, source = ListedFile(0, image.name), printable_name(image.name)
        try:
            decoded = self._decoded(image)
            self._pace.wait()
            frame = check_file_frame(
                dataclasses.replace(decoded, source=source, digest=image.digest, waits=True),
                message("{replay}, {file}", replay=self.name, file=source),
            )
        except ImageError as error:
            self._seen.add(listed, image.digest)
            raise self._skipped(image.name, image.digest, error) from error
        except SkippedFileError:
            self._unreadable += 1
            self._seen.add(listed, image.digest)
            raise
        self._number += 1
        self._returned = listed, image.digest
        return frame

    def _skipped(self, name: str, digest: str, error: ImageError) -> SkippedFileError:
        self._unreadable += 1
        return SkippedFileError(error.message, error.hint, source=printable_name(name), digest=digest, waits=True)

    def _end_message(self) -> Message:
        texts = {
            (False, False): N_("ended after {count} {unit}"),
            (True, False): N_("ended after {count} {unit}, and {known} that were seen before"),
            (False, True): N_("ended after {count} {unit}; {unreadable} could not be read"),
            (True, True): N_(
                "ended after {count} {unit}, and {known} that were seen before; {unreadable} could not be read"
            ),
        }
        text = texts[self._known > 0, self._unreadable > 0]
        values = {"known": self._known, "unreadable": self._unreadable}
        return message(text, count=self._number, unit=message(self._unit), **values)


def replay_name(path: Path) -> Message:
    """The name of a replay as a camera."""
    return message("replay of {path}", path=path)


class Pace:
    """Limits a replay to ``rate`` frames/s. Does not catch up after a delay."""

    def __init__(self, rate: float) -> None:
        self._period_s = 1 / rate
        self._due = time.monotonic()

    def wait(self) -> None:
        """Sleep until the next frame is due."""
        time.sleep(max(self._due - time.monotonic(), 0.0))
        self._due = max(self._due + self._period_s, time.monotonic())
