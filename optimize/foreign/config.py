"""Settings of `edgeall pack`, named as on the command line. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...edge_runtime.errors import UsageError
from ...train.imports.config import ForeignSettings

SCHEMES = ("float32", "float16", "dynamic", "ptq-int8")
"""Conversions of a SavedModel, as in `edgeall.optimize.quantization.schemes`."""
INTEGER = SCHEMES[-1]
"""The one that a float ``.tflite`` can be quantized to."""


@dataclass(frozen=True, kw_only=True)
class PackConfig(ForeignSettings):
    """Settings of `edgeall.optimize.foreign.packing.pack_foreign`.

    The model is a ``.tflite`` that edgeall did not pack, or a SavedModel folder. Without ``labels`` they are those in
    the file.

    Attributes:
        scheme: one of `SCHEMES`. Required for a SavedModel; of a float ``.tflite``, only `INTEGER`.
        max_drop: largest accepted loss of test accuracy against the float model, in percentage points; with `INTEGER`.
        auto_float: where more is lost on the validation subset, leave as few layers as it takes in float.
        target_sensitivity: see `edgeall.edge_runtime.tools.decisions.review_rule`.
        review_budget: largest share of images sent to review as uncertain; 0: no rule.
    """

    scheme: str | None = field(default=None, metadata={"choices": SCHEMES})
    max_drop: float | None = None
    auto_float: bool = False
    target_sensitivity: float | None = None
    review_budget: float | None = None

    @property
    def integer(self) -> bool:
        """Whether the model is quantized to int8."""
        return self.scheme == INTEGER

    @property
    def remedies(self) -> tuple[str, ...]:
        """Options that may lower the drop: none, since nothing is trained."""
        return ()

    def check(self) -> None:
        """Raise UsageError for settings that exclude each other, or an ``out`` that exists."""
        super().check()
        if self.out.exists() and not self.force:
            raise UsageError(f"{self.out}: exists", hint="choose another --out, or --force to overwrite it")
        if self.scheme not in (None, INTEGER) and not self.model.is_dir():
            raise UsageError(
                f"--scheme {self.scheme}: {self.model} is converted already",
                hint=f"leave --scheme out; a float model can be quantized with --scheme {INTEGER}",
            )
        if self.scheme is None and self.model.is_dir():
            raise UsageError(f"{self.model}: a SavedModel is converted first", hint="--scheme ptq-int8, for example")
        if self.max_drop is not None and not self.integer:
            raise UsageError(f"--max-drop requires --scheme {INTEGER}", hint="the other schemes are not compared")
        if self.auto_float and self.max_drop is None:
            raise UsageError("--auto-float without --max-drop", hint="give the allowed drop, as in --max-drop 0.5")
