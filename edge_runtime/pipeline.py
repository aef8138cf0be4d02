"""Classifies files and folders: one prediction per image, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import apply_temperature, review_reason, temperature_of
from .classifier import Classifier, Inference
from .errors import DataError, ImageError
from .images import find_images
from .messages import message
from .preprocess import load_input

if TYPE_CHECKING:
    from .parallel import Layout


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, or an error.

    Attributes:
        image: path of the image.
        label: the most probable label; empty if there is an error.
        probability: of `label`, calibrated, 0..1.
        probabilities: of every label, calibrated.
        reason: ``unfamiliar`` (`novelty` is above 1: the label is meaningless), else ``uncertain`` (`probability` is
            below the manifest's ``decision.review_below``), else None.
        novelty: out-of-distribution score, see `edgeall.edge_runtime.ood`; None if the model has no detector.
        units: see `edgeall.edge_runtime.classifier.Inference`.
        error: None, or the problem of the image or of the model's outputs; then the other fields are invalid.
        cells: number of cells that it is the mean of, see `edgeall.edge_runtime.vision.by_cells`; None for an image
            that was not searched for cells.
    """

    image: str
    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    novelty: float | None = None
    units: NDArray[np.generic] | None = field(default=None, repr=False, compare=False)
    error: str | None = None
    facts: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    cells: int | None = None

    @property
    def review(self) -> bool:
        """Whether the image needs review, for `reason`."""
        return self.reason is not None

    def as_json(self) -> dict[str, Any]:
        """The object of one line of ``edgeall run --json``."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        return {
            "image": self.image,
            "label": self.label,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
            "review": self.review,
            "reason": self.reason,
            "novelty": self.novelty,
            **({} if self.cells is None else {"cells": self.cells}),
        }


def expand(
    paths: Iterable[str | os.PathLike[str]], skipped: Callable[[Path, str], None] | None = None
) -> Iterator[str]:
    """Every image of ``paths``: files as given, with any suffix; the images in folders, sorted.

    Checks all paths before it gives the first image.

    Args:
        paths: files and folders.
        skipped: see `find_images`.

    Raises:
        DataError: a path does not exist, or a folder has no image.
    """
    sources: list[Iterator[str]] = []
    for given in paths:
        path = Path(given)
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: no such file or folder", hint="check the path")
            sources.append(iter((str(given),)))
            continue
        images = (str(image) for image in find_images(path, skipped))
        first = next(images, None)
        if first is None:
            raise DataError(f"{path}: no image in this folder", hint="give a folder with JPEG, PNG, BMP, TIFF or WebP")
        sources += [iter([first]), images]
    return (image for source in sources for image in source)


def classify(
    classifier: Classifier,
    paths: Iterable[str | os.PathLike[str]],
    choose: Callable[[Sequence[str]], Layout] | None = None,
    skipped: Callable[[Path, str], None] | None = None,
    *,
    with_facts: bool = False,
) -> Iterator[Prediction]:
    """Classify every image of `expand(paths)`, in order. The results do not depend on ``choose``.

    An invalid image gives a `Prediction` with an error; the others are still classified.

    Args:
        classifier: an open model.
        paths: files and folders.
        choose: returns the layout of interpreters and threads for the first images, see
            `edgeall.edge_runtime.tools.layout.choose_layout`. None classifies one image at a time in this thread.
        skipped: see `find_images`.
        with_facts: give each prediction its `Prediction.facts`, for the drift alarm.

    Raises:
        DataError: as `expand` does, before the first image.
    """
    images = expand(paths, skipped)
    if choose is None:
        return (classify_one(classifier, image, with_facts=with_facts) for image in images)
    return _in_parallel(classifier, images, choose, with_facts)


def classify_one(classifier: Classifier, image: str, *, with_facts: bool = False) -> Prediction:
    """Classify one image file. An invalid image, or NaN outputs, give a `Prediction` with an error."""
    try:
        pixels = load_input(image, classifier.input)
    except ImageError as error:
        return Prediction(image, error=error.message)
    found = prediction(classifier, image, classifier.infer(pixels))
    return replace(found, facts=_facts(pixels)) if with_facts else found


def prediction(classifier: Classifier, image: str, outputs: Inference) -> Prediction:
    """The calibrated prediction from the outputs of a model. Non-finite outputs give an error."""
    probabilities = outputs.probabilities
    if not np.isfinite(probabilities).all():
        error = message("{image}: the model's outputs for it are not finite numbers", image=image)
        return Prediction(image, error=error)
    manifest = classifier.bundle.manifest if classifier.bundle else None
    probabilities = apply_temperature(probabilities, temperature_of(manifest))
    best = int(probabilities.argmax())
    probability = float(probabilities[best])
    return Prediction(
        image=image,
        label=classifier.labels[best],
        probability=probability,
        probabilities=dict(zip(classifier.labels, map(float, probabilities), strict=True)),
        reason=review_reason(manifest, probability, outputs.novelty),
        novelty=outputs.novelty,
        units=outputs.units,
    )


@dataclass
class _Item:
    """An image in progress, with the facts that its loading found."""

    image: str
    facts: NDArray[np.float64] | None = None


def _in_parallel(
    classifier: Classifier, images: Iterator[str], choose: Callable[[Sequence[str]], Layout], with_facts: bool
) -> Iterator[Prediction]:
    first = list(islice(images, 2))
    if len(first) == 1:
        yield classify_one(classifier, first[0], with_facts=with_facts)
        return
    from . import parallel  # late: one image does not need its imports

    first += islice(images, parallel.WORTH_MEASURING - len(first))

    def load(item: _Item) -> NDArray[np.uint8]:
        pixels = load_input(item.image, classifier.input)
        item.facts = _facts(pixels) if with_facts else None
        return pixels

    with parallel.Pool(classifier, choose(first)) as pool:
        for item, outcome in pool.map(load, map(_Item, chain(first, images))):
            if isinstance(outcome, ImageError):
                yield Prediction(item.image, error=outcome.message)
            else:
                yield replace(prediction(classifier, item.image, outcome), facts=item.facts)


def _facts(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    from .drift import image_facts  # late: most images are classified without it

    return image_facts(pixels)
