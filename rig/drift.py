"""Follows the open slide with the drift alarm: each cell, or field of a model of fields, counts once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.drift import Drift, Finding, drift_groups, image_facts
from ..edge_runtime.errors import EdgeallError
from ..edge_runtime.pipeline import Prediction
from .record.record import Record
from .record.rows import Event

EVENT = "drift"
"""Kind of the record's event of an alarm; its details are those of the finding, and the slide."""
_RECENT = 500
"""Events that are searched for those of a slide."""


class SlideDrift:
    """The drift alarm of the open slide. Used by one thread.

    Args:
        classifier: without a reference in its file nothing is followed.
        record: receives the alarms; None for none.
    """

    def __init__(self, classifier: Classifier, record: Record | None) -> None:
        self._classifier, self._record = classifier, record
        self._groups = drift_groups(classifier)
        self.start(None)

    def start(self, session_id: int | None) -> None:
        """Another slide, or none. What a slide showed before a restart is not counted again."""
        self._session_id = session_id
        self._drift = Drift(self._groups) if self._groups else None
        self._seen: set[int] = set()

    @property
    def finding(self) -> Finding | None:
        """The alarm, if there is one."""
        return self._drift.finding if self._drift else None

    def see(self, ids: Sequence[int], judged: Iterable[tuple[NDArray[np.uint8], Prediction]]) -> None:
        """Add what a frame shows: for each cell or field its id, the model's input and its prediction."""
        detector, before = self._classifier.ood_detector, self.finding
        if self._drift is None or detector is None:
            return
        for number, (pixels, found) in zip(ids, judged, strict=True):
            if number in self._seen or found.units is None:
                continue
            self._seen.add(number)
            features = self._classifier.pooled(found.units)
            label = self._classifier.labels.index(found.label)
            self._drift.add(image_facts(pixels), features, detector, label)
        if self.finding is not before and self.finding is not None and self._record is not None:
            with suppress(EdgeallError):  # the page shows it all the same, and why nothing is recorded
                self._record.add_event(EVENT, self.finding.to_json() | {"slide": self._session_id})


def drift_of(record: Record, session_id: int) -> Finding | None:
    """The last alarm of a slide."""
    events: list[Event] = record.events(_RECENT, kind=EVENT)
    detail = next((each.detail for each in events if each.detail.get("slide") == session_id), None)
    return None if detail is None else Finding(detail["images"], detail["probability"], detail["shifts"])
