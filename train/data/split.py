"""Deals images out to train, validation and test so that nothing seen in one is seen again in another.

What must stay together forms a group: a subject's images, duplicates. Groups are dealt by scikit-learn's
``StratifiedGroupKFold``; numbered files whose subjects nobody knows are cut into stretches of their numbering instead
(`edgeall.train.data.blocks`). The result is written, with a digest of every image, to ``split.json``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import DataError, ImageError, UsageError
from ...edge_runtime.files import write_text
from ...edge_runtime.images import open_rgb
from .blocks import EMBARGO, NOWHERE, TEST, TRAIN, VALIDATION, numbered, place_blocks
from .dataset import load_dataset
from .duplicates import Duplicates, connected, groups
from .scan import Scan, hash_files

SIDES = ("train", "validation", "test")
LEFT_OUT = "left out"
"""The side of an image that is on none; it stays in the split, so that the data can still be checked."""

REASONS = ("embargo", "duplicate", "subject")
"""Why a split by blocks leaves an image out: too near to another side in the numbering; shows what an image of another
side shows, or its person."""

VAL_FRAC, TEST_FRAC = 0.1, 0.15
"""Shares of validation and test where nothing else is asked for."""

_SCHEMAS = (1, 2)
"""2 has the embargo, the reason why an image is left out, and the sides of a set that came split; a split without any
of these is still written as 1."""
_MOST_FOLDS = 20
_ATTEMPTS = 8
_GOOD = 0.02
"""A split whose classes are all within about so much of the wanted shares isn't improved on."""

_NUMBERED_FRAC = 0.9
"""Files are numbered where so many images of every class have a neighbour in the numbering."""

_TRAIN_FRAC = 0.5
"""``auto`` takes no blocks that leave less than this share of the images to train on."""


LEVEL_TEXTS = {
    "subject": "subject-level split",
    "block": "blocks of neighbouring file numbers",
    "image": "image-level split: optimistic",
    "given": "as given",
}


@dataclass(frozen=True)
class SplitEntry:
    """One image of a split. ``sha256`` is of the file's bytes; ``side`` is one of `SIDES`, or `LEFT_OUT`.

    ``reason`` is one of `REASONS` for an image that the split had to leave out, else None.
    """

    path: str
    label: str
    subject: str | None
    sha256: str
    side: str
    reason: str | None = None


@dataclass(frozen=True)
class Split:
    """Which image is on which side, and how that came about.

    Attributes:
        level: what was kept together besides duplicates: ``subject``, ``block`` or ``image`` (nothing); ``given``:
            the set came split.
        seed: the same scan, settings and seed give the same split.
        labels: sorted class names.
        dataset_sha256: `Scan.digest` of the data.
        entries: in the order of the scan, that is by path.
        fold: (i, k) where the test side is fold i of k, counted from 1.
        exact_duplicates: images that repeat the pixels of an earlier one.
        near_duplicates: images that resemble an earlier one.
        across: with level ``given``: groups of duplicates that lie on several sides, by path. They stay where they are.
        validation_by: with level ``given``: where the set came without a validation side, how one was taken from
            train: ``subject``, ``block`` or ``image``.
        embargo: with level ``block``, or `validation_by` block: images of one series on different sides differ by more
            than so many file numbers. None in an older split, whose blocks are runs of 20 numbers dealt at random.
    """

    level: str
    seed: int
    labels: tuple[str, ...]
    dataset_sha256: str
    entries: tuple[SplitEntry, ...]
    fold: tuple[int, int] | None = None
    exact_duplicates: int = 0
    near_duplicates: int = 0
    embargo: int | None = None
    across: tuple[tuple[str, ...], ...] = ()
    validation_by: str | None = None

    def side(self, name: str) -> tuple[SplitEntry, ...]:
        """The entries of ``train``, ``validation`` or ``test``; ``all`` is every one. Raises `UsageError` otherwise."""
        if name not in (*SIDES, "all"):
            raise UsageError(f"no side called {name!r}", hint=f"choose one of {', '.join(SIDES)}, all")
        return tuple(entry for entry in self.entries if name in (entry.side, "all"))

    @property
    def left_out(self) -> dict[str, int]:
        """How many images the split had to leave out, for each of `REASONS` that occurs."""
        counts = {reason: sum(entry.reason == reason for entry in self.entries) for reason in REASONS}
        return {reason: count for reason, count in counts.items() if count}

    @property
    def level_text(self) -> str:
        """What the split kept apart, in words for people."""
        text = LEVEL_TEXTS[self.level]
        if self.embargo is not None:
            count = sum(self.left_out.values())
            images = f"{count:,} image{'s' * (count != 1)} left out"
            text = f"contiguous blocks of file numbers, embargo {self.embargo}: {images}"
        if self.level != "given":
            return text
        said = ["as given"]
        if self.validation_by is not None:
            how = text if self.validation_by == "block" else LEVEL_TEXTS[self.validation_by]
            said.append(f"validation taken from train ({how})")
        if self.across:
            said.append(f"{len(self.across):,} group{'s' * (len(self.across) != 1)} of duplicates on several sides")
        return "; ".join(said)

    @property
    def sha256(self) -> str:
        """Digest of the whole split, the same for the same content however it is laid out in a file."""
        return hashlib.sha256(json.dumps(_as_json(self), sort_keys=True).encode()).hexdigest()


