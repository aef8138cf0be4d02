"""The Pareto front against its definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeall.optimize.experiments.pareto import front

NUMBER = st.integers(0, 6).map(float) | st.floats(allow_nan=True, width=16)
"""Small whole numbers, so that ties are common, and any others."""


@given(st.lists(st.tuples(NUMBER, NUMBER), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    known = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]

    def dominated(index: int) -> bool:
        cost, value = points[index]
        return any(
            points[other][0] <= cost and points[other][1] >= value and points[other] != points[index] for other in known
        )

    found = front(points)

    assert sorted(found) == [index for index in known if not dominated(index)]
    assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([], []),
        ([(2.0, 0.9), (1.0, 0.9), (3.0, 0.95), (3.0, 0.94)], [1, 2]),
        ([(1.0, 0.9), (1.0, 0.9)], [0, 1]),
        ([(math.nan, 1.0), (5.0, 0.1)], [1]),
    ],
)
def test_examples(points: list[tuple[float, float]], wanted: list[int]) -> None:
    assert front(points) == wanted
