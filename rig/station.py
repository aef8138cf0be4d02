"""The rig's loop over camera, quality gate, model and record.

One thread judges, always the newest frame; one writes the record (`recorder.py`); one watches the machine
(`health.py`). No lock is held while the model runs or the disk is written. Viewers get frozen snapshots.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.vision.frame import Frame
from ..edge_runtime.vision.quality import Gate
from . import notices
from .capture.interface import SkippedFile
from .capture.reconnecting import CameraState, ReconnectingCamera
from .capture.seen import SeenImages
from .health import HealthMonitor
from .judge import Judge
from .language import message
from .learning.model import ModelSwitch
from .open_slide import OpenSlide
from .record.record import Record
from .record.rows import SessionNotes
from .recorder import BEAT_S, Job, Recorder, error_text, make_job, skipped_job
from .saved_images import SavedImages
from .scales import CellSearch
from .snapshot import Live, Settings, StationError, Verdict

_RATE_S = 2.0


class Station:
    """Judges what a camera sees and records it until it is stopped. Thread-safe.

    A session that a power cut left open is resumed, see `OpenSlide`.

    Args:
        camera: not started; the station starts and stops it.
        classifier: used only by the judging thread.
        record: open; the caller closes it after `stop`.
        gate: None for the thresholds in the model's manifest.
        search: finds cells for a classifier of cells; None for the default one.
        seen: of the camera, if it reads files: files seen before a slide is started are left out of it.
        on_beat: called by the judging thread at least once per second while it works, for a watchdog.
    """

    def __init__(
        self,
        camera: ReconnectingCamera,
        classifier: Classifier,
        record: Record,
        gate: Gate | None = None,
        *,
        search: CellSearch | None = None,
        seen: SeenImages | None = None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._judge = Judge(classifier, search or CellSearch(record), gate, record)
        self.unit, self.objectives = self._judge.unit, self._judge.objectives
        self._camera, self._record = camera, record
        self._seen = seen or SeenImages()
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._recorder = Recorder(record, self._is_open, self._stop)
        self._times: deque[float] = deque(maxlen=1000)
        self._settings = _last_settings(record)
        self._slide = OpenSlide(record, self._seen, lambda: camera.state().frames)
        self.models = ModelSwitch(self._judge, self._slide, record)
        self._waits = False
        self._left_out = 0
        self._fault = ""
        self._images = SavedImages()
        self._held: list[SkippedFile] = []
        self._processed = 0
        self._health = HealthMonitor(record, self._recorder, camera, self._stop)
        self._shown: tuple[Verdict, int | None] | None = None
        self._changed = threading.Condition()
        self._live = self._snapshot(0)

    # For the page

    def start(self) -> None:
        """Open the camera and start the threads."""
        self._camera.start()
        judging = threading.Thread(target=self._judge_frames, name="judge", daemon=True)
        recording = threading.Thread(target=self._recorder.run, args=(judging.is_alive,), name="recorder", daemon=True)
        monitoring = threading.Thread(target=self._health.run, name="health", daemon=True)
        for thread in (judging, recording, monitoring):
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the camera and record what was judged. The session stays open and is resumed at the next start."""
        self._stop.set()
        self._camera.stop()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def live(self) -> Live:
        """The current snapshot."""
        return self._live

    def wait(self, after: int, timeout_s: float) -> Live:
        """The newest snapshot once its number is above ``after``, or the current one after ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._live.number > after, timeout_s)
            return self._live

    @property
    def session_id(self) -> int | None:
        """Of the open slide."""
        return self._slide.session_id

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self._settings

    def change_settings(self, settings: Settings, by: str = "") -> None:
        """Apply settings and record them as an event. Raises RecordError as `Record.add_event` does."""
        self._record.add_event("settings", dataclasses.asdict(settings) | {"by": by})
        self._settings = settings

    def start_session(self, notes: SessionNotes, by: str = "") -> int:
        """Start recording a slide for the user ``by``; returns the session's id.

        Raises:
            StationError: another session is open.
            EdgeallError: as `Record.start_session`.
        """
        session_id = self._slide.start(notes, by)
        if self._settings.paused:
            self.change_settings(dataclasses.replace(self._settings, paused=False), by)
        return session_id

    def reopen_session(self, session_id: int, by: str = "") -> int:
        """Go on recording an ended slide, for the user ``by``; returns its id. Raises as `OpenSlide.reopen`."""
        return self._slide.reopen(session_id, by)

    def continue_session(self, by: str = "") -> int:
        """Continue the slide from before a restart that `Live.asked_session_id` names. Raises StationError."""
        return self._slide.resume(by)

    def end_session(self, by: str = "") -> int:
        """End the slide after everything judged is recorded; returns the session's id.

        Raises:
            StationError: no slide is open.
            RecordError: the end cannot be recorded; the slide stays open.
        """
        self._record_skipped()
        return self._slide.end(by, self._recorder.join)

    def capture(self, by: str = "", timeout_s: float = 30.0) -> int:
        """Record the frame that is shown now, with its image, whatever the gate decides; returns the frame's id.

        Raises:
            StationError: no slide is open, or no frame of it is shown: none came yet, the camera is lost, a replay
                has ended.
            EdgeallError: as `Record.add_frame`.
        """
        until, session_id = time.monotonic() + timeout_s, self._slide.session_id
        if session_id is None:
            raise StationError("a capture requires an open session", hint="start a session first")
        shown = self._visible(self._camera.state())
        if shown is None:
            raise StationError("there is no picture of this slide to capture", hint=self._camera.state().detail)
        job = None
        try:
            job = self._queue_capture(session_id, shown, by, until)
            return job.done.result(max(until - time.monotonic(), 0.0))
        except (queue.Full, FutureTimeoutError) as error:
            if job:
                job.done.cancel()  # otherwise a second attempt would record it twice
            raise StationError("recording takes too long", hint="see the health page: is the disk slow?") from error

    def _queue_capture(self, session_id: int, verdict: Verdict, by: str, until: float) -> Job:
        """Queue a capture for the open session. Raises queue.Full when the time is over."""
        if not self._slide.queueing.acquire(timeout=max(until - time.monotonic(), 0.0)):
            raise queue.Full
        try:
            if self._slide.session_id != session_id:
                raise StationError("the session has just ended", hint="start another one first")
            job = make_job(session_id, verdict, True, by, lossless=self._settings.lossless)
            self._recorder.put(job, max(until - time.monotonic(), 0.0))
            return job
        finally:
            self._slide.queueing.release()

    # The judging thread

    def _judge_frames(self) -> None:
        after = 0
        while not self._stop.is_set():
            try:
                self._on_beat()
                taken = self._camera.wait(after, BEAT_S)
                self._record_skipped()
                if taken is None:
                    self._publish(None)
                    continue
                after, frame = taken
                if frame.waits and self._slide.session_id is None:
                    self._publish(self._verdict(frame, None))  # shown now, judged again when its slide is started
                while not self._process(after, frame) and frame.waits and not self._stop.is_set():
                    pass  # its slide was ended meanwhile: the frame waits for the next slide
                self._processed = after
            except Exception as error:  # a fault in one frame or driver must not end the loop
                self._fault = message("judging fails: {error}", error=error_text(error))
                self._publish(None)
                self._stop.wait(BEAT_S)

    def _process(self, number: int, frame: Frame) -> bool:
        """Judge a frame and queue it for the record. False if its slide was ended before it was queued."""
        self._wait_until_recordable(frame)
        session_id = self._slide.session_id
        if number <= self._slide.after and not frame.waits:
            session_id = None  # older than the slide
        verdict = self._verdict(frame, session_id)
        self._fault = ""
        self._times.append(time.monotonic())
        self._publish(verdict, session_id)
        queued = self._queue(verdict, session_id)
        if frame.source and not queued and not frame.waits:
            self._left_out += 1
        return queued or verdict.status == "unjudged"

    def _wait_until_recordable(self, frame: Frame) -> None:
        """Wait while the open slide cannot be recorded, if the frame is of a file, which does not come again.

        A replay also waits for the start of a slide, and all files for the answer whether a slide is continued.
        """
        while frame.source and not self._stop.is_set():
            self._waits = self._slide.session_id is None and frame.waits
            recordable = self._recordable() and not self._settings.paused
            if not self._waits and self._slide.asked is None and (self._slide.session_id is None or recordable):
                break
            self._on_beat()
            self._publish(None)
            self._stop.wait(BEAT_S)

    def _recordable(self) -> bool:
        return self._health.state.space != "full" and not self._recorder.problem

    def _verdict(self, frame: Frame, session_id: int | None) -> Verdict:
        if self._slide.take_new():
            self._images.new_slide()
            self._judge.new_slide()
        # A file's image does not come again: it has waited, and recording may fail anew at this moment.
        has_waited = bool(frame.source) and session_id is not None
        run_model = self._settings.judge and (has_waited or self._recordable())
        return self._judge.verdict(frame, run_model, session_id, self._settings)

    def _queue(self, verdict: Verdict, session_id: int | None) -> bool:
        """Queue the frame for the session in which it was judged. False if that has ended or recording fails."""
        news = self._judge.take_news()
        paused = self._settings.paused and verdict.field_id is None
        fails = self._recorder.problem and not verdict.picture.frame.source  # a file's image is tried again
        if session_id is None or paused or fails or verdict.status == "unjudged":
            self._judge.lose_news(news)
            return False
        with_image = self._images.takes(verdict, self._settings)
        job = make_job(session_id, verdict, with_image, news=news, lossless=self._settings.lossless)
        job.done.add_done_callback(lambda done: self._judge.lose_news(news if done.exception() else ()))
        with self._slide.queueing:
            while session_id == self._slide.session_id:
                try:
                    self._recorder.put(job, BEAT_S)
                    return True
                except queue.Full:
                    self._on_beat()
                    self._fault = message("judging waits for the record: the disk is slow")
                    self._publish(None)
        self._judge.lose_news(news)
        return False

    def _record_skipped(self) -> None:
        """Queue files that could not be used for the record. Those of a replay wait for a slide, as its images do."""
        with self._slide.queueing:
            self._held += self._camera.take_skipped()
            while (
                self._held
                and self._slide.asked is None
                and not (self._slide.session_id is None and self._held[0].waits)
            ):
                try:
                    self._recorder.put(skipped_job(self._slide.session_id, self._held[0]), BEAT_S)
                except queue.Full:
                    return
                self._held.pop(0)

    @property
    def replay_is_done(self) -> bool:
        """A replay has ended, and each of its images was recorded or left out; it waits for no slide."""
        state = self._camera.state()
        return state.state == "ended" and not self._held and self._processed == state.frames

    def _is_open(self, session_id: int | None) -> bool:
        return self._slide.is_open(session_id) and not self._stop.is_set()

    # Snapshots

    def _publish(self, verdict: Verdict | None, session_id: int | None = None) -> None:
        """Publish a snapshot with the verdict on a new frame of a slide; None keeps the last one."""
        if verdict:
            self._shown = verdict, session_id
        live = self._snapshot(self._live.number + 1)
        with self._changed:
            self._live = live
            self._changed.notify_all()

    def _visible(self, camera: CameraState) -> Verdict | None:
        """The last verdict, if it still holds: the camera works, and the frame is not older than the open slide."""
        if self._shown is None or not (camera.state == "live" or self._waits):
            return None
        verdict, session_id = self._shown
        return verdict if self._slide.session_id in (None, session_id) else None

    def _snapshot(self, number: int) -> Live:
        now = time.monotonic()
        while self._times and self._times[0] < now - _RATE_S:
            self._times.popleft()
        camera = self._camera.state()
        shown = self._visible(camera)
        return Live(
            number=number,
            **(vars(shown) if shown else {}),
            frames_per_s=len(self._times) / _RATE_S,
            camera=camera,
            session_id=self._slide.session_id,
            settings=self._settings,
            problems=notices.problems(camera, self._health.state.space, self._fault, self._recorder.problem),
            health=self._health.state,
            waits=self._waits,
            notes=notices.notes(camera, self._seen, self._waits, self._slide.asked is not None),
            left_out=(self._seen.before, self._left_out),
            asked_session_id=self._slide.asked,
        )


def _last_settings(record: Record) -> Settings:
    """The last recorded settings, also from before a restart."""
    known = {each.name for each in dataclasses.fields(Settings)}
    chosen = [event.detail for event in record.events(1, kind="settings")]
    return Settings(**{name: value for detail in chosen for name, value in detail.items() if name in known})