def make_split(
    scan: Scan,
    by: str = "auto",
    val_frac: float = VAL_FRAC,
    test_frac: float = TEST_FRAC,
    seed: int = 0,
    fold: tuple[int, int] | None = None,
    *,
    embargo: int = EMBARGO,
    duplicates: Duplicates | None = None,
    note: Callable[[str], None] | None = None,
) -> Split:
    """Deal the images of ``scan`` out to the three sides, stratified by label.

    A set that comes split is taken as it is; what follows then is only of a validation side that it lacks.

    Duplicates, exact and near, are never on two sides, and neither are the images of a known subject, except with an
    explicit ``by="image"``, which is the optimistic split that reports must call so. By subject and by image they are
    dealt together; by block those on train are left out, or those on validation where the others are on test.

    Args:
        scan: the data.
        by: ``subject``; ``block``: every side has whole stretches of the file numbers, see
            `edgeall.train.data.blocks.place_blocks`; ``image``; ``auto``: subject where every image has one, else block
            where files are numbered and that leaves every class on every side and half of the images to train on,
            else image.
        val_frac: share of the images for validation, in (0, 1).
        test_frac: share for the test side; not used with ``fold``, where it is 1/k.
        seed: any non-negative integer.
        fold: (i, k), counted from 1: the test side is fold i of k; the k test sides don't overlap and cover all.
        embargo: by block, images of one series on different sides differ by more than so many file numbers.
        duplicates: of the scan, where they are known already.
        note: told in one line why ``auto`` took no blocks of numbered files.

    Returns:
        A split with every class on every side. Fractions are met as nearly as whole groups allow.

    Raises:
        UsageError: an unknown level, fractions that leave nothing to train on, a fold outside 1..k, a negative
            embargo, a way of splitting for a set that comes split, or ``by="subject"`` or ``"block"`` where the data
            names no subjects or numbers.
        DataError: fewer than two classes, or a class with too few groups to be on every side.
    """
    _check_request(val_frac, test_frac, seed, fold, embargo)
    labels = scan.dataset.labels
    if len(labels) < 2:
        raise DataError(
            f"{scan.dataset.root}: only one class ({', '.join(labels)})",
            hint="the folder must hold one folder per class, two at least",
        )
    twins = groups(scan) if duplicates is None else duplicates
    if scan.facts[0].sample.side is not None:
        return _given(scan, twins, by, val_frac, test_frac, seed, fold, embargo, note)
    level = _level(scan, by)
    target = np.array([labels.index(item.sample.label) for item in scan.facts])
    blocks: _Blocks | None = None
    if level == "block":
        request = _Request((val_frac, test_frac), embargo, seed)
        blocks = _blocks(scan, target, twins, request, fold)
        if by == "auto":
            # All folds of a cross-validation are of one level.
            others = [] if fold is None else [(i, fold[1]) for i in range(1, fold[1] + 1) if i != fold[0]]
            tried = (blocks, *(_blocks(scan, target, twins, request, other) for other in others))
            unfit = next((why for why in (_unfit(labels, target, one.side) for one in tried) if why), None)
            if unfit is not None:
                level, blocks = "image", None
                if note:
                    note(
                        f"numbered files, but not split by block: with an embargo of {embargo} file numbers {unfit}. "
                        "Split by image, which is optimistic; --split-by block and --embargo N decide otherwise"
                    )
    if blocks is not None:
        side, reason = blocks.side, blocks.reason
    else:
        group = _group_numbers(scan, keep_subjects=by != "image", duplicates=twins)
        _check_groups(scan, target, group, level, sides=3 if fold is None else fold[1])
        if fold is None:
            side = _partition(target, group, (1.0 - val_frac - test_frac, val_frac, test_frac), seed)
        else:
            side = _fold_sides(target, group, val_frac, seed, fold)
        reason = [None] * len(side)
    _check_sides(labels, target, side, level, embargo)
    entries = tuple(
        SplitEntry(
            item.sample.path,
            item.sample.label,
            item.sample.subject,
            item.sha256,
            LEFT_OUT if number == NOWHERE else SIDES[number],
            why,
        )
        for item, number, why in zip(scan.facts, side, reason, strict=True)
    )
    kept = embargo if level == "block" else None
    return Split(level, seed, labels, scan.digest, entries, fold, twins.exact_count, twins.near_count, kept)


