"""Scale and flat field of each objective, kept as events of the record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import UsageError
from ...edge_runtime.vision.finder import Finder, open_finder
from ...edge_runtime.vision.scale import LEAST_PX, MOST_PX, RED_CELL_UM, Scale, given_scale
from ..counting.picture import read_picture
from ..language import message
from ..record.record import Record
from ..record.rows import MAX_TEXT
from .flat_field import FlatField, flat_field, measure_empty_field, to_jpeg

CALIBRATION, FLAT_FIELD = "calibration", "flat field"
"""Kinds of the record's events."""
MICROMETER, RED_CELLS = "stage micrometer", "red cells"
"""Methods of a calibration."""
_ALL = 100_000


@dataclass(frozen=True)
class Calibration:
    """The scale of an objective.

    Attributes:
        objective: its name, as in the notes of a slide.
        um_per_px: micrometres per pixel.
        method: `MICROMETER` or `RED_CELLS`.
        size: (width, height) of the camera's frames: with another resolution the scale is another one.
        at: UTC, ISO 8601.
        by: name of the user.
        measured: what the method found, as JSON values.
    """

    objective: str
    um_per_px: float
    method: str
    size: tuple[int, int]
    at: str = ""
    by: str = ""
    measured: Mapping[str, Any] | None = None

    @property
    def scale_source(self) -> str:
        """As `edgeall.edge_runtime.vision.scale.Scale.source`: by red cells it is no better than that of a field."""
        return "image" if self.method == RED_CELLS else "calibrated"

    @property
    def scale(self) -> Scale:
        """As the scale of a field."""
        return given_scale(RED_CELL_UM / self.um_per_px, "calibrated")


@dataclass(frozen=True)
class EmptyField:
    """The stored empty field of an objective.

    Attributes:
        objective: its name.
        image: digest of the image in the record.
        size: (width, height) of the camera's frames.
        corners, white: see `FlatField`.
        at: UTC, ISO 8601.
        by: name of the user.
    """

    objective: str
    image: str
    size: tuple[int, int]
    corners: float
    white: Sequence[float]
    at: str
    by: str


