"""The search for cells in a rig: a finder, and the scale of each objective once it is known."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from ..edge_runtime.vision.finder import Finder, Found, open_finder
from ..edge_runtime.vision.scale import LEAST_CONFIDENCE, Scale, given_scale
from .optics.objectives import Objectives
from .record.record import Record

EVENT = "scale"
"""Kind of the record's event with the scale of an objective."""
FRAMES = 5
"""Successive frames that must agree before the scale is remembered, and that must contradict it to forget it."""
MISFIT = 2
"""Successive frames that must contradict a known scale before the operator is alarmed."""
AGREE = 1.15
"""Maximum ratio of the largest to the smallest of these measurements."""


class CellSearch:
    """Finds the cells of frames. Used by one thread.

    The scale is that of the objective's calibration. Without one it is measured in each frame until `FRAMES`
    successive ones agree; it then belongs to the objective, which the open slide's notes name, also after a restart.
    If as many successive frames contradict such a remembered scale, it is measured anew.

    Args:
        record: has the open slide, and keeps the scales as events.
        finder: None for the default one, opened when it is first needed.
        given: a scale that the user has set, for all objectives.
        objectives: of the record; None makes them.
    """

    def __init__(
        self,
        record: Record,
        finder: Finder | None = None,
        given: Scale | None = None,
        objectives: Objectives | None = None,
    ) -> None:
        self._record, self._finder, self._given = record, finder, given
        self.objectives = objectives or Objectives(record)
        self._known: dict[str, float] = {}
        for event in reversed(record.events(200, kind=EVENT)):
            self._note(event.detail["objective"], event.detail["red_cell_px"])
        self._measured: deque[float] = deque(maxlen=FRAMES)
        self._contradicted = 0
        self._objective: str | None = None

    @property
    def objective(self) -> str:
        """Name of the objective. Raises RecordError as the record does."""
        if self._objective is None:  # between slides it stays the last one's
            self._objective = self.objectives.current()
        return self._objective

    @property
    def misfit(self) -> bool:
        """Whether the last `MISFIT` frames contradicted the known scale."""
        return self._contradicted >= MISFIT

    def known(self, size: tuple[int, int]) -> Scale | None:
        """The scale of frames of ``size`` (width, height), if it is known before they are searched."""
        if self._given is not None:
            return self._given
        calibration = self.objectives.scale(self.objective, size)
        if calibration is not None:
            return calibration.scale
        remembered = self._known.get(self.objective)
        return None if remembered is None else given_scale(remembered, "remembered")

    def doubts(self, size: tuple[int, int]) -> tuple[str, ...]:
        """Why the calibration of the objective does not apply to frames of ``size``; empty if it does."""
        return () if self._given is not None else self.objectives.doubts(self.objective, size)

    def new_slide(self) -> None:
        """The open slide may name another objective."""
        self._objective = None
        self._measured.clear()
        self._contradicted = 0

    def find(self, pixels: NDArray[np.uint8]) -> Found:
        """Find the cells of a frame. Raises RecordError as the record does."""
        self._finder = self._finder or open_finder()
        found = self._finder.find(pixels, self.known((pixels.shape[1], pixels.shape[0])))
        if found.scale.source == "image":
            self._learn(self.objective, found.scale)
            return found
        self._contradicted = self._contradicted + 1 if found.warnings else 0
        if found.scale.source == "remembered" and self._contradicted == FRAMES:
            self._contradicted = 0
            self._remember(self.objective, None)
        return found

    def _learn(self, objective: str, scale: Scale) -> None:
        if scale.confidence < LEAST_CONFIDENCE:
            self._measured.clear()
            return
        self._measured.append(scale.red_cell_px)
        if len(self._measured) == FRAMES and max(self._measured) <= AGREE * min(self._measured):
            self._remember(objective, float(np.median(self._measured)))
            self._measured.clear()

    def _remember(self, objective: str, red_cell_px: float | None) -> None:
        """Record the scale of an objective; None forgets it. Raises RecordError as `Record.add_event` does."""
        self._note(objective, red_cell_px)
        self._record.add_event(EVENT, {"objective": objective, "red_cell_px": red_cell_px})

    def _note(self, objective: str, red_cell_px: float | None) -> None:
        if red_cell_px is None:
            self._known.pop(objective, None)
        else:
            self._known[objective] = red_cell_px
