"""Opens a camera by the name that the operator gives."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

from ...edge_runtime.errors import UsageError
from ..language import message
from .devices import PiCamera, UsbCamera, Video
from .files import ImageSequence, WatchedFolder
from .interface import Camera
from .seen import SeenImages
from .slide import SimulatedCamera, Slide, draw_slide

_drawing = threading.Lock()


def open_camera(source: str, *, rate: float | None = None, seen: SeenImages | None = None) -> Camera:
    """Open a camera, a folder or a video.

    Args:
        source: ``simulated``; ``picamera2``; ``/dev/video0`` or ``0`` for a V4L2 or USB camera; a folder, which is
            watched; ``replay:PATH`` for a folder of images or a video.
        rate: frames/s of a simulated or replayed source; None for 30, a video's own rate, or one image per second.
        seen: shared by all openings of a source that consists of files. None starts a watched folder with its newest
            image, and a replay at its start.

    Raises:
        UsageError: ``source`` is none of these.
        CameraError: it exists and cannot be opened, or its driver is not installed.
    """
    seen = seen or SeenImages()
    if source == "simulated":
        with _drawing:  # an opening that is abandoned as too slow goes on drawing; the next one waits for it
            slide = _simulated_slide()
        return SimulatedCamera(slide, rate=rate or 30.0)
    if source == "picamera2":
        return PiCamera()
    if source.startswith("replay:"):
        path = Path(source.removeprefix("replay:"))
        if path.is_dir():
            return ImageSequence(path, rate or 1.0, seen)
        if path.is_file():
            return Video(path, rate, seen)
    elif source.isdigit() or source.startswith("/dev/video"):
        return UsbCamera(source)
    elif Path(source).is_dir():
        return WatchedFolder(Path(source), seen)
    raise UsageError(
        message("{source}: no camera, folder or video", source=source),
        hint="give simulated, picamera2, /dev/video0, a folder to watch, or replay:PATH",
    )


@functools.cache
def _simulated_slide() -> Slide:
    return draw_slide(seed=0)
