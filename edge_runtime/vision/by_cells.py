"""Classifies fields by their cells: each whole cell with a model of cells, a field by the mean of their probabilities.

Compared with models of whole fields in benchmarks/results/field_cells.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..calibration import review_reason
from ..classifier import Classifier
from ..errors import ImageError, UsageError
from ..images import open_rgb
from ..pipeline import Prediction, expand, prediction
from ..threads import Threads
from .cells import crop
from .finder import Finder
from .scale import Scale

Crops = list[NDArray[np.uint8]]


def open_cell_classifier(bundle: Bundle, threads: int) -> Classifier:
    """The classifier. Raises UsageError for a model of another task, without a manifest, or of whole fields."""
    manifest = bundle.manifest
    if bundle.task != "classification" or manifest is None or manifest.unit != "cell":
        raise UsageError(
            f"{bundle.path}: is not a classifier of cells, which --by-cells needs",
            hint="train one on the folder crops/ of `edgeall cells --crops`",
        )
    return Classifier.from_bundle(bundle, threads=threads)


def classify_by_cells(
    classifier: Classifier,
    finder: Finder,
    paths: Iterable[str | os.PathLike[str]],
    scale: Scale | None,
    skipped: Callable[[Path, str], None] | None,
    threads: Threads,
) -> Iterator[Prediction]:
    """Classify every field of `edgeall.edge_runtime.pipeline.expand(paths)`, in order.

    The probabilities of a field are the means of the calibrated probabilities of its whole cells, and its novelty is
    their median. A field without a whole cell, or that cannot be read, gives a `Prediction` with an error.

    Args:
        classifier: of cells.
        finder: finds them; usable by all threads.
        paths: files and folders.
        scale: of all images; None measures it in each.
        skipped: see `edgeall.edge_runtime.images.find_images`.
        threads: find cells, one field each.

    Raises:
        DataError: a path does not exist, or a folder has no image.
    """

    def crops(path: str) -> tuple[str, Crops | ImageError]:
        try:
            image = open_rgb(path)
            found = finder.find(np.asarray(image), scale)
        except ImageError as error:
            return path, error
        return path, [crop(image, cell.box, classifier.input) for cell in found.cells if not cell.touches_border]

    for path, found in threads.map(crops, expand(paths, skipped)):
        yield (
            Prediction(path, error=found.message) if isinstance(found, ImageError) else _pooled(classifier, path, found)
        )


def _pooled(classifier: Classifier, path: str, crops: Crops) -> Prediction:
    if not crops:
        return Prediction(path, error=f"{path}: no whole cell was found in it", cells=0)
    cells = [prediction(classifier, path, classifier.infer(pixels)) for pixels in crops]
    failed = next((cell for cell in cells if cell.error is not None), None)
    if failed is not None:
        return failed
    means = {label: float(np.mean([cell.probabilities[label] for cell in cells])) for label in classifier.labels}
    label = max(means, key=means.__getitem__)
    novelties = [cell.novelty for cell in cells if cell.novelty is not None]
    novelty = float(np.median(novelties)) if novelties else None
    manifest = classifier.bundle.manifest if classifier.bundle else None
    reason = review_reason(manifest, means[label], novelty)
    return Prediction(path, label, means[label], means, reason, novelty, cells=len(cells))
