"""Writes the station's frames to the record, in a thread of its own."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..edge_runtime.errors import EdgeallError
from .capture.interface import SkippedFile
from .language import as_message, message
from .record.found import News
from .record.record import Record
from .record.rows import FrameRow
from .snapshot import Verdict, encode_jpeg, encode_png

BEAT_S = 0.5
"""Longest wait of the station's threads before they check whether to stop."""
_SAVED_QUALITY, _PICTURE_QUALITY = 95, 88
_WAITING_ROWS = 8
"""Capacity of the queue. When it is full, judging waits for the disk."""
_RETRY_S = 5.0


@dataclass(frozen=True)
class Job:
    """A frame to be recorded, or a file that could not be used, also outside of a session.

    Attributes:
        session_id: of the open slide; None for a file outside of a session.
        row: the frame's.
        pixels: if its image is to be saved.
        done: receives the frame's id.
        news: what it changed in the count of the slide.
        lossless: the image is saved as PNG.
    """

    session_id: int | None
    row: FrameRow | SkippedFile
    pixels: NDArray[np.uint8] | None
    done: Future[int]
    news: tuple[News, ...] = ()
    lossless: bool = False


def make_job(
    session_id: int,
    verdict: Verdict,
    with_image: bool,
    captured_by: str | None = None,
    news: tuple[News, ...] = (),
    lossless: bool = False,
) -> Job:
    """The job for a frame; ``captured_by`` is None unless a user captured it."""
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
        quality={name: value for name, value in quality.items() if name not in ("ok", "reasons")}
        | ({"used_bits": frame.used_bits} if frame.used_bits else {}),
        cells=[dataclasses.asdict(cell) | {"review": cell.review} for cell in verdict.cells],
        field_id=verdict.field_id,
        patch=verdict.position.patch if verdict.position else None,
        position=(round(verdict.position.x), round(verdict.position.y)) if verdict.position else None,
        size=(frame.pixels.shape[1], frame.pixels.shape[0]),
        um_per_px=float(f"{verdict.scale.um_per_px:.6g}") if verdict.scale else None,
        scale_source=verdict.scale.source if verdict.scale else "",
        flat_field=verdict.flat_field,
    )
    return Job(session_id, row, frame.pixels if with_image else None, Future(), news, lossless)


def skipped_job(session_id: int | None, skipped: SkippedFile) -> Job:
    """The job for a file that could not be used."""
    return Job(session_id, skipped, None, Future())


class Recorder:
    """A queue of jobs and the loop that records them.

    Args:
        record: open.
        is_open: whether a session is still open and the station runs.
        stop: set when the station stops.
    """

    def __init__(self, record: Record, is_open: Callable[[int | None], bool], stop: threading.Event) -> None:
        self._record, self._is_open, self._stop = record, is_open, stop
        self._jobs: queue.Queue[Job] = queue.Queue(_WAITING_ROWS)
        self._retry_at = 0.0
        self.problem = ""
        """Why nothing is recorded at present; empty if recording works."""

    def put(self, job: Job, timeout_s: float) -> None:
        """Queue a job. Raises queue.Full after ``timeout_s`` seconds."""
        self._jobs.put(job, timeout=timeout_s)

    def join(self) -> None:
        """Wait until all queued jobs are done."""
        self._jobs.join()

    def run(self, is_producing: Callable[[], bool]) -> None:
        """Record jobs until nothing produces them and the queue is empty."""
        while is_producing() or not self._jobs.empty():
            try:
                job = self._jobs.get(timeout=BEAT_S)
            except queue.Empty:
                continue
            try:
                if job.done.set_running_or_notify_cancel():
                    self._do(job)
            finally:
                del job  # frees its pixels before the next job arrives
                self._jobs.task_done()

    def report(self, error: Exception) -> None:
        """Stop recording for `_RETRY_S` seconds because of an error."""
        self.problem = message("nothing is recorded: {error}", error=error_text(error))
        self._retry_at = time.monotonic() + _RETRY_S

    def retry_when_due(self) -> None:
        """Let the next frame try again, once `_RETRY_S` seconds have passed."""
        if time.monotonic() >= self._retry_at:
            self.problem = ""

    def _do(self, job: Job) -> None:
        """Record a job. A frame of a file, which does not come again, is retried while its slide is open."""
        while True:
            try:
                job.done.set_result(self._write(job))
                self.problem = ""
                return
            except Exception as error:
                self.report(error)
                captured = isinstance(job.row, FrameRow) and job.row.by is not None
                if not job.row.source or captured or not self._is_open(job.session_id):
                    job.done.set_exception(error)
                    return
            while time.monotonic() < self._retry_at and self._is_open(job.session_id):
                self._stop.wait(BEAT_S)

    def _write(self, job: Job) -> int:
        if isinstance(job.row, SkippedFile):
            row = job.row
            return self._record.add_skipped(job.session_id, row.source, row.digest, row.reason)
        assert job.session_id is not None
        image = None
        if job.pixels is not None:
            image = encode_png(job.pixels) if job.lossless else encode_jpeg(job.pixels, _SAVED_QUALITY)
        news = [
            (each.found, None if each.pixels is None else encode_jpeg(each.pixels, _PICTURE_QUALITY))
            for each in job.news
        ]
        return self._record.add_frame(job.session_id, job.row, image, news)


def error_text(error: Exception) -> str:
    """An error as one line for the operator."""
    return as_message(error.message) if isinstance(error, EdgeallError) else f"{type(error).__name__}: {error}"
