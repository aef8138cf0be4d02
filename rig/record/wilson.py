"""The interval of a fraction."""

from __future__ import annotations

import math


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of the fraction ``count / total``; ``total`` at least 1. Source: Wilson 1927."""
    z = 1.959963984540054
    fraction, square = count / total, z * z
    middle = (fraction + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(fraction * (1 - fraction) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
