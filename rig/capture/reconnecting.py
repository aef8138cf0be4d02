"""A camera that is reopened when it fails or hangs, in threads of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.vision.frame import Frame
from ..language import N_, as_message, message
from .interface import Camera, NoFrameError, ReplayEndedError, SkippedFile, SkippedFileError, check_frame

_POLL_S = 0.1
MAX_CHANGES = 1000
"""Changes of the state that are kept until they are recorded, if the record fails for long."""


@dataclass(frozen=True)
class CameraState:
    """The state of a `ReconnectingCamera`.

    Attributes:
        state: ``live``; ``reopening``: it failed and is being reopened; ``stalled``: it hangs; ``ended``: a replay.
        detail: why it is not live, or other information for the operator; may be empty.
        fault: the last fault, also after recovery; empty if there was none.
        name: of the camera.
        frames: total number of frames over all openings.
        dropped_frames: frames that a newer one replaced before they were taken.
        reopened: number of times it was reopened.
        hung: abandoned threads that have not returned.
        waiting: known files that were not taken yet.
        skipped: files that could not be used.
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
    skipped: int = 0

    @property
    def works(self) -> bool:
        """It returns frames, or has returned all of them."""
        return self.state in ("live", "ended")


class ReconnectingCamera:
    """Keeps a camera open. Never raises the camera's errors: `state` reports them.

    A newer frame replaces the one before it. Frames from files are never replaced: each waits until it is taken.

    A camera that fails is reopened after a wait that doubles each time. One that hangs is abandoned with its thread and
    opened again. At most `MAX_HUNG` threads are abandoned at a time: after that, one of them has to return first. The
    limit of an opening doubles each time that one was abandoned. Otherwise a busy machine would never open the camera.

    Args:
        factory: opens the camera.
        stall_s: the camera counts as hanging after this many seconds without a sign of life.
    """

    MAX_HUNG = 3
    OPEN_S = 20.0
    """The first opening counts as hanging after this many seconds, later ones after at most `SLOWEST` times as many."""
    SLOWEST = 16
    FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
    READ_S = 1.0

    def __init__(self, factory: Callable[[], Camera], *, stall_s: float = 5.0) -> None:
        self._factory = factory
        self._stall_s = stall_s
        self._read_s = min(self.READ_S, stall_s / 4)  # a camera without a new frame has to return before `stall_s`
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._readers: list[_Reader] = []
        self._frame: Frame | None = None
        self._sequence = 0
        self._taken = 0
        self._dropped = 0
        self._openings = 0
        self._state = "reopening"
        self._detail: str = message("not opened yet")
        self._name: str = message("camera")
        self._fault = ""
        self._waiting = 0
        self._skipped = 0
        self._skips: list[SkippedFile] = []
        self._changes: deque[CameraState] = deque(maxlen=MAX_CHANGES)

    def start(self) -> None:
        """Open the camera in the background."""
        self._supervisor = threading.Thread(target=self._supervise, name="camera supervisor", daemon=True)
        self._supervisor.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop. A thread that hangs is not waited for longer than ``timeout_s``."""
        self._stop.set()
        until = time.monotonic() + timeout_s
        if self._supervisor:
            self._supervisor.join(timeout_s)
        for reader in self._readers:
            reader.thread.join(max(until - time.monotonic(), 0.0))

    def wait(self, after: int, timeout_s: float) -> tuple[int, Frame] | None:
        """The newest frame and its number over all openings, once that is above ``after``; None after ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._sequence > after, timeout_s)
            if self._frame is None or self._sequence <= after:
                return None
            self._taken = self._sequence
            self._changed.notify_all()
            return self._sequence, self._frame

    def state(self) -> CameraState:
        """The current state."""
        with self._changed:
            return self._current()

    def take_changes(self) -> list[CameraState]:
        """Every change of the state or fault since the last call, however short, but not every attempt to reopen."""
        with self._changed:
            changes = list(self._changes)
            self._changes.clear()
            return changes

    def take_skipped(self) -> list[SkippedFile]:
        """The files that could not be used since the last call."""
        with self._changed:
            skips, self._skips = self._skips, []
            return skips

    def _current(self) -> CameraState:
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
            skipped=self._skipped,
        )

    def _supervise(self) -> None:
        failures, slowness = 0, 1
        while not self._stop.is_set():
            reader = _Reader(self)
            self._readers = [old for old in self._readers if old.thread.is_alive()] + [reader]
            self._openings += 1
            reader.thread.start()
            while not reader.thread_done.wait(_POLL_S) and not self._stop.is_set():
                limit = self._stall_s if reader.open else slowness * self.OPEN_S
                if time.monotonic() - reader.last_sign > limit:
                    reader.abandoned = True
                    problem = N_("no frame") if reader.open else N_("not open")
                    self._set_state(
                        "stalled",
                        message(
                            "{camera}: hangs, {problem} after {limit} s; trying again",
                            camera=self._name,
                            problem=message(problem),
                            limit=f"{limit:g}",
                        ),
                    )
                    break
            if not reader.abandoned and not self._stop.is_set():
                self._set_state("reopening", reader.failure)
            if reader.open:
                slowness = 1
            elif reader.abandoned:
                slowness = min(2 * slowness, self.SLOWEST)
            # After a long period without a failure, the wait starts again from its shortest.
            failures = 1 if reader.worked_s() > self.LONGEST_WAIT_S else failures + 1
            self._stop.wait(min(self.FIRST_WAIT_S * 2 ** (failures - 1), self.LONGEST_WAIT_S))
            while self.state().hung >= self.MAX_HUNG and not self._stop.wait(_POLL_S):
                self._set_state(
                    "stalled",
                    message(
                        "{camera}: hangs after {count} attempts: unplug it and plug it in again",
                        camera=self._name,
                        count=self.MAX_HUNG,
                    ),
                )

    def _set_state(self, state: str, detail: str) -> None:
        with self._changed:
            before = self._state, self._fault
            self._state, self._detail = state, detail
            if state not in ("live", "ended"):
                self._fault = detail
            self._note_change(before)

    def _skip(self, skipped: SkippedFile, detail: str) -> None:
        with self._changed:
            self._skips.append(skipped)
            self._skipped += 1
            self._fault = detail
        self._set_state("live", detail)

    def _put(self, frame: Frame) -> None:
        with self._changed:
            before = self._state, self._fault
            self._state, self._detail = "live", ""
            self._dropped += self._sequence > self._taken
            self._frame = frame
            self._sequence += 1
            self._note_change(before)
            self._changed.notify_all()

    def _note_change(self, before: tuple[str, str]) -> None:
        if (self._state, self._fault) != before:
            self._changes.append(self._current())

    def _is_taken(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._taken == self._sequence, timeout_s)


