"""Dice of a segmentation model file under changes of the microscope: the suite of the classifiers, on whole images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.images import open_rgb
from ...edge_runtime.masks import open_mask
from ...edge_runtime.vision.tiles import TileSegmenter
from ..evaluation.corruptions import CORRUPTIONS, SEVERITIES, SUITE, WorstCell, corrupted
from .assess import answer_of, mean_dice
from .images import MaskedImages
from .results import DiceUnderCorruption, MaskRobustness


def robustness_of_masks(
    segmenter: TileSegmenter, images: MaskedImages, progress: Progress, kinds: Sequence[str] = tuple(CORRUPTIONS)
) -> MaskRobustness:
    """Mean Dice of nucleus and whole cell under every corruption at every severity.

    Raises:
        ImageError: an image cannot be read.
    """
    dice = np.zeros((len(kinds), len(SEVERITIES), len(images.entries)))
    with progress.task("robustness", dice.size) as advance:
        done = 0
        for number, entry in enumerate(images.entries):
            image = open_rgb(images.root / entry.path)
            truth = open_mask(images.root / str(entry.mask), image.size)
            for row, kind in enumerate(kinds):
                for column, severity in enumerate(SEVERITIES):
                    changed = corrupted(image, kind, severity, entry.sha256)
                    answer = answer_of(segmenter, entry, changed, images.spec)
                    dice[row, column, number] = mean_dice(truth, answer.classes)
                    done += 1
                    advance(done, f"{kind} {severity}")
    return summary(kinds, dice)


def summary(kinds: Sequence[str], dice: NDArray[np.float64]) -> MaskRobustness:
    """The result from the Dice of every image: ``(kinds, severities, images)``."""
    cells = dice.mean(axis=2)
    row, column = (int(place) for place in np.unravel_index(int(cells.argmin()), cells.shape))
    return MaskRobustness(
        suite=SUITE,
        metric="dice",
        images=dice.shape[2],
        mean=float(cells.mean()),
        worst=float(cells.min()),
        worst_at=WorstCell(kinds[row], SEVERITIES[column]),
        by_corruption={
            kind: DiceUnderCorruption(float(cells[number].mean()), cells[number].tolist())
            for number, kind in enumerate(kinds)
        },
    )
