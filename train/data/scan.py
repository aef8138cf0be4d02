"""Scans a data set: decodes every image once, on all cores, and collects the facts that splits and audits need.

The facts are cached, see `scan_cache`: the next command only opens images that changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...edge_runtime import images
from ...edge_runtime.errors import DataError, ImageError
from ...edge_runtime.images import USED_BITS, open_rgb
from ...edge_runtime.masks import open_mask
from ...edge_runtime.network import cores
from ...edge_runtime.threads import Threads
from .samples import Dataset, Problem, Sample
from .scan_cache import Known, ScanCache

THUMBNAIL = 32
"""Side in pixels of the thumbnails that near duplicates are confirmed with."""

_HASHED = 64
_CHUNK = 1 << 20
"""Bytes per read when hashing."""
_MANY = 1000
"""Number of images from which processes are used instead of threads. Half of the work on a small image is Python, which
runs one thread at a time; but a process takes half a second to start."""
_PORTION = 32
"""Images per request to a process."""
_HELPER = "import sys; sys.path[:] = sys.argv[1:]; from edgeall.train.data.scan import _help; _help()"


@dataclass(frozen=True)
class Facts:
    """The facts of one decoded image.

    Attributes:
        sample: the image, its label and subject.
        sha256: of the bytes of the file.
        pixels_sha256: of size and upright RGB pixels. It is equal for a copied or renamed file, or with other metadata.
        width: pixels, upright.
        height: pixels, upright.
        phash: ImageHash's perceptual hash, 64 bits as an integer.
        thumbnail: `THUMBNAIL` x `THUMBNAIL` RGB pixels, row by row.
        used_bits: 10, 12 or 14 if 16-bit samples use at most that many bits, see `open_rgb`; else None.
        mask_sha256: of the bytes of its mask; None without one.
    """

    sample: Sample
    sha256: str
    pixels_sha256: str
    width: int
    height: int
    phash: int
    thumbnail: bytes = field(repr=False)
    used_bits: int | None = None
    mask_sha256: str | None = None


@dataclass(frozen=True)
class Scan:
    """A data set with the facts of its readable images. Unreadable images are among its problems."""

    dataset: Dataset
    facts: tuple[Facts, ...]

    @property
    def digest(self) -> str:
        """sha256 over path, sha256, label, subject, given subset and mask of every image. It identifies the data."""
        rows = [
            [
                *(f.sample.path, f.sha256, f.sample.label, f.sample.subject),
                *([f.sample.side] if f.sample.side else []),
                *([f.mask_sha256, f.sample.red_cell_px] if f.mask_sha256 else []),
            ]
            for f in self.facts
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def scan(dataset: Dataset, on_progress: Callable[[int, int], None] | None = None) -> Scan:
    """Decode and fingerprint every image of ``dataset``.

    Args:
        dataset: as listed by `load_dataset`.
        on_progress: called with (done, total) after each image, in the calling thread.

    Returns:
        Facts in the order of ``dataset.samples``. Images that cannot be decoded are in ``.dataset.problems`` instead. A
        class without any readable image is removed from ``.dataset.labels``.

    Raises:
        DataError: no image can be read.
    """
    facts: list[Facts] = []
    problems: list[Problem] = list(dataset.problems)
    total = len(dataset.samples)
    paths = [os.path.join(dataset.root, sample.path) for sample in dataset.samples]
    cached = ScanCache(paths, _made_by())
    begun = time.time_ns()
    found = [cached.get(path) for path in paths]
    unknown = [
        sample
        for sample, (_, known) in zip(dataset.samples, found, strict=True)
        if known is None or known.values is None
    ]
    try:
        with contextlib.closing(_scan_images(dataset.root, unknown)) as scanned:
            for done, (sample, path, (stamp, known)) in enumerate(
                zip(dataset.samples, paths, found, strict=True), start=1
            ):
                if known is not None and known.values is not None:
                    facts.append(Facts(sample, known.sha256, *known.values))
                else:
                    result = next(scanned)
                    if isinstance(result, Facts):
                        facts.append(result)
                        values = tuple(getattr(result, name) for name in _CACHED)
                        cached.put(path, stamp, begun, Known(result.sha256, values))
                    else:
                        problems.append(result)
                if on_progress is not None:
                    on_progress(done, total)
    finally:
        cached.save()
    facts, faults = with_masks(dataset.root, facts)
    problems += faults
    if not facts:
        raise DataError(
            f"{dataset.root}: none of its {total} images can be used ({problems[-1].path}: {problems[-1].reason})",
            hint="copy the data again",
        )
    readable = replace(
        dataset,
        labels=tuple(sorted({item.sample.label for item in facts})),
        samples=tuple(item.sample for item in facts),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
    )
    return Scan(readable, tuple(facts))


def with_masks(root: Path, facts: list[Facts]) -> tuple[list[Facts], list[Problem]]:
    """The facts with the digests of their masks, and the problems of masks that cannot be used."""
    if not any(item.sample.mask for item in facts):
        return facts, []

    def checked(item: Facts) -> Facts | Problem:
        mask = root / str(item.sample.mask)
        try:
            open_mask(mask, (item.width, item.height))
        except ImageError as error:
            return Problem(item.sample.path, error.message.replace(str(mask), str(item.sample.mask)).splitlines()[0])
        return replace(item, mask_sha256=_hash_file(mask))

    with Threads(_threads()) as pool:
        found = list(pool.map(checked, facts))
    usable = [item for item in found if isinstance(item, Facts)]
    return usable, [item for item in found if isinstance(item, Problem)]


def narrow_range(facts: Sequence[Facts]) -> str | None:
    """A sentence about 16-bit images that are nearly black because they use fewer bits; None if there are none."""
    narrow = [item for item in facts if item.used_bits is not None]
    if not narrow:
        return None
    bits = max(item.used_bits or 0 for item in narrow)
    share = {10: "a sixty-fourth", 12: "a sixteenth", 14: "a quarter"}[bits]
    return (
        f"{len(narrow):,} image{'s use' if len(narrow) > 1 else ' uses'} at most {share} of "
        f"{'their' if len(narrow) > 1 else 'its'} range ({bits} bits in 16?), nearly black: {narrow[0].sample.path}"
    )


def hash_files(paths: list[Path]) -> list[str | None]:
    """sha256 of the bytes of each file; None if it cannot be read."""
    texts = [os.fspath(path) for path in paths]
    cached = ScanCache(texts, _made_by())
    begun = time.time_ns()
    found = [cached.get(text) for text in texts]
    unknown = [path for path, (_, known) in zip(paths, found, strict=True) if known is None]
    with Threads(_threads()) as pool:
        read = pool.map(_hash_file, unknown)
        digests = [known.sha256 if known is not None else next(read) for _, known in found]
    for text, (stamp, known), digest in zip(texts, found, digests, strict=True):
        if known is None and digest is not None:
            cached.put(text, stamp, begun, Known(digest, None))
    cached.save()
    return digests


_CACHED = tuple(item.name for item in fields(Facts) if item.name not in ("sample", "sha256", "mask_sha256"))


@functools.cache
def _made_by() -> str:
    """Identifies the code that makes `Facts`. Cached facts of another version are ignored."""
    digest = hashlib.sha256(repr(_CACHED).encode())
    for package in ("pillow", "ImageHash", "numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{package} {metadata.version(package)};".encode())
    for file in (images.__file__, __file__):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


# --- scanning ---------------------------------------------------------------------------------------------------------


def _scan_images(root: Path, samples: Sequence[Sample]) -> Generator[Facts | Problem, None, None]:
    """`_scan_image` of each sample, on all cores, in order."""
    if not samples:
        return
    import imagehash  # loads scipy and PyWavelets: once, before the threads start

    alone = _threads() == 1 or len(samples) < _MANY or not sys.executable
    with Threads(_threads()) as pool:
        if alone:
            yield from pool.map(lambda sample: _scan_image(root, sample, imagehash.phash), samples)
            return
        with _Helpers(root) as helpers:
            portions = [samples[at : at + _PORTION] for at in range(0, len(samples), _PORTION)]
            for results in pool.map(helpers.scan, portions):
                yield from results


class _Helpers:
    """One helper process for each calling thread. The processes end with the context.

    `multiprocessing` cannot be used: spawned processes import the caller's script again, so a script without a main
    guard would start over in each of them; forked processes hang because of TensorFlow's threads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.kill()
            process.communicate()

    def scan(self, samples: Sequence[Sample]) -> list[Facts | Problem]:
        """`_scan_image` of each in the process of this thread; in this process if that one fails."""
        try:
            process = getattr(self._own, "process", None) or self._start()
            assert process.stdin is not None and process.stdout is not None
            pickle.dump((self.root, samples), process.stdin)
            process.stdin.flush()
            results: list[Facts | Problem] = pickle.load(process.stdout)
            return results
        except (OSError, EOFError, pickle.UnpicklingError):
            import imagehash

            return [_scan_image(self.root, sample, imagehash.phash) for sample in samples]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _HELPER, *sys.path]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._all.append(process)
        self._own.process = process
        return process


