"""Cameras behind one small interface, and what keeps one open whatever it does."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.errors import EdgeallError, ImageError, UsageError
from edgeall.edge_runtime.images import MAX_PIXELS, SUFFIXES, find_images, open_rgb

SIZE = (1280, 960)
"""(width, height) that a camera with a choice is asked for."""
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".mjpeg", ".webm"})
OPENCV = "pip install opencv-python-headless"
_POLL_S = 0.1
_REST = 9.0
"""After a folder has been listed it is left alone for so many times as long, where that is more: thousands of files
cost no more than a tenth of a core."""
_BEING_WRITTEN_S = 2.0
"""A file that can't be decoded is taken for one that is being written, until it has not changed for so long."""


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        pixels: uint8 (height, width, 3), RGB. Shared between threads: nobody writes to it.
        taken: UTC; of a file, when it was written.
        number: counts from 0 since the camera was opened.
        source: the name of the file that it is; such a frame waits until it is looked at. Empty for a camera's, where
            the newest wins.
    """

    pixels: NDArray[np.uint8]
    taken: datetime
    number: int
    source: str = ""


class CameraError(EdgeallError):
    """A camera that can't be opened or gave no usable frame."""


class NoFrameError(CameraError):
    """Nothing new within the time asked for, yet all is well: nothing was put into the folder, a replay ended."""


class PassedOverError(NoFrameError):
    """A file that can't be read; the ones after it can."""


class Camera(Protocol):
    """Where frames come from. One thread at a time."""

    name: str

    def read(self, timeout_s: float) -> Frame:
        """The next frame.

        Raises:
            NoFrameError: none within ``timeout_s`` seconds, which is nothing unusual for this source.
            CameraError: there won't be one; the camera has to be opened anew.
        """
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


def open_camera(source: str, *, rate: float | None = None, seen: SeenImages | None = None) -> Camera:
    """Open what a person names.

    Args:
        source: ``simulated``; ``picamera2``; ``/dev/video0`` or ``0`` for a V4L2 or USB camera; a folder, which is
            watched; ``replay:PATH`` for a folder of images or a video.
        rate: frames/s of what is simulated or replayed; None takes 30, a video's own, or one image a second.
        seen: of a folder that is watched, each time that it is opened; None begins with its newest image.

    Raises:
        UsageError: nothing of the kind.
        CameraError: it is there and can't be opened, or what drives it is not installed.
    """
    if source == "simulated":
        from edgeall.edge_runtime.rig.slide import SimulatedCamera, draw_slide

        return SimulatedCamera(draw_slide(seed=0), rate=rate or 30.0)
    if source == "picamera2":
        return PiCamera()
    if source.startswith("replay:"):
        path = Path(source.removeprefix("replay:"))
        if path.is_dir():
            return ImageSequence(path, rate or 1.0)
        if path.is_file():
            return Video(path, rate)
    elif source.isdigit() or source.startswith("/dev/video"):
        return UsbCamera(source)
    elif Path(source).is_dir():
        return WatchedFolder(Path(source), seen or SeenImages())
    raise UsageError(
        f"{source}: no camera, folder or video",
        hint="give simulated, picamera2, /dev/video0, a folder to watch, or replay:PATH",
    )


class SeenImages:
    """Which images of a watched folder were looked at. Outlives its openings: a folder on a network may hang.

    Args:
        until: when the last image was written that an earlier run has looked at, and its name: those up to it count as
            seen. None takes all but the newest for seen.
    """

    def __init__(self, until: tuple[datetime, str] | None = None) -> None:
        self._until = until
        self._begun = False
        # Each file, also where it has gone: a share that was away for a moment brings back what was seen. No time of
        # the last one alone: a copy may keep an older file's time.
        self._files: dict[str, tuple[int, bytes]] = {}

    def begin(self, images: list[tuple[int, str]]) -> None:
        """Given the folder's images, (ns, name) in the order of writing: those that count as seen, once."""
        if self._begun or (self._until is not None and not images):  # a share that isn't mounted yet looks empty
            return
        self._begun = True
        before = images[:-1]
        if self._until is not None:
            before = [each for each in images if (_moment(each[0]), _as_text(each[1])) <= self._until]
        self._files.update({name: (changed_ns, b"") for changed_ns, name in before})

    def has(self, changed_ns: int, name: str) -> bool:
        """It was seen, and not written to since."""
        return self._files.get(name, (None,))[0] == changed_ns

    def has_pixels(self, name: str, digest: bytes) -> bool:
        """It looked the same when it was seen."""
        return self._files.get(name, (None, b""))[1] == digest

    def add(self, changed_ns: int, name: str, digest: bytes = b"") -> None:
        """It was looked at now; ``digest`` is the SHA-256 of its pixels."""
        self._files[name] = changed_ns, digest


