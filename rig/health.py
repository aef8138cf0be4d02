"""The health thread: looks at the disk, the machine and the camera, beside the station's loop."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque

from ..edge_runtime.tools.device import machine_state, rss_bytes
from .capture.reconnecting import CameraState, ReconnectingCamera
from .record.record import Record
from .recorder import Recorder
from .snapshot import Health

_PERIOD_S = 5.0


class HealthMonitor:
    """Measures the state of the machine every few seconds, and records when the camera fails and works again.

    Args:
        record: its disk is watched, and that it is still there.
        recorder: told what is wrong with the record, and when to try again.
        camera: of the station.
        stop: ends `run`.

    Attributes:
        state: the last measurement.
    """

    def __init__(self, record: Record, recorder: Recorder, camera: ReconnectingCamera, stop: threading.Event) -> None:
        self._record, self._recorder, self._camera, self._stop = record, recorder, camera, stop
        self._changes: deque[CameraState] = deque()
        space = record.space()
        self.state = Health(space.free_bytes, space.state)

    def run(self) -> None:
        """Watch until the station stops."""
        while not self._stop.is_set():
            try:
                self._record.check_present()
                space, found = self._record.space(), machine_state()
                self.state = Health(
                    space.free_bytes,
                    space.state,
                    found.temperature_c,
                    found.throttled,
                    rss_bytes(),
                    found.load,
                )
                self._recorder.retry_when_due()
                self._note_camera()
            except Exception as error:  # for example a disk that was removed: reported as a problem
                self._recorder.report(error)
            self._stop.wait(_PERIOD_S)

    def _note_camera(self) -> None:
        """Record each time that the camera failed or works again, but not every attempt to open it."""
        self._changes += self._camera.take_changes()
        while self._changes:
            self._record.add_event("camera", dataclasses.asdict(self._changes[0]))
            self._changes.popleft()
