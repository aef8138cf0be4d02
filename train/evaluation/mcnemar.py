"""McNemar's exact test of two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ...edge_runtime.results import Result


@dataclass(frozen=True)
class McNemar(Result):
    """Images that only one of two models gets right, and the two-sided p value, 1 if the models never differ."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of the difference between two models on the same images.

    Args:
        first: whether the first model is right, for each image, ``(n,)``.
        second: the same for the second model.

    Source: Q. McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages"; the exact form is a binomial test.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p_value)
