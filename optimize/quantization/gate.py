"""The error of a quantization that loses more than ``--max-drop``."""

from __future__ import annotations

from ...edge_runtime.errors import GateError
from .config import QuantizeConfig
from .result import AutoFloat


def gate_error(config: QuantizeConfig, lost: str, task: str, auto_float: AutoFloat | None) -> GateError:
    """The error of a gate that was not met.

    Args:
        config: of the quantization, with ``max_drop``.
        lost: what the model loses, as in "2.50 points of test accuracy".
        task: its name.
        auto_float: the search for float layers, if there was one.
    """
    tried = "" if auto_float is None else f" ({auto_float.tried(task)})"
    others = "--auto-float, " if config.integer and auto_float is None else ""
    return GateError(
        f"{config.scheme} loses {lost}, more than --max-drop {config.max_drop:g}{tried}; {config.out} was not written",
        hint=f"try {others}--scheme qat-int8, more --epochs, or a larger --max-drop",
    )
