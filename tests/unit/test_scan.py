"""A scan opens every image once and reports images that cannot be read."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeall.edge_runtime.errors import DataError
from edgeall.edge_runtime.images import open_rgb
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.scan import THUMBNAIL, Scan, hash_files, scan


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        picture(tmp_path / "A" / f"{number}.png", number)
        picture(tmp_path / "B" / f"{number}.png", 10 + number)
    return tmp_path


def look(root: Path) -> Scan:
    return scan(load_dataset(root))


def test_facts_are_those_of_the_file(root: Path) -> None:
    found = look(root)
    assert [item.sample for item in found.facts] == list(found.dataset.samples)
    first = found.facts[0]
    path = root / first.sample.path
    assert first.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (first.width, first.height) == (40, 30)
    assert len(first.thumbnail) == THUMBNAIL * THUMBNAIL * 3
    assert 0 <= first.phash < 2**64


def test_pixels_count_and_not_the_file_around_them(root: Path) -> None:
    original = root / "A" / "0.png"
    open_rgb(original).save(root / "A" / "same.bmp")
    shutil.copy(original, root / "A" / "copy.png")
    # The same bytes in another shape are another image.
    Image.frombytes("RGB", (30, 40), open_rgb(original).tobytes()).save(root / "A" / "turned.png")
    facts = {item.sample.path: item for item in look(root).facts}
    assert facts["A/0.png"].pixels_sha256 == facts["A/same.bmp"].pixels_sha256 == facts["A/copy.png"].pixels_sha256
    assert facts["A/0.png"].sha256 == facts["A/copy.png"].sha256 != facts["A/same.bmp"].sha256
    assert facts["A/0.png"].pixels_sha256 != facts["A/turned.png"].pixels_sha256


@pytest.mark.parametrize("size", [(1, 1), (400, 900), (349_600, 2), (3, 200_001)])
def test_hashing_in_pieces_is_hashing(tmp_path: Path, size: tuple[int, int]) -> None:
    """The digest does not depend on the number of bands and chunks."""
    path = picture(tmp_path / "A" / "large.bmp", 1, size)
    (facts,) = look(tmp_path).facts
    pixels = f"{size[0]}x{size[1]}:".encode() + open_rgb(path).tobytes()
    assert facts.pixels_sha256 == hashlib.sha256(pixels).hexdigest()
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_bad_images_are_named_with_a_reason_and_left_out(root: Path) -> None:
    (root / "A" / "empty.png").touch()
    whole = (root / "A" / "0.png").read_bytes()
    (root / "A" / "half.png").write_bytes(whole[: len(whole) // 2])
    (root / "B" / "text.jpg").write_text("no image\n")
    picture(root / "C" / "only.png", 3)
    (root / "C" / "only.png").write_bytes(b"gone")
    (root / "B" / "notes.txt").write_text("note")
    found = look(root)
    reasons = {problem.path: problem.reason for problem in found.dataset.problems}
    assert set(reasons) == {"A/empty.png", "A/half.png", "B/text.jpg", "B/notes.txt", "C/only.png"}
    assert reasons["A/empty.png"] == "the file is empty"
    assert reasons["A/half.png"].startswith("truncated or damaged")
    assert reasons["B/text.jpg"].startswith("not an image")
    assert all("\n" not in reason and str(root) not in reason for reason in reasons.values())
    assert found.dataset.labels == ("A", "B"), "a class without a readable image is none"
    assert len(found.facts) == len(found.dataset.samples) == 8


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "1.png").write_text("no image")
    with pytest.raises(DataError, match="none of its 1 images can be used"):
        look(tmp_path)


def test_the_digest_names_exactly_this_data(root: Path) -> None:
    digest = look(root).digest
    assert look(root).digest == digest
    shutil.move(root / "A" / "0.png", root / "A" / "9.png")
    renamed = look(root).digest
    assert renamed != digest
    picture(root / "A" / "9.png", 99)
    assert look(root).digest not in {digest, renamed}


def test_progress_counts_to_the_end(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    scan(load_dataset(root), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]


def test_hash_files(root: Path) -> None:
    path = root / "A" / "0.png"
    assert hash_files([path, root / "missing"]) == [hashlib.sha256(path.read_bytes()).hexdigest(), None]
