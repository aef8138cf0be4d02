"""Settings of `edgeall pack`, named as on the command line. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...edge_runtime.errors import UsageError
from ...train.config import SplitOptions
from ...train.imports.config import CONVENTIONS

SCHEMES = ("float32", "float16", "dynamic", "ptq-int8")
"""Conversions of a SavedModel, as in `edgeall.optimize.quantization.schemes`."""


@dataclass(frozen=True, kw_only=True)
class PackConfig(SplitOptions):
    """Settings of `edgeall.optimize.foreign.packing.pack_foreign`.

    Attributes:
        model: a ``.tflite`` that edgeall did not pack, or a SavedModel folder.
        data: folder or CSV manifest of labelled images.
        out: file to write.
        labels: file with one label per output; None: those in the file.
        normalization: one of `CONVENTIONS`; see also ``mean`` and ``normalized_inside``.
        mean: as in `edgeall.train.imports.config.ImportSettings`, like ``std``.
        normalized_inside: the model takes pixels in 0..255.
        input_size: pixels, for a model without a fixed input size.
        scheme: one of `SCHEMES`; of a SavedModel only, where it is required.
        split: a ``split.json``, or a run that has one, to use instead of a new split.
        target_sensitivity: see `edgeall.edge_runtime.tools.decisions.review_rule`.
        review_budget: largest share of images sent to review as uncertain; 0: no rule.
        force: overwrite ``out``.
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
    scheme: str | None = field(default=None, metadata={"choices": SCHEMES})
    split: Path | None = None
    target_sensitivity: float | None = None
    review_budget: float | None = None
    force: bool = False

    def check(self) -> None:
        """Raise UsageError for settings that exclude each other, or an ``out`` that exists."""
        given = self.mean is not None or self.std is not None
        if sum((given, self.normalization is not None, self.normalized_inside)) > 1:
            raise UsageError("--normalization, --mean with --std, and --normalized-inside exclude each other")
        if self.out.exists() and not self.force:
            raise UsageError(f"{self.out}: exists", hint="choose another --out, or --force to overwrite it")
        if self.scheme is not None and not self.model.is_dir():
            raise UsageError(f"--scheme {self.scheme}: {self.model} is converted already", hint="leave --scheme out")
        if self.scheme is None and self.model.is_dir():
            raise UsageError(f"{self.model}: a SavedModel is converted first", hint="--scheme ptq-int8, for example")