class WatchedFolder:
    """Images that another program puts into a folder, each once; what lies there together in the order of writing.

    A file written over is new where its pixels are. Its time alone says nothing: a copy gets the original's time
    after its last byte, and by then it may have been looked at.

    Args:
        folder: subfolders and other files are left alone.
        seen: left out, and added to.
    """

    def __init__(self, folder: Path, seen: SeenImages) -> None:
        self.name = f"folder {folder}"
        self._folder = folder
        self._seen = seen
        self._number = 0
        self._waiting: deque[tuple[int, str]] = deque()
        self._list_at = 0.0
        self._given: tuple[int, str, bytes] | None = None
        self._unfinished = (0, "", 0.0)
        seen.begin(self._images())

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`; a file that can't be decoded and isn't being written is passed over."""
        until = time.monotonic() + timeout_s
        if self._given:  # now, as who was given up meanwhile doesn't come back
            self._seen.add(*self._given)
            self._given = None
        while True:
            frame = self._next()
            if frame is not None:
                return frame
            time.sleep(max(min(self._list_at, until) - time.monotonic(), 0.0))
            if self._list_at >= until:
                raise NoFrameError(f"{self._folder}: no new image")
            began = time.monotonic()
            images = self._images()
            self._seen.begin(images)
            self._waiting.extend(each for each in images if not self._seen.has(*each))
            ended = time.monotonic()
            self._list_at = ended + max(_POLL_S, _REST * (ended - began))

    def close(self) -> None:
        """Nothing to let go of."""

    def _next(self) -> Frame | None:
        """The first of those that wait; None where there is none, or it is being written."""
        while self._waiting:
            changed_ns, name = self._waiting.popleft()
            path = self._folder / name
            try:
                pixels = np.asarray(open_rgb(path))
            except ImageError as error:
                if not path.exists():  # renamed or removed since
                    continue
                if self._is_being_written(changed_ns, name):
                    self._waiting.clear()  # the others after it, in the order that they will have then
                    return None
                self._seen.add(changed_ns, name)
                raise PassedOverError(f"passed over: {error.message}", error.hint) from error
            digest = hashlib.sha256(pixels.data).digest()
            if self._seen.has_pixels(name, digest):
                self._seen.add(changed_ns, name, digest)
                continue
            self._given = changed_ns, name, digest
            frame = _of_file(Frame(pixels, _moment(changed_ns), self._number, _as_text(name)), path)
            self._number += 1
            return frame
        return None

    def _is_being_written(self, changed_ns: int, name: str) -> bool:
        """By our own clock: the folder may be another machine's."""
        if self._unfinished[:2] != (changed_ns, name):
            self._unfinished = changed_ns, name, time.monotonic()
        return time.monotonic() - self._unfinished[2] < _BEING_WRITTEN_S

    def _images(self) -> list[tuple[int, str]]:
        """When each was last written (ns), and its name; oldest first."""
        images = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
                        with suppress(FileNotFoundError):  # renamed or removed just now
                            images.append((entry.stat().st_mtime_ns, entry.name))
            return sorted(images)
        except OSError as error:
            raise CameraError(f"{self._folder}: can't be listed ({error.strerror})", hint="check the path") from error


def _as_text(name: str) -> str:
    """A file's name as it can be written down: not every one is text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _moment(ns: int) -> datetime:
    """A file's time, UTC; now, where a file system says what no calendar knows."""
    try:
        return datetime.fromtimestamp(ns / 1e9, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.now(timezone.utc)


class ImageSequence:
    """The images below a folder, sorted, once.

    Args:
        folder: see `find_images`.
        rate: frames/s.
    """

    def __init__(self, folder: Path, rate: float) -> None:
        self.name = f"replay of {folder}"
        self._paths: Iterator[Path] = find_images(folder)
        self._pace = _Pace(rate)
        self._number = 0

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        path = next(self._paths, None)
        if path is None:
            time.sleep(timeout_s)
            raise NoFrameError(f"{self.name}: ended after {self._number} images")
        try:
            pixels = np.asarray(open_rgb(path))
        except ImageError as error:  # opened anew it would begin anew
            raise PassedOverError(f"passed over: {error.message}", error.hint) from error
        self._pace.wait()
        self._number += 1
        return _of_file(Frame(pixels, datetime.now(timezone.utc), self._number - 1), path)

    def close(self) -> None:
        """Nothing to let go of."""


class _OpenCv:
    """What `Video` and `UsbCamera` share: a ``cv2.VideoCapture``."""

    def __init__(self, name: str, source: str | int, interface: str) -> None:
        try:
            import cv2
        except ImportError as error:
            raise CameraError(f"{name}: needs OpenCV ({error})", hint=OPENCV) from error
        self.name = name
        self._cv2: Any = cv2
        self._capture: Any = cv2.VideoCapture(source, getattr(cv2, interface))
        self._number = 0
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(f"{name}: can't be opened", hint="is it plugged in, and does no other program use it?")

    def _next(self) -> Frame | None:
        ok, pixels = self._capture.read()
        if not ok:
            return None
        self._number += 1
        rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return Frame(rgb, datetime.now(timezone.utc), self._number - 1)

    def close(self) -> None:
        """Let go of the device or file."""
        self._capture.release()


class Video(_OpenCv):
    """A video file, once.

    Args:
        path: whatever OpenCV's FFmpeg reads.
        rate: frames/s; None for its own.
    """

    def __init__(self, path: Path, rate: float | None) -> None:
        super().__init__(f"replay of {path}", str(path), "CAP_FFMPEG")
        self._pace = _Pace(rate or self._capture.get(self._cv2.CAP_PROP_FPS) or 30.0)

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        self._pace.wait()
        frame = self._next()
        if frame is None:
            if self._number == 0:
                raise CameraError(f"{self.name}: holds no frame that can be decoded")
            time.sleep(timeout_s)
            raise NoFrameError(f"{self.name}: ended after {self._number} frames")
        return _of_file(frame, self.name)


class UsbCamera(_OpenCv):
    """A V4L2 or USB camera.

    Args:
        source: ``/dev/video0``, or its number.
    """

    def __init__(self, source: str) -> None:
        super().__init__(f"camera {source}", int(source) if source.isdigit() else source, "CAP_V4L2")
        cv2 = self._cv2
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))  # raw is 10 frames/s on USB 2
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, SIZE[0])
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, SIZE[1])
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not one that has waited

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`; the driver has a time limit of its own, ten seconds."""
        frame = self._next()
        if frame is None:
            raise CameraError(f"{self.name}: gives no frame", hint="check its cable")
        return frame


class PiCamera:
    """A Raspberry Pi's camera, by picamera2 (``apt install python3-picamera2``).

    Tested with a stand-in for picamera2, not on a Pi. Source: The Picamera2 Library manual, chapters 4 and 6: the
    format called BGR888 is R, G, B in memory; a capture that isn't waited for is a job for `Picamera2.wait`.
    """

    def __init__(self) -> None:
        try:
            from picamera2 import Picamera2
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
                f"picamera2: {error}", hint="`rpicam-hello --list-cameras` says what is connected"
            ) from error

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        try:
            job = self._camera.capture_array("main", wait=False)
            pixels = self._camera.wait(job, timeout=timeout_s)
        except (RuntimeError, TimeoutError, FutureTimeoutError) as error:
            raise CameraError(f"picamera2: gives no frame ({error or type(error).__name__})") from error
        self._number += 1
        return Frame(pixels, datetime.now(timezone.utc), self._number - 1)

    def close(self) -> None:
        """Stop it and let go of it."""
        self._camera.stop()
        self._camera.close()


def check_frame(frame: Frame, name: str) -> Frame:
    """The frame with its pixels in one block and read-only. Raises CameraError for what is no picture."""
    pixels: Any = frame.pixels
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        kind = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise CameraError(f"{name}: gave {kind}, not an 8-bit RGB image")
    height, width = pixels.shape[:2]
    if min(height, width) < 32 or height * width > MAX_PIXELS:
        raise CameraError(f"{name}: gave an image of {width}x{height} pixels")
    if not pixels[::16, ::16].any() and not pixels.any():
        raise CameraError(f"{name}: every pixel is black", hint="is the lamp on and the light path open?")
    pixels = np.ascontiguousarray(pixels).view()  # the camera may go on to write to its own
    pixels.flags.writeable = False
    return dataclasses.replace(frame, pixels=pixels)


def _of_file(frame: Frame, path: Path | str) -> Frame:
    """`check_frame`, of a file: opening it anew helps nothing, and the ones after it can be read."""
    try:
        return check_frame(frame, str(path))
    except CameraError as error:
        raise PassedOverError(f"passed over: {error.message}", error.hint) from error


@dataclass(frozen=True)
class CameraState:
    """How a `KeptOpen` fares.

    Attributes:
        state: ``live``; ``reopening``: it failed and is tried again; ``stalled``: it hangs.
        detail: why it isn't live, or what a person may want to know; empty when there is nothing to say.
        fault: the last thing that went wrong, also when it is well again; empty when nothing has.
        name: the camera's.
        frames: taken in all, over all openings.
        dropped_frames: of them, those that a newer one replaced before anybody asked for them.
        reopened: times.
        hung: threads that were given up and have not come back.
    """

    state: str
    detail: str
    fault: str
    name: str
    frames: int
    dropped_frames: int
    reopened: int
    hung: int


class KeptOpen:
    """Keeps a camera open, in threads of its own. Never raises what a camera does.

    The newest frame wins, but for files: each waits until it is taken.

    A camera that fails is opened anew, after a wait that doubles each time. One that hangs is given up with its thread
    and opened anew; no more than `MAX_HUNG` threads are given up at a time: then the first has to come back.

    Args:
        factory: opens the camera.
        stall_s: without a sign of life for so long it is taken to hang.
    """

    MAX_HUNG = 3
    OPEN_S = 20.0
    """Opening may take so long before it counts as hanging."""
    FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
    READ_S = 1.0

    def __init__(self, factory: Callable[[], Camera], *, stall_s: float = 5.0) -> None:
        self._factory = factory
        self._stall_s = stall_s
        self._read_s = min(self.READ_S, stall_s / 4)  # one that has nothing new says so in time
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._readers: list[_Reader] = []
        self._frame: Frame | None = None
        self._sequence = 0
        self._taken = 0
        self._dropped = 0
        self._openings = 0
        self._state, self._detail, self._name = "reopening", "not opened yet", "camera"
        self._fault = ""

    def start(self) -> None:
        """Begin."""
        self._keeper = threading.Thread(target=self._keep, name="camera keeper", daemon=True)
        self._keeper.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End; a camera that hangs is left to end by itself."""
        self._stop.set()
        until = time.monotonic() + timeout_s
        if self._keeper:
            self._keeper.join(timeout_s)
        for reader in self._readers:
            reader.thread.join(max(until - time.monotonic(), 0.0))

    def wait(self, after: int, timeout_s: float) -> tuple[int, Frame] | None:
        """The newest frame with its number over all openings, as soon as that is above ``after``; None in vain."""
        with self._changed:
            self._changed.wait_for(lambda: self._sequence > after, timeout_s)
            if self._frame is None or self._sequence <= after:
                return None
            self._taken = self._sequence
            self._changed.notify_all()
            return self._sequence, self._frame

    def state(self) -> CameraState:
        """How it fares now."""
        with self._changed:
            return CameraState(
                state=self._state,
                detail=self._detail,
                fault=self._fault,
                name=self._name,
                frames=self._sequence,
                dropped_frames=self._dropped,
                reopened=max(self._openings - 1, 0),
                hung=sum(reader.abandoned and reader.thread.is_alive() for reader in self._readers),
            )

    def _keep(self) -> None:
        failures = 0
        while not self._stop.is_set():
            reader = _Reader(self)
            self._readers = [old for old in self._readers if old.thread.is_alive()] + [reader]
            self._openings += 1
            reader.thread.start()
            while not reader.thread_done.wait(_POLL_S) and not self._stop.is_set():
                limit = self._stall_s if reader.open else self.OPEN_S
                if time.monotonic() - reader.last_sign > limit:
                    reader.abandoned = True
                    what = "gives no frame" if reader.open else "doesn't open"
                    self._say("stalled", f"{self._name}: hangs, {what} for {limit:g} s; trying again")
                    break
            if not reader.abandoned and not self._stop.is_set():
                self._say("reopening", reader.failure)
            # A camera that worked for a while may fail anew without old failures counting.
            failures = 1 if reader.worked_s() > self.LONGEST_WAIT_S else failures + 1
            self._stop.wait(min(self.FIRST_WAIT_S * 2 ** (failures - 1), self.LONGEST_WAIT_S))
            while self.state().hung >= self.MAX_HUNG and not self._stop.wait(_POLL_S):
                self._say(
                    "stalled", f"{self._name}: hangs, {self.MAX_HUNG} attempts of it: unplug it and plug it in again"
                )

    def _say(self, state: str, detail: str, is_fault: bool = False) -> None:
        with self._changed:
            self._state, self._detail = state, detail
            if state != "live" or is_fault:
                self._fault = detail

    def _put(self, frame: Frame) -> None:
        with self._changed:
            self._state, self._detail = "live", ""
            self._dropped += self._sequence > self._taken
            self._frame = frame
            self._sequence += 1
            self._changed.notify_all()

    def _is_taken(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._taken == self._sequence, timeout_s)


