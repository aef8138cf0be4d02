"""The Pareto front of cost and value."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point dominates, in order of cost.

    Args:
        points: ``(cost, value)``: a lower cost is better (milliseconds, bytes), a higher value is better (accuracy).

    A point dominates another if it is no worse in both and better in one. Points that are equal in both do not
    dominate each other; all of them are returned, in their order in ``points``. A point with a NaN is never on the
    front.
    """
    known = [index for index, point in enumerate(points) if not any(math.isnan(number) for number in point)]
    chosen: list[int] = []
    for index in sorted(known, key=lambda index: (points[index][0], -points[index][1], index)):
        # Sorted by cost: a later point costs at least as much, so its value has to be higher.
        if not chosen or points[index][1] > points[chosen[-1]][1] or points[index] == points[chosen[-1]]:
            chosen.append(index)
    return chosen
