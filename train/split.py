"""Deals images out to train, validation and test so that nothing seen in one is seen again in another.

What must stay together forms a group: a subject's images, a run of neighbouring file numbers, duplicates. Groups
are dealt by scikit-learn's ``StratifiedGroupKFold`` and written, with a digest of every image, to ``split.json``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.errors import DataError, ImageError, UsageError
from edgeall.edge_runtime.files import write_text
from edgeall.edge_runtime.images import open_rgb
from edgeall.train.dataset import load_dataset
from edgeall.train.duplicates import Duplicates, connected, groups
from edgeall.train.scan import Scan, hash_files

SIDES = ("train", "validation", "test")
BLOCK = 20
"""File numbers in one block."""

_BLOCK_HINT = "block needs files numbered in the order of taking; use --split-by image"
_SCHEMA = 1
_MOST_FOLDS = 20
_ATTEMPTS = 8
_GOOD = 0.02
"""A split whose classes are all within about so much of the wanted shares isn't improved on."""

_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class SplitEntry:
    """One image of a split. ``sha256`` is of the file's bytes; ``side`` is one of `SIDES`."""

    path: str
    label: str
    subject: str | None
    sha256: str
    side: str


@dataclass(frozen=True)
class Split:
    """Which image is on which side, and how that came about.

    Attributes:
        level: what was kept together besides duplicates: ``subject``, ``block`` or ``image`` (nothing).
        seed: the same scan, settings and seed give the same split.
        labels: sorted class names.
        dataset_sha256: `Scan.digest` of the data.
        entries: in the order of the scan, that is by path.
        fold: (i, k) where the test side is fold i of k, counted from 1.
        exact_duplicates: images that repeat the pixels of an earlier one.
        near_duplicates: images that resemble an earlier one.
    """

    level: str
    seed: int
    labels: tuple[str, ...]
    dataset_sha256: str
    entries: tuple[SplitEntry, ...]
    fold: tuple[int, int] | None = None
    exact_duplicates: int = 0
    near_duplicates: int = 0

    def side(self, name: str) -> tuple[SplitEntry, ...]:
        """The entries of ``train``, ``validation`` or ``test``; ``all`` is every one. Raises `UsageError` otherwise."""
        if name not in (*SIDES, "all"):
            raise UsageError(f"no side called {name!r}", hint=f"choose one of {', '.join(SIDES)}, all")
        return tuple(entry for entry in self.entries if name in (entry.side, "all"))

    @property
    def sha256(self) -> str:
        """Digest of the whole split, the same for the same content however it is laid out in a file."""
        return hashlib.sha256(json.dumps(_as_json(self), sort_keys=True).encode()).hexdigest()


def make_split(
    scan: Scan,
    by: str = "auto",
    val_frac: float = 0.1,
    test_frac: float = 0.2,
    seed: int = 0,
    fold: tuple[int, int] | None = None,
) -> Split:
    """Deal the images of ``scan`` out to the three sides, stratified by label.

    Duplicates, exact and near, always stay together, and so do the images of a known subject, except with an
    explicit ``by="image"``, which is the optimistic split that reports must call so.

    Args:
        scan: the data.
        by: ``subject``; ``block``: images of one folder whose file numbers fall in the same run of `BLOCK`;
            ``image``; ``auto``: subject where every image has one, else image.
        val_frac: share of the images for validation, in (0, 1).
        test_frac: share for the test side; not used with ``fold``, where it is 1/k.
        seed: any non-negative integer.
        fold: (i, k), counted from 1: the test side is fold i of k; the k test sides don't overlap and cover all.

    Returns:
        A split with every class on every side. Fractions are met as nearly as whole groups allow.

    Raises:
        UsageError: an unknown level, fractions that leave nothing to train on, a fold outside 1..k, or
            ``by="subject"`` or ``"block"`` where the data names no subjects or numbers.
        DataError: fewer than two classes, or a class with too few groups to be on every side.
    """
    _check_request(val_frac, test_frac, seed, fold)
    labels = scan.dataset.labels
    if len(labels) < 2:
        raise DataError(
            f"{scan.dataset.root}: only one class ({', '.join(labels)})",
            hint="the folder must hold one folder per class, two at least",
        )
    level = _level(scan, by)
    duplicates = groups(scan)
    group = _group_numbers(scan, level, keep_subjects=by != "image", duplicates=duplicates)
    target = np.array([labels.index(item.sample.label) for item in scan.facts])
    _check_groups(scan, target, group, level, sides=3 if fold is None else fold[1])

    if fold is None:
        side = _partition(target, group, (1.0 - val_frac - test_frac, val_frac, test_frac), seed)
    else:
        side = _fold_sides(target, group, val_frac, seed, fold)
    _check_sides(labels, target, side, level)
    entries = tuple(
        SplitEntry(item.sample.path, item.sample.label, item.sample.subject, item.sha256, SIDES[number])
        for item, number in zip(scan.facts, side, strict=True)
    )
    return Split(level, seed, labels, scan.digest, entries, fold, duplicates.exact_count, duplicates.near_count)


