"""Verifies that this device computes the expected outputs for the golden images of a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Golden
from ..images import decode_rgb
from ..messages import N_, Message, message
from ..network import Network
from ..preprocess import preprocess
from ..results import Result
from ..tasks import compare_golden

UNITS_TOLERANCE = {"ai_edge_litert": 0, "tflite_runtime": 3}
"""Tolerance in output units, for integer outputs. LiteRT's integer kernels are exact; the builtin kernels of
tflite-runtime round differently by up to three units."""
AS_PACKED = N_("{name}: as packed, differs by {difference} {unit} (allowed {tolerance})")
NOT_AS_PACKED = N_("{name}: NOT as packed, differs by {difference} {unit} (allowed {tolerance})")


@dataclass(frozen=True)
class GoldenResult(Result):
    """The result for one golden image on this device.

    Attributes:
        name: of the image inside the bundle.
        pixels_ok: whether the preprocessed pixels are identical to those where the model was packed.
        difference: largest difference of any output.
        tolerance: largest allowed difference.
        unit: of both: ``units`` of an integer output, or ``probability``.
    """

    name: str
    pixels_ok: bool
    difference: float
    tolerance: float
    unit: str

    @property
    def ok(self) -> bool:
        """Whether preprocessing and outputs are as expected."""
        return self.pixels_ok and self.difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The fields, with ``ok`` behind the name."""
        return {"name": self.name, "ok": self.ok} | super().to_json()

    def describe(self) -> Message:
        """The result as one line of text."""
        if not self.pixels_ok:
            return message("{name}: preprocessing gives other pixels than where the model was packed", name=self.name)
        template = AS_PACKED if self.ok else NOT_AS_PACKED
        values = {"name": self.name, "unit": message(self.unit)}
        return message(template, **values, difference=f"{self.difference:g}", tolerance=f"{self.tolerance:g}")


def check_golden(network: Network[Any], tolerance_units: int | None = None) -> list[GoldenResult]:
    """Decode and preprocess every golden image, and run the model on it.

    Args:
        network: of a packed model; a foreign one has no golden images and gives an empty list.
        tolerance_units: for integer outputs; None takes the value of the runtime in `UNITS_TOLERANCE`.

    Raises:
        ImageError: a golden image cannot be decoded.
        BundleError: an output is NaN or infinite.
    """
    if network.bundle is None:
        return []
    if tolerance_units is None:
        tolerance_units = UNITS_TOLERANCE[network.model.runtime]
    return [_check(network, golden, tolerance_units) for golden in network.bundle.golden]


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """Hex SHA-256 of preprocessed pixels. Detects changes of the preprocessing that do not change the prediction."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _check(network: Network[Any], golden: Golden, tolerance_units: int) -> GoldenResult:
    pixels = preprocess(decode_rgb(golden.image_bytes, golden.name), network.input)
    found = compare_golden(network, golden, pixels, tolerance_units)
    pixels_ok = pixels_digest(pixels) == golden.pixels_sha256
    return GoldenResult(golden.name, pixels_ok, found.value, found.tolerance, found.unit)
