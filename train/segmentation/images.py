"""Images with masks for training: decoded once, at twice the network's scale at most, cached on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...console.progress import Progress
from ...edge_runtime.images import open_rgb
from ...edge_runtime.masks import CLASSES, open_mask
from ...edge_runtime.network import cores
from ...edge_runtime.preprocess import InputSpec, rescaled
from ...edge_runtime.threads import Threads
from ..data import cache
from ..data.split import Split, SplitEntry
from ..data.subsets import SUBSETS

NUCLEUS = CLASSES.index("nucleus")
RED_CELL_PX = 28
"""Diameter in pixels of a red cell in the input of a segmentation network: the whole of a large white cell and its
surroundings fit into 192 pixels, and a lobe of a nucleus has some pixels."""
STORED_PX = 2 * RED_CELL_PX
"""Largest diameter of a red cell in a cached image: augmentation enlarges no further."""
_FORMAT = 3  # 3: fields are resized in two passes in a fixed order
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class Picture:
    """One image with its mask, as cached.

    Attributes:
        pixels: uint8 ``(height, width, 4)``: red, green, blue, and the index into `CLASSES`.
        red_cell_px: diameter of a red cell in these pixels. If it is unknown, the shorter side fills the input.
        known: whether it is known.
    """

    pixels: NDArray[np.uint8]
    red_cell_px: float
    known: bool


@dataclass(frozen=True)
class MaskedImages:
    """The images of one subset.

    Attributes:
        pictures: as cached.
        entries: of the split, in the same order.
        root: folder of the paths.
        spec: the input contract of the tiles.
    """

    pictures: tuple[Picture, ...]
    entries: tuple[SplitEntry, ...]
    root: Path
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.pictures)

    def by_laboratory(self) -> list[list[Picture]]:
        """The pictures of each laboratory, by name."""
        names = sorted({entry.label for entry in self.entries})
        return [
            [picture for picture, entry in zip(self.pictures, self.entries, strict=True) if entry.label == name]
            for name in names
        ]


def load_masked_images(
    split: Split, root: Path, spec: InputSpec, cache_dir: Path, progress: Progress
) -> dict[str, MaskedImages]:
    """The images of every subset.

    Raises:
        ImageError: an image or a mask cannot be read any more.
        NoSpaceError: not enough disk space.
    """
    entries = [entry for entry in split.entries if entry.side in SUBSETS]
    pictures = _pictures(entries, root, spec, cache_dir, progress)
    found = {}
    for name in SUBSETS:
        rows = [row for row, entry in enumerate(entries) if entry.side == name]
        found[name] = MaskedImages(
            tuple(pictures[row] for row in rows), tuple(entries[row] for row in rows), root, spec
        )
    return found


def red_cell_of(entry: SplitEntry, size: tuple[int, int], spec: InputSpec) -> float:
    """Diameter of a red cell in the pixels of an image of this size, see `Picture.red_cell_px`."""
    return entry.red_cell_px or RED_CELL_PX * min(size) / min(spec.width, spec.height)


def _pictures(
    entries: Sequence[SplitEntry], root: Path, spec: InputSpec, cache_dir: Path, progress: Progress
) -> list[Picture]:
    names = [[entry.sha256, entry.mask_sha256, entry.red_cell_px] for entry in entries]
    key = cache.digest({"format": _FORMAT, "stored": STORED_PX, "spec": asdict(spec), "images": names})
    with Threads(cores()) as pool:
        sizes = list(pool.map(lambda entry: _upright_size(root / entry.path), entries))
    red_cells = [red_cell_of(entry, size, spec) for entry, size in zip(entries, sizes, strict=True)]
    stored = [_stored_size(size, red_cell) for size, red_cell in zip(sizes, red_cells, strict=True)]
    path, total = cache_dir / f"masked-{key}.npy", sum(4 * width * height for width, height in stored)
    flat = cache.load(path, (total,), np.uint8, progress)
    if flat is None:
        cache.save(path, (total,), np.uint8, _decoded(entries, stored, root, progress))
        flat = cache.load(path, (total,), np.uint8, progress)
        assert flat is not None
    found, at = [], 0
    for entry, size, (width, height), red_cell in zip(entries, sizes, stored, red_cells, strict=True):
        pixels = flat[at : at + 4 * width * height].reshape(height, width, 4)
        found.append(Picture(pixels, red_cell * width / size[0], entry.red_cell_px is not None))
        at += 4 * width * height
    return found


def _stored_size(size: tuple[int, int], red_cell_px: float) -> tuple[int, int]:
    zoom = min(1.0, STORED_PX / red_cell_px)
    return max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom))


def _decoded(
    entries: Sequence[SplitEntry], sizes: Sequence[tuple[int, int]], root: Path, progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """Every picture's pixels in order, flat."""

    def decode(item: tuple[SplitEntry, tuple[int, int]]) -> NDArray[np.uint8]:
        entry, size = item
        image = open_rgb(root / entry.path)
        classes = resized_classes(open_mask(root / str(entry.mask), image.size), size)
        if image.size != size:
            image = rescaled(image, size)
        return np.dstack([np.asarray(image, np.uint8), classes]).ravel()

    with Threads(cores()) as pool, progress.task("preprocessing", len(entries)) as advance:
        for done, block in enumerate(pool.map(decode, zip(entries, sizes, strict=True)), 1):
            yield block
            advance(done, "")


def resized_classes(classes: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask in another size (width, height): the class with the largest share of each pixel."""
    if classes.shape == size[::-1]:
        return classes
    shares = [
        np.asarray(Image.fromarray(np.uint8(255) * (classes == index)).resize(size, Image.Resampling.BILINEAR))
        for index in range(len(CLASSES))
    ]
    largest: NDArray[np.uint8] = np.argmax(shares, axis=0).astype(np.uint8)
    return largest


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as `open_rgb` gives it, from the head of the file; decoded if that fails."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(0x0112) in _TURNED else (width, height)
    except OSError:
        return open_rgb(path).size
