"""The settings of an import, named as on the command line.

Imports nothing heavy: `edgeall import --help` must be instant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...edge_runtime.errors import UsageError
from ..config import AUGMENTS, SplitOptions

CONVENTIONS = ("0..1", "-1..1", "caffe", "torch", "0..255")
"""The keys of `edgeall.train.imports.conventions.CONVENTIONS`."""


@dataclass(frozen=True, kw_only=True)
class ForeignSettings(SplitOptions):
    """What is said of a model that was trained elsewhere.

    Attributes:
        model: its file or folder.
        data: folder or CSV manifest of labelled images.
        out: what is written.
        labels: file with one label per output, in order.
        normalization: one of `CONVENTIONS`, the model's normalization; see also ``mean`` and ``normalized_inside``.
        mean: the model's input is ``(pixel - mean) / std``; one number, or three for red, green and blue.
        std: see ``mean``.
        normalized_inside: the model takes pixels in 0..255.
        input_size: pixels; for a model without a fixed input size.
        split: a ``split.json``, or a run that has one, to use instead of a new split.
        force: whether ``out`` is overwritten.
    """

    model: Path
    data: Path
    out: Path
    labels: Path | None = None
    normalization: str | None = field(default=None, metadata={"choices": CONVENTIONS})
    mean: str | None = None
    std: str | None = None
    normalized_inside: bool = False
    input_size: int | None = None
    split: Path | None = None
    force: bool = False

    def check(self) -> None:
        """Raise UsageError for settings that exclude each other."""
        given = self.mean is not None or self.std is not None
        if sum((given, self.normalization is not None, self.normalized_inside)) > 1:
            raise UsageError("--normalization, --mean with --std, and --normalized-inside exclude each other")


@dataclass(frozen=True, kw_only=True)
class ImportSettings(ForeignSettings):
    """The settings of `edgeall.train.imports.importing.import_model`.

    The model is a ``.keras``, ``.h5`` or SavedModel, ``out`` the run folder. Without ``labels`` they are the classes of
    the data, sorted.

    Attributes:
        augment: a key of `edgeall.train.augment.AUGMENTS`, for what trains the network further.
    """

    augment: str = field(default="microscope", metadata={"choices": AUGMENTS})
