"""Chooses the level of a split, keeps subjects and duplicates together, and checks that every class can be split."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.vision.cells import field_stem
from .blocks import is_numbered, place_blocks
from .duplicates import Duplicates, connected
from .partition import partition
from .scan import Scan
from .split_settings import SplitSettings
from .subsets import NOWHERE, SUBSETS, TEST, TRAIN, VALIDATION

_NUMBERED_FRAC = 0.9
"""Files count as numbered if this share of the images of every class has a neighbour in the numbering."""

_TRAIN_FRAC = 0.5
"""``auto`` does not split by block if less than this share of the images is left to train on."""


@dataclass(frozen=True)
class Pool:
    """The images to split, with their duplicates."""

    scan: Scan
    duplicates: Duplicates

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""
        return self.scan.dataset.labels

    @cached_property
    def target(self) -> NDArray[np.intp]:
        """Class index of each image, (n,)."""
        return np.array([self.labels.index(item.sample.label) for item in self.scan.facts])


@dataclass(frozen=True)
class Assignment:
    """The subset of each image: an index into `SUBSETS`, or `NOWHERE` with one of `split.REASONS`."""

    subset: NDArray[np.intp]
    reason: Sequence[str | None]


def choose_level(scan: Scan, by: str) -> str:
    """The level ``by``. For ``auto`` the strongest level that the file names allow; ``block`` may still not fit."""
    known = sum(item.sample.subject is not None for item in scan.facts)
    if by == "auto":
        if known == len(scan.facts):
            return "subject"
        return "block" if _all_numbered(scan) else "image"
    if by == "subject" and known < len(scan.facts):
        missing = next(item.sample.path for item in scan.facts if item.sample.subject is None)
        raise UsageError(
            f"--split-by subject: {len(scan.facts) - known} of {len(scan.facts)} images have no subject ({missing})",
            hint="use --split-by block or image, or list the subjects in a CSV manifest",
        )
    if by == "laboratory" and scan.facts[0].sample.mask is None:
        raise UsageError(
            "--split-by laboratory: only images with masks name their laboratory", hint="use subject, block or image"
        )
    if by not in ("laboratory", "subject", "block", "image"):
        raise UsageError(f"no split called {by!r}", hint="choose one of auto, laboratory, subject, block, image")
    return by


def _all_numbered(scan: Scan) -> bool:
    try:
        near = is_numbered([item.sample.path for item in scan.facts])
    except UsageError:  # a name without a number
        return False
    label = np.array([item.sample.label for item in scan.facts])
    return all(near[label == one].mean() >= _NUMBERED_FRAC for one in scan.dataset.labels)


def group_numbers(pool: Pool, keep_subjects: bool) -> NDArray[np.intp]:
    """A group number for each image, (n,). Images of one group must be in the same subset.

    These are near duplicates, the crops of one field, and with ``keep_subjects`` the images of one subject.
    """
    facts = pool.scan.facts
    links = [(a, b) for group in pool.duplicates.near for a, b in itertools.pairwise(group)]
    links += _link_equal([_field_of(item.sample.path) for item in facts])
    if keep_subjects:
        links += _link_equal([item.sample.subject for item in facts])
    number = np.arange(len(facts))
    for group in connected(len(facts), links):
        number[list(group)] = group[0]
    return number


def _field_of(path: str) -> str | None:
    """The field that a crop was cut from; None for another image."""
    pure = PurePosixPath(path)
    stem = field_stem(pure.stem)
    return None if stem == pure.stem else f"{pure.parent}/{stem}"


def _link_equal(keys: list[Any]) -> list[tuple[int, int]]:
    """Link each image to the previous one with the same key. None links nothing."""
    last: dict[Any, int] = {}
    links = []
    for index, key in enumerate(keys):
        if key is not None:
            if key in last:
                links.append((last[key], index))
            last[key] = index
    return links


def assign_blocks(pool: Pool, settings: SplitSettings) -> Assignment:
    """Assign contiguous ranges of the numbering, then leave out duplicates and subjects that lie in two subsets."""
    facts = pool.scan.facts
    paths = [item.sample.path for item in facts]
    fractions = (settings.val_frac, settings.test_frac)
    subset = place_blocks(paths, pool.target, fractions, settings.embargo, settings.seed, settings.fold)
    reason: list[str | None] = ["embargo" if number == NOWHERE else None for number in subset]
    subjects = connected(len(paths), _link_equal([item.sample.subject for item in facts]))
    for why, found in (("duplicate", pool.duplicates.near), ("subject", subjects)):
        for group in found:
            members = np.array(group)
            where = subset[members]
            kept = next((one for one in (TEST, VALIDATION) if (where == one).any()), TRAIN)
            for index in members[(where != kept) & (where != NOWHERE)].tolist():
                subset[index], reason[index] = NOWHERE, why
    return Assignment(subset, reason)


def leave_laboratory_out(pool: Pool, settings: SplitSettings) -> Assignment:
    """One laboratory is the test subset; of each other one, a share is the validation subset.

    Images that duplicate or show the subject of an image of the test subset are left out.
    """
    count = len(pool.labels)
    if count < 2:
        raise DataError(f"{pool.scan.dataset.root}: only one laboratory", hint="use --split-by block or image")
    if settings.fold is None or settings.fold[1] != count:
        raise UsageError(
            f"--split-by laboratory requires --fold I/{count}: laboratory I is the test subset",
            hint=f"in this order: {', '.join(pool.labels)}",
        )
    group = group_numbers(pool, keep_subjects=True)
    subset = np.full(len(pool.target), TEST)
    others = pool.target != settings.fold[0] - 1
    if len(np.unique(group[others])) < len(SUBSETS) - 1:
        raise DataError(
            f"{pool.scan.dataset.root}: the images of the other laboratories are one group of duplicates or subjects",
            hint="add images of them",
        )
    shares = (1.0 - settings.val_frac, settings.val_frac)
    subset[others] = partition(pool.target[others], group[others], shares, settings.seed)
    repeated = others & np.isin(group, group[~others])
    subset[repeated] = NOWHERE
    return Assignment(subset, ["duplicate" if one else None for one in repeated])


def block_fault(pool: Pool, blocks: Assignment, subsets: tuple[str, ...] = SUBSETS) -> str | None:
    """Why ``auto`` does not use these blocks; None if it does."""
    missing = missing_class(pool, blocks.subset, subsets)
    if missing is not None:
        return f"class {missing[0]} has no image in the {missing[1]} subset"
    left, count = int((blocks.subset == TRAIN).sum()), len(blocks.subset)
    return None if left >= _TRAIN_FRAC * count else f"only {left:,} of {count:,} images are left to train on"


def missing_class(pool: Pool, subset: NDArray[np.intp], subsets: tuple[str, ...] = SUBSETS) -> tuple[str, str] | None:
    """The first class that is not in every subset, and that subset."""
    target = pool.target
    for number, label in enumerate(pool.labels):
        for index, name in enumerate(subsets):
            if not ((target == number) & (subset == index)).any():
                return label, name
    return None


def check_groups(pool: Pool, group: NDArray[np.intp], level: str, needed: int) -> None:
    """Raise DataError for a class with fewer than ``needed`` groups."""
    target = pool.target
    for number, label in enumerate(pool.labels):
        members = np.nonzero(target == number)[0]
        found = len(np.unique(group[members]))
        if found < needed:
            subjects = len({pool.scan.facts[index].sample.subject for index in members})
            raise DataError(
                f"class {label} cannot be in every subset: {_group_text(len(members), found, level, subjects)}, "
                f"but {needed} independent groups are needed",
                hint="add images of it, or leave the class out",
            )


def _group_text(images: int, found: int, level: str, subjects: int) -> str:
    if level == "subject":
        joined = f", joined to {found} by duplicates" if found < subjects else ""
        return f"its images come from {subjects} subject{'s' * (subjects != 1)}{joined}"
    if images == found:
        return f"it has {images} image{'s' * (images != 1)}"
    return f"its {images} images form {found} group{'s' * (found != 1)} of duplicates"
