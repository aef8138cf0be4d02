"""Judges one frame: the quality gate, then the model on the field or on each cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.pipeline import Prediction, prediction
from ..edge_runtime.preprocess import preprocess
from ..edge_runtime.vision import cells
from ..edge_runtime.vision.frame import Frame
from ..edge_runtime.vision.quality import Gate, Quality, thresholds_of
from .scales import CellSearch
from .snapshot import JudgedCell, Picture, StationError, Verdict


class Judge:
    """A quality gate and a model. Used by one thread.

    Args:
        classifier: of fields or cells, see `unit`.
        search: finds the cells for a classifier of cells.
        gate: None for the thresholds in the model's manifest.
    """

    def __init__(self, classifier: Classifier, search: CellSearch, gate: Gate | None = None) -> None:
        manifest = classifier.bundle.manifest if classifier.bundle else None
        self.unit = unit_of(classifier)
        self.gate = gate or Gate(thresholds_of(manifest))
        self._classifier, self._search = classifier, search

    def new_slide(self) -> None:
        """Forget what belongs to the last slide."""
        self.gate.new_slide()
        self._search.new_slide()

    def verdict(self, frame: Frame, run_model: bool) -> Verdict:
        """Judge a frame. Without ``run_model`` a frame that passes the gate is ``unjudged``.

        Raises:
            StationError: the model's outputs are invalid.
        """
        picture, quality = Picture(frame), self.gate.judge(frame)
        if not quality.ok:
            return Verdict(picture, "refused", quality)
        if not run_model:
            return Verdict(picture, "unjudged", quality)
        if self.unit == "cell":
            return self._judge_cells(picture, quality)
        found = self._predict(preprocess(Image.fromarray(frame.pixels), self._classifier.input))
        return Verdict(picture, "judged", quality, found.label, found.probability, found.probabilities, found.reason)

    def _judge_cells(self, picture: Picture, quality: Quality) -> Verdict:
        pixels = picture.frame.pixels
        image, spec = Image.fromarray(pixels), self._classifier.input
        found = self._search.find(pixels)
        complete = [cell for cell in found.cells if not cell.touches_border]
        predicted = [(cell, self._predict(cells.crop(image, cell.box, spec))) for cell in complete]
        judged = tuple(JudgedCell(cell.box, each.label, each.probability, each.reason) for cell, each in predicted)
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
