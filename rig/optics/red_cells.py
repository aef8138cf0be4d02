"""The scale of an objective from the red cells of a smear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.vision.finder import Finder
from ...edge_runtime.vision.scale import LEAST_CONFIDENCE, RED_CELL_UM
from ..language import N_, message

AGREE = 1.15
"""Maximum ratio of the largest to the smallest diameter in the pictures."""
_HINT = N_("show a monolayer with many single red cells, in focus; a stage micrometer is more accurate")


class NoRedCellsError(EdgeallError):
    """The pictures do not show the size of red cells."""


def measure_red_cells(finder: Finder, pictures: Sequence[NDArray[np.uint8]]) -> tuple[float, dict[str, Any]]:
    """Micrometres per pixel, if a red cell measures `RED_CELL_UM`; and what was measured, as JSON values.

    Args:
        finder: finds cells and measures the scale of a field.
        pictures: uint8 RGB ``(height, width, 3)``.

    Raises:
        NoRedCellsError: the measurements are uncertain, or contradict each other.
    """
    scales = [finder.find(pixels, None).scale for pixels in pictures]
    if min(each.confidence for each in scales) < LEAST_CONFIDENCE:
        raise NoRedCellsError("the size of the red cells is uncertain in this field", hint=_HINT)
    diameters = [each.red_cell_px for each in scales]
    if max(diameters) > AGREE * min(diameters):
        raise NoRedCellsError(
            message(
                "the red cells seem to measure {low} px in one picture, {high} px in another",
                low=f"{min(diameters):.0f}",
                high=f"{max(diameters):.0f}",
            ),
            hint=_HINT,
        )
    diameter = float(np.median(diameters))
    return RED_CELL_UM / diameter, {"red_cell_px": round(diameter, 2), "pictures": len(scales)}
