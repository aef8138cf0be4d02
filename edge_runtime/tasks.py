"""The tasks of a packed model: how each is opened, and how its golden images are compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, Golden
from .classifier import Classifier
from .errors import BundleError
from .images import decode_rgb
from .masks import classes_of
from .messages import N_, message
from .network import Network
from .preprocess import Channels
from .segmenter import STEPS, Segmenter

FLOAT_TOLERANCE = 1e-5
"""Tolerance of a probability, for float outputs: the order of additions differs between processors."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of any output of a golden image, what is allowed, and the unit of both."""

    value: float
    tolerance: float
    unit: str


@dataclass(frozen=True)
class Task:
    """What a device does with the models of one task.

    Attributes:
        open: opens a bundle with a number of threads; None takes the default.
        compare: the difference between a model's outputs for preprocessed pixels and the golden ones. The last argument
            is the tolerance of one output of an integer model, in its units.
    """

    open: Callable[[Bundle, int | None], Network[Any]]
    compare: Callable[[Any, Golden, NDArray[np.uint8], int], Difference]


def open_model(bundle: Bundle, threads: int | None = None) -> Network[Any]:
    """Open a model of any task. Raises BundleError as the class of the task does."""
    return TASKS[bundle.task].open(bundle, threads)


@dataclass(frozen=True)
class ForeignFacts:
    """What a foreign model may need to be told, see `Classifier.open`."""

    labels_file: str | os.PathLike[str] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    input_size: int | None = None


def open_given(bundle: Bundle, threads: int | None, facts: ForeignFacts) -> Network[Any]:
    """`open_model`, of a foreign model with what the user has told about it.

    Raises:
        BundleError: as the class of the task does.
        UsageError: facts of a packed model, which has its own, or facts that contradict each other.
    """
    if facts == ForeignFacts():
        return open_model(bundle, threads)
    normalization = None
    if facts.mean is not None or facts.std is not None:
        from .foreign import given_normalization

        normalization = given_normalization(facts.mean, facts.std)
    return Classifier.from_bundle(
        bundle,
        threads=threads,
        labels_file=facts.labels_file,
        normalization=normalization,
        input_size=facts.input_size,
    )


def compare_golden(
    network: Network[Any], golden: Golden, pixels: NDArray[np.uint8], tolerance_units: int
) -> Difference:
    """See `Task.compare`; ``network`` was opened from a file."""
    assert network.bundle is not None
    return TASKS[network.bundle.task].compare(network, golden, pixels, tolerance_units)


def _compare_scores(
    classifier: Classifier, golden: Golden, pixels: NDArray[np.uint8], tolerance_units: int
) -> Difference:
    units = classifier.predict_units(pixels)
    if golden.units is not None:
        difference = float(np.abs(units.astype(np.int64) - np.array(golden.units)).max())
        return Difference(difference, float(tolerance_units), N_("units"))
    probabilities = classifier.probabilities(units).astype(np.float64)
    difference = float(np.abs(probabilities - np.array(golden.probabilities)).max())
    if not np.isfinite(difference):
        name = classifier.model.name
        text = message("{file}: its outputs for {image} are not finite numbers", file=name, image=golden.name)
        raise BundleError(text)
    return Difference(difference, FLOAT_TOLERANCE, N_("probability"))


def _compare_mask(segmenter: Segmenter, golden: Golden, pixels: NDArray[np.uint8], tolerance_units: int) -> Difference:
    """The most by which the golden class of a pixel is behind the most probable one, in units of 1/256.

    Where no output differs by more than t units, the golden class is at most 2t behind. A float output is rounded to
    these units, which adds one. The size of the red cell is compared in units of its own output.
    """
    second = segmenter.model.second
    assert golden.mask_bytes is not None and golden.red_cell is not None and second is not None
    expected = classes_of(decode_rgb(golden.mask_bytes, golden.name), golden.name)
    found = segmenter.infer(pixels)
    if expected.shape != found.probabilities.shape[:2]:
        raise BundleError(f"{segmenter.model.name}: the golden mask of {golden.name} has another size than its output")
    probabilities = found.probabilities.astype(int)
    of_expected = np.take_along_axis(probabilities, expected[..., np.newaxis].astype(int), axis=2)
    behind = float((probabilities.max(axis=2, keepdims=True) - of_expected).max())
    apart = abs(found.red_cell - golden.red_cell) / (second.scale or 1 / STEPS)
    tolerance = 1.0 if second.dtype == np.float32 else 2.0 * tolerance_units
    return Difference(max(behind, round(apart, 3)), tolerance, "units")


def _open_classifier(bundle: Bundle, threads: int | None) -> Network[Any]:
    return Classifier.from_bundle(bundle, threads=threads)


def _open_segmenter(bundle: Bundle, threads: int | None) -> Network[Any]:
    return Segmenter.from_bundle(bundle, threads=threads)


TASKS = {
    "classification": Task(_open_classifier, _compare_scores),
    "segmentation": Task(_open_segmenter, _compare_mask),
}
"""By the name in the manifest."""
