"""Splits: no subject and no duplicate is in two subsets, and the fractions are as requested."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from fixtures_splits import facts, scan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.train.data.blocks import EMBARGO
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.duplicates import groups
from edgeall.train.data.make_split import make_split
from edgeall.train.data.scan import Facts, Scan, scan
from edgeall.train.data.split import Split, check_split, load_split, save_split
from edgeall.train.data.split_settings import SplitSettings
from edgeall.train.data.subsets import LEFT_OUT, SUBSETS


def plain(images: int, labels: str = "ab", subjects: int | None = None) -> Scan:
    """``images`` of each label. With ``subjects``: that many subjects per label, with equally many images."""
    return scan_of(
        [
            facts(f"{label}/{n:04}.png", label, None if subjects is None else f"{label}{n % subjects}")
            for label in labels
            for n in range(1, images + 1)
        ]
    )


def apart(split: Split, embargo: int = EMBARGO) -> list[tuple[str, str]]:
    """Pairs of images of one folder in different subsets within the embargo. The number is the last one in the name."""
    numbers: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for entry in split.entries:
        if entry.side != LEFT_OUT:
            numbers[str(Path(entry.path).parent)].append(
                (int(re.findall("[0-9]+", entry.path)[-1]), entry.side, entry.path)
            )
    found = []
    for members in numbers.values():
        for number, side, path in members:
            found += [(path, p) for n, other, p in members if other != side and 0 <= n - number <= embargo]
    return found


def subsets_of(split: Split) -> dict[str, str]:
    return {entry.path: entry.side for entry in split.entries}


# --- what must hold for any data --------------------------------------------------------------------------------------


def any_scan(seed: int) -> Scan:
    """Several labels; a subject for all, some or no images; some images with equal pixels."""
    rng = np.random.default_rng(seed)
    known = rng.choice(["all", "some", "none"])
    items = []
    for label in "abcd"[: rng.integers(2, 5)]:
        people = int(rng.integers(6, 13))
        for number in range(1, int(rng.integers(30, 90))):
            person = f"{label}{number if number <= people else rng.integers(1, people + 1)}"
            subject = None if known == "none" or (known == "some" and number % 3 == 0) else person
            copied = number > people and rng.random() < 0.1
            pixels = f"{label}-{number - 1}" if copied else f"{label}-{number}"
            items.append(facts(f"{label}/{number:03}.png", label, subject, pixels))
    return scan_of(items)


def keys(item: Facts, by: str) -> list[tuple[object, ...]]:
    """The properties that force images into one subset."""
    found: list[tuple[object, ...]] = [("pixels", item.pixels_sha256)]
    if item.sample.subject is not None and by != "image":
        found.append(("subject", item.sample.subject))
    return found


def fewest_groups(scanned: Scan, by: str) -> int:
    """Number of independent groups in the class with the fewest."""
    groups_of: list[tuple[set[tuple[object, ...]], set[str]]] = []
    for item in scanned.facts:
        own, label = set(keys(item, by)), {item.sample.label}
        touched = [group for group in groups_of if group[0] & own]
        groups_of = [group for group in groups_of if not group[0] & own]
        groups_of.append((own.union(*(group[0] for group in touched)), label.union(*(group[1] for group in touched))))
    return min(sum(label in group[1] for group in groups_of) for label in scanned.dataset.labels)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["auto", "image"]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_no_subject_and_no_duplicate_is_in_two_subsets(seed: int, by: str, folded: bool) -> None:
    _in_one_subset(seed, by, folded)


@pytest.mark.long
@given(st.integers(0, 2**32 - 1), st.sampled_from(["auto", "image"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_subject_and_no_duplicate_is_in_two_subsets_of_many(seed: int, by: str, folded: bool) -> None:
    _in_one_subset(seed, by, folded)


def _in_one_subset(seed: int, by: str, folded: bool) -> None:
    scanned = any_scan(seed)
    fold = (1 + seed % 3, 3) if folded else None
    if fewest_groups(scanned, by) < 3:
        with pytest.raises(DataError, match="cannot be in every subset"):
            make_split(scanned, SplitSettings(by=by, seed=seed, fold=fold))
        return
    split = make_split(scanned, SplitSettings(by=by, seed=seed, fold=fold))
    together = defaultdict(set)
    for item, entry in zip(scanned.facts, split.entries, strict=True):
        assert (entry.path, entry.sha256) == (item.sample.path, item.sha256)
        for key in keys(item, by):
            together[key].add(entry.side)
    assert [key for key, found in together.items() if len(found) > 1] == []
    for label in split.labels:
        assert {entry.side for entry in split.entries if entry.label == label} == set(SUBSETS)
    assert make_split(scanned, SplitSettings(by=by, seed=seed, fold=fold)) == split, (
        "the same seed gives the same split"
    )


@given(
    st.integers(40, 200),
    st.sampled_from([(0.1, 0.2), (0.15, 0.15), (0.2, 0.3), (0.07, 0.13), (0.25, 0.25)]),
    st.integers(0, 1000),
)
@settings(max_examples=10, deadline=None)
def test_the_fractions_are_matched(images: int, fractions: tuple[float, float], seed: int) -> None:
    split = make_split(plain(images, "abc"), SplitSettings(val_frac=fractions[0], test_frac=fractions[1], seed=seed))
    for label in split.labels:
        for side, share in zip(("validation", "test"), fractions, strict=True):
            held = sum(entry.label == label for entry in split.subset(side)) / images
            assert held == pytest.approx(share, abs=0.035)


def test_whole_subjects_and_blocks_match_the_fractions() -> None:
    """Shares of all images of a class: the embargo takes images from train."""
    for scanned, by in ((plain(300, subjects=30), "subject"), (plain(600), "block")):
        split = make_split(scanned, SplitSettings(by=by, val_frac=0.1, test_frac=0.2))
        assert split.level == by
        for label in split.labels:
            count = {side: sum(entry.label == label for entry in split.subset(side)) for side in SUBSETS}
            total = sum(entry.label == label for entry in split.entries)
            assert count["test"] / total == pytest.approx(0.2, abs=0.04)
            assert count["validation"] / total == pytest.approx(0.1, abs=0.04)


def test_another_seed_is_another_split() -> None:
    scanned = plain(60)
    assert subsets_of(make_split(scanned, SplitSettings(seed=0))) != subsets_of(
        make_split(scanned, SplitSettings(seed=1))
    )


def test_folds_cover_all_and_do_not_overlap() -> None:
    scanned = plain(60, subjects=12)
    tests = [
        {entry.path for entry in make_split(scanned, SplitSettings(fold=(i, 4), seed=3)).subset("test")}
        for i in range(1, 5)
    ]
    assert sum(map(len, tests)) == len(set().union(*tests)) == len(scanned.facts)
    split = make_split(scanned, SplitSettings(fold=(2, 4), seed=3))
    assert split.fold == (2, 4)
    assert {side: len(split.subset(side)) for side in SUBSETS} == {"train": 80, "validation": 10, "test": 30}


# --- levels -----------------------------------------------------------------------------------------------------------


def test_auto_is_subject_if_every_image_has_one() -> None:
    assert make_split(plain(40, subjects=8)).level == "subject"
    assert make_split(plain(40)).level == "image"
    some = [*plain(40, subjects=8).facts, facts("a/9999.png", "a")]
    assert make_split(scan_of(some)).level == "image"


def test_a_known_subject_is_kept_together_except_by_image() -> None:
    scanned = plain(60, subjects=6)
    found = defaultdict(set)
    for entry in make_split(scanned, SplitSettings(by="image")).entries:
        found[entry.subject].add(entry.side)
    assert any(len(side) > 1 for side in found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "subject"}, "80 of 80 images have no subject"),
        ({"by": "patient"}, "no split called 'patient'"),
        ({"val_frac": 0.0}, "leave nothing to train on"),
        ({"test_frac": 1.0}, "leave nothing to train on"),
        ({"val_frac": 0.5, "test_frac": 0.5}, "leave nothing to train on"),
        ({"fold": (0, 5)}, "no fold 0 of 5"),
        ({"fold": (6, 5)}, "no fold 6 of 5"),
        ({"fold": (1, 1)}, "no fold 1 of 1"),
        ({"seed": -1}, "seed -1"),
        ({"embargo": -1}, "embargo -1"),
    ],
)
def test_invalid_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_split(plain(40), SplitSettings(**options))  # type: ignore[arg-type]
    assert caught.value.hint


def test_block_requires_neighbouring_numbers() -> None:
    with pytest.raises(UsageError, match="no two images have neighbouring numbers"):
        make_split(
            scan_of([facts(f"{label}/{n * 1000}.png", label) for label in "ab" for n in range(9)]),
            SplitSettings(by="block"),
        )
    with pytest.raises(UsageError, match=r"no number in the file name a/x\.png"):
        make_split(scan_of([facts("a/x.png", "a"), facts("b/1.png", "b")]), SplitSettings(by="block"))


def test_a_class_that_cannot_be_in_every_subset() -> None:
    with pytest.raises(DataError, match=r"only one class \(a\)"):
        make_split(plain(40, "a"))
    with pytest.raises(DataError, match="its 40 images have no room for contiguous blocks with an embargo of 37"):
        make_split(plain(40), SplitSettings(by="block"))
    one = [*plain(40).facts, facts("c/1.png", "c")]
    with pytest.raises(DataError, match="class c cannot be in every subset: it has 1 image, but 3"):
        make_split(scan_of(one))
    same = [*plain(40, "ab").facts, *(facts(f"c/{n}.png", "c", pixels="same") for n in range(9))]
    with pytest.raises(DataError, match="its 9 images form 1 group of duplicates"):
        make_split(scan_of(same))
    with pytest.raises(DataError, match="class a cannot be in every subset: its images come from 2 subjects,"):
        make_split(plain(40, subjects=2))
    with pytest.raises(DataError, match="its images come from 4 subjects, but 5"):
        make_split(plain(40, subjects=4), SplitSettings(fold=(1, 5)))


def test_three_images_of_a_class_are_just_enough() -> None:
    few = [*plain(90).facts, *(facts(f"c/{n}.png", "c") for n in range(3))]
    split = make_split(scan_of(few))
    assert {entry.side for entry in split.entries if entry.label == "c"} == set(SUBSETS)
    assert 0.6 < len(split.subset("train")) / len(split.entries) < 0.8, "one small class does not bend the rest"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng([ord(label), number]).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def test_a_split_is_saved_and_loaded(root: Path, tmp_path: Path) -> None:
    split = make_split(scan(load_dataset(root)), SplitSettings(fold=(1, 3)))
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert load_split(tmp_path / "split.json").sha256 == split.sha256
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["split.json"], "no temporary file is left"
    assert split.subset("all") == split.entries
    with pytest.raises(UsageError, match="no subset called 'dev'"):
        split.subset("dev")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "not a split"),
        (lambda text: text[: len(text) // 2], "not a split"),
        (lambda text: "[]", "not a split"),
        (lambda text: "{}", "not a split"),
        (lambda text: text.replace('"seed": 0', '"seed": "0"'), "not a split"),
        (lambda text: text.replace('"side":', '"page":', 1), "not a split"),
        (lambda text: text.replace('"side": "test"', '"side": "train"', 1), "changed since it was written"),
        (lambda text: text.replace('"schema": 1', '"schema": 4'), "schema 4"),
    ],
)
def test_a_malformed_split(root: Path, tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "split.json"
    save_split(make_split(scan(load_dataset(root))), path)
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        load_split(path)


def test_a_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        load_split(tmp_path / "split.json")


def test_data_that_no_longer_matches_is_refused(root: Path) -> None:
    (root / "a" / "broken.png").write_text("not in the split, because it can't be read")
    split = make_split(scan(load_dataset(root)))
    check_split(split, root)

    with pytest.raises(DataError, match="no such folder"):
        check_split(split, root / "missing")
    for number in range(4):
        (root / "a" / f"{number}.png").rename(root / f"{number}.gone")
    with pytest.raises(DataError, match=r"4 missing \(a/0.png, a/1.png, a/2.png, \.\.\.\)"):
        check_split(split, root)
    for number in range(4):
        (root / f"{number}.gone").rename(root / "a" / f"{number}.png")
    check_split(split, root)

    kept = (root / "b" / "5.png").read_bytes()
    shutil.copy(root / "b" / "6.png", root / "b" / "5.png")
    with pytest.raises(DataError, match=r"1 changed \(b/5.png\)"):
        check_split(split, root)
    (root / "b" / "5.png").write_bytes(kept)

    shutil.copy(root / "b" / "6.png", root / "b" / "60.png")
    with pytest.raises(DataError, match=r"16 images of the split: 1 new \(b/60.png\)") as caught:
        check_split(split, root)
    assert caught.value.hint


def test_a_manifest_whose_labels_changed_is_refused(root: Path) -> None:
    table = root / "data.csv"
    rows = [f"{label}/{number}.png,{label}" for label in "ab" for number in range(8)]
    table.write_text("\n".join(["path,label", *rows]))
    split = make_split(scan(load_dataset(table)))
    check_split(split, table)
    table.write_text("\n".join(["path,label", *rows[:-1], "b/7.png,a"]))
    with pytest.raises(DataError, match=r"1 of another class or subject \(b/7.png\)"):
        check_split(split, table)


def test_the_file_is_readable_json(root: Path, tmp_path: Path) -> None:
    split = make_split(scan(load_dataset(root)))
    save_split(split, tmp_path / "split.json")
    document = json.loads((tmp_path / "split.json").read_text())
    assert document["sha256"] == split.sha256
    assert set(document["entries"][0]) == {"path", "label", "subject", "sha256", "side"}
    assert document["schema"] == 1 and "embargo" not in document, "as before there were embargoes"


@pytest.mark.long
def test_the_real_fields(test_data: Path) -> None:
    scanned = scan(load_dataset(test_data / "all4"))
    duplicates = groups(scanned)
    assert duplicates.exact_count > 0
    for by, level in (("auto", "block"), ("block", "block"), ("image", "image")):
        split = make_split(scanned, SplitSettings(by=by), duplicates=duplicates)
        assert split.level == level
        side = [entry.side for entry in split.entries]
        for group in (*duplicates.exact, *duplicates.near):
            assert len({side[index] for index in group} - {LEFT_OUT}) <= 1
        assert split.exact_duplicates == duplicates.exact_count
        for name, share in (("validation", 0.1), ("test", 0.15)):
            assert len(split.subset(name)) / len(split.entries) == pytest.approx(share, abs=0.02)
        if level == "block":
            assert apart(split) == []
            borders = 2 * len(split.labels)  # each class: one at either end of the held-out stretch, at most
            assert 0 < split.left_out["embargo"] <= borders * split.embargo
            assert f"embargo {EMBARGO}: {sum(split.left_out.values())} images left out" in split.level_text
    check_split(split, test_data / "all4")


# --- C-NMC ------------------------------------------------------------------------------------------------------------


def cells(root: Path, people: int = 6) -> Path:
    """Training folds as distributed. The first cells of two subjects of each class are identical files."""
    seed = 0
    for label, sign in (("all", ""), ("hem", "H")):
        for person in range(1, people + 1):
            for cell in range(1, 4):
                seed += 1
                same = person in (1, 2) and cell == 1
                pixels = np.random.default_rng(ord(label[0]) if same else seed).integers(0, 256, (24, 24, 3), np.uint8)
                path = root / f"fold_{person % 3}" / label / f"UID_{sign}{person}_1_{cell}_{label}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def test_subjects_that_share_a_cell_are_one(tmp_path: Path) -> None:
    """C-NMC has identical files for several subjects."""
    scanned = scan(load_dataset(cells(tmp_path)))
    assert groups(scanned).exact_count == 2
    for options in ({"seed": 0}, {"seed": 1}, {"fold": (1, 3)}, {"fold": (2, 3)}, {"fold": (3, 3)}):
        split = make_split(scanned, SplitSettings(**options))  # type: ignore[arg-type]
        found = defaultdict(set)
        for entry in split.entries:
            found[entry.subject].add(entry.side)
        assert split.level == "subject"
        assert all(len(where) == 1 for where in found.values())
        assert found["1"] == found["2"] and found["H1"] == found["H2"]


def test_the_preliminary_test_set_is_in_no_split(tmp_path: Path) -> None:
    root = cells(tmp_path)
    alone = make_split(scan(load_dataset(root)))
    extra = root / "C-NMC_test_prelim_phase_data"
    extra.mkdir()
    rows = []
    for number in (1, 2):
        pixels = np.random.default_rng(900 + number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(extra / f"{number}.bmp")
        rows.append(f"UID_{50 + number}_1_1_all.bmp,{number}.bmp,1")
    (root / "C-NMC_test_prelim_phase_data_labels.csv").write_text("\n".join(["Patient_ID,new_names,labels", *rows]))
    dataset = load_dataset(root)
    assert make_split(scan(dataset)) == alone
    assert [sample.path for sample in dataset.independent] == [f"{extra.name}/1.bmp", f"{extra.name}/2.bmp"]
    check_split(alone, root)
    assert len(load_dataset(extra).samples) == 2, "to be evaluated on by itself"
