"""Cached facts are used for unchanged files and never for changed ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeall.train.data import duplicates, scan_cache
from edgeall.train.data import scan as scanning
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.scan import Scan, hash_files, scan


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(6):
        picture(tmp_path / "data" / "AB"[number % 2] / f"{number}.bmp", number)
    shutil.copy(tmp_path / "data" / "A" / "0.bmp", tmp_path / "data" / "A" / "copy.bmp")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder. New files may be cached at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)
    return tmp_path / "cache" / "edgeall" / "scans"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in order."""
    names: list[str] = []
    look, hash_file = scanning._scan_image, scanning._hash_file

    def noted_look(folder: Path, sample: Any, phash: Any) -> Any:
        names.append(sample.path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scanning, "_hash_file", hash_file)
            return look(folder, sample, phash)

    def noted_hash(path: Path) -> Any:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(scanning, "_threads", lambda: 1)
    monkeypatch.setattr(scanning, "_scan_image", noted_look)
    monkeypatch.setattr(scanning, "_hash_file", noted_hash)
    return names


def look(root: Path) -> Scan:
    return scan(load_dataset(root))


def test_the_second_scan_opens_nothing_and_says_the_same(root: Path, cache: Path, opened: list[str]) -> None:
    first = look(root)
    assert len(opened) == 7
    opened.clear()
    assert look(root) == first
    digests = hash_files([root / item.sample.path for item in first.facts])
    assert digests == [item.sha256 for item in first.facts]
    assert opened == []


def test_other_ways_to_the_same_folder_know_it_too(
    root: Path, cache: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(root)
    opened.clear()
    monkeypatch.chdir(root.parent)
    assert [item.sha256 for item in look(Path("data")).facts] == [item.sha256 for item in first.facts]
    (root.parent / "list.csv").write_text("path,label\ndata/A/0.bmp,x\ndata/B/1.bmp,y\n")
    assert look(root.parent / "list.csv").facts[0].sha256 == first.facts[0].sha256
    assert opened == []


def _rewrite_in_place(path: Path) -> None:
    """Other bytes of the same length, with the old times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    """Another file with the same length and modification time."""
    before = path.stat()
    other = path.with_name("new")
    other.write_bytes(bytes(path.read_bytes())[:-100] + bytes(100))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def _touch(path: Path) -> None:
    _rewrite_in_place(path)
    os.utime(path)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [_rewrite_in_place, _replace, _touch, _grow])
def test_what_changed_is_read_again(change: Any, root: Path, cache: Path, opened: list[str]) -> None:
    before = {item.sample.path: item.sha256 for item in look(root).facts}
    opened.clear()
    change(root / "A" / "2.bmp")
    after = {item.sample.path: item.sha256 for item in look(root).facts}
    assert opened == ["A/2.bmp"]
    assert [path for path in after if after[path] != before[path]] == ["A/2.bmp"]
    opened.clear()
    look(root)
    assert opened == []


def test_a_file_changed_just_before_it_was_read_is_not_cached(
    root: Path, cache: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_cache, "RACY_NS", 3_600_000_000_000)  # a second write could leave the same time
    look(root)
    opened.clear()
    look(root)
    assert len(opened) == 7


def test_cached_digests_are_not_a_scan(root: Path, cache: Path, opened: list[str]) -> None:
    paths = sorted(root.rglob("*.bmp"))
    digests = hash_files([*paths, root / "missing.bmp"])
    assert digests[-1] is None
    opened.clear()
    assert hash_files(paths) == digests[:-1]
    assert opened == []
    assert [item.sha256 for item in look(root).facts] == digests[:-1]
    assert len(opened) == 7


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: file.write_bytes(b"{}" * 99),
        lambda file: file.write_bytes(file.read_bytes().replace(b'"rows"', b'"sows"')),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["empty", "cut", "zeros", "garbage", "altered", "folder"],
)
def test_a_damaged_memory_is_none(spoil: Any, root: Path, cache: Path, opened: list[str]) -> None:
    first = look(root)
    found_duplicates = duplicates.groups(first)
    for file in cache.iterdir():
        spoil(file)
    opened.clear()
    assert look(root) == first
    assert duplicates.groups(first) == found_duplicates
    assert len(opened) == 7


def test_facts_of_another_version_of_the_code_are_not_believed(
    root: Path, cache: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(root)
    opened.clear()
    monkeypatch.setattr(scanning, "_made_by", lambda: "another version")
    look(root)
    assert len(opened) == 7


def test_without_a_cache_it_is_slower_and_nothing_else(root: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache's folder would be")
    assert look(root) == look(root)
    assert len(duplicates.groups(look(root)).exact) == 1


def test_it_does_not_grow_for_ever(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(root)
    one = max(file.stat().st_size for file in cache.iterdir())
    for file in (root / "A").iterdir():
        if file.name != "0.bmp":
            file.unlink()
    picture(root / "A" / "new.bmp", 99)
    look(root)
    assert max(file.stat().st_size for file in cache.iterdir()) < one, "files that are gone are forgotten"
    for file in cache.iterdir():
        os.utime(file, (1, 1))
    monkeypatch.setattr(scan_cache, "MAX_BYTES", 2 * one)
    for number in range(5):
        shutil.copytree(root / "B", root.parent / f"more{number}" / "B")
        look(root.parent / f"more{number}")
    files = list(cache.iterdir())
    assert sum(file.stat().st_size for file in files) <= 2 * one
    assert all(file.stat().st_mtime > 1 for file in files), "those not used for longest went"


def test_an_interrupted_scan_is_cached(root: Path, cache: Path, opened: list[str]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(load_dataset(root), stop)
    opened.clear()
    look(root)
    assert len(opened) == 3


def test_an_unreadable_image_is_looked_at_again(root: Path, cache: Path, opened: list[str]) -> None:
    (root / "A" / "bad.bmp").write_bytes(b"no image")
    first = look(root)
    opened.clear()
    assert look(root) == first
    assert [problem.path for problem in first.dataset.problems] == opened == ["A/bad.bmp"]


def test_groups_are_worked_out_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(root)
    found_duplicates = duplicates.groups(found)
    assert [[found.facts[index].sample.path for index in group] for group in found_duplicates.exact] == [
        ["A/0.bmp", "A/copy.bmp"]
    ]
    monkeypatch.setattr(duplicates, "_groups", lambda facts: pytest.fail("done twice"))
    assert duplicates.groups(look(root)) == found_duplicates


def test_many_images_are_looked_at_in_processes(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "B" / "bad.bmp").write_bytes(b"no image")
    alone = look(root)
    shutil.rmtree(cache)
    monkeypatch.setattr(scanning, "_MANY", 1)
    monkeypatch.setattr(scanning, "_PORTION", 2)
    monkeypatch.setattr(scanning, "_threads", lambda: 2)
    monkeypatch.setattr(scanning, "_scan_image", lambda *_: pytest.fail("done here"))
    started: list[Any] = []
    begin = scanning._Helpers._start
    monkeypatch.setattr(scanning._Helpers, "_start", lambda self: started.append(begin(self)) or started[-1])
    assert look(root) == alone
    assert started
    assert all(process.poll() is not None for process in started), "none is left"


def test_a_process_that_dies_costs_nothing_but_time(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = look(root)
    shutil.rmtree(cache)
    monkeypatch.setattr(scanning, "_MANY", 1)
    monkeypatch.setattr(scanning, "_threads", lambda: 2)
    monkeypatch.setattr(scanning, "_HELPER", "import os; os.kill(os.getpid(), 9)")
    assert look(root) == alone