def check_embargo(by: str, embargo: int | None) -> None:
    """Raise UsageError for an embargo where ``--split-by`` makes no blocks."""
    if embargo is not None and by in ("subject", "image"):
        raise UsageError(
            f"--embargo {embargo} with --split-by {by}: only blocks of file numbers have an embargo",
            hint="leave it out, or use --split-by block",
        )


def save_split(split: Split, path: Path) -> None:
    """Write ``split.json``; a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps({**_as_json(split), "sha256": split.sha256}, indent=1) + "\n")


def load_split(path: Path) -> Split:
    """Read what `save_split` wrote. Raises `DataError` for a file that is missing, malformed or changed by hand."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] not in _SCHEMAS:
            known = " and ".join(map(str, _SCHEMAS))
            raise DataError(f"{path}: split of schema {document['schema']}, known are {known}", hint="update edgeall")
        split = Split(
            level=_typed(document["level"], str),
            seed=_typed(document["seed"], int),
            labels=tuple(_typed(label, str) for label in document["labels"]),
            dataset_sha256=_typed(document["dataset_sha256"], str),
            entries=tuple(SplitEntry(**entry) for entry in document["entries"]),
            fold=None if document["fold"] is None else (int(document["fold"][0]), int(document["fold"][1])),
            exact_duplicates=_typed(document["exact_duplicates"], int),
            near_duplicates=_typed(document["near_duplicates"], int),
            embargo=None if "embargo" not in document else _typed(document["embargo"], int),
            across=tuple(tuple(_typed(path, str) for path in group) for group in document.get("across", ())),
            validation_by=None if "validation_by" not in document else _typed(document["validation_by"], str),
        )
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})", hint="give the split.json of a run") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not a split of edgeall ({error!r})", hint="give the split.json of a run") from error
    if document.get("sha256") != split.sha256:
        raise DataError(f"{path}: changed since it was written", hint="restore it, or make a new split")
    return split


def check_split(split: Split, root: Path) -> None:
    """Make sure that ``root`` still holds exactly the images that the split was made of.

    Args:
        split: from `load_split`.
        root: what was given to ``--data``: the folder or the CSV manifest.

    Raises:
        DataError: images changed, gone, relabelled or added, each with a count and the first three names. Files
            that can't be decoded don't count as added: they weren't part of the split either.
    """
    dataset = load_dataset(root)
    now = {sample.path: sample for sample in (*dataset.independent, *dataset.samples)}
    apart = {sample.path for sample in dataset.independent}  # in the splits of older versions
    then = {entry.path: entry for entry in split.entries}
    here = [entry for entry in split.entries if entry.path in now]
    digests = hash_files([dataset.root / entry.path for entry in here])
    faults = {
        "gone": [path for path in then if path not in now],
        "changed": [entry.path for entry, digest in zip(here, digests, strict=True) if digest != entry.sha256],
        "of another class or subject": [
            entry.path
            for entry in here
            if (now[entry.path].label, now[entry.path].subject) != (entry.label, entry.subject)
        ],
        "given to another side": [
            entry.path for entry in here if split.level == "given" and not _still_given(entry, now[entry.path].side)
        ],
        "new": [path for path in now if path not in then and path not in apart and _readable(dataset.root / path)],
    }
    found = [
        f"{len(paths)} {what} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
        for what, paths in faults.items()
        if paths
    ]
    if found:
        raise DataError(
            f"{root}: no longer the {len(split.entries)} images that the split was made of: {'; '.join(found)}",
            hint="restore the data, or train again on what is there now",
        )