def save_split(split: Split, path: Path) -> None:
    """Write ``split.json``; a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps({**_as_json(split), "sha256": split.sha256}, indent=1) + "\n")


def load_split(path: Path) -> Split:
    """Read what `save_split` wrote. Raises `DataError` for a file that is missing, malformed or changed by hand."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != _SCHEMA:
            raise DataError(f"{path}: split of schema {document['schema']}, known is {_SCHEMA}", hint="update edgeall")
        split = Split(
            level=_typed(document["level"], str),
            seed=_typed(document["seed"], int),
            labels=tuple(_typed(label, str) for label in document["labels"]),
            dataset_sha256=_typed(document["dataset_sha256"], str),
            entries=tuple(SplitEntry(**entry) for entry in document["entries"]),
            fold=None if document["fold"] is None else (int(document["fold"][0]), int(document["fold"][1])),
            exact_duplicates=_typed(document["exact_duplicates"], int),
            near_duplicates=_typed(document["near_duplicates"], int),
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
    now = {sample.path: sample for sample in dataset.samples}
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
        "new": [path for path in now if path not in then and _readable(dataset.root / path)],
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
    known = sum(item.sample.subject is not None for item in scan.facts)
    if by == "auto":
        return "subject" if known == len(scan.facts) else "image"
    if by == "subject" and known < len(scan.facts):
        missing = next(item.sample.path for item in scan.facts if item.sample.subject is None)
        raise UsageError(
            f"--split-by subject: {len(scan.facts) - known} of {len(scan.facts)} images name no subject ({missing})",
            hint="use --split-by block or image, or list the subjects in a CSV manifest",
        )
    if by not in ("subject", "block", "image"):
        raise UsageError(f"no split called {by!r}", hint="choose one of auto, subject, block, image")
    return by


def _group_numbers(scan: Scan, level: str, keep_subjects: bool, duplicates: Duplicates) -> NDArray[np.intp]:
    """One number per image; images of the same number stay on one side."""
    links = [(a, b) for group in duplicates.near for a, b in itertools.pairwise(group)]
    if keep_subjects:
        links += _link_equal([item.sample.subject for item in scan.facts])
    if level == "block":
        links += _link_equal(_blocks([item.sample.path for item in scan.facts]))
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


def _blocks(paths: list[str]) -> list[tuple[Any, ...]]:
    """The block of each path: its folder, its name less the counter, and the run of `BLOCK` that the counter is in.

    The counter is the last number that differs between the files of a folder named alike: not the 40 of ``12-40x``.
    """
    series: dict[tuple[str, str], list[int]] = {}
    for index, path in enumerate(paths):
        pure = PurePosixPath(path)
        series.setdefault((pure.parent.as_posix(), _NUMBER.sub("#", pure.stem)), []).append(index)
    blocks: list[tuple[Any, ...]] = [()] * len(paths)
    for alike, members in series.items():
        numbers = np.array([[int(text) for text in _NUMBER.findall(PurePosixPath(paths[i]).stem)] for i in members])
        varying = np.nonzero((numbers != numbers[0]).any(axis=0))[0]
        counter = varying[-1] if len(varying) else numbers.shape[1] - 1
        for index, row in zip(members, numbers.tolist(), strict=True):
            if not row:
                raise UsageError(f"--split-by block: no number in the file name {paths[index]}", hint=_BLOCK_HINT)
            # Data sets count from 1: 1..20 is the first block (a 0 falls in with it).
            run = max(row[counter] - 1, 0) // BLOCK
            blocks[index] = (*alike, *row[:counter], run, *row[counter + 1 :])
    if len(set(blocks)) == len(blocks):
        raise UsageError("--split-by block: no two images have neighbouring numbers", hint=_BLOCK_HINT)
    return blocks


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


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_request(val_frac: float, test_frac: float, seed: int, fold: tuple[int, int] | None) -> None:
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


def _check_groups(scan: Scan, target: NDArray[np.intp], group: NDArray[np.intp], level: str, sides: int) -> None:
    needed = max(len(SIDES), sides)
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
    kind = "block" if level == "block" else "group"
    return f"its {images} images fall into {found} {kind}{'s' * (found != 1)} that belong together"


def _check_sides(labels: tuple[str, ...], target: NDArray[np.intp], side: NDArray[np.intp], level: str) -> None:
    for number, label in enumerate(labels):
        for index, name in enumerate(SIDES):
            if not ((target == number) & (side == index)).any():
                raise DataError(
                    f"class {label} has no image on the {name} side: its {level} groups are too few or too large",
                    hint="add images of it, change the fractions, or try another --seed",
                )


def _readable(path: Path) -> bool:
    try:
        open_rgb(path)
    except ImageError:
        return False
    return True


def _as_json(split: Split) -> dict[str, Any]:
    return {"schema": _SCHEMA, **asdict(split)}


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