def _help() -> None:
    """The main function of a process of `_Helpers`: answer requests until the pipe is closed."""
    import imagehash

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process handles Ctrl+C
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints go to stderr
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            root, samples = pickle.load(sys.stdin.buffer)
            pickle.dump([_scan_image(root, sample, imagehash.phash) for sample in samples], output)
            output.flush()


def _scan_image(root: Path, sample: Sample, phash: Callable[[Image.Image], Any]) -> Facts | Problem:
    path = root / sample.path
    sha256 = _hash_file(path)
    if sha256 is None:
        return Problem(sample.path, "can't be read from the disk")
    try:
        image = open_rgb(path)
    except ImageError as error:
        return Problem(sample.path, error.message.removeprefix(f"{path}: ").splitlines()[0])
    width, height = image.size
    # phash only uses the lowest frequencies: a small copy gives the same hash ten times as fast.
    small = image.resize((_HASHED, _HASHED), Image.Resampling.BOX)
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    bits = np.packbits(np.asarray(phash(small).hash, dtype=bool).ravel())
    number = int.from_bytes(bits.tobytes(), "big")
    used = image.info.get(USED_BITS)
    return Facts(sample, sha256, _hash_pixels(image), width, height, number, thumbnail.tobytes(), used)


def _hash_pixels(image: Image.Image) -> str:
    """sha256 of size and pixels, by bands of rows: `tobytes` and numpy would copy the whole image twice."""
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
    return min(16, cores())