class Objectives:
    """The objectives of a rig. Thread-safe.

    Args:
        record: has the slides, whose notes name the objective, and keeps calibrations and flat fields as events.
        open_finder: opens a finder of cells of its own, for a calibration by red cells.
    """

    def __init__(self, record: Record, open_finder: Callable[[], Finder] = open_finder) -> None:
        self._record, self.open_finder = record, open_finder
        self._lock = threading.Lock()
        self._scales: dict[str, Calibration] = {}
        self._empty: dict[str, EmptyField] = {}
        self._corrections: dict[tuple[str, tuple[int, int]], FlatField | None] = {}
        for event in reversed(record.events(_ALL, kind=CALIBRATION)):
            self._note_scale(event.detail, event.at)
        for event in reversed(record.events(_ALL, kind=FLAT_FIELD)):
            self._note_empty(event.detail, event.image, event.at)

    def current(self) -> str:
        """The objective of the open slide; between slides of the last one. Empty if its notes name none."""
        last = (self._record.open_sessions() or self._record.sessions())[:1]
        return last[0].notes.magnification if last else ""

    def scales(self) -> Sequence[Calibration]:
        """All calibrations, by objective."""
        return [self._scales[name] for name in sorted(self._scales)]

    def empty_fields(self) -> Sequence[EmptyField]:
        """All stored empty fields, by objective."""
        return [self._empty[name] for name in sorted(self._empty)]

    def scale(self, objective: str, size: tuple[int, int]) -> Calibration | None:
        """The calibration of an objective for frames of ``size`` (width, height); None if there is none."""
        found = self._scales.get(objective)
        return found if found is not None and found.size == size else None

    def doubts(self, objective: str, size: tuple[int, int]) -> tuple[str, ...]:
        """What is stored for the objective, but not for frames of ``size`` (width, height)."""
        stored = (
            (message("the calibration"), self._scales.get(objective)),
            (message("the flat field"), self._empty.get(objective)),
        )
        return tuple(
            message(
                "{what} of {objective} is for frames of {stored} pixels, the camera gives {size}: it is not used",
                what=what,
                objective=objective,
                stored="x".join(map(str, found.size)),
                size="x".join(map(str, size)),
            )
            for what, found in stored
            if found is not None and found.size != size
        )

    def correction(self, objective: str, size: tuple[int, int]) -> FlatField | None:
        """The flat field of an objective for frames of ``size`` (width, height); None if there is none."""
        empty = self._empty.get(objective)
        if empty is None or empty.size != size:
            return None
        with self._lock:
            key = empty.image, size
            if key not in self._corrections:
                surface = read_picture(self._record.image_path(empty.image))
                self._corrections = {key: None if surface is None else flat_field(surface, size, empty.image)}
            return self._corrections[key]

    def calibrate(self, found: Calibration) -> None:
        """Store the scale of an objective.

        Raises:
            UsageError: the objective has no name, or the scale is not that of a microscope.
            RecordError: it cannot be recorded.
        """
        check_objective(found.objective)
        red_cell_px = RED_CELL_UM / found.um_per_px
        if not LEAST_PX <= red_cell_px <= MOST_PX:
            raise UsageError(
                message(
                    "a scale of {scale} µm/px gives red cells of {size} px: {least} to {most} px are possible",
                    scale=f"{found.um_per_px:.4g}",
                    size=f"{red_cell_px:.3g}",
                    least=f"{LEAST_PX:g}",
                    most=f"{MOST_PX:g}",
                ),
                hint="check the length of a division",
            )
        detail = {
            "objective": found.objective,
            "um_per_px": found.um_per_px,
            "method": found.method,
            "size": list(found.size),
            "by": found.by,
            "measured": dict(found.measured or {}),
        }
        self._record.add_event(CALIBRATION, detail)
        self._note_scale(detail, self._record.events(1, kind=CALIBRATION)[0].at)

    def forget_scale(self, objective: str, by: str) -> None:
        """Remove the scale of an objective. Raises RecordError as `Record.add_event` does."""
        detail = {"objective": objective, "um_per_px": None, "by": by}
        self._record.add_event(CALIBRATION, detail)
        self._note_scale(detail, "")

    def store_empty_field(self, objective: str, pictures: Sequence[NDArray[np.uint8]], by: str) -> None:
        """Store the flat field and white balance of an objective, from pictures of an empty field.

        Raises:
            UsageError: the objective has no name.
            NotEmptyError: the pictures do not show an empty, evenly lit field.
            RecordError: it cannot be recorded.
        """
        check_objective(objective)
        surface = measure_empty_field(pictures)
        height, width = pictures[0].shape[:2]
        made = flat_field(surface, (width, height))
        detail = {
            "objective": objective,
            "size": [width, height],
            "corners": round(made.corners, 4),
            "white": [round(each, 4) for each in made.white],
            "by": by,
        }
        self._record.add_event(FLAT_FIELD, detail, to_jpeg(surface))
        stored = self._record.events(1, kind=FLAT_FIELD)[0]
        self._note_empty(detail, stored.image, stored.at)

    def forget_empty_field(self, objective: str, by: str) -> None:
        """Remove the flat field of an objective. Raises RecordError as `Record.add_event` does."""
        detail = {"objective": objective, "by": by}
        self._record.add_event(FLAT_FIELD, detail)
        self._note_empty(detail, None, "")

    def _note_scale(self, detail: Mapping[str, Any], at: str) -> None:
        name = detail["objective"]
        if detail["um_per_px"] is None:
            self._scales.pop(name, None)
            return
        width, height = detail["size"]
        self._scales[name] = Calibration(
            name, detail["um_per_px"], detail["method"], (width, height), at, detail["by"], detail["measured"]
        )

    def _note_empty(self, detail: Mapping[str, Any], image: str | None, at: str) -> None:
        if image is None:
            self._empty.pop(detail["objective"], None)
            return
        name, (width, height) = detail["objective"], detail["size"]
        self._empty[name] = EmptyField(
            name, image, (width, height), detail["corners"], detail["white"], at, detail["by"]
        )


def check_objective(name: str) -> None:
    """Raises UsageError if an objective has no name, or one that cannot be in the notes of a slide."""
    if not name.strip() or len(name) > MAX_TEXT:
        raise UsageError(
            "the objective needs a name", hint="use the same one as in a slide's field Magnification, such as 100x oil"
        )
