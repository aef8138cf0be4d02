"""The loop: camera, gate, model, record, and what anybody may look at meanwhile.

One thread judges, always the newest frame; one writes the record; one looks at the machine's health. No lock is held
while the model runs or a disk is written to; whoever looks gets a frozen snapshot.
"""

from __future__ import annotations

import dataclasses
import io
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.device import conditions, rss_bytes
from ..edge_runtime.errors import EdgeallError, UsageError
from ..edge_runtime.pipeline import Prediction, prediction
from ..edge_runtime.preprocess import preprocess
from ..edge_runtime.vision import cells
from ..edge_runtime.vision.frame import Frame
from ..edge_runtime.vision.quality import Gate, Quality, thresholds_of
from .capture.camera import CameraState, KeptOpen, SeenImages
from .record.record import FrameRow, Record, SessionNotes

SAVE = ("every frame", "on review", "on capture")
"""Whose image is kept: every judged frame's; of those that the model wants looked at (of a camera's two a second at
most), and captured ones; captured ones."""
LIVE_QUALITY, SAVED_QUALITY = 80, 95
_BEAT_S = 0.5
_HEALTH_S = 5.0
_RATE_S = 2.0
_WAITING_ROWS = 8
"""Judged frames that wait to be recorded; judging waits for the disk beyond."""
_KEPT_EVERY_S = 0.5
"""Between images of frames that ask for review: where a whole slide is unfamiliar, those of all would fill a card
within the hour, and saving them takes the processor from judging."""
_RETRY_S = 5.0


class StationError(EdgeallError):
    """The station can't do what it is asked for as things are."""


@dataclass(frozen=True)
class Settings:
    """What an operator may change while it runs.

    Attributes:
        judge: ask the model.
        save: one of `SAVE`.
    """

    judge: bool = True
    save: str = "on review"

    def __post_init__(self) -> None:
        if self.save not in SAVE:
            raise UsageError(f"save {self.save!r} is unknown", hint=f"one of: {', '.join(SAVE)}")


@dataclass(frozen=True)
class JudgedCell:
    """A cell and what the model says of it.

    Attributes:
        box: (left, top, right, bottom) in the frame's pixels.
        label: the most probable.
        probability: of `label`, 0..1.
        review_reason: why the model asks for somebody to look, see `edgeall.edge_runtime.pipeline.Prediction.reason`;
            None where it doesn't.
    """

    box: cells.Box
    label: str
    probability: float
    review_reason: str | None = None

    @property
    def review(self) -> bool:
        """The model asks for somebody to look."""
        return self.review_reason is not None


@dataclass(frozen=True)
class Health:
    """How the machine fares.

    Attributes:
        free_bytes: of the record's disk.
        space: one of `record.SPACES`.
        temperature_c: None where unknown.
        throttled: a Raspberry Pi's bits, None elsewhere.
        rss_bytes: of this process; None where unknown.
        load: of one minute; None where unknown.
    """

    free_bytes: int
    space: str
    temperature_c: float | None = None
    throttled: int | None = None
    rss_bytes: int | None = None
    load: float | None = None


