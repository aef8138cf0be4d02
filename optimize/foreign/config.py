"""Settings of `edgeall pack`, named as on the command line. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...edge_runtime.errors import UsageError
from ...train.imports.config import ForeignSettings

SCHEMES = ("float32", "float16", "dynamic", "ptq-int8")
"""Conversions of a SavedModel, as in `edgeall.optimize.quantization.schemes`."""


@dataclass(frozen=True, kw_only=True)
class PackConfig(ForeignSettings):
    """Settings of `edgeall.optimize.foreign.packing.pack_foreign`.

    The model is a ``.tflite`` that edgeall did not pack, or a SavedModel folder. Without ``labels`` they are those in
    the file.

    Attributes:
        scheme: one of `SCHEMES`; of a SavedModel only, where it is required.
        target_sensitivity: see `edgeall.edge_runtime.tools.decisions.review_rule`.
        review_budget: largest share of images sent to review as uncertain; 0: no rule.
    """

    scheme: str | None = field(default=None, metadata={"choices": SCHEMES})
    target_sensitivity: float | None = None
    review_budget: float | None = None

    def check(self) -> None:
        """Raise UsageError for settings that exclude each other, or an ``out`` that exists."""
        super().check()
        if self.out.exists() and not self.force:
            raise UsageError(f"{self.out}: exists", hint="choose another --out, or --force to overwrite it")
        if self.scheme is not None and not self.model.is_dir():
            raise UsageError(f"--scheme {self.scheme}: {self.model} is converted already", hint="leave --scheme out")
        if self.scheme is None and self.model.is_dir():
            raise UsageError(f"{self.model}: a SavedModel is converted first", hint="--scheme ptq-int8, for example")
