"""The error of a quantization that loses more than ``--max-drop``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ...edge_runtime.errors import GateError
from .result import AutoFloat


class Gated(Protocol):
    """Settings of a quantization with a gate: those of `edgeall quantize` or `edgeall pack`."""

    @property
    def scheme(self) -> str | None:
        """What the model is quantized to."""

    @property
    def max_drop(self) -> float | None:
        """The largest accepted drop."""

    @property
    def out(self) -> Path:
        """The packed model."""

    @property
    def remedies(self) -> tuple[str, ...]:
        """Options that may lower the drop, besides ``--auto-float``."""

    @property
    def integer(self) -> bool:
        """Whether layers can be left in float."""


def gate_error(config: Gated, lost: str, task: str, auto_float: AutoFloat | None) -> GateError:
    """The error of a gate that was not met.

    Args:
        config: with ``max_drop``.
        lost: what the model loses, as in "2.50 points of test accuracy".
        task: its name.
        auto_float: the search for float layers, if there was one.
    """
    tried = "" if auto_float is None else f" ({auto_float.tried(task)})"
    others = ("--auto-float",) if config.integer and auto_float is None else ()
    ways = [*others, *config.remedies, "a larger --max-drop"]
    return GateError(
        f"{config.scheme} loses {lost}, more than --max-drop {config.max_drop:g}{tried}; {config.out} was not written",
        hint=f"try {ways[0]}" if len(ways) == 1 else f"try {', '.join(ways[:-1])}, or {ways[-1]}",
    )
