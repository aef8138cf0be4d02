"""Files and folders in, one decision per image out, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import apply_temperature, review_reason, temperature_of
from .classifier import Classifier, Inference
from .errors import DataError, ImageError
from .images import find_images
from .preprocess import load_input

if TYPE_CHECKING:
    from .parallel import Layout


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, or why it says nothing.

    Attributes:
        image: path as found.
        label: the most probable one; empty when there is an error.
        probability: of `label`, 0..1.
        probabilities: of every label.
        review: somebody should look, for `reason`.
        reason: ``unfamiliar`` (`novelty` is above 1: the label means nothing), else ``uncertain`` (`probability` is
            below the manifest's ``decision.review_below``), else None.
        novelty: how unlike the images the model was made with, see `edgeall.edge_runtime.ood`; None where the
            model doesn't say.
        units: see `edgeall.edge_runtime.classifier.Inference`.
        error: None, or what is wrong with the image or the model's outputs; then the other fields say nothing.
    """

    image: str
    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    novelty: float | None = None
    units: NDArray[np.generic] | None = field(default=None, repr=False, compare=False)
    error: str | None = None

    @property
    def review(self) -> bool:
        """See above."""
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
        }


def expand(
    paths: Iterable[str | os.PathLike[str]], skipped: Callable[[Path, str], None] | None = None
) -> Iterator[str]:
    """Every image that ``paths`` mean: files as they are, whatever their suffix; folders' images, sorted.

    All paths are looked at before the first image is given.

    Args:
        paths: files and folders.
        skipped: see `find_images`.

    Raises:
        DataError: a path doesn't exist, or a folder holds no image.
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
) -> Iterator[Prediction]:
    """Classify every image of `expand(paths)`; what comes out is in that order, and the same whichever way it is done.

    A bad image gives a `Prediction` with an error, and the rest goes on.

    Args:
        classifier: an open model.
        paths: files and folders.
        choose: given the first images, says how to spread the work over the cores: see `parallel.choose`. None
            does one image after the other, in this thread.
        skipped: see `find_images`.

    Raises:
        DataError: as `expand` does, before the first image.
    """
    images = expand(paths, skipped)
    if choose is None:
        return (classify_one(classifier, image) for image in images)
    return _side_by_side(classifier, images, choose)


def classify_one(classifier: Classifier, image: str) -> Prediction:
    """Classify one image file; a bad one, or one that the model makes NaN of, gives a `Prediction` with an error."""
    try:
        pixels = load_input(image, classifier.input)
    except ImageError as error:
        return Prediction(image, error=error.message)
    return prediction(classifier, image, classifier.infer(pixels))


def prediction(classifier: Classifier, image: str, answer: Inference) -> Prediction:
    """What the model's outputs say of the image, calibrated; not a number says nothing."""
    probabilities = answer.probabilities
    if not np.isfinite(probabilities).all():
        return Prediction(image, error=f"{image}: the model's outputs for it are not finite numbers")
    manifest = classifier.bundle.manifest if classifier.bundle else None
    probabilities = apply_temperature(probabilities, temperature_of(manifest))
    best = int(probabilities.argmax())
    probability = float(probabilities[best])
    return Prediction(
        image=image,
        label=classifier.labels[best],
        probability=probability,
        probabilities=dict(zip(classifier.labels, map(float, probabilities), strict=True)),
        reason=review_reason(manifest, probability, answer.novelty),
        novelty=answer.novelty,
        units=answer.units,
    )


def _side_by_side(
    classifier: Classifier, images: Iterator[str], choose: Callable[[Sequence[str]], Layout]
) -> Iterator[Prediction]:
    first = list(islice(images, 2))
    if len(first) == 1:
        yield classify_one(classifier, first[0])
        return
    from . import parallel  # whose imports one image doesn't need

    first += islice(images, parallel.WORTH_MEASURING - len(first))
    with parallel.Pool(classifier, choose(first)) as pool:
        for image, outcome in pool.map(lambda image: load_input(image, classifier.input), chain(first, images)):
            if isinstance(outcome, ImageError):
                yield Prediction(image, error=outcome.message)
            else:
                yield prediction(classifier, image, outcome)