# --- groups -----------------------------------------------------------------------------------------------------------


def _level(scan: Scan, by: str) -> str:
    """The level asked for; of ``auto`` what the names allow, which for ``block`` has still to be tried."""
    known = sum(item.sample.subject is not None for item in scan.facts)
    if by == "auto":
        if known == len(scan.facts):
            return "subject"
        return "block" if _is_numbered(scan) else "image"
    if by == "subject" and known < len(scan.facts):
        missing = next(item.sample.path for item in scan.facts if item.sample.subject is None)
        raise UsageError(
            f"--split-by subject: {len(scan.facts) - known} of {len(scan.facts)} images name no subject ({missing})",
            hint="use --split-by block or image, or list the subjects in a CSV manifest",
        )
    if by not in ("subject", "block", "image"):
        raise UsageError(f"no split called {by!r}", hint="choose one of auto, subject, block, image")
    return by


def _is_numbered(scan: Scan) -> bool:
    try:
        near = numbered([item.sample.path for item in scan.facts])
    except UsageError:  # a name without a number
        return False
    label = np.array([item.sample.label for item in scan.facts])
    return all(near[label == one].mean() >= _NUMBERED_FRAC for one in scan.dataset.labels)


def _group_numbers(scan: Scan, keep_subjects: bool, duplicates: Duplicates) -> NDArray[np.intp]:
    """One number per image; images of the same number stay on one side."""
    links = [(a, b) for group in duplicates.near for a, b in itertools.pairwise(group)]
    if keep_subjects:
        links += _link_equal([item.sample.subject for item in scan.facts])
    number = np.arange(len(scan.facts))
    for group in connected(len(scan.facts), links):
        number[list(group)] = group[0]
    return number


def _link_equal(keys: list[Any]) -> list[tuple[int, int]]:
    """Link each image to the one before it of the same key; None links nothing."""
    last: dict[Any, int] = {}
    links = []
    for index, key in enumerate(keys):
        if key is not None:
            if key in last:
                links.append((last[key], index))
            last[key] = index
    return links


# --- blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """How blocks are to be placed: shares of validation and test, file numbers between sides, seed."""

    fractions: tuple[float, float]
    embargo: int
    seed: int


@dataclass(frozen=True)
class _Blocks:
    """The side of every image as an index into `SIDES`, or `NOWHERE`, and then the reason, one of `REASONS`."""

    side: NDArray[np.intp]
    reason: list[str | None]


def _blocks(
    scan: Scan, target: NDArray[np.intp], twins: Duplicates, request: _Request, fold: tuple[int, int] | None
) -> _Blocks:
    """Place stretches of the numbering, then leave out what would show one thing, or one person, on two sides."""
    paths = [item.sample.path for item in scan.facts]
    side = place_blocks(paths, target, request.fractions, request.embargo, request.seed, fold)
    reason: list[str | None] = ["embargo" if number == NOWHERE else None for number in side]
    subjects = _link_equal([item.sample.subject for item in scan.facts])
    for why, found in (("duplicate", twins.near), ("subject", connected(len(paths), subjects))):
        for group in found:
            members = np.array(group)
            where = side[members]
            kept = next((one for one in (TEST, VALIDATION) if (where == one).any()), TRAIN)
            for index in members[(where != kept) & (where != NOWHERE)].tolist():
                side[index], reason[index] = NOWHERE, why
    return _Blocks(side, reason)


def _unfit(
    labels: tuple[str, ...], target: NDArray[np.intp], side: NDArray[np.intp], sides: tuple[str, ...] = SIDES
) -> str | None:
    """Why ``auto`` doesn't take these blocks, None where it does."""
    missing = _missing(labels, target, side, sides)
    if missing is not None:
        return f"class {missing[0]} has no image on the {missing[1]} side"
    left = int((side == TRAIN).sum())
    return None if left >= _TRAIN_FRAC * len(side) else f"only {left:,} of {len(side):,} images are left to train on"


