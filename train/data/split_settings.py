"""How to split a data set, as the command line names it."""

from __future__ import annotations

from dataclasses import dataclass

from ...edge_runtime.errors import UsageError
from .blocks import EMBARGO

VAL_FRAC, TEST_FRAC = 0.1, 0.15
"""Default shares of the validation and the test subset."""


@dataclass(frozen=True)
class SplitSettings:
    """How to split.

    Attributes:
        by: ``laboratory``: the test subset is the laboratory that ``fold`` numbers, by name (images with masks only);
            ``subject``; ``block``: every subset has contiguous ranges of the file numbers, see
            `edgeall.train.data.blocks.place_blocks`; ``image``; ``auto``: subject if every image has one, else block
            if files are numbered and that leaves every class in every subset and half of the images to train on,
            else image.
        val_frac: share of the images for validation, in (0, 1).
        test_frac: share of the images for testing, in (0, 1); not used with ``fold``, where it is 1/k.
        seed: any non-negative integer.
        fold: (i, k), counted from 1: the test subset is fold i of k. The k test subsets do not overlap and cover all.
        embargo: by block, images of one series in different subsets differ by more than this many file numbers.
    """

    by: str = "auto"
    val_frac: float = VAL_FRAC
    test_frac: float = TEST_FRAC
    seed: int = 0
    fold: tuple[int, int] | None = None
    embargo: int = EMBARGO


def check_embargo(by: str, embargo: int | None) -> None:
    """Raise UsageError for an embargo with a ``--split-by`` that makes no blocks."""
    if embargo is not None and by in ("laboratory", "subject", "image"):
        raise UsageError(
            f"--embargo {embargo} with --split-by {by}: only blocks of file numbers have an embargo",
            hint="remove it, or use --split-by block",
        )


def check_split_settings(settings: SplitSettings) -> None:
    """Raise UsageError for invalid settings."""
    test_frac = settings.test_frac
    if settings.fold is not None:
        number, count = settings.fold
        if count < 2 or not 1 <= number <= count:
            raise UsageError(f"no fold {number} of {count}", hint="folds count from 1: --fold 1/5 to --fold 5/5")
        test_frac = 1.0 / count
    if not (0.0 < settings.val_frac < 1.0 and 0.0 < test_frac < 1.0 and settings.val_frac + test_frac < 1.0):
        raise UsageError(
            f"validation {settings.val_frac:g} and test {test_frac:g} of the images leave nothing to train on",
            hint="both must be above 0 and their sum below 1",
        )
    if settings.seed < 0:
        raise UsageError(f"seed {settings.seed} is negative", hint="use 0 or more")
    if settings.embargo < 0:
        raise UsageError(f"embargo {settings.embargo} is negative", hint="use 0 or more file numbers")
