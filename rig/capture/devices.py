"""Cameras and videos that need a driver: OpenCV for videos, V4L2 and USB cameras; picamera2 for a Raspberry Pi's."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...edge_runtime.vision.frame import Frame
from ..language import N_, Message, message
from .interface import SIZE, CameraError
from .replay import Replay, ReplayedImage, replay_name
from .seen import SeenImages

INSTALL_OPENCV = "pip install opencv-python-headless"


class _OpenCvCapture:
    """A ``cv2.VideoCapture``, shared by `Video` and `UsbCamera`."""

    def __init__(self, name: str, source: str | int, interface: str, hint: str) -> None:
        try:
            import cv2
        except ImportError as error:
            raise CameraError(
                message("{camera}: requires OpenCV ({reason})", camera=name, reason=str(error)), hint=INSTALL_OPENCV
            ) from error
        self.name = name
        self._cv2: Any = cv2
        self._capture: Any = cv2.VideoCapture(source, getattr(cv2, interface))
        self.number = 0
        """Number of frames read so far."""
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(message("{camera}: cannot be opened", camera=name), hint=hint)

    def property(self, name: str) -> float:
        """A property of the capture by its name in OpenCV; 0 if unknown."""
        return float(self._capture.get(getattr(self._cv2, name)))

    def next_frame(self) -> Frame | None:
        """The next frame; None if there is none."""
        ok, pixels = self._capture.read()
        if not ok:
            return None
        self.number += 1
        rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return Frame(rgb, datetime.now(timezone.utc), self.number - 1, clock_s=time.monotonic())

    def close(self) -> None:
        """Release the device or file."""
        self._capture.release()


class Video(Replay):
    """Replays a video file.

    Args:
        path: any format that OpenCV's FFmpeg reads.
        rate: frames/s; None for the video's own.
        seen: see `Replay`.
    """

    def __init__(self, path: Path, rate: float | None, seen: SeenImages) -> None:
        hint = N_("is it a complete video? An interrupted recording or copy cannot be played")
        self._video = video = _OpenCvCapture(replay_name(path), str(path), "CAP_FFMPEG", hint)
        self._own_rate = video.property("CAP_PROP_FPS") or 30.0
        self._expected = int(video.property("CAP_PROP_FRAME_COUNT"))
        self._file = path.name
        super().__init__(path, rate or self._own_rate, N_("frames"), seen)

    @property
    def waiting(self) -> int:
        """See `Replay`. Some containers only estimate it."""
        return max(self._expected - self._video.number, 0)

    def close(self) -> None:
        """See `Replay`."""
        self._video.close()

    def _next_image(self) -> ReplayedImage | None:
        frame = self._video.next_frame()
        if frame is None:
            if self._video.number == 0:
                text = message("{camera}: has no frame that can be decoded", camera=self.name)
                raise CameraError(text, hint="is the file complete?")
            return None
        digest = hashlib.sha256(frame.pixels.data).hexdigest()
        return ReplayedImage(f"{self._file} frame {self._video.number}", digest, frame)

    def _decoded(self, image: ReplayedImage) -> Frame:
        assert isinstance(image.content, Frame)
        return dataclasses.replace(image.content, clock_s=image.content.number / self._own_rate)

    def _end_message(self) -> Message:
        ended, missing = super()._end_message(), self._expected - self._video.number
        if missing > max(0.05 * self._expected, 1):  # some containers only estimate the count
            text = N_("{end}; {count} more frames were expected and cannot be decoded: is the file complete?")
            return message(text, end=ended, count=missing)
        return ended


class UsbCamera(_OpenCvCapture):
    """A V4L2 or USB camera.

    Args:
        source: ``/dev/video0``, or its number.
    """

    def __init__(self, source: str) -> None:
        hint = N_("is it plugged in, and does no other program use it?")
        super().__init__(
            message("camera {source}", source=source), int(source) if source.isdigit() else source, "CAP_V4L2", hint
        )
        cv2 = self._cv2
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))  # raw is 10 frames/s on USB 2
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, SIZE[0])
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, SIZE[1])
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not a buffered one

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`. The driver has its own timeout of ten seconds."""
        frame = self.next_frame()
        if frame is None:
            raise CameraError(message("{camera}: returns no frame", camera=self.name), hint="check its cable")
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
                message("picamera2 is not installed ({reason})", reason=str(error)),
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
                message("picamera2: {reason}", reason=str(error)),
                hint="`rpicam-hello --list-cameras` lists the connected cameras",
            ) from error

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        try:
            job = self._camera.capture_array("main", wait=False)
            pixels = self._camera.wait(job, timeout=timeout_s)
        except (RuntimeError, TimeoutError, FutureTimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise CameraError(message("picamera2: returns no frame ({reason})", reason=reason)) from error
        self._number += 1
        return Frame(pixels, datetime.now(timezone.utc), self._number - 1, clock_s=time.monotonic())

    def close(self) -> None:
        """Stop and release the camera."""
        self._camera.stop()
        self._camera.close()
