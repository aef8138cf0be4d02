"""Cameras and videos that need a driver: OpenCV for videos, V4L2 and USB cameras; picamera2 for a Raspberry Pi's."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...edge_runtime.vision.frame import Frame
from .files import Pace, end_message
from .interface import SIZE, CameraError, NoFrameError, ReplayEndedError, check_file_frame
from .seen import ListedFile, SeenImages, printable_name

INSTALL_OPENCV = "pip install opencv-python-headless"


class _OpenCvCapture:
    """A ``cv2.VideoCapture``, shared by `Video` and `UsbCamera`."""

    def __init__(self, name: str, source: str | int, interface: str, hint: str) -> None:
        try:
            import cv2
        except ImportError as error:
            raise CameraError(f"{name}: requires OpenCV ({error})", hint=INSTALL_OPENCV) from error
        self.name = name
        self._cv2: Any = cv2
        self._capture: Any = cv2.VideoCapture(source, getattr(cv2, interface))
        self._number = 0
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(f"{name}: cannot be opened", hint=hint)

    def _next(self) -> Frame | None:
        ok, pixels = self._capture.read()
        if not ok:
            return None
        self._number += 1
        rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return Frame(rgb, datetime.now(timezone.utc), self._number - 1, clock_s=time.monotonic())

    def close(self) -> None:
        """Release the device or file."""
        self._capture.release()


class Video(_OpenCvCapture):
    """Replays a video file, each frame once. Leaves out what the record of the open slide has.

    Args:
        path: any format that OpenCV's FFmpeg reads.
        rate: frames/s; None for the video's own.
        seen: its frames are left out; new frames are added to it.
    """

    def __init__(self, path: Path, rate: float | None, seen: SeenImages) -> None:
        hint = "is it a complete video? An interrupted recording or copy cannot be played"
        super().__init__(f"replay of {path}", str(path), "CAP_FFMPEG", hint)
        self._file, self._seen = path.name, seen
        seen.begin_replay(f"replay:{os.path.abspath(path)}")
        self._own_rate = self._capture.get(self._cv2.CAP_PROP_FPS) or 30.0
        self._expected = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        self._pace = Pace(rate or self._own_rate)
        self._skipped = 0
        self._returned: tuple[ListedFile, str] | None = None

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        until = time.monotonic() + timeout_s
        if self._returned:
            self._seen.add(*self._returned)
            self._returned = None
        while frame := self._next():
            name = f"{self._file} frame {self._number}"
            digest = hashlib.sha256(frame.pixels.data).hexdigest()
            if self._seen.has_content(name, digest):
                self._skipped += 1
                if time.monotonic() >= until:
                    raise NoFrameError(f"{self.name}: skipped {self._skipped} frames that were seen before")
                continue
            self._pace.wait()
            self._returned = ListedFile(0, name), digest
            named = dataclasses.replace(
                frame, source=printable_name(name), digest=digest, waits=True, clock_s=frame.number / self._own_rate
            )
            return check_file_frame(named, f"{self.name}, frame {self._number}")
        if self._number == 0:
            raise CameraError(f"{self.name}: has no frame that can be decoded", hint="is the file complete?")
        time.sleep(timeout_s)
        ended = end_message(self._number - self._skipped, self._skipped, "frames")
        missing = self._expected - self._number
        if missing > max(0.05 * self._expected, 1):  # some containers only estimate the count
            ended += f"; {missing} more frames were expected and cannot be decoded: is the file complete?"
        raise ReplayEndedError(f"{self.name}: {ended}")


class UsbCamera(_OpenCvCapture):
    """A V4L2 or USB camera.

    Args:
        source: ``/dev/video0``, or its number.
    """

    def __init__(self, source: str) -> None:
        hint = "is it plugged in, and does no other program use it?"
        super().__init__(f"camera {source}", int(source) if source.isdigit() else source, "CAP_V4L2", hint)
        cv2 = self._cv2
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))  # raw is 10 frames/s on USB 2
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, SIZE[0])
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, SIZE[1])
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not a buffered one

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`. The driver has its own timeout of ten seconds."""
        frame = self._next()
        if frame is None:
            raise CameraError(f"{self.name}: returns no frame", hint="check its cable")
        return frame


class PiCamera:
    """A Raspberry Pi's camera, by picamera2 (``apt install python3-picamera2``).

    Tested with a stand-in for picamera2, not on a Pi. Source: The Picamera2 Library manual, chapters 4 and 6: the
    format named BGR888 is R, G, B in memory; a capture with ``wait=False`` returns a job for `Picamera2.wait`.
    """

    def __init__(self) -> None:
        try:
            from picamera2 import Picamera2  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise CameraError(
                f"picamera2 is not installed ({error})",
                hint="sudo apt install python3-picamera2, and make the virtual environment with --system-site-packages",
            ) from error
        self.name = "picamera2"
        self._number = 0
        try:
            self._camera: Any = Picamera2()
            try:
                main = {"size": SIZE, "format": "BGR888"}
                self._camera.configure(self._camera.create_video_configuration(main=main))
                self._camera.start()
            except BaseException:
                self._camera.close()
                raise
        except (RuntimeError, IndexError) as error:  # IndexError: there is no camera number 0
            raise CameraError(
                f"picamera2: {error}", hint="`rpicam-hello --list-cameras` lists the connected cameras"
            ) from error

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        try:
            job = self._camera.capture_array("main", wait=False)
            pixels = self._camera.wait(job, timeout=timeout_s)
        except (RuntimeError, TimeoutError, FutureTimeoutError) as error:
            raise CameraError(f"picamera2: returns no frame ({error or type(error).__name__})") from error
        self._number += 1
        return Frame(pixels, datetime.now(timezone.utc), self._number - 1, clock_s=time.monotonic())

    def close(self) -> None:
        """Stop and release the camera."""
        self._camera.stop()
        self._camera.close()
