"""Splits by block: contiguous ranges of file numbers, with an embargo between the subsets for any numbering."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from fixtures_splits import facts, scan_of, too_near
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.train.data.blocks import EMBARGO, place_blocks
from edgeall.train.data.make_split import make_split
from edgeall.train.data.scan import Facts
from edgeall.train.data.split import Split, load_split, save_split
from edgeall.train.data.split_settings import TEST_FRAC, VAL_FRAC, SplitSettings
from edgeall.train.data.subsets import LEFT_OUT, NOWHERE, SUBSETS, TEST, TRAIN, VALIDATION


def numbering(rng: np.random.Generator, images: int) -> list[int]:
    """Ascending numbers: mostly consecutive, with some small and some large gaps."""
    steps = rng.choice([1, 1, 1, 1, 2, 5, 60], images, p=[0.3, 0.3, 0.2, 0.15, 0.03, 0.01, 0.01])
    return np.cumsum(steps).tolist()


def any_names(seed: int, embargo: int) -> tuple[list[str], np.ndarray]:
    """Paths and classes: one or several series per class, or one series with two classes."""
    rng = np.random.default_rng(seed)
    paths, target = [], []
    kinds = int(rng.integers(2, 4))
    for kind in range(kinds):
        for part in range(int(rng.integers(1, 3))):
            for number in numbering(rng, int(rng.integers(9, 14) * (embargo + 5))):
                paths.append(f"{kind}/s{part}-{number:05}.png")
                target.append(kind)
    if rng.random() < 0.3:  # a manifest may give the images of one folder any classes
        for number in numbering(rng, 15 * (embargo + 5)):
            paths.append(f"shared/{number}.png")
            target.append(int(rng.integers(0, 2)))
    return paths, np.array(target)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 5, 12]), st.sampled_from([None, 3, 5]))
@settings(max_examples=15, deadline=None)
def test_no_two_subsets_are_within_the_embargo(seed: int, embargo: int, folds: int | None) -> None:
    paths, target = any_names(seed, embargo)
    fractions, tested = (0.1, 0.2), Counter()
    for fold in [None] if folds is None else [(i, folds) for i in range(1, folds + 1)]:
        side = place_blocks(paths, target, fractions, embargo, seed, fold)
        assert too_near(paths, side, embargo) == []
        for kind in np.unique(target):
            own = side[target == kind]
            assert {TRAIN, VALIDATION, TEST} <= set(own.tolist()), "each class is in each subset"
            # A class of a shared folder is dealt with the others there: one placement in 840 is 0.06 away.
            assert (own == TEST).mean() == pytest.approx(1 / folds if folds else 0.2, abs=0.08)
            assert (own == VALIDATION).mean() == pytest.approx(0.1, abs=0.08)
        tested.update(np.flatnonzero(side == TEST).tolist())
        assert np.array_equal(side, place_blocks(paths, target, fractions, embargo, seed, fold)), "nothing else decides"
    if folds:
        assert tested == Counter(range(len(paths))), "every image is tested on once"


def runs(numbers: list[int], side: np.ndarray) -> list[int]:
    """The subsets in the order of the numbers, each range once."""
    ordered = side[np.argsort(numbers)]
    return [int(one) for one, _ in itertools.groupby(ordered[ordered != NOWHERE])]


def series_of(numbers: list[int]) -> tuple[list[str], np.ndarray]:
    """One class with these numbers, and another one with consecutive numbers."""
    other = [f"b/{n}.png" for n in range(1, 301)]
    return [f"a/{n}.png" for n in numbers] + other, np.array([0] * len(numbers) + [1] * 300)


@pytest.mark.parametrize("seed", range(6))
def test_a_subset_is_one_range_and_two_borders_have_an_embargo(seed: int) -> None:
    numbers = list(range(1, 301))
    paths, target = series_of(numbers)
    side = place_blocks(paths, target, (0.1, 0.2), 10, seed)[:300]
    assert sorted(runs(numbers, side)) == [TRAIN, VALIDATION, TEST]
    assert (side == NOWHERE).sum() == 20
    assert (side == TEST).sum() == pytest.approx(60, abs=6) and (side == VALIDATION).sum() == pytest.approx(30, abs=6)


def test_another_seed_is_another_placement() -> None:
    paths, target = series_of(list(range(1, 301)))
    assert (
        len({tuple(runs(list(range(300)), place_blocks(paths, target, (0.1, 0.2), 10, s)[:300])) for s in range(20)})
        > 1
    )


def test_training_has_both_ends_if_the_cost_is_small() -> None:
    """300 images, 60 missing numbers, 300 images: the cheapest placement would train on one end only."""
    numbers = [*range(1, 301), *range(361, 661)]
    paths, target = series_of(numbers)
    for seed in range(5):
        side = place_blocks(paths, target, (0.1, 0.2), 20, seed)[: len(numbers)]
        train = np.flatnonzero(side == TRAIN)
        assert (train < 300).any() and (train >= 300).any()
        assert (side == NOWHERE).sum() <= 40


def test_an_existing_gap_costs_nothing() -> None:
    """240 images, then 30 and 60, with gaps larger than the embargo: no image has to be left out."""
    numbers = [*range(1, 241), *range(300, 330), *range(400, 430), *range(500, 530)]
    paths, target = series_of(numbers)
    for seed in range(5):
        side = place_blocks(paths, target, (0.1, 0.2), 37, seed)[: len(numbers)]
        assert (side == NOWHERE).sum() == 0
        assert (side == VALIDATION).sum() == 30 and (side == TEST).sum() == 60


def test_fold_ranges_are_in_the_order_of_the_numbers() -> None:
    paths, target = series_of(list(range(1, 201)))
    for i in range(1, 6):
        side = place_blocks(paths, target, (0.1, 0.2), 10, 0, (i, 5))[:200]
        assert np.flatnonzero(side == TEST).tolist() == list(range(40 * (i - 1), 40 * i))
        assert np.array_equal(side, place_blocks(paths, target, (0.1, 0.2), 10, 7, (i, 5))[:200]), "whatever the seed"


def test_classes_that_share_a_series_are_cut_together() -> None:
    """A manifest with one folder: the first half is one class, the second half the other."""
    paths = [f"all/{n}.png" for n in range(1, 401)]
    target = np.array([0] * 200 + [1] * 200)
    for fold in (None, (1, 4), (4, 4)):
        side = place_blocks(paths, target, (0.1, 0.25), 10, 0, fold)
        assert too_near(paths, side, 10) == []
        for kind in (0, 1):
            assert {TRAIN, VALIDATION, TEST} <= set(side[target == kind].tolist())


@pytest.mark.parametrize("name", ["WBC-Pro-{:03}", "{}", "{}-40x", "slide7_{}_2021"])
def test_the_counter_is_found_in_the_name(name: str) -> None:
    paths = [f"{label}/{name.format(n)}.png" for label in "ab" for n in range(1, 201)]
    number = np.array([n for _ in "ab" for n in range(1, 201)])
    target = np.repeat([0, 1], 200)
    side = place_blocks(paths, target, (0.1, 0.2), 10, 0)
    for kind in (0, 1):
        assert sorted(runs(number[target == kind].tolist(), side[target == kind])) == [TRAIN, VALIDATION, TEST]
    assert set(side.tolist()) == {TRAIN, VALIDATION, TEST, NOWHERE}


def test_files_with_equal_numbers_are_together_without_an_embargo() -> None:
    paths = [f"{label}/{n}{kind}" for label in "ab" for n in range(1, 60) for kind in (".jpg", ".png")]
    target = np.array([0 if path.startswith("a") else 1 for path in paths])
    side = place_blocks(paths, target, (0.1, 0.2), 0, 3)
    where = defaultdict(set)
    for path, one in zip(paths, side, strict=True):
        where[path.partition(".")[0]].add(int(one))
    assert all(len(found - {NOWHERE}) <= 1 for found in where.values())


# --- the split made of them -------------------------------------------------------------------------------------------


def plain(images: int, labels: str = "ab") -> list[Facts]:
    return [facts(f"{label}/{n:04}.png", label) for label in labels for n in range(1, images + 1)]


def test_auto_is_block_if_files_are_numbered_and_enough_are_left() -> None:
    said: list[str] = []
    split = make_split(scan_of(plain(400)), note=said.append)
    assert (split.level, split.embargo, said) == ("block", EMBARGO, [])
    assert split.left_out == {"embargo": 2 * 2 * EMBARGO}
    assert split.level_text == f"contiguous blocks of file numbers, embargo {EMBARGO}: {4 * EMBARGO} images left out"
    assert (
        make_split(scan_of([facts(f.sample.path, f.sample.label, f.sample.path) for f in plain(400)])).level
        == "subject"
    )


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (plain(40), "class a has no image in the (train|validation) subset"),
        (plain(130), r"only \d+ of 260 images are left to train on"),
    ],
)
def test_auto_notes_why_numbered_files_are_not_split_by_block(items: list[Facts], said: str) -> None:
    notes: list[str] = []
    split = make_split(scan_of(items), note=notes.append)
    assert (split.level, split.embargo, len(notes)) == ("image", None, 1)
    assert re.search(said, notes[0]) and "--embargo" in notes[0] and "optimistic" in notes[0]


def test_auto_is_image_if_names_are_not_numbered() -> None:
    def never(said: str) -> None:
        raise AssertionError(said)

    hashed = [facts(f"{x}/{hashlib.sha256(str(n).encode()).hexdigest()}.png", x) for x in "ab" for n in range(400)]
    assert make_split(scan_of(hashed), note=never).level == "image"
    named = [facts(f"{x}/{'x' * n}.png", x) for x in "ab" for n in range(1, 200)]
    assert make_split(scan_of(named), note=never).level == "image"
    sparse = [facts(f"{x}/{n * 1000}.png", x) for x in "ab" for n in range(400)]
    assert make_split(scan_of(sparse), note=never).level == "image"


@pytest.mark.parametrize("level", ["block", "image"])
def test_the_crops_of_a_field_are_in_one_subset(level: str) -> None:
    """As `edgeall cells --crops` names them; their number is that of the field, not that of the cell."""
    crops = [facts(f"{x}/{n:03}.cell{c}.png", x) for x in "ab" for n in range(1, 301) for c in range(1, 2 + n % 9)]
    split = make_split(scan_of(crops), SplitSettings(by=level, embargo=10))
    assert split.level == level
    where = defaultdict(set)
    for entry in split.entries:
        where[entry.path.partition(".")[0]].add(entry.side)
    assert all(len(found - {LEFT_OUT}) <= 1 for found in where.values())
    assert {side for found in where.values() for side in found} >= set(SUBSETS)
    if level == "block":
        fields = {side: [path for path, found in where.items() if side in found] for side in SUBSETS}
        apart = [
            abs(int(one[2:]) - int(other[2:]))
            for first, second in itertools.combinations(SUBSETS, 2)
            for one, other in itertools.product(fields[first], fields[second])
            if one[0] == other[0]
        ]
        assert min(apart) > 10


def test_all_folds_of_a_cross_validation_have_one_level() -> None:
    """Room for the blocks of the first fold does not imply room for those of another."""
    found = []
    for images in (80, 120, 160):
        scanned = scan_of(plain(images))
        levels = {make_split(scanned, SplitSettings(fold=(i, 4), embargo=8)).level for i in range(1, 5)}
        assert len(levels) == 1
        found += levels
    assert set(found) == {"image", "block"}, "else nothing was asked"


def test_a_duplicate_is_left_out_of_train_before_validation_before_test() -> None:
    """Every image of the first half has a copy in the second. As groups they would all be one."""
    items = [facts(f"{x}/{n:04}.png", x, pixels=f"{x}{n % 200}") for x in "ab" for n in range(400)]
    split = make_split(scan_of(items), SplitSettings(by="block", embargo=10))
    where = defaultdict(set)
    for entry, item in zip(split.entries, scan_of(items).facts, strict=True):
        where[item.pixels_sha256].add(entry.side)
        assert (entry.reason is None) == (entry.side in SUBSETS)
    assert all(len(found - {LEFT_OUT}) <= 1 for found in where.values())
    assert split.left_out["duplicate"] > 0
    kept = {entry.path for entry in split.subset("test")}
    target = np.array([0] * 400 + [1] * 400)
    placed = place_blocks([item.sample.path for item in items], target, (VAL_FRAC, TEST_FRAC), 10, 0)
    assert kept == {item.sample.path for item, one in zip(items, placed, strict=True) if one == TEST}, "test loses none"


def test_a_known_subject_is_in_one_subset() -> None:
    items = [facts(f"{x}/{n:04}.png", x, f"{x}{n // 50}" if n % 3 else None) for x in "ab" for n in range(400)]
    split = make_split(scan_of(items), SplitSettings(by="block", embargo=10))
    where = defaultdict(set)
    for entry in split.entries:
        where[entry.subject].add(entry.side)
    assert all(len(found - {LEFT_OUT}) == 1 for subject, found in where.items() if subject is not None)
    assert split.left_out["subject"] > 0


def test_left_out_images_are_saved_and_loaded(tmp_path: Path) -> None:
    split = make_split(scan_of(plain(400)), SplitSettings(by="block", embargo=20))
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    document = json.loads((tmp_path / "split.json").read_text())
    assert (document["schema"], document["embargo"]) == (2, 20)
    named = [entry["path"] for entry in document["entries"] if entry.get("reason") == "embargo"]
    assert len(named) == split.left_out["embargo"] == 80
    changed = json.loads((tmp_path / "split.json").read_text())
    changed["embargo"] = 21
    (tmp_path / "split.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="changed since it was written"):
        load_split(tmp_path / "split.json")


def test_an_old_split_without_an_embargo_loads(tmp_path: Path) -> None:
    """Written by an older version, with its digest: a split by block with runs of 20 numbers."""
    entries = [
        {"path": f"{x}/{n}.png", "label": x, "subject": None, "sha256": "ab" * 32, "side": SUBSETS[n % 3]}
        for x in "ab"
        for n in range(3)
    ]
    old = {"schema": 1, "level": "block", "seed": 0, "labels": ["a", "b"], "dataset_sha256": "cd" * 32}
    old |= {"entries": entries, "fold": None, "exact_duplicates": 0, "near_duplicates": 0}
    digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (tmp_path / "split.json").write_text(json.dumps({**old, "sha256": digest}))
    split = load_split(tmp_path / "split.json")
    assert (split.level, split.embargo, split.sha256, split.left_out) == ("block", None, digest, {})
    assert split.level_text == "blocks of neighbouring file numbers"


def test_only_blocks_have_an_embargo() -> None:
    from edgeall.train.data.split_settings import check_embargo

    for by in ("subject", "image"):
        with pytest.raises(UsageError, match="only blocks of file numbers have an embargo"):
            check_embargo(by, 10)
    for by in ("auto", "block"):
        check_embargo(by, 10)


def test_a_split_is_frozen() -> None:
    assert isinstance(make_split(scan_of(plain(400))), Split)