class _Reader:
    """One opening of a camera, in a thread of its own."""

    def __init__(self, owner: ReconnectingCamera) -> None:
        self._owner = owner
        self.open = False
        self.abandoned = False
        self.failure = ""
        self.last_sign = time.monotonic()
        self.thread_done = threading.Event()
        self._first_frame: float | None = None
        self.thread = threading.Thread(target=self._run, name="camera reader", daemon=True)

    def worked_s(self) -> float:
        """Seconds from its first frame to its last sign of life."""
        return self.last_sign - self._first_frame if self._first_frame is not None else 0.0

    def _run(self) -> None:
        camera = None
        try:
            camera = self._owner._factory()
            self._owner._name = camera.name
            self.last_sign, self.open = time.monotonic(), True
            while self._wanted():
                self._read(camera)
        except EdgeallError as error:
            self.failure = error.message
            if error.hint:
                problem, hint = as_message(error.message), as_message(error.hint)
                self.failure = message("{problem} ({hint})", problem=problem, hint=hint)
        except Exception as error:  # drivers raise all kinds of errors
            reason = f"{type(error).__name__}: {error}"
            self.failure = message("{camera}: {reason}", camera=self._owner._name, reason=reason)
        finally:
            if camera is not None:
                with suppress(Exception):
                    camera.close()
            self.thread_done.set()

    def _read(self, camera: Camera) -> None:
        try:
            frame = check_frame(camera.read(self._owner._read_s), camera.name)
        except NoFrameError as error:
            self.last_sign = time.monotonic()
            if self._wanted():
                self._owner._waiting = getattr(camera, "waiting", 0)
                if isinstance(error, SkippedFileError):
                    self._owner._skip(error.skipped, error.message)
                else:
                    state = "ended" if isinstance(error, ReplayEndedError) else "live"
                    self._owner._set_state(state, error.message)
            return
        self._owner._waiting = getattr(camera, "waiting", 0)
        self.last_sign = time.monotonic()
        if self._first_frame is None:
            self._first_frame = self.last_sign
        if self._wanted():
            self._owner._put(frame)
        while frame.source and self._wanted() and not self._owner._is_taken(_POLL_S):
            self.last_sign = time.monotonic()

    def _wanted(self) -> bool:
        return not self.abandoned and not self._owner._stop.is_set()
