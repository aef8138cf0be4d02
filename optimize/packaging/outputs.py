"""What the outputs of each task's model mean to other programs, and how golden images record them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.bundle import GOLDEN_FOLDER
from ...edge_runtime.classifier import probabilities_index
from ...edge_runtime.errors import BundleError
from ...edge_runtime.flatbuffer import Graph, Tensor
from ...edge_runtime.masks import class_counts, mask_image
from ...edge_runtime.segmenter import Segmentation, mask_index
from ...edge_runtime.tools.golden_images import RawScores

_SECOND = {2: "features", 4: "feature map"}
"""Name of a classifier's second output, by its rank."""


@dataclass(frozen=True)
class GoldenEntry:
    """How the archive records a golden image: its facts in ``golden.json``, and further members of the archive."""

    facts: dict[str, Any]
    members: dict[str, bytes]


@dataclass(frozen=True)
class Outputs:
    """The outputs of one task's model.

    Attributes:
        first: index of the tensor of the first output; raises BundleError for another network.
        name: of the first output in the TFLite metadata.
        second: name of the second output, from its tensor.
        record: the entry of a golden image, from its file name, the model's answer, the tensor of the first output
            and the name of the image for errors.
    """

    first: Callable[[Graph, str], int]
    name: str
    second: Callable[[Tensor], str]
    record: Callable[[str, Any, Tensor, str], GoldenEntry]


def _record_scores(file: str, answer: Any, output: Tensor, name: str) -> GoldenEntry:
    raw = isinstance(answer, RawScores)
    values = np.asarray(answer.probabilities if raw else answer, np.float32)
    if raw:
        units = [int(unit) for unit in answer.units] if output.type in ("UINT8", "INT8") else None
    else:
        units = _units(values, output, name)
    return GoldenEntry({"probabilities": [float(value) for value in values], "units": units}, {})


def _units(probabilities: NDArray[np.float32], output: Tensor, name: str) -> list[int] | None:
    if output.type not in ("UINT8", "INT8"):
        return None
    scale, zero_point = output.scale[0], output.zero_point[0]
    units = np.rint(probabilities / scale).astype(int) + zero_point
    if np.abs((units - zero_point) * scale - probabilities).max() > scale / 1000:
        raise BundleError(f"{name}: its probabilities are impossible outputs of this integer model")
    return [int(unit) for unit in units]


def _record_mask(file: str, answer: Segmentation, output: Tensor, name: str) -> GoldenEntry:
    classes = answer.classes
    content = io.BytesIO()
    mask_image(classes).save(content, "PNG", optimize=True)
    mask = f"{file.removesuffix('.png')}.mask.png"
    facts = {"mask": mask, "pixels": class_counts(classes), "red_cell": answer.red_cell}
    return GoldenEntry(facts, {GOLDEN_FOLDER + mask: content.getvalue()})


OUTPUTS = {
    "classification": Outputs(
        probabilities_index, "probability", lambda tensor: _SECOND[len(tensor.shape)], _record_scores
    ),
    "segmentation": Outputs(mask_index, "mask", lambda tensor: "red cell", _record_mask),
}
"""By the task of the manifest."""
