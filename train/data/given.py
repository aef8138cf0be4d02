"""Data sets that come split: the subsets are used as given, and a missing validation subset is taken from train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import DataError, UsageError
from .duplicates import Duplicates
from .grouping import (
    Assignment,
    Pool,
    assign_blocks,
    block_fault,
    check_groups,
    choose_level,
    group_numbers,
    missing_class,
)
from .partition import partition
from .scan import Scan
from .split import Split, make_entries
from .split_settings import TEST_FRAC, VAL_FRAC, SplitSettings
from .subsets import LEFT_OUT, SUBSETS, TRAIN, VALIDATION


def split_as_given(pool: Pool, settings: SplitSettings, note: Callable[[str], None] | None) -> Split:
    """The split that the data set comes with. Arguments and errors: see `edgeall.train.data.make_split.make_split`."""
    facts, root = pool.scan.facts, pool.scan.dataset.root
    subset = np.array([SUBSETS.index(item.sample.side or "train") for item in facts])
    has_validation = bool((subset == VALIDATION).any())
    _check_settings(pool, settings, has_validation)
    reason: list[str | None] = [None] * len(subset)
    level = None
    if not has_validation:
        members = np.flatnonzero(subset == TRAIN)
        share = settings.val_frac * len(subset) / max(len(members), 1)
        level, taken = _split_validation(pool, members, replace(settings, val_frac=share, test_frac=0.0), note)
        subset[members] = taken.subset
        for index, why in zip(members.tolist(), taken.reason, strict=True):
            reason[index] = why
    missing = missing_class(pool, subset)
    if missing is not None:
        raise DataError(
            f"{root}: the data set comes split, but class {missing[0]} has no image in its {missing[1]} subset",
            hint="add images of it there, or leave the class out",
        )
    entries = make_entries(facts, subset, reason)
    across = tuple(
        tuple(entries[index].path for index in group)
        for group in pool.duplicates.near
        if len({entries[index].side for index in group} - {LEFT_OUT}) > 1
    )
    return Split(
        "given",
        settings.seed,
        pool.labels,
        pool.scan.digest,
        entries,
        exact_duplicates=pool.duplicates.exact_count,
        near_duplicates=pool.duplicates.near_count,
        embargo=settings.embargo if level == "block" else None,
        across=across,
        validation_by=level,
    )


def _check_settings(pool: Pool, settings: SplitSettings, has_validation: bool) -> None:
    asked = {
        "--split-by": settings.by != "auto",
        "--fold": settings.fold is not None,
        "--val-frac": has_validation and settings.val_frac != VAL_FRAC,
        "--test-frac": settings.test_frac != TEST_FRAC,
    }
    refused = [name for name, is_given in asked.items() if is_given]
    if refused:
        raise UsageError(
            f"{pool.scan.dataset.root}: the data set comes split, which conflicts with {', '.join(refused)}",
            hint="remove the option; to split again, remove the column side, or put each class into one folder",
        )


def _split_validation(
    pool: Pool, members: NDArray[np.intp], settings: SplitSettings, note: Callable[[str], None] | None
) -> tuple[str, Assignment]:
    """Divide some images into train and validation, by the level that ``auto`` chooses.

    Args:
        pool: all images.
        members: indices of the images to divide.
        settings: ``val_frac`` is the share of ``members``.
        note: see `make_split`.
    """
    share = settings.val_frac
    if share >= 1:
        raise UsageError(
            f"--val-frac: {share:.0%} of the train subset leaves nothing to train on", hint="use a smaller fraction"
        )
    some = _part(pool, members)
    level = choose_level(some.scan, "auto")
    if level == "block":
        blocks = assign_blocks(some, settings)
        fault = block_fault(some, blocks, SUBSETS[:2])
        if fault is None:
            return level, blocks
        level = "image"
        if note:
            note(f"validation is taken from train by image: with an embargo of {settings.embargo} file numbers {fault}")
    group = group_numbers(some, keep_subjects=True)
    check_groups(some, group, level, needed=2)
    subset = partition(some.target, group, (1.0 - share, share), settings.seed)
    return level, Assignment(subset, [None] * len(subset))


def _part(pool: Pool, members: NDArray[np.intp]) -> Pool:
    """Some images of a pool."""
    place = {int(index): number for number, index in enumerate(members)}
    facts = tuple(pool.scan.facts[index] for index in members)
    labels = tuple(sorted({item.sample.label for item in facts}))
    dataset = replace(pool.scan.dataset, labels=labels, samples=tuple(item.sample for item in facts))
    near = tuple(tuple(place[index] for index in group if index in place) for group in pool.duplicates.near)
    return Pool(Scan(dataset, facts), Duplicates((), tuple(group for group in near if len(group) > 1), ()))
