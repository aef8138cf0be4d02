"""Checks that this device makes of the golden images what the workstation made of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle import Golden
from ..classifier import Classifier
from ..errors import BundleError
from ..images import decode_rgb
from ..preprocess import preprocess

FLOAT_TOLERANCE = 1e-5
"""Largest difference of a probability, for float outputs: the order of additions differs between processors."""
UNITS_TOLERANCE = {"ai_edge_litert": 0, "tflite_runtime": 3}
"""Largest difference in output units, for integer outputs. LiteRT's integer kernels are exact; the older
runtime's builtin kernels round differently by up to three units."""


@dataclass(frozen=True)
class GoldenResult:
    """What became of one golden image here.

    Attributes:
        name: of the image inside the bundle.
        pixels_ok: the preprocessed pixels are the workstation's, every one.
        difference: the largest one of any output.
        tolerance: what it may be.
        unit: of both: ``units`` of an integer output, or ``probability``.
    """

    name: str
    pixels_ok: bool
    difference: float
    tolerance: float
    unit: str

    @property
    def ok(self) -> bool:
        """Whether preprocessing and outputs both are as they should be."""
        return self.pixels_ok and self.difference <= self.tolerance

    def describe(self) -> str:
        """One line for people."""
        if not self.pixels_ok:
            return f"{self.name}: preprocessing gives other pixels than where the model was packed"
        verdict = "as packed" if self.ok else "NOT as packed"
        return f"{self.name}: {verdict}, differs by {self.difference:g} {self.unit} (allowed {self.tolerance:g})"


def check_golden(classifier: Classifier, tolerance_units: int | None = None) -> list[GoldenResult]:
    """Put every golden image through the whole path, decoding included.

    Args:
        classifier: of a packed model; a foreign one has no golden images and gives an empty list.
        tolerance_units: for integer outputs; None takes the runtime's from `UNITS_TOLERANCE`.

    Raises:
        ImageError: a golden image can't be decoded.
        BundleError: the model makes NaN or infinity of one.
    """
    if classifier.bundle is None:
        return []
    if tolerance_units is None:
        tolerance_units = UNITS_TOLERANCE[classifier.model.runtime]
    return [_check(classifier, golden, tolerance_units) for golden in classifier.bundle.golden]


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """Hex SHA-256 of preprocessed pixels. It sees a changed preprocessing that a confident model would not."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _check(classifier: Classifier, golden: Golden, tolerance_units: int) -> GoldenResult:
    pixels = preprocess(decode_rgb(golden.image_bytes, golden.name), classifier.input)
    units = classifier.predict_units(pixels)
    if golden.units is not None:
        difference = float(np.abs(units.astype(np.int64) - np.array(golden.units)).max())
        tolerance, unit = float(tolerance_units), "units"
    else:
        probabilities = classifier.dequantize(units).astype(np.float64)
        difference = float(np.abs(probabilities - np.array(golden.probabilities)).max())
        tolerance, unit = FLOAT_TOLERANCE, "probability"
        if not np.isfinite(difference):
            raise BundleError(f"{classifier.model.name}: its outputs for {golden.name} are not finite numbers")
    return GoldenResult(golden.name, pixels_digest(pixels) == golden.pixels_sha256, difference, tolerance, unit)
