"""The station's frozen data: settings, the verdict on one frame, the machine's health, and a snapshot of all of it."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..edge_runtime.drift import Finding
from ..edge_runtime.errors import EdgeallError, UsageError
from ..edge_runtime.vision.cells import Box
from ..edge_runtime.vision.frame import Frame
from ..edge_runtime.vision.quality import Quality
from ..edge_runtime.vision.scale import Scale
from .capture.reconnecting import CameraState
from .counting.slide_map import Position
from .counting.tracker import Tally

SAVE = ("every frame", "on review", "on capture")
"""Which images are saved: of every judged frame; of frames for which the model asks for a review (the first of each
field, and at most two per second from a camera) and of captures; of captures only. A picture of each counted cell and
field is always kept."""
_LIVE_QUALITY = 80


class StationError(EdgeallError):
    """The station cannot do this in its current state."""


@dataclass(frozen=True)
class Settings:
    """What an operator may change while the rig runs.

    Attributes:
        judge: run the model.
        save: one of `SAVE`.
        target: number of cells, or fields for a model of fields, to count on a slide; 0 for no target.
        paused: the open slide is shown, but nothing is counted or recorded.
        labels: of the laboratory, for reviews, beside the model's.
        laboratory: header of reports: name and address, in lines.
        lossless: images are saved as PNG, not as JPEG.
        names: the laboratory's label for a model's label; several may have the same one. The counts are then also shown
            by the laboratory's labels.
        flat_field: correct frames by the stored empty field of the objective, before they are judged.
    """

    judge: bool = True
    save: str = "on review"
    target: int = 200
    paused: bool = False
    labels: tuple[str, ...] = ()
    laboratory: str = ""
    lossless: bool = False
    flat_field: bool = True
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # a list in the record
        if self.save not in SAVE:
            raise UsageError(f"save {self.save!r} is unknown", hint=f"choose one of: {', '.join(SAVE)}")


@dataclass(frozen=True)
class JudgedCell:
    """A cell and the model's prediction for it.

    Attributes:
        box: (left, top, right, bottom) in the frame's pixels.
        label: the most probable.
        probability: of `label`, 0..1.
        review_reason: why the model asks for a review, see `edgeall.edge_runtime.pipeline.Prediction.reason`; None if
            it does not.
        probabilities: of every label.
        cell_id: the same in all frames of the open slide that show the cell; None between slides.
    """

    box: Box
    label: str
    probability: float
    review_reason: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    cell_id: int | None = None

    @property
    def review(self) -> bool:
        """The model asks for a review."""
        return self.review_reason is not None


@dataclass(frozen=True)
class Health:
    """The state of the machine.

    Attributes:
        free_bytes: free space on the record's disk.
        space: one of `edgeall.rig.record.rows.SPACES`.
        temperature_c: None if unknown.
        throttled: a Raspberry Pi's throttling bits; None elsewhere.
        rss_bytes: of this process; None if unknown.
        load: average over one minute; None if unknown.
    """

    free_bytes: int
    space: str
    temperature_c: float | None = None
    throttled: int | None = None
    rss_bytes: int | None = None
    load: float | None = None


class Picture:
    """A frame and, once a viewer requests it, its JPEG file.

    Args:
        frame: as it is judged.
        camera_pixels: as the camera gave it; None if nothing was corrected.
    """

    def __init__(self, frame: Frame, camera_pixels: NDArray[np.uint8] | None = None) -> None:
        self.frame = frame
        self.camera_pixels = frame.pixels if camera_pixels is None else camera_pixels
        self._lock = threading.Lock()
        self._jpeg: bytes | None = None

    def jpeg(self) -> bytes:
        """The JPEG file, encoded at the first request."""
        with self._lock:
            if self._jpeg is None:
                self._jpeg = encode_jpeg(self.frame.pixels, _LIVE_QUALITY)
            return self._jpeg


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What the station found in one frame.

    Attributes:
        label: the most probable; empty if nothing was judged, and for a cell model, where `cells` have labels.
        probability: of `label`, 0..1.
        probabilities: of every label; empty if `label` is.
        review_reason: see `JudgedCell`; for a frame of cells, the more severe of the cells' reasons.
        cells: judged cells, for a cell model.
        scale: of the frame; None if unknown.
        doubts: what makes the scale or the search for cells doubtful.
        misfit: the red cells of successive frames contradict the known scale.
        flat_field: digest of the empty field by which the frame was corrected; empty if it was not.
        field_id: the field of the slide that the frame shows; None unless it was judged on an open slide.
        position: of the frame in the map of the slide, as `field_id`.
        tally: what was found on the open slide so far; None between slides.
        drift: how its images differ from those that the model was fitted on; None if they do not.
    """

    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    review_reason: str | None = None
    cells: tuple[JudgedCell, ...] = ()
    scale: Scale | None = None
    doubts: tuple[str, ...] = ()
    field_id: int | None = None
    position: Position | None = None
    tally: Tally | None = None
    misfit: bool = False
    flat_field: str = ""
    drift: Finding | None = None


@dataclass(frozen=True)
class Verdict(_Judged):
    """The result for one frame. See `Live` for the fields."""

    picture: Picture
    status: str
    quality: Quality


@dataclass(frozen=True)
class Live(_Judged):
    """The station at one moment, with what it found in the newest frame.

    Attributes:
        number: of the snapshot; increases.
        picture: the newest frame; None before the first one of a slide, while the camera fails, and after a replay.
        status: ``judged``; ``refused`` by the gate; ``unjudged``: judging is off or impossible; ``waiting`` for the
            first frame.
        quality: of the frame; None before the first.
        frames_per_s: judged or refused frames per second over the last two seconds.
        camera: its state.
        session_id: of the open slide; None between slides.
        settings: the current ones.
        problems: messages about what does not work; empty if everything does.
        waits: the camera is a replay that waits for the start of a slide.
        notes: other messages: a replay waits or has ended, files of unknown origin.
        left_out: number of files that were there before the slide was started, and of files that arrived while no
            slide was open or judging was off. None of them is recorded.
        health: of the machine.
        asked_session_id: of a slide from before a restart, until the operator continues or ends it.
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
    asked_session_id: int | None = None
    picture: Picture | None = None
    status: str = "waiting"
    quality: Quality | None = None

    @property
    def review(self) -> bool:
        """The model asks for a review."""
        return self.review_reason is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """The frame's (width, height) in pixels."""
        return (self.picture.frame.pixels.shape[1], self.picture.frame.pixels.shape[0]) if self.picture else None


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A JPEG file of uint8 (height, width, 3) RGB; ``quality`` 1..95."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 (height, width, 3) RGB, compressed little: speed matters more."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
