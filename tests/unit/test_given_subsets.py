"""Data sets that come split: the subsets are used as given, and duplicates across them are reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures_splits import facts, scan_of, too_near
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.listing import data_text, list_data
from edgeall.train.data.make_split import make_split
from edgeall.train.data.scan import Scan, scan
from edgeall.train.data.split import check_split, load_split, save_split
from edgeall.train.data.split_settings import SplitSettings
from edgeall.train.data.subsets import LEFT_OUT, SUBSETS

QUIET = Progress(quiet=True)


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in three subsets. One test image is also in train, one validation image in test."""
    root, seed = tmp_path / "set", 0
    for side, count in (("train", 8), ("val", 4), ("test", 4)):
        for label in "ab":
            for number in range(count):
                seed += 1
                draw(root / side / label / f"{number}.png", seed)
    for copy, of in (("train/a/7.png", "test/a/0.png"), ("val/b/3.png", "test/b/1.png")):
        (root / copy).write_bytes((root / of).read_bytes())
    return root


def test_the_subsets_are_as_given_and_duplicates_are_listed(root: Path, tmp_path: Path) -> None:
    split = make_split(scan(load_dataset(root)), SplitSettings(seed=3))
    given = {"train": "train", "val": "validation", "test": "test"}
    assert all(entry.side == given[entry.path.partition("/")[0]] for entry in split.entries), "nothing is moved"
    assert (split.level, split.left_out, split.validation_by) == ("given", {}, None)
    assert {frozenset(group) for group in split.across} == {
        frozenset({"train/a/7.png", "test/a/0.png"}),
        frozenset({"val/b/3.png", "test/b/1.png"}),
    }
    assert split.level_text == "split as given; 2 groups of duplicates in several subsets"
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert len(json.loads((tmp_path / "split.json").read_text())["across"]) == 2


def test_a_manifest_s_column_side_is_the_same_split(root: Path) -> None:
    sides = {"train": "TRAIN", "val": "Val", "test": "test"}
    rows = [
        f"{path.relative_to(root).as_posix()},{path.parent.name},{sides[path.parent.parent.name]}"
        for path in sorted(root.rglob("*.png"))
    ]
    table = root / "data.csv"
    table.write_text("\n".join(["path,label,side", *rows]))
    by_table, by_folder = make_split(scan(load_dataset(table))), make_split(scan(load_dataset(root)))
    assert by_table.entries == by_folder.entries and by_table.across == by_folder.across
    check_split(by_table, table)
    table.write_text(
        "\n".join(["path,label,side", *rows[:-1], rows[-1].replace(",TRAIN", ",test").replace(",Val", ",test")])
    )
    with pytest.raises(DataError, match=r"1 moved to another subset \(val/b/3.png\)"):
        check_split(by_table, table)


def test_data_ls_shows_the_subsets_and_the_duplicates(root: Path) -> None:
    found = list_data(root, QUIET)
    counts = found.split.counts
    assert counts is not None and (counts.train, counts.validation, counts.test) == (16, 8, 8)
    text = data_text(found)
    assert "split as given; 2 groups of duplicates in several subsets (16 train, 8 validation, 8 test)" in text
    assert "train/a/7.png" in text.partition("duplicates in several subsets:")[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"by": "image"}, "--split-by"),
        ({"by": "block"}, "--split-by"),
        ({"fold": (1, 5)}, "--fold"),
        ({"test_frac": 0.3}, "--test-frac"),
        ({"val_frac": 0.3}, "--val-frac"),
        ({"by": "image", "test_frac": 0.3}, "--split-by, --test-frac"),
    ],
)
def test_other_ways_of_splitting_are_refused(root: Path, options: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=f"the data set comes split, which conflicts with {named}"):
        make_split(scan(load_dataset(root)), SplitSettings(**options))  # type: ignore[arg-type]


def test_a_class_must_be_in_every_given_subset(root: Path) -> None:
    for path in (root / "test" / "b").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="class b has no image in its test subset"):
        make_split(scan(load_dataset(root)))


def without_validation(scanned: Scan, subjects: bool) -> Scan:
    """The images of train and test only, with four subjects in train."""
    facts = []
    for number, item in enumerate(scanned.facts):
        subject = f"{item.sample.side}{number % 4}" if subjects else None
        if item.sample.side != "validation":
            facts.append(replace(item, sample=replace(item.sample, subject=subject)))
    return Scan(replace(scanned.dataset, samples=tuple(item.sample for item in facts)), tuple(facts))


@pytest.mark.parametrize(("subjects", "level"), [(True, "subject"), (False, "image")])
def test_a_missing_validation_subset_is_taken_from_train(root: Path, subjects: bool, level: str) -> None:
    scanned = without_validation(scan(load_dataset(root)), subjects)
    split = make_split(scanned, SplitSettings(val_frac=0.25))
    given = {item.sample.path: item.sample.side for item in scanned.facts}
    assert {entry.side for entry in split.entries} == set(SUBSETS)
    for entry in split.entries:
        assert (entry.side == "test") == (given[entry.path] == "test"), "the test subset is as given"
    for label in "ab":
        assert {entry.side for entry in split.entries if entry.label == label} == set(SUBSETS)
    assert split.validation_by == level
    if subjects:
        own = [{entry.subject for entry in split.subset(side)} for side in ("train", "validation")]
        assert not own[0] & own[1]


def test_validation_is_taken_from_numbered_files_by_block() -> None:
    items = [facts(f"{side}/{x}/{n:04}.png", x) for side in ("train", "test") for x in "ab" for n in range(300)]
    items = [replace(item, sample=replace(item.sample, side=item.sample.path.partition("/")[0])) for item in items]
    split = make_split(scan_of(items), SplitSettings(embargo=20))
    assert (split.level, split.validation_by, split.embargo) == ("given", "block", 20)
    assert split.left_out == {"embargo": 2 * 20}
    where = np.array([-1 if entry.side == LEFT_OUT else SUBSETS.index(entry.side) for entry in split.entries])
    assert too_near([entry.path for entry in split.entries], where, 20) == []
    assert len(split.subset("validation")) == pytest.approx(0.1 * 1200, abs=24)
    assert "validation taken from train (contiguous blocks of file numbers, embargo 20: 40 images" in split.level_text