# --- dealing ----------------------------------------------------------------------------------------------------------


def _partition(
    target: NDArray[np.intp], group: NDArray[np.intp], fractions: tuple[float, ...], seed: int
) -> NDArray[np.intp]:
    """Index of ``fractions`` for each image, groups kept together, classes and sizes as near the fractions as can be.

    Stratified folds are put together to sides. Few or large groups make uneven folds, so several seeds are tried
    and the best is taken.
    """
    wanted = np.array(fractions)
    count = min(_fold_count(wanted), len(np.unique(group)))
    best, best_cost = np.zeros(len(target), dtype=np.intp), np.inf
    for attempt in range(_ATTEMPTS):
        folds = _stratified_folds(target, group, count, seed + 7919 * attempt)
        counts = np.zeros((count, target.max() + 1))
        np.add.at(counts, (folds, target), 1)
        assigned, cost = _combine(counts, wanted)
        if cost < best_cost:
            best, best_cost = assigned[folds], cost
        if cost < _GOOD:
            break
    return best


def _fold_count(fractions: NDArray[np.float64]) -> int:
    """The smallest number of folds that can be dealt out in these fractions: 10 for 0.7, 0.1, 0.2."""
    counts = np.arange(len(fractions), _MOST_FOLDS + 1)
    parts = fractions[:, None] * counts
    error = np.where(np.rint(parts) > 0, np.abs(parts - np.rint(parts)) / counts, 1.0).max(axis=0)
    return int(counts[np.argmax(error <= max(0.004, error.min()))])


def _fold_sides(
    target: NDArray[np.intp], group: NDArray[np.intp], val_frac: float, seed: int, fold: tuple[int, int]
) -> NDArray[np.intp]:
    number, count = fold
    test = _stratified_folds(target, group, count, seed) == number - 1
    side = np.full(len(target), SIDES.index("test"))
    share = val_frac / (1.0 - 1.0 / count)
    side[~test] = _partition(target[~test], group[~test], (1.0 - share, share), seed)
    return side