class Picture:
    """A frame's pixels and, once somebody wants to see them, their JPEG file."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._lock = threading.Lock()
        self._jpeg: bytes | None = None

    def jpeg(self) -> bytes:
        """Encoded once, by whoever asks first."""
        with self._lock:
            if self._jpeg is None:
                self._jpeg = encode(self.frame.pixels, LIVE_QUALITY)
            return self._jpeg


@dataclass(frozen=True)
class Live:
    """The station at one moment.

    Attributes:
        number: of the snapshot; a later one has a higher.
        picture: the newest frame; None before the first.
        status: ``judged``; ``refused`` by the gate; ``unjudged``: judging is off or impossible; ``waiting`` for the
            first frame.
        quality: of the frame; None before the first.
        label: the most probable; empty where nothing was judged, and for a model of cells: they have their own.
        probability: of `label`, 0..1.
        probabilities: of every label; empty where `label` is.
        review_reason: as of a `JudgedCell`; of a frame of cells, what counts for more.
        cells: for a model of cells, those that were judged.
        frames_per_s: judged or refused, over the last two seconds.
        camera: how it fares.
        session_id: of the slide that is recorded; None between slides.
        settings: in force.
        problems: what doesn't work, in words; empty when all is well.
        waits: the camera is a replay that waits for a slide to be begun.
        notes: what else is to be known, in words: a replay waits or has ended, files of which nobody knows anything.
        left_out: files that were there before the slide was begun, and those that came while none was open or judging
            was off: none of them is recorded.
        health: of the machine.
    """

    number: int
    frames_per_s: float
    camera: CameraState
    session_id: int | None
    settings: Settings
    problems: tuple[str, ...]
    health: Health
    waits: bool = False
    notes: tuple[str, ...] = ()
    left_out: tuple[int, int] = (0, 0)
    picture: Picture | None = None
    status: str = "waiting"
    quality: Quality | None = None
    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    review_reason: str | None = None
    cells: tuple[JudgedCell, ...] = ()

    @property
    def review(self) -> bool:
        """The model asks for somebody to look."""
        return self.review_reason is not None

    @property
    def taken(self) -> datetime | None:
        """When the frame was taken, UTC."""
        return self.picture.frame.taken if self.picture else None

    @property
    def size(self) -> tuple[int, int] | None:
        """The frame's (width, height)."""
        return (self.picture.frame.pixels.shape[1], self.picture.frame.pixels.shape[0]) if self.picture else None

    @property
    def jpeg(self) -> bytes | None:
        """The frame as a JPEG file, encoded once for all who look."""
        return self.picture.jpeg() if self.picture else None


@dataclass(frozen=True)
class _Verdict:
    """What was found out about one frame."""

    picture: Picture
    status: str
    quality: Quality
    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    review_reason: str | None = None
    cells: tuple[JudgedCell, ...] = ()


@dataclass(frozen=True)
class _Job:
    """A frame to be recorded; ``pixels`` where its image is to be kept."""

    session_id: int
    row: FrameRow
    pixels: NDArray[np.uint8] | None
    done: Future[int]


def _job(session_id: int, verdict: _Verdict, with_image: bool, captured_by: str | None = None) -> _Job:
    frame, quality = verdict.picture.frame, dataclasses.asdict(verdict.quality)
    row = FrameRow(
        taken=frame.taken,
        number=frame.number,
        status=verdict.status,
        trigger="auto" if captured_by is None else "capture",
        reasons=verdict.quality.reasons,
        label=verdict.label or None,
        probability=verdict.probability if verdict.label else None,
        probabilities=verdict.probabilities,
        review=verdict.review_reason is not None,
        review_reason=verdict.review_reason,
        by=captured_by,
        source=frame.source,
        source_sha256=frame.digest,
        quality={name: value for name, value in quality.items() if name not in ("ok", "reasons")},
        cells=[dataclasses.asdict(cell) | {"review": cell.review} for cell in verdict.cells],
    )
    return _Job(session_id, row, frame.pixels if with_image else None, Future())


