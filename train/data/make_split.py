"""Splits images into train, validation and test, so that no subject and no duplicate is in two subsets.

Images that must stay together form a group: the images of a subject, and duplicates. Groups are assigned by
scikit-learn's ``StratifiedGroupKFold``. Numbered files without known subjects are cut into contiguous ranges of their
numbering instead (`edgeall.train.data.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...edge_runtime.errors import DataError
from .duplicates import Duplicates, groups
from .given import split_as_given
from .grouping import (
    Assignment,
    Pool,
    assign_blocks,
    block_fault,
    check_groups,
    choose_level,
    group_numbers,
    leave_laboratory_out,
    missing_class,
)
from .partition import partition, partition_fold
from .scan import Scan
from .split import Split, make_entries
from .split_settings import SplitSettings, check_split_settings
from .subsets import SUBSETS


def make_split(
    scan: Scan,
    settings: SplitSettings | None = None,
    *,
    duplicates: Duplicates | None = None,
    note: Callable[[str], None] | None = None,
) -> Split:
    """Assign the images of ``scan`` to the three subsets, stratified by label.

    A data set that comes split is used as given. The settings then only apply to a missing validation subset.

    Exact and near duplicates are never in two subsets. Neither are the images of a known subject, except with an
    explicit ``by="image"``: reports call that split optimistic. By subject and by image, duplicates are assigned
    together. By block, they are left out of train, or of validation if the others are in test.

    Args:
        scan: the data.
        settings: see `SplitSettings`; None is the default.
        duplicates: of the scan, if they are already known.
        note: receives one line that says why ``auto`` did not split numbered files by block.

    Returns:
        A split with every class in every subset. It matches the fractions as closely as whole groups allow.

    Raises:
        UsageError: invalid settings, settings that conflict with a data set that comes split, or ``by="subject"`` or
            ``"block"`` for data without subjects or file numbers.
        DataError: fewer than two classes, or a class with too few groups to be in every subset.
    """
    settings = settings or SplitSettings()
    check_split_settings(settings)
    labels = scan.dataset.labels
    if len(labels) < 2 and scan.facts[0].sample.mask is None:
        raise DataError(
            f"{scan.dataset.root}: only one class ({', '.join(labels)})",
            hint="the folder must hold at least two class folders",
        )
    pool = Pool(scan, groups(scan) if duplicates is None else duplicates)
    if scan.facts[0].sample.side is not None:
        return split_as_given(pool, settings, note)
    level, assigned = _assign(pool, settings, note)
    if level != "laboratory":
        _check_classes(pool, assigned, level, settings.embargo)
    return Split(
        level,
        settings.seed,
        labels,
        scan.digest,
        make_entries(scan.facts, assigned.subset, assigned.reason),
        settings.fold,
        pool.duplicates.exact_count,
        pool.duplicates.near_count,
        embargo=settings.embargo if level == "block" else None,
    )


def _assign(pool: Pool, settings: SplitSettings, note: Callable[[str], None] | None) -> tuple[str, Assignment]:
    """The level that was used, and the subset of each image."""
    level = choose_level(pool.scan, settings.by)
    if level == "laboratory":
        return level, leave_laboratory_out(pool, settings)
    if level == "block":
        blocks = assign_blocks(pool, settings)
        fault = _auto_fault(pool, settings, blocks) if settings.by == "auto" else None
        if fault is None:
            return level, blocks
        level = "image"
        if note:
            note(
                f"numbered files, but not split by block: with an embargo of {settings.embargo} file numbers {fault}. "
                "Split by image, which is optimistic; change this with --split-by block and --embargo N"
            )
    group = group_numbers(pool, keep_subjects=settings.by != "image")
    fold, val_frac, test_frac = settings.fold, settings.val_frac, settings.test_frac
    check_groups(pool, group, level, needed=len(SUBSETS) if fold is None else max(len(SUBSETS), fold[1]))
    if fold is None:
        subset = partition(pool.target, group, (1.0 - val_frac - test_frac, val_frac, test_frac), settings.seed)
    else:
        subset = partition_fold(pool.target, group, val_frac, settings.seed, fold)
    return level, Assignment(subset, [None] * len(subset))


def _auto_fault(pool: Pool, settings: SplitSettings, blocks: Assignment) -> str | None:
    """Why ``auto`` does not split by block; None if it does. All folds of a cross-validation get the same level."""
    faults = [block_fault(pool, blocks)]
    if settings.fold is not None:
        number, count = settings.fold
        others = [(i, count) for i in range(1, count + 1) if i != number]
        faults += [block_fault(pool, assign_blocks(pool, replace(settings, fold=other))) for other in others]
    return next((fault for fault in faults if fault), None)


def _check_classes(pool: Pool, assigned: Assignment, level: str, embargo: int) -> None:
    missing = missing_class(pool, assigned.subset)
    if missing is None:
        return
    label, name = missing
    if level == "block":
        images = int((pool.target == pool.labels.index(label)).sum())
        raise DataError(
            f"class {label} has no image in the {name} subset: its {images} images have no room for contiguous blocks "
            f"with an embargo of {embargo} file numbers",
            hint="use a smaller --embargo, other fractions, or --split-by image",
        )
    raise DataError(
        f"class {label} has no image in the {name} subset: its {level} groups are too few or too large",
        hint="add images of it, change the fractions, or try another --seed",
    )