def _stratified_folds(target: NDArray[np.intp], group: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
    from sklearn.model_selection import StratifiedGroupKFold

    # A class of fewer images than folds is no error here: some folds stay without it.
    most = int(np.bincount(target).max())
    folds = np.zeros(len(target), dtype=np.intp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "The least populated class ..."
        splitter = StratifiedGroupKFold(min(count, most), shuffle=True, random_state=seed % 2**32)
        for number, (_, members) in enumerate(splitter.split(target, target, group)):
            folds[members] = number
    return folds


def _combine(counts: NDArray[np.float64], fractions: NDArray[np.float64]) -> tuple[NDArray[np.intp], float]:
    """Deal folds to sides.

    Args:
        counts: images (folds, classes).
        fractions: (sides,), sum 1.

    Returns:
        (side of each fold, cost): cost is the largest deviation from the wanted share of any class on any side,
        plus one for each class that is missing on a side.
    """
    totals = np.maximum(counts.sum(axis=0), 1.0)

    def cost(assigned: NDArray[np.intp]) -> float:
        held = np.zeros((len(fractions), counts.shape[1]))
        np.add.at(held, assigned, counts)
        error = np.abs(held / totals - fractions[:, None])
        return float(error.max() + 0.1 * error.mean() + (held == 0).sum())

    edges = np.cumsum(fractions) * len(counts)
    assigned = np.searchsorted(edges, np.arange(len(counts)) + 0.5).clip(max=len(fractions) - 1)
    lowest = cost(assigned)
    improved = True
    while improved:
        improved = False
        for neighbour in _neighbours(assigned, len(fractions)):
            value = cost(neighbour)
            if value < lowest - 1e-12:
                assigned, lowest, improved = neighbour, value, True
                break
    return assigned, lowest


def _neighbours(assigned: NDArray[np.intp], sides: int) -> list[NDArray[np.intp]]:
    """Every assignment one move or one exchange of two folds away."""
    found = []
    for fold in range(len(assigned)):
        for side in range(sides):
            if side != assigned[fold]:
                moved = assigned.copy()
                moved[fold] = side
                found.append(moved)
        for other in range(fold):
            if assigned[other] != assigned[fold]:
                swapped = assigned.copy()
                swapped[[fold, other]] = assigned[[other, fold]]
                found.append(swapped)
    return found


# --- sets that come split ---------------------------------------------------------------------------------------------


def _given(
    scan: Scan,
    twins: Duplicates,
    by: str,
    val_frac: float,
    test_frac: float,
    seed: int,
    fold: tuple[int, int] | None,
    embargo: int,
    note: Callable[[str], None] | None,
) -> Split:
    """The sides as the set came; without a validation side, one is taken from train by the rules of `make_split`."""
    data, labels = scan.dataset, scan.dataset.labels
    side = np.array([SIDES.index(item.sample.side or "train") for item in scan.facts])
    validates = bool((side == VALIDATION).any())
    asked = {
        "--split-by": by != "auto",
        "--fold": fold is not None,
        "--val-frac": validates and val_frac != VAL_FRAC,
        "--test-frac": test_frac != TEST_FRAC,
    }
    refused = [name for name, is_given in asked.items() if is_given]
    if refused:
        raise UsageError(
            f"{data.root}: comes split, with {', '.join(refused)}: its sides are taken as given",
            hint="leave that out; to split anew, leave out the column side, or put each class into one folder",
        )
    taken: Split | None = None
    reason: list[str | None] = [None] * len(side)
    if not validates:
        members = np.flatnonzero(side == TRAIN)
        taken = _validation_of(scan, twins, members, val_frac * len(side) / max(len(members), 1), seed, embargo, note)
        for index, entry in zip(members.tolist(), taken.entries, strict=True):
            side[index] = NOWHERE if entry.side == LEFT_OUT else SIDES.index(entry.side)
            reason[index] = entry.reason
    target = np.array([labels.index(item.sample.label) for item in scan.facts])
    missing = _missing(labels, target, side)
    if missing is not None:
        raise DataError(
            f"{data.root}: comes split, and class {missing[0]} has no image on its {missing[1]} side",
            hint="add images of it there, or leave the class out",
        )
    sides = [LEFT_OUT if number == NOWHERE else SIDES[number] for number in side]
    across = tuple(
        tuple(scan.facts[index].sample.path for index in group)
        for group in twins.near
        if len({sides[index] for index in group} - {LEFT_OUT}) > 1
    )
    entries = tuple(
        SplitEntry(item.sample.path, item.sample.label, item.sample.subject, item.sha256, where, why)
        for item, where, why in zip(scan.facts, sides, reason, strict=True)
    )
    return Split(
        "given",
        seed,
        labels,
        scan.digest,
        entries,
        exact_duplicates=twins.exact_count,
        near_duplicates=twins.near_count,
        embargo=None if taken is None else taken.embargo,
        across=across,
        validation_by=None if taken is None else taken.level,
    )


def _validation_of(
    scan: Scan,
    twins: Duplicates,
    members: NDArray[np.intp],
    share: float,
    seed: int,
    embargo: int,
    note: Callable[[str], None] | None,
) -> Split:
    """Train and validation sides of some images, by the level that ``auto`` takes. The test side is empty."""
    if share >= 1:
        raise UsageError(f"--val-frac: {share:.0%} of the train side leaves nothing to train on", hint="give less")
    place = {int(index): number for number, index in enumerate(members)}
    facts = tuple(scan.facts[index] for index in members)
    labels = tuple(sorted({item.sample.label for item in facts}))
    some = Scan(replace(scan.dataset, labels=labels, samples=tuple(item.sample for item in facts)), facts)
    near = tuple(tuple(place[index] for index in group if index in place) for group in twins.near)
    own = Duplicates((), tuple(group for group in near if len(group) > 1), ())
    target = np.array([labels.index(item.sample.label) for item in facts])
    level = _level(some, "auto")
    reason: list[str | None] = [None] * len(facts)
    if level == "block":
        blocks = _blocks(some, target, own, _Request((share, 0.0), embargo, seed), None)
        unfit = _unfit(labels, target, blocks.side, SIDES[:2])
        if unfit is None:
            side, reason = blocks.side, blocks.reason
        else:
            level = "image"
            if note:
                note(f"validation is taken from train by image: with an embargo of {embargo} file numbers {unfit}")
    if level != "block":
        group = _group_numbers(some, keep_subjects=True, duplicates=own)
        _check_groups(some, target, group, level, sides=2, least=2)
        side = _partition(target, group, (1.0 - share, share), seed)
    entries = tuple(
        SplitEntry(item.sample.path, item.sample.label, item.sample.subject, item.sha256, where, why)
        for item, where, why in zip(
            facts, (LEFT_OUT if number == NOWHERE else SIDES[number] for number in side), reason, strict=True
        )
    )
    return Split(level, seed, labels, "", entries, embargo=embargo if level == "block" else None)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_request(val_frac: float, test_frac: float, seed: int, fold: tuple[int, int] | None, embargo: int) -> None:
    if fold is not None:
        number, count = fold
        if count < 2 or not 1 <= number <= count:
            raise UsageError(f"no fold {number} of {count}", hint="folds count from 1: --fold 1/5 to --fold 5/5")
        test_frac = 1.0 / count
    if not (0.0 < val_frac < 1.0 and 0.0 < test_frac < 1.0 and val_frac + test_frac < 1.0):
        raise UsageError(
            f"validation {val_frac:g} and test {test_frac:g} of the images leave no sensible rest to train on",
            hint="both must be above 0 and their sum below 1",
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", hint="use 0 or more")
    if embargo < 0:
        raise UsageError(f"embargo {embargo} is negative", hint="use 0 or more file numbers")


def _check_groups(
    scan: Scan, target: NDArray[np.intp], group: NDArray[np.intp], level: str, sides: int, least: int = len(SIDES)
) -> None:
    needed = max(least, sides)
    for number, label in enumerate(scan.dataset.labels):
        members = np.nonzero(target == number)[0]
        found = len(np.unique(group[members]))
        if found < needed:
            subjects = len({scan.facts[index].sample.subject for index in members})
            raise DataError(
                f"class {label} can't be on every side: {_found(len(members), found, level, subjects)}, "
                f"and {needed} that may be parted are needed",
                hint="add images of it, or leave the class out",
            )


def _found(images: int, found: int, level: str, subjects: int) -> str:
    if level == "subject":
        joined = f", which duplicates join to {found}" if found < subjects else ""
        return f"its images come from {subjects} subject{'s' * (subjects != 1)}{joined}"
    if images == found:
        return f"it has {images} image{'s' * (images != 1)}"
    return f"its {images} images fall into {found} group{'s' * (found != 1)} that belong together"


def _check_sides(
    labels: tuple[str, ...], target: NDArray[np.intp], side: NDArray[np.intp], level: str, embargo: int
) -> None:
    missing = _missing(labels, target, side)
    if missing is None:
        return
    label, name = missing
    if level == "block":
        images = int((target == labels.index(label)).sum())
        raise DataError(
            f"class {label} has no image on the {name} side: its {images} images have no room for contiguous blocks "
            f"with an embargo of {embargo} file numbers",
            hint="use a smaller --embargo, other fractions, or --split-by image",
        )
    raise DataError(
        f"class {label} has no image on the {name} side: its {level} groups are too few or too large",
        hint="add images of it, change the fractions, or try another --seed",
    )


def _missing(
    labels: tuple[str, ...], target: NDArray[np.intp], side: NDArray[np.intp], sides: tuple[str, ...] = SIDES
) -> tuple[str, str] | None:
    """The first class that is not on every side, and the side."""
    for number, label in enumerate(labels):
        for index, name in enumerate(sides):
            if not ((target == number) & (side == index)).any():
                return label, name
    return None


def _still_given(entry: SplitEntry, side: str | None) -> bool:
    """Whether the data gives an image to the side it is on; validation may have been taken from train."""
    return entry.side == side or (side == "train" and entry.side in ("validation", LEFT_OUT))


def _readable(path: Path) -> bool:
    try:
        open_rgb(path)
    except ImageError:
        return False
    return True


def _as_json(split: Split) -> dict[str, Any]:
    """Without what no split had in schema 1, where this one hasn't it either: the digest of an old one stays."""
    document = asdict(split)
    for entry in document["entries"]:
        if entry["reason"] is None:
            del entry["reason"]
    absent = {"embargo": split.embargo is None, "across": not split.across, "validation_by": not split.validation_by}
    for key in (key for key, is_absent in absent.items() if is_absent):
        del document[key]
    newer = split.level == "given" or not all(absent.values()) or any(entry.reason for entry in split.entries)
    return {"schema": 2 if newer else 1, **document}


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