class _Reader:
    """One opening of a camera, in a thread of its own."""

    def __init__(self, keeper: KeptOpen) -> None:
        self._keeper = keeper
        self.open = False
        self.abandoned = False
        self.failure = ""
        self.last_sign = time.monotonic()
        self.thread_done = threading.Event()
        self._first_frame: float | None = None
        self.thread = threading.Thread(target=self._run, name="camera reader", daemon=True)

    def worked_s(self) -> float:
        """How long it has given frames."""
        return self.last_sign - self._first_frame if self._first_frame is not None else 0.0

    def _run(self) -> None:
        camera = None
        try:
            camera = self._keeper._factory()
            self._keeper._name = camera.name
            self.last_sign, self.open = time.monotonic(), True
            while self._wanted():
                self._read(camera)
        except EdgeallError as error:
            self.failure = error.message + (f" ({error.hint})" if error.hint else "")
        except Exception as error:  # drivers raise what they like
            self.failure = f"{self._keeper._name}: {type(error).__name__}: {error}"
        finally:
            if camera is not None:
                with suppress(Exception):
                    camera.close()
            self.thread_done.set()

    def _read(self, camera: Camera) -> None:
        try:
            frame = check_frame(camera.read(self._keeper._read_s), camera.name)
        except NoFrameError as error:
            self.last_sign = time.monotonic()
            if self._wanted():
                self._keeper._say("live", error.message, isinstance(error, PassedOverError))
            return
        self.last_sign = time.monotonic()
        if self._first_frame is None:
            self._first_frame = self.last_sign
        if self._wanted():
            self._keeper._put(frame)
        while frame.source and self._wanted() and not self._keeper._is_taken(_POLL_S):
            self.last_sign = time.monotonic()

    def _wanted(self) -> bool:
        return not self.abandoned and not self._keeper._stop.is_set()


class _Pace:
    """So many a second, without catching up on what was late."""

    def __init__(self, rate: float) -> None:
        self._period_s = 1 / rate
        self._due = time.monotonic()

    def wait(self) -> None:
        """Until the next is due."""
        time.sleep(max(self._due - time.monotonic(), 0.0))
        self._due = max(self._due + self._period_s, time.monotonic())
