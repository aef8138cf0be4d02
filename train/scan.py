"""Opens every image of a data set once, on all cores, and keeps what splits and audits need to know of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeall.edge_runtime.errors import DataError, ImageError
from edgeall.edge_runtime.images import open_rgb
from edgeall.train.dataset import Dataset, Problem, Sample

THUMBNAIL = 32
"""Side of the thumbnails that near duplicates are confirmed on."""

_HASHED = 64
_CHUNK = 1 << 20
"""Bytes that are hashed at once."""


@dataclass(frozen=True)
class Facts:
    """What is known of one image after a look at it.

    Attributes:
        sample: the image, its label and subject.
        sha256: of the file's bytes.
        pixels_sha256: of size and upright RGB pixels: equal for a file copied, renamed or with other metadata.
        width: pixels, upright.
        height: pixels, upright.
        phash: ImageHash's perceptual hash, 64 bits as an integer.
        thumbnail: `THUMBNAIL` x `THUMBNAIL` RGB pixels, row by row.
    """

    sample: Sample
    sha256: str
    pixels_sha256: str
    width: int
    height: int
    phash: int
    thumbnail: bytes = field(repr=False)


@dataclass(frozen=True)
class Scan:
    """A data set whose readable images have been looked at; the others have joined its problems."""

    dataset: Dataset
    facts: tuple[Facts, ...]

    @property
    def digest(self) -> str:
        """sha256 over path, sha256, label, subject and given side of every image: one name for exactly this data."""
        rows = [
            [f.sample.path, f.sha256, f.sample.label, f.sample.subject, *([f.sample.side] if f.sample.side else [])]
            for f in self.facts
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def scan(dataset: Dataset, on_progress: Callable[[int, int], None] | None = None) -> Scan:
    """Decode and fingerprint every image of ``dataset``.

    Args:
        dataset: as listed by `load_dataset`.
        on_progress: called with (done, total) after each image, from the calling thread.

    Returns:
        Facts in the order of ``dataset.samples``. Images that can't be decoded are left out and named in
        ``.dataset.problems``; a class that loses its last image leaves ``.dataset.labels``.

    Raises:
        DataError: not one image can be read.
    """
    import imagehash  # loads scipy and PyWavelets: once, before the threads start

    facts: list[Facts] = []
    problems: list[Problem] = list(dataset.problems)
    total = len(dataset.samples)
    with ThreadPoolExecutor(_threads()) as pool:
        results = pool.map(lambda sample: _look(dataset.root, sample, imagehash.phash), dataset.samples)
        for done, result in enumerate(results, start=1):
            if isinstance(result, Facts):
                facts.append(result)
            else:
                problems.append(result)
            if on_progress is not None:
                on_progress(done, total)
    if not facts:
        raise DataError(
            f"{dataset.root}: none of its {total} images can be read ({problems[-1].path}: {problems[-1].reason})",
            hint="copy the data again",
        )
    readable = replace(
        dataset,
        labels=tuple(sorted({item.sample.label for item in facts})),
        samples=tuple(item.sample for item in facts),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
    )
    return Scan(readable, tuple(facts))


def hash_files(paths: list[Path]) -> list[str | None]:
    """sha256 of each file's bytes, None where it can't be read."""
    with ThreadPoolExecutor(_threads()) as pool:
        return list(pool.map(_hash_file, paths))


def _look(root: Path, sample: Sample, phash: Callable[[Image.Image], Any]) -> Facts | Problem:
    path = root / sample.path
    sha256 = _hash_file(path)
    if sha256 is None:
        return Problem(sample.path, "can't be read from the disk")
    try:
        image = open_rgb(path)
    except ImageError as error:
        return Problem(sample.path, error.message.removeprefix(f"{path}: ").splitlines()[0])
    width, height = image.size
    # phash looks at the lowest frequencies only; from a small copy it comes out the same ten times as fast.
    small = image.resize((_HASHED, _HASHED), Image.Resampling.BOX)
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    bits = np.packbits(np.asarray(phash(small).hash, dtype=bool).ravel())
    number = int.from_bytes(bits.tobytes(), "big")
    return Facts(sample, sha256, _hash_pixels(image), width, height, number, thumbnail.tobytes())


def _hash_pixels(image: Image.Image) -> str:
    """sha256 of size and pixels, by bands of rows: both `tobytes` and numpy would copy the whole image twice."""
    width, height = image.size
    pixels = hashlib.sha256(f"{width}x{height}:".encode())
    rows = max(1, _CHUNK // (3 * width))
    for top in range(0, height, rows):
        pixels.update(image.crop((0, top, width, min(top + rows, height))).tobytes())
    return pixels.hexdigest()


def _hash_file(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def _threads() -> int:
    return min(16, os.cpu_count() or 1)