class Station:
    """Judges what a camera sees and keeps a record of it, until it is stopped. Methods may be called by any thread.

    A session that a power cut left open goes on.

    Args:
        camera: not started yet; the station starts and stops it.
        classifier: used by the judging thread alone.
        record: open; who opened it closes it, after `stop`.
        gate: None takes the thresholds that travel with the model.
        seen: of the camera's files, where it has some: those until then are left out of a slide that is begun.
        on_beat: called by the judging thread once or more a second while it is well, for a watchdog.
    """

    def __init__(
        self,
        camera: KeptOpen,
        classifier: Classifier,
        record: Record,
        gate: Gate | None = None,
        *,
        seen: SeenImages | None = None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        manifest = classifier.bundle.manifest if classifier.bundle else None
        self.unit = manifest.unit if manifest else "field"
        self._camera, self._classifier, self._record = camera, classifier, record
        self._gate = gate or Gate(thresholds_of(manifest))
        self._seen = seen or SeenImages()
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._jobs: queue.Queue[_Job] = queue.Queue(_WAITING_ROWS)
        self._times: deque[float] = deque(maxlen=1000)
        self._settings = _last_settings(record)
        self._slides = threading.Lock()  # one begins or ends at a time
        self._handing_on = threading.Lock()  # between a session's end and its last row
        self._new_slide = False
        self._waits = False
        self._left_out = 0
        self._fault = ""
        self._not_recorded = ""
        self._retry_at = 0.0
        self._kept_at = -_KEPT_EVERY_S
        self._noted = ("", "")
        space = record.space()
        self._health = Health(space.free_bytes, space.state)
        unended = [session for session in record.sessions()[:1] if session.ended is None]
        self._session_id = unended[0].id if unended else None
        self._shown: _Verdict | None = None
        self._changed = threading.Condition()
        self._live = self._snapshot(0)

    # What the page asks for

    def start(self) -> None:
        """Open the camera and begin."""
        self._camera.start()
        for name, work in (("judge", self._judge_all), ("recorder", self._record_all), ("health", self._look_after)):
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Let go of the camera and record what was judged. The session stays open: it goes on at the next start."""
        self._stop.set()
        self._camera.stop()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def live(self) -> Live:
        """How things are."""
        return self._live

    def wait(self, after: int, timeout_s: float) -> Live:
        """The newest snapshot as soon as its number is above ``after``; after ``timeout_s`` seconds the same again."""
        with self._changed:
            self._changed.wait_for(lambda: self._live.number > after, timeout_s)
            return self._live

    @property
    def session_id(self) -> int | None:
        """Of the slide that is recorded."""
        return self._session_id

    @property
    def settings(self) -> Settings:
        """In force."""
        return self._settings

    def change_settings(self, settings: Settings, by: str = "") -> None:
        """Have others in force; recorded as an event. Raises RecordError as `Record.add_event` does."""
        self._record.add_event("settings", dataclasses.asdict(settings) | {"by": by})
        self._settings = settings

    def start_session(self, notes: SessionNotes, by: str = "") -> int:
        """Begin to record a slide, at the word of ``by``; returns the session's id.

        Raises:
            StationError: another is being recorded.
            EdgeallError: as `Record.start_session`.
        """
        with self._slides, self._handing_on:
            if self._session_id is not None:
                raise StationError("a session is open", hint="end it first")
            try:
                self._seen.keep()
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
                raise StationError(f"the slide can't be begun ({reason})", hint="check the disk") from error
            self._session_id = self._record.start_session(notes, by)
            self._new_slide = True
            return self._session_id

    def end_session(self, by: str = "") -> int:
        """End the slide, once what was judged is recorded; returns the session's id.

        Raises:
            StationError: none is open.
            RecordError: the end can't be recorded; the slide stays open.
        """
        with self._slides:
            with self._handing_on:
                session_id = self._session_id
                if session_id is None:
                    raise StationError("no session is open", hint="start one first")
                self._session_id = None
            self._jobs.join()
            try:
                self._record.end_session(session_id, by)
            except BaseException:
                self._session_id = session_id
                raise
            return session_id

    def capture(self, by: str = "", timeout_s: float = 30.0) -> int:
        """Record the frame that is shown now, with its image, whatever the gate says; returns the frame's id.

        Raises:
            StationError: no session is open, or there is no frame yet.
            EdgeallError: as `Record.add_frame`.
        """
        shown, until = self._shown, time.monotonic() + timeout_s
        if self._session_id is None:
            raise StationError("a capture belongs to a slide", hint="start a session first")
        if shown is None:
            raise StationError("the camera has given no frame yet", hint=self._camera.state().detail)
        job = None
        try:
            job = self._enter(shown, by, until)
            return job.done.result(max(until - time.monotonic(), 0.0))
        except (queue.Full, FutureTimeoutError) as error:
            if job:
                job.done.cancel()  # or it would be there twice after a second attempt
            raise StationError("the record takes too long", hint="see the health page: is the disk slow?") from error

    def _enter(self, verdict: _Verdict, by: str, until: float) -> _Job:
        """Have a capture recorded, in the session that is open. Raises queue.Full when the time is over."""
        if not self._handing_on.acquire(timeout=max(until - time.monotonic(), 0.0)):
            raise queue.Full
        try:
            if self._session_id is None:
                raise StationError("the session has just been ended", hint="start another one first")
            job = _job(self._session_id, verdict, True, by)
            self._jobs.put(job, timeout=max(until - time.monotonic(), 0.0))
            return job
        finally:
            self._handing_on.release()

    # The judging thread

    def _judge_all(self) -> None:
        after = 0
        while not self._stop.is_set():
            try:
                self._on_beat()
                taken = self._camera.wait(after, _BEAT_S)
                if taken is None:
                    self._publish(None)
                    continue
                after, frame = taken
                if frame.waits and self._session_id is None:
                    self._publish(self._verdict(frame))  # to be seen, and judged once more for its slide
                while not self._judge(frame) and frame.waits and not self._stop.is_set():
                    pass  # its slide was ended meanwhile: it waits for the next
            except Exception as error:  # one frame, or one driver, must not end the watch
                self._fault = f"judging fails: {_words(error)}"
                self._publish(None)
                self._stop.wait(_BEAT_S)

    def _judge(self, frame: Frame) -> bool:
        """False where a slide was to have it, and was ended before it did."""
        self._hold(frame)
        session_id = self._session_id
        verdict = self._verdict(frame)
        self._fault = ""
        self._times.append(time.monotonic())
        self._publish(verdict)
        handed_on = self._hand_on(verdict, session_id)
        if frame.source and not handed_on and not frame.waits:
            self._left_out += 1
        return handed_on or verdict.status == "unjudged"

    def _hold(self, frame: Frame) -> None:
        """While a slide can't be recorded its files wait: they don't come again, as a camera's frames do.

        A replay also waits for a slide to be begun.
        """
        while frame.source and not self._stop.is_set():
            self._waits = self._session_id is None and frame.waits
            if not self._waits and (self._session_id is None or self._recordable()):
                break
            self._on_beat()
            self._publish(None)
            self._stop.wait(_BEAT_S)

    def _recordable(self) -> bool:
        return self._health.space != "full" and not self._not_recorded

    def _verdict(self, frame: Frame) -> _Verdict:
        if self._new_slide:
            self._new_slide = False
            self._gate.new_slide()
        picture, quality = Picture(frame), self._gate.judge(frame)
        if not quality.ok:
            return _Verdict(picture, "refused", quality)
        if not self._settings.judge or not self._recordable():
            return _Verdict(picture, "unjudged", quality)
        if self.unit == "cell":
            return self._verdict_of_cells(picture, quality)
        said = self._ask(preprocess(Image.fromarray(frame.pixels), self._classifier.input))
        return _Verdict(picture, "judged", quality, said.label, said.probability, said.probabilities, said.reason)

    def _verdict_of_cells(self, picture: Picture, quality: Quality) -> _Verdict:
        pixels = picture.frame.pixels
        image, spec = Image.fromarray(pixels), self._classifier.input
        whole = [cell for cell in cells.find_cells(pixels) if not cell.touches_border]
        said = [(cell, self._ask(cells.crop(image, cell.box, spec))) for cell in whole]
        judged = tuple(JudgedCell(cell.box, each.label, each.probability, each.reason) for cell, each in said)
        reasons = {cell.review_reason for cell in judged if cell.review}
        reason = "unfamiliar" if "unfamiliar" in reasons else next(iter(reasons), None)  # it says more
        return _Verdict(picture, "judged", quality, review_reason=reason, cells=judged)

    def _ask(self, pixels: NDArray[np.uint8]) -> Prediction:
        """What the model says of its input."""
        said = prediction(self._classifier, "frame", self._classifier.answer(pixels))
        if said.error:
            raise StationError(said.error)
        return said

    def _hand_on(self, verdict: _Verdict, session_id: int | None) -> bool:
        """Have the frame recorded in the session it was judged in, if that is still open; whether it was."""
        if session_id is None or self._not_recorded or verdict.status == "unjudged":
            return False
        keep = verdict.status == "judged" and self._keeps(verdict)
        job = _job(session_id, verdict, keep)
        with self._handing_on:
            while session_id == self._session_id:
                try:
                    self._jobs.put(job, timeout=_BEAT_S)
                    return True
                except queue.Full:
                    self._on_beat()
                    self._fault = "judging waits for the record: the disk is slow"
                    self._publish(None)
        return False

    def _keeps(self, verdict: _Verdict) -> bool:
        """Whether the settings want the frame's image."""
        if self._settings.save == "every frame":
            return True
        if self._settings.save != "on review" or verdict.review_reason is None:
            return False
        if not verdict.picture.frame.source and time.monotonic() < self._kept_at + _KEPT_EVERY_S:
            return False
        self._kept_at = time.monotonic()
        return True

    # The other threads

    def _record_all(self) -> None:
        judge = self._threads[0]
        while judge.is_alive() or not self._jobs.empty():
            try:
                job = self._jobs.get(timeout=_BEAT_S)
            except queue.Empty:
                continue
            try:
                if job.done.set_running_or_notify_cancel():
                    self._do(job)
            finally:
                del job  # its pixels aren't kept until the next one comes
                self._jobs.task_done()

    def _do(self, job: _Job) -> None:
        """Record it. Of a file's frame, which doesn't come again, as often as it takes while its slide is open."""
        while True:
            try:
                job.done.set_result(self._write(job))
                self._not_recorded = ""
                return
            except Exception as error:
                self._cant_record(error)
                if not job.row.source or job.row.by is not None or not self._goes_on(job.session_id):
                    job.done.set_exception(error)
                    return
            while time.monotonic() < self._retry_at and self._goes_on(job.session_id):
                self._stop.wait(_BEAT_S)

    def _goes_on(self, session_id: int) -> bool:
        return self._session_id == session_id and not self._stop.is_set()

    def _write(self, job: _Job) -> int:
        image = encode(job.pixels, SAVED_QUALITY) if job.pixels is not None else None
        return self._record.add_frame(job.session_id, job.row, image)

    def _look_after(self) -> None:
        while not self._stop.is_set():
            try:
                space, found = self._record.space(), conditions()
                self._health = Health(
                    space.free_bytes,
                    space.state,
                    found["temperature_c"],
                    found["throttled"],
                    rss_bytes(),
                    found["load"],
                )
                if time.monotonic() >= self._retry_at:
                    self._not_recorded = ""  # the next frame tries
                self._note_camera()
            except Exception as error:  # the disk is gone, say: that is to be told, not to be missed
                self._cant_record(error)
            self._stop.wait(_HEALTH_S)

    def _note_camera(self) -> None:
        """Record that the camera fails, and that it works again; not every attempt to open it."""
        state = self._camera.state()
        if (state.state, state.fault) == self._noted:
            return
        self._record.add_event("camera", dataclasses.asdict(state))
        self._noted = state.state, state.fault

    def _cant_record(self, error: Exception) -> None:
        self._not_recorded = f"nothing is recorded: {_words(error)}"
        self._retry_at = time.monotonic() + _RETRY_S

    # Snapshots

    def _publish(self, verdict: _Verdict | None) -> None:
        """Have it be known how things are, and what was found out about a new frame; without one the last stays."""
        self._shown = verdict or self._shown
        live = self._snapshot(self._live.number + 1)
        with self._changed:
            self._live = live
            self._changed.notify_all()

    def _snapshot(self, number: int) -> Live:
        now = time.monotonic()
        while self._times and self._times[0] < now - _RATE_S:
            self._times.popleft()
        camera = self._camera.state()
        return Live(
            number=number,
            **(vars(self._shown) if self._shown else {}),
            frames_per_s=len(self._times) / _RATE_S,
            camera=camera,
            session_id=self._session_id,
            settings=self._settings,
            problems=self._problems(camera),
            health=self._health,
            waits=self._waits,
            notes=self._notes(camera),
            left_out=(self._seen.before, self._left_out),
        )

    def _notes(self, camera: CameraState) -> tuple[str, ...]:
        notes = []
        if self._waits:
            notes.append(f"{camera.name} waits for a slide to be begun")
        elif camera.state == "ended":
            notes.append(camera.detail)
        if self._seen.unknown:
            notes.append(
                f"{self._seen.unknown} images in the folder are left out: nobody knows whether they were there before"
                " the slide was begun; copied in again under other names they are judged"
            )
        return tuple(notes)

    def _problems(self, camera: CameraState) -> tuple[str, ...]:
        problems = [self._fault, self._not_recorded]
        if camera.state not in ("live", "ended"):
            problems.append(camera.detail)
        if self._health.space == "full":
            problems.append("the disk is nearly full: nothing is judged or recorded")
        elif self._health.space == "no images":
            problems.append("the disk is getting full: images are not saved")
        return tuple(problem for problem in problems if problem)


def _last_settings(record: Record) -> Settings:
    """Those that somebody chose last, also before a restart."""
    known = {each.name for each in dataclasses.fields(Settings)}
    chosen = [event.detail for event in record.events(1, kind="settings")]
    return Settings(**{name: value for detail in chosen for name, value in detail.items() if name in known})


def _words(error: Exception) -> str:
    return error.message if isinstance(error, EdgeallError) else f"{type(error).__name__}: {error}"


def encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A JPEG file of uint8 (height, width, 3) RGB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
