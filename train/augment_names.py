"""Reads the value of ``augment``: the name of an augmentation, or a list of its steps."""

from __future__ import annotations

from ..edge_runtime.errors import UsageError
from .config import AUGMENT_STEPS, AUGMENTS


def augment_steps(text: str) -> dict[str, float | None] | None:
    """The steps of a list as in ``rotation,crop:0.7``, each with its share of the images; None: the step's default.

    Returns:
        None for the name of an augmentation.

    Raises:
        UsageError: an unknown name or step, a step given twice, or a share outside (0, 1].
    """
    if text in AUGMENTS:
        return None
    steps: dict[str, float | None] = {}
    for part in text.split(","):
        name, colon, given = part.strip().partition(":")
        if name not in AUGMENT_STEPS:
            raise UsageError(
                f"--augment {text}: no augmentation called {name!r}",
                hint=f"choose one of {', '.join(AUGMENTS)}, or a list of {', '.join(AUGMENT_STEPS)}",
            )
        if name in steps:
            raise UsageError(f"--augment {text}: {name} is given twice", hint="give each step once")
        try:
            share = float(given) if colon else None
        except ValueError:
            share = float("nan")
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--augment {text}: the share of {name} must be in (0, 1]", hint=f"as in {name}:0.7")
        steps[name] = share
    return steps
