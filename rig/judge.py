"""Judges one frame: the quality gate, then the model on the field or on each cell, then the count of the slide."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..edge_runtime.calibration import review_reason
from ..edge_runtime.classifier import Classifier
from ..edge_runtime.pipeline import Prediction, prediction
from ..edge_runtime.preprocess import preprocess
from ..edge_runtime.vision import cells
from ..edge_runtime.vision.frame import Frame
from ..edge_runtime.vision.quality import Gate, thresholds_of
from .counting.picture import read_picture
from .counting.pool import Opinion
from .counting.registration import opencv
from .counting.tracker import Tracker
from .drift import SlideDrift
from .record.found import News
from .record.record import Record
from .scales import CellSearch
from .snapshot import JudgedCell, Picture, Settings, StationError, Verdict


class Judge:
    """A quality gate, a model, and the count of the open slide. Used by one thread.

    Args:
        classifier: of fields or cells, see `unit`.
        search: finds the cells for a classifier of cells.
        gate: None for the thresholds in the model's manifest.
        record: has what was counted on a slide that is continued.
    """

    def __init__(
        self, classifier: Classifier, search: CellSearch, gate: Gate | None = None, record: Record | None = None
    ) -> None:
        self._manifest = classifier.bundle.manifest if classifier.bundle else None
        self.unit = unit_of(classifier)
        self.gate = gate or Gate(thresholds_of(self._manifest))
        self._classifier, self._search = classifier, search
        self.objectives = search.objectives
        self._record = record
        opencv()  # without it nothing can be counted: fails at the start
        self._slide: tuple[int, Tracker] | None = None
        self._news: tuple[News, ...] = ()
        self._lost = False
        self._drift = SlideDrift(classifier, record)
        self._inputs: list[tuple[NDArray[np.uint8], Prediction]] = []
        self._next: Classifier | None = None

    def use(self, classifier: Classifier) -> None:
        """Judge the frames after the current one with another model, of the same labels and input. For any thread."""
        self._next = classifier

    def new_slide(self) -> None:
        """Forget what belongs to the last slide."""
        self.gate.new_slide()
        self._search.new_slide()

    def verdict(
        self, frame: Frame, run_model: bool, session_id: int | None = None, settings: Settings | None = None
    ) -> Verdict:
        """Judge a frame, and count what it shows for an open slide that is not paused.

        The frame is corrected first, if an empty field of the objective is stored and the settings allow it. Without
        ``run_model`` a frame that passes the gate is ``unjudged``.

        Raises:
            StationError: the model's outputs are invalid.
        """
        self._news = ()
        if (newer := self._next) is not None:
            self._next, self._classifier = None, newer
            self._manifest = newer.bundle.manifest if newer.bundle else None
            self._drift = SlideDrift(newer, self._record)
        settings = settings or Settings()
        tracker = self._tracker(session_id)
        picture, flat_field = self._corrected(frame, settings.flat_field)
        pixels = picture.frame.pixels
        size, quality = (pixels.shape[1], pixels.shape[0]), self.gate.judge(picture.frame)
        verdict = Verdict(
            picture,
            "unjudged" if quality.ok else "refused",
            quality,
            scale=self._search.known(size),
            doubts=self._search.doubts(size),
            flat_field=flat_field,
        )
        if not quality.ok or not run_model:
            if tracker is None:
                return verdict
            tracker.pass_by(pixels)
            return dataclasses.replace(verdict, tally=tracker.tally)
        verdict = self._judge_cells(verdict) if self.unit == "cell" else self._judge_field(verdict)
        if tracker is None:
            return verdict
        if settings.paused:
            tracker.pass_by(pixels)
            return dataclasses.replace(verdict, tally=tracker.tally)
        return self._count(tracker, verdict)

    def take_news(self) -> tuple[News, ...]:
        """What the last verdict changed in the count, to be recorded with its frame."""
        news, self._news = self._news, ()
        return news

    def lose_news(self, news: tuple[News, ...]) -> None:
        """Give all of the count again with the next verdict: these news could not be recorded. For any thread."""
        self._lost = self._lost or bool(news)

    def _tracker(self, session_id: int | None) -> Tracker | None:
        """The count of the open slide; what was counted of a slide that was open before is read from the record."""
        if session_id is None:
            self._slide = None
        elif self._slide is None or self._slide[0] != session_id:
            self._slide = session_id, self._start_count(session_id)
            self._drift.start(session_id)
        return self._slide[1] if self._slide else None

    def _start_count(self, session_id: int) -> Tracker:
        record = self._record
        if record is None:
            return Tracker(self._rule)
        return Tracker(self._rule, record.found(session_id), lambda digest: read_picture(record.image_path(digest)))

    def _rule(self, probability: float) -> str | None:
        return review_reason(self._manifest, probability, None)

    def _count(self, tracker: Tracker, verdict: Verdict) -> Verdict:
        sharpness = verdict.quality.sharpness
        opinions = [Opinion(sharpness, cell.probabilities, cell.review_reason) for cell in verdict.cells]
        whole = Opinion(sharpness, verdict.probabilities, verdict.review_reason) if verdict.label else None
        boxes = [cell.box for cell in verdict.cells]
        if self._lost:
            self._lost = False
            tracker.resend()
        located = tracker.follow(verdict.picture.frame.pixels, boxes, opinions, whole)
        self._news = located.news
        self._drift.see(located.cell_ids if self.unit == "cell" else (located.field_id,), self._inputs)
        named = zip(verdict.cells, located.cell_ids, strict=True)
        return dataclasses.replace(
            verdict,
            cells=tuple(dataclasses.replace(cell, cell_id=cell_id) for cell, cell_id in named),
            field_id=located.field_id,
            position=located.position,
            tally=located.tally,
            drift=self._drift.finding,
        )

    def _corrected(self, frame: Frame, wanted: bool) -> tuple[Picture, str]:
        """The frame as it is judged; and the digest of the empty field by which it was corrected, if it was."""
        size = frame.pixels.shape[1], frame.pixels.shape[0]
        correction = self.objectives.correction(self._search.objective, size) if wanted else None
        if correction is None:
            return Picture(frame), ""
        corrected = dataclasses.replace(frame, pixels=correction.apply(frame.pixels))
        return Picture(corrected, frame.pixels), correction.digest

    def _judge_field(self, verdict: Verdict) -> Verdict:
        pixels = preprocess(Image.fromarray(verdict.picture.frame.pixels), self._classifier.input)
        found = self._predict(pixels)
        self._inputs = [(pixels, found)]
        return dataclasses.replace(
            verdict,
            status="judged",
            label=found.label,
            probability=found.probability,
            probabilities=found.probabilities,
            review_reason=found.reason,
        )

    def _judge_cells(self, verdict: Verdict) -> Verdict:
        pixels = verdict.picture.frame.pixels
        image, spec = Image.fromarray(pixels), self._classifier.input
        found = self._search.find(pixels)
        complete = [cell for cell in found.cells if not cell.touches_border]
        inputs = [cells.crop(image, cell.box, spec) for cell in complete]
        self._inputs = [(crop, self._predict(crop)) for crop in inputs]
        judged = tuple(
            JudgedCell(cell.box, each.label, each.probability, each.reason, each.probabilities)
            for cell, (_, each) in zip(complete, self._inputs, strict=True)
        )
        reasons = {cell.review_reason for cell in judged if cell.review}
        return dataclasses.replace(
            verdict,
            status="judged",
            review_reason="unfamiliar" if "unfamiliar" in reasons else next(iter(reasons), None),  # the more severe
            cells=judged,
            scale=found.scale,
            doubts=(*verdict.doubts, *found.warnings),
            misfit=self._search.misfit,
        )

    def _predict(self, pixels: NDArray[np.uint8]) -> Prediction:
        found = prediction(self._classifier, "frame", self._classifier.infer(pixels))
        if found.error:
            raise StationError(found.error)
        return found


def unit_of(classifier: Classifier) -> str:
    """What a model classifies: ``field`` or ``cell``."""
    manifest = classifier.bundle.manifest if classifier.bundle else None
    return manifest.unit if manifest else "field"
