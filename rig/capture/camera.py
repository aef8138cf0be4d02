"""Cameras behind one small interface, and what keeps one open whatever it does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...edge_runtime.errors import EdgeallError, ImageError, UsageError
from ...edge_runtime.images import MAX_PIXELS, SUFFIXES, find_images, open_rgb
from ...edge_runtime.vision.frame import Frame

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


class CameraError(EdgeallError):
    """A camera that can't be opened or gave no usable frame."""


class NoFrameError(CameraError):
    """Nothing new within the time asked for, yet all is well: nothing was put into the folder."""


class EndedError(NoFrameError):
    """A replay has ended: nothing new will come."""


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
        seen: of what consists of files, each time that it is opened; None begins a watched folder with its newest
            image, and a replay at its beginning.

    Raises:
        UsageError: nothing of the kind.
        CameraError: it is there and can't be opened, or what drives it is not installed.
    """
    seen = seen or SeenImages()
    if source == "simulated":
        from .slide import SimulatedCamera, draw_slide

        return SimulatedCamera(draw_slide(seed=0), rate=rate or 30.0)
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
        f"{source}: no camera, folder or video",
        hint="give simulated, picamera2, /dev/video0, a folder to watch, or replay:PATH",
    )


class SeenImages:
    """Which files were looked at: by name and content, whatever their time says. Outlives a source's openings.

    A clock that was set back must not make a new image an old one: boards without a battery start at some earlier time.

    Args:
        held: of the slide that was open when the program started, the record's files: the digests of each name, see
            `Record.held`. None: no slide was open, and what lies in a watched folder, but for the newest, is seen.
        kept: the file of what lay in a watched folder when a slide was begun and so belongs to none; None keeps it
            nowhere.
    """

    def __init__(self, held: Mapping[str, Container[str]] | None = None, kept: Path | None = None) -> None:
        self._held, self._kept = held, kept
        self._begun = False
        self._folder = ""
        # Each file, also where it has gone: a share that was away for a moment brings back what was seen.
        self._files: dict[str, _Seen] = {}
        self.before = 0
        """Files of a watched folder that were there before, and are left out."""
        self.unknown = 0
        """Of them, those of which nobody knows whether they came while the slide was open."""

    def begin(self, folder: str, images: Sequence[_Listed]) -> None:
        """Given a watched folder's images in the order of writing: those that count as seen, once."""
        if self._begun:
            return
        self._folder = folder
        if self._held is None:
            self._begun = True
            self._leave_out(images[:-1])
            return
        known = self._read()
        if known is not None:
            self._files.update(known)
            self.before = sum(self.has(each) for each in images)
        elif not images:  # a share that isn't mounted yet looks empty
            return
        else:  # the slide was begun with another camera, or by an edgeall that kept no list
            self._leave_out([each for each in images if _as_text(each.name) not in self._held])
            self.unknown = self.before
        self._begun = True

    def begin_replay(self, source: str) -> None:
        """Have what an earlier run has replayed for slides before the open one count as seen, once."""
        if not self._begun:
            self._begun, self._folder = True, source
            self._files.update((self._read() if self._held is not None else None) or {})

    def _leave_out(self, images: Sequence[_Listed]) -> None:
        self._files.update({each.name: _Seen(each.stamp) for each in images})
        self.before = len(images)

    def has(self, image: _Listed) -> bool:
        """It was seen, and not written to since."""
        seen = self._files.get(image.name)
        return seen is not None and seen.stamp == image.stamp

    def has_content(self, name: str, digest: str, pixels: str = "") -> bool:
        """It was the same, or looked the same, when it was seen; or the record has it."""
        seen, text = self._files.get(name), _as_text(name)
        if seen is not None and (digest == seen.digest or (pixels and pixels == seen.pixels)):
            return True
        held = self._held.get(text, ()) if self._held else ()
        return digest in held or "" in held  # rows of before digests were recorded have none

    def add(self, image: _Listed, digest: str = "", pixels: str = "") -> None:
        """It was looked at now; SHA-256 of the file and of its pixels, hex."""
        self._files[image.name] = _Seen(image.stamp, digest, pixels)

    def keep(self) -> None:
        """Have what was seen so far outlast the program, before a slide is begun: it belongs to none, or to an earlier
        one. Raises OSError.
        """
        if self._kept is None or not self._folder:
            return
        facts = {"folder": self._folder, "files": [[name, *dataclasses.astuple(s)] for name, s in self._files.items()]}
        part = self._kept.with_name(f"{self._kept.name}.part")
        with open(part, "w", encoding="ascii") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._kept)

    def _read(self) -> dict[str, _Seen] | None:
        """What `keep` has written of this folder; None where it has not."""
        try:
            facts = json.loads(self._kept.read_bytes()) if self._kept else {}
            if facts.get("folder") != self._folder:
                return None
            return {
                name: _Seen((mtime, size), digest, pixels) for name, (mtime, size), digest, pixels in facts["files"]
            }
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return None


