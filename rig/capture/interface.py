"""The camera interface: the protocol, its errors, and the check that every frame passes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.images import MAX_PIXELS
from ...edge_runtime.vision.frame import Frame
from ..language import N_, as_message, message

SIZE = (1280, 960)
"""(width, height) in pixels that is requested from a camera with a choice."""
SKIPPED = N_("skipped: {reason}")
"""Message of a `SkippedFileError`."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be used: its name and SHA-256 (hex) as in `Frame`, and the reason.

    ``waits``: it belongs to a replay, and with it to the next slide if none is open.
    """

    source: str
    digest: str
    reason: str
    waits: bool = False


class CameraError(EdgeallError):
    """A camera cannot be opened or returned no usable frame."""


class NoFrameError(CameraError):
    """No new frame arrived within the timeout. The camera works and stays open."""


class ReplayEndedError(NoFrameError):
    """A replay has ended: no frame will follow."""


class SkippedFileError(NoFrameError):
    """A file cannot be used and was skipped. The files after it can still be read.

    Args:
        reason: why; names the file.
        hint: what to do.
        source: its name in the record.
        digest: hex SHA-256 of its content; empty if that cannot be read.
        waits: see `Frame.waits`.
    """

    def __init__(self, reason: str, hint: str = "", *, source: str = "", digest: str = "", waits: bool = False) -> None:
        super().__init__(message(SKIPPED, reason=as_message(reason)), hint)
        self.skipped = SkippedFile(source, digest, reason, waits)


class Camera(Protocol):
    """A source of frames. Used by one thread at a time."""

    name: str

    def read(self, timeout_s: float) -> Frame:
        """Return the next frame.

        Raises:
            NoFrameError: no frame within ``timeout_s`` seconds, which is normal for this source.
            CameraError: no frame will come until the camera is reopened.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def check_frame(frame: Frame, name: str) -> Frame:
    """Return the frame with contiguous, read-only pixels. Raises CameraError for an unusable image."""
    pixels: Any = frame.pixels
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        kind = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise CameraError(message("{camera}: returned {kind}, not an 8-bit RGB image", camera=name, kind=kind))
    height, width = pixels.shape[:2]
    if min(height, width) < 32 or height * width > MAX_PIXELS:
        text = N_("{camera}: returned an image of {width}x{height} pixels")
        raise CameraError(message(text, camera=name, width=width, height=height))
    if not pixels[::16, ::16].any() and not pixels.any():
        text = N_("{camera}: every pixel is black")
        raise CameraError(message(text, camera=name), hint="is the lamp on and the light path open?")
    pixels = np.ascontiguousarray(pixels).view()  # a view, so that the camera can still write to its own array
    pixels.flags.writeable = False
    return dataclasses.replace(frame, pixels=pixels)


def check_file_frame(frame: Frame, name: str) -> Frame:
    """`check_frame` for a file. Raises SkippedFileError: reopening cannot repair the file, the next one can be read."""
    try:
        return check_frame(frame, name)
    except CameraError as error:
        raise SkippedFileError(
            error.message, error.hint, source=frame.source, digest=frame.digest, waits=frame.waits
        ) from error
