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
from ..edge_runtime.vision.quality import Gate, Quality, thresholds_of
from .counting.picture import read_picture
from .counting.pool import Opinion
from .counting.registration import opencv
from .counting.tracker import Tracker
from .record.found import News
from .record.record import Record
from .scales import CellSearch
from .snapshot import JudgedCell, Picture, StationError, Verdict


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
        self._record = record
        opencv()  # without it nothing can be counted: fails at the start
        self._slide: tuple[int, Tracker] | None = None
        self._news: tuple[News, ...] = ()
        self._lost = False

    def new_slide(self) -> None:
        """Forget what belongs to the last slide."""
        self.gate.new_slide()
        self._search.new_slide()

    def verdict(self, frame: Frame, run_model: bool, session_id: int | None = None, paused: bool = False) -> Verdict:
        """Judge a frame, and count what it shows for an open slide that is not ``paused``.

        Without ``run_model`` a frame that passes the gate is ``unjudged``.

        Raises:
            StationError: the model's outputs are invalid.
        """
        self._news = ()
        tracker = self._tracker(session_id)
        picture, quality = Picture(frame), self.gate.judge(frame)
        if not quality.ok or not run_model:
            if tracker is None:
                return Verdict(picture, "unjudged" if quality.ok else "refused", quality)
            tracker.pass_by(frame.pixels)
            return Verdict(picture, "unjudged" if quality.ok else "refused", quality, tally=tracker.tally)
        if self.unit == "cell":
            verdict = self._judge_cells(picture, quality)
        else:
            found = self._predict(preprocess(Image.fromarray(frame.pixels), self._classifier.input))
            result = found.label, found.probability, found.probabilities, found.reason
            verdict = Verdict(picture, "judged", quality, *result)
        if tracker is None:
            return verdict
        if paused:
            tracker.pass_by(frame.pixels)
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
        named = zip(verdict.cells, located.cell_ids, strict=True)
        return dataclasses.replace(
            verdict,
            cells=tuple(dataclasses.replace(cell, cell_id=cell_id) for cell, cell_id in named),
            field_id=located.field_id,
            position=located.position,
            tally=located.tally,
        )

    def _judge_cells(self, picture: Picture, quality: Quality) -> Verdict:
        pixels = picture.frame.pixels
        image, spec = Image.fromarray(pixels), self._classifier.input
        found = self._search.find(pixels)
        complete = [cell for cell in found.cells if not cell.touches_border]
        predicted = [(cell, self._predict(cells.crop(image, cell.box, spec))) for cell in complete]
        judged = tuple(
            JudgedCell(cell.box, each.label, each.probability, each.reason, each.probabilities)
            for cell, each in predicted
        )
        reasons = {cell.review_reason for cell in judged if cell.review}
        reason = "unfamiliar" if "unfamiliar" in reasons else next(iter(reasons), None)  # the more severe
        return Verdict(
            picture,
            "judged",
            quality,
            review_reason=reason,
            cells=judged,
            scale=found.scale,
            doubts=found.warnings,
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