@dataclass(frozen=True)
class _Listed:
    """A file as its folder lists it; they sort by the time of writing."""

    changed_ns: int
    name: str
    size: int = 0

    @property
    def stamp(self) -> tuple[int, int]:
        return self.changed_ns, self.size


@dataclass(frozen=True)
class _Seen:
    """A file as it was seen: its `_Listed.stamp`; SHA-256 of the file and of its pixels, empty where nobody looked."""

    stamp: tuple[int, int]
    digest: str = ""
    pixels: str = ""


class WatchedFolder:
    """Images that another program puts into a folder, each once; what lies there together in the order of writing.

    A file written over is new where its pixels are. Its time alone says nothing: a copy gets the original's time
    after its last byte, and by then it may have been looked at; and clocks are set back.

    Args:
        folder: subfolders and other files are left alone.
        seen: left out, and added to.
    """

    def __init__(self, folder: Path, seen: SeenImages) -> None:
        self.name = f"folder {folder}"
        self._folder = folder
        self._seen = seen
        self._number = 0
        self._waiting: deque[_Listed] = deque()
        self._list_at = 0.0
        self._given: tuple[_Listed, str, str] | None = None
        self._unfinished: tuple[_Listed | None, float] = (None, 0.0)
        seen.begin(os.path.abspath(folder), self._images())

    @property
    def waiting(self) -> int:
        """Images that are still to be given, of those known."""
        return len(self._waiting)

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`; a file that can't be decoded and isn't being written is passed over."""
        until = time.monotonic() + timeout_s
        if self._given:  # now, as who was given up meanwhile doesn't come back
            self._seen.add(*self._given)
            self._given = None
        while True:
            frame = self._next(until)
            if frame is not None:
                return frame
            time.sleep(max(min(self._list_at, until) - time.monotonic(), 0.0))
            if self._waiting or self._list_at >= until:
                raise NoFrameError(f"{self._folder}: no new image")
            began = time.monotonic()
            images = self._images()
            self._seen.begin(os.path.abspath(self._folder), images)
            self._waiting.extend(each for each in images if not self._seen.has(each))
            ended = time.monotonic()
            self._list_at = ended + max(_POLL_S, _REST * (ended - began))

    def close(self) -> None:
        """Nothing to let go of."""

    def _next(self, until: float) -> Frame | None:
        """The first of those that wait; None where there is none, or it is being written, or the time is over."""
        while self._waiting and time.monotonic() < until:
            image = self._waiting.popleft()
            path = self._folder / image.name
            try:
                digest = _file_digest(path)
                if self._seen.has_content(image.name, digest):
                    self._seen.add(image, digest)
                    continue
                pixels = np.asarray(open_rgb(path))
            except ImageError as error:
                if not path.exists():  # renamed or removed since
                    continue
                if self._is_being_written(image):
                    self._waiting.clear()  # the others after it, in the order that they will have then
                    return None
                self._seen.add(image)
                raise PassedOverError(f"passed over: {error.message}", error.hint) from error
            shown = hashlib.sha256(pixels.data).hexdigest()
            if self._seen.has_content(image.name, digest, shown):
                self._seen.add(image, digest, shown)
                continue
            self._given = image, digest, shown
            taken, source = _moment(image.changed_ns), _as_text(image.name)
            frame = _of_file(Frame(pixels, taken, self._number, source, digest), path)
            self._number += 1
            return frame
        return None

    def _is_being_written(self, image: _Listed) -> bool:
        """By our own clock: the folder may be another machine's."""
        if self._unfinished[0] != image:
            self._unfinished = image, time.monotonic()
        return time.monotonic() - self._unfinished[1] < _BEING_WRITTEN_S

    def _images(self) -> list[_Listed]:
        """Oldest first."""
        images = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
                        with suppress(FileNotFoundError):  # renamed or removed just now
                            state = entry.stat()
                            images.append(_Listed(state.st_mtime_ns, entry.name, state.st_size))
            return sorted(images, key=lambda each: (each.changed_ns, each.name))
        except OSError as error:
            raise CameraError(f"{self._folder}: can't be listed ({error.strerror})", hint="check the path") from error


def _file_digest(path: Path) -> str:
    """SHA-256, hex. Raises ImageError where it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror})", hint="check its owner and mode") from error
    return digest.hexdigest()


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
    """The images below a folder, sorted, each once; those of an open slide that the record has are left out.

    Args:
        folder: see `find_images`.
        rate: frames/s.
        seen: left out, and added to.
    """

    def __init__(self, folder: Path, rate: float, seen: SeenImages) -> None:
        self.name = f"replay of {folder}"
        self._folder, self._seen = folder, seen
        self._paths: Iterator[Path] = find_images(folder)
        self._pace = _Pace(rate)
        seen.begin_replay(f"replay:{os.path.abspath(folder)}")
        self._number = self._skipped = 0
        self._given: tuple[_Listed, str] | None = None

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        until = time.monotonic() + timeout_s
        if self._given:
            self._seen.add(*self._given)
            self._given = None
        for path in self._paths:
            name = os.path.relpath(path, self._folder)
            try:
                digest = _file_digest(path)
                if self._seen.has_content(name, digest):
                    self._skipped += 1
                    if time.monotonic() >= until:
                        raise NoFrameError(f"{self.name}: goes on after {self._skipped} images that were seen before")
                    continue
                pixels = np.asarray(open_rgb(path))
            except ImageError as error:  # opened anew it would begin anew
                raise PassedOverError(f"passed over: {error.message}", error.hint) from error
            self._pace.wait()
            self._number += 1
            self._given = _Listed(0, name), digest
            taken, source = datetime.now(timezone.utc), _as_text(name)
            return _of_file(Frame(pixels, taken, self._number - 1, source, digest, waits=True), path)
        time.sleep(timeout_s)
        raise EndedError(f"{self.name}: {_ended(self._number, self._skipped, 'images')}")

    def close(self) -> None:
        """Nothing to let go of."""


def _ended(number: int, skipped: int, what: str) -> str:
    before = f", after {skipped} that were seen before" if skipped else ""
    return f"ended after {number} {what}{before}"


class _OpenCv:
    """What `Video` and `UsbCamera` share: a ``cv2.VideoCapture``."""

    def __init__(self, name: str, source: str | int, interface: str, hint: str) -> None:
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
            raise CameraError(f"{name}: can't be opened", hint=hint)

    def _next(self) -> Frame | None:
        ok, pixels = self._capture.read()
        if not ok:
            return None
        self._number += 1
        rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return Frame(rgb, datetime.now(timezone.utc), self._number - 1, clock_s=time.monotonic())

    def close(self) -> None:
        """Let go of the device or file."""
        self._capture.release()


class Video(_OpenCv):
    """A video file, each frame once; those of an open slide that the record has are left out.

    Args:
        path: whatever OpenCV's FFmpeg reads.
        rate: frames/s; None for its own.
        seen: left out, and added to.
    """

    def __init__(self, path: Path, rate: float | None, seen: SeenImages) -> None:
        hint = "is it a video, and whole? A recording or a copy that broke off can't be played"
        super().__init__(f"replay of {path}", str(path), "CAP_FFMPEG", hint)
        self._file, self._seen = path.name, seen
        seen.begin_replay(f"replay:{os.path.abspath(path)}")
        self._own_rate = self._capture.get(self._cv2.CAP_PROP_FPS) or 30.0
        self._promised = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        self._pace = _Pace(rate or self._own_rate)
        self._skipped = 0
        self._given: tuple[_Listed, str] | None = None

    def read(self, timeout_s: float) -> Frame:
        """See `Camera`."""
        until = time.monotonic() + timeout_s
        if self._given:
            self._seen.add(*self._given)
            self._given = None
        while frame := self._next():
            name = f"{self._file} frame {self._number}"
            digest = hashlib.sha256(frame.pixels.data).hexdigest()
            if self._seen.has_content(name, digest):
                self._skipped += 1
                if time.monotonic() >= until:
                    raise NoFrameError(f"{self.name}: goes on after {self._skipped} frames that were seen before")
                continue
            self._pace.wait()
            self._given = _Listed(0, name), digest
            named = dataclasses.replace(
                frame, source=_as_text(name), digest=digest, waits=True, clock_s=frame.number / self._own_rate
            )
            return _of_file(named, f"{self.name}, frame {self._number}")
        if self._number == 0:
            raise CameraError(f"{self.name}: holds no frame that can be decoded", hint="is the file whole?")
        time.sleep(timeout_s)
        ended = _ended(self._number - self._skipped, self._skipped, "frames")
        missing = self._promised - self._number
        if missing > max(0.05 * self._promised, 1):  # some containers only estimate it
            ended += f"; {missing} more that it should have can't be decoded: is the file whole?"
        raise EndedError(f"{self.name}: {ended}")


class UsbCamera(_OpenCv):
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
        return Frame(pixels, datetime.now(timezone.utc), self._number - 1, clock_s=time.monotonic())

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
        state: ``live``; ``reopening``: it failed and is tried again; ``stalled``: it hangs; ``ended``: a replay.
        detail: why it isn't live, or what a person may want to know; empty when there is nothing to say.
        fault: the last thing that went wrong, also when it is well again; empty when nothing has.
        name: the camera's.
        frames: taken in all, over all openings.
        dropped_frames: of them, those that a newer one replaced before anybody asked for them.
        reopened: times.
        hung: threads that were given up and have not come back.
        waiting: files that are still to be looked at, of those known.
    """

    state: str
    detail: str
    fault: str
    name: str
    frames: int
    dropped_frames: int
    reopened: int
    hung: int
    waiting: int = 0


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
        self._waiting = 0

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
                waiting=self._waiting + (bool(self._frame and self._frame.source) and self._taken < self._sequence),
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
            if state not in ("live", "ended") or is_fault:
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
                state = "ended" if isinstance(error, EndedError) else "live"
                self._keeper._say(state, error.message, isinstance(error, PassedOverError))
                self._keeper._waiting = getattr(camera, "waiting", 0)
            return
        self._keeper._waiting = getattr(camera, "waiting", 0)
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
