"""Paired comparison of two segmentation networks on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from ...console.tables import record
from ...edge_runtime.results import SPREAD, Result
from ..evaluation.bootstrap import difference_interval


@dataclass(frozen=True)
class Wilcoxon(Result):
    """Images on which one of two networks has the higher Dice, and the two-sided p value; 1 if they never differ."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class PairedMasks(Result):
    """Comparison with another segmentation network on the same images.

    Attributes:
        model: path of the other one; ``dice`` is its mean Dice of nucleus and whole cell.
        gain: by how much the Dice of the first network is higher, with the paired 95 % interval ``gain_ci95`` by
            ``ci_unit``.
        test: see `Wilcoxon`.
    """

    model: str
    dice: float
    gain: float
    gain_ci95: list[float]
    ci_unit: str
    test: Wilcoxon = field(metadata=SPREAD)


def signed_ranks(first: NDArray[np.float64], second: NDArray[np.float64]) -> Wilcoxon:
    """Wilcoxon's signed-rank test of two networks' Dice on the same images, each ``(images,)``.

    Source: F. Wilcoxon, Individual comparisons by ranking methods, 1945.
    """
    higher, lower = int((first > second).sum()), int((first < second).sum())
    p_value = float(wilcoxon(first, second).pvalue) if higher + lower else 1.0
    return Wilcoxon(higher, lower, p_value)


def paired_masks(
    path: str, first: NDArray[np.float64], second: NDArray[np.float64], subjects: Sequence[str | None], seed: int
) -> PairedMasks:
    """Compare the Dice of two networks.

    Args:
        path: of the other network.
        first: Dice of each image, ``(images,)``.
        second: the same by the other network.
        subjects: of each image.
        seed: of the bootstrap.
    """
    ends, unit = difference_interval(first, second, subjects, seed)
    gain = float(first.mean() - second.mean())
    return PairedMasks(path, float(second.mean()), gain, ends, unit, signed_ranks(first, second))


def paired_text(found: PairedMasks) -> str:
    """`paired_masks` as a table."""
    low, high = found.gain_ci95
    test = "Wilcoxon's signed-rank test"
    if found.ci_unit != "image":
        test += ", which treats the images of a subject as independent"
    return record(
        {
            "against": f"{found.model}: Dice {found.dice:.4f}",
            "gain": f"{found.gain:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, paired, by {found.ci_unit})",
            "higher Dice": f"on {found.test.only_first:,} images, the other model on {found.test.only_second:,}",
            "p": f"{found.test.p_value:.4f} ({test})",
        }
    )
