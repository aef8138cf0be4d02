"""Finds duplicates: equal pixels, nearly equal pixels, or overlapping fields after a move of the stage.

The thresholds were measured, see `docs/methods/duplicates.md`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.network import cores
from ...edge_runtime.threads import Threads
from .dataset import unit
from .scan import THUMBNAIL, Facts, Scan
from .scan_cache import load_result, save_result

HAMMING = 10
"""Candidates: pairs whose 64-bit perceptual hashes differ in at most this many bits."""

NEIGHBOURS = 24
"""Candidates: pairs in one folder at most this many places apart in the order of their numbers."""

CORRELATION = 0.7
"""Confirmed fields: minimum correlation of the overlap, with shifts of the thumbnails by up to half their side."""

EVIDENCE = 6.5
"""Confirmed fields: minimum correlation in standard deviations from zero. A few large cells may match by chance."""

CELL_CORRELATION = 0.95
"""Confirmed cells: minimum correlation. It is high because all cells are round and centred."""

CELL_SHIFT = 3
"""Crops of cells: largest shift of the thumbnails, in their pixels. The box of a cell is found anew in each field."""

COLOUR = 32.0
"""Confirmed pairs: maximum difference of the mean colour per channel, of 255. One spot has one stain and one lamp."""

_BLACK = 8.0
_CUT_OUT = 0.25  # share of black pixels above which a thumbnail shows a segmented cell
_FLAT = 2.0  # grey levels; less structure cannot be compared
_CHUNK = 1000
_MOST_THREADS = 8  # each uses a chunk of pairs, about 100 MB

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Duplicates:
    """Groups of images as indices into ``Scan.facts``. Every group has two or more, sorted.

    Attributes:
        exact: images with the same pixels.
        near: near duplicates, including exact ones; no index is in two groups.
        conflicts: the groups of `near` with several labels.
    """

    exact: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, ...], ...]
    conflicts: tuple[tuple[int, ...], ...]

    @property
    def exact_count(self) -> int:
        """Images with the same pixels as an earlier image."""
        return sum(len(group) - 1 for group in self.exact)

    @property
    def near_count(self) -> int:
        """Images that show the same as an earlier image, with other pixels."""
        return sum(len(group) - 1 for group in self.near) - self.exact_count


def groups(scan: Scan) -> Duplicates:
    """Group the duplicates of a scan. Deterministic. Mirrored and rotated copies are not searched for.

    The result is cached: comparing 17,000 images takes half a minute on one core.
    """
    crops = unit(scan.dataset) == "cell"
    key = _key(scan.facts, crops)
    kept = load_result(key)
    if kept is not None:
        return Duplicates(*(tuple(map(tuple, part)) for part in kept))
    found = _groups(scan.facts, crops)
    save_result(key, astuple(found))
    return found


def _key(facts: tuple[Facts, ...], crops: bool) -> str:
    """A digest of everything that the groups depend on: the images and this code."""
    rows = [[item.sample.path, item.sample.label, item.pixels_sha256, item.phash] for item in facts]
    digest = hashlib.sha256(json.dumps([crops, rows]).encode())
    for item in facts:
        digest.update(item.thumbnail)
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def _groups(facts: tuple[Facts, ...], crops: bool) -> Duplicates:
    by_pixels: dict[str, list[int]] = {}
    for index, item in enumerate(facts):
        by_pixels.setdefault(item.pixels_sha256, []).append(index)
    exact = tuple(tuple(group) for group in by_pixels.values() if len(group) > 1)
    links = [(a, b) for group in exact for a, b in itertools.pairwise(group)]

    # One image represents each exact group.
    first = np.array([group[0] for group in by_pixels.values()])
    hashes = np.array([facts[index].phash for index in first], dtype=np.uint64)
    comparison = _Comparison([facts[index].thumbnail for index in first], crops)
    for left, right in (*_alike_hashes(hashes), _neighbours([facts[index].sample.path for index in first])):
        alike = comparison.confirm(left, right)
        links += zip(first[left[alike]].tolist(), first[right[alike]].tolist(), strict=True)

    near = connected(len(facts), links)
    conflicts = tuple(group for group in near if len({facts[index].sample.label for index in group}) > 1)
    return Duplicates(exact, near, conflicts)


def connected(size: int, links: list[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """The connected components with two or more of ``size`` nodes, each sorted, in order of their first node."""
    parent = list(range(size))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in links:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for node in range(size):
        members.setdefault(find(node), []).append(node)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)


def _alike_hashes(hashes: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Pairs (left < right) whose hashes differ in at most `HAMMING` bits, for one slab of rows at a time."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32)
    ones = bits.sum(axis=1)
    for start in range(0, len(bits), 512):
        slab = bits[start : start + 512]
        # |a| + |b| - 2 a.b is the Hamming distance: one matrix product replaces 64-bit counts.
        distance = ones[start : start + 512, None] + ones[None, start:] - 2.0 * (slab @ bits[start:].T)
        left, right = np.nonzero(distance <= HAMMING)
        keep = left < right
        yield left[keep] + start, right[keep] + start


def _neighbours(paths: list[str]) -> Pairs:
    """Pairs in one folder at most `NEIGHBOURS` places apart in natural order."""
    order = np.array(sorted(range(len(paths)), key=lambda index: _natural(paths[index])), dtype=np.intp)
    folders = np.unique([PurePosixPath(paths[index]).parent.as_posix() for index in order], return_inverse=True)[1]
    place, step = (part.ravel() for part in np.mgrid[: len(order), 1 : NEIGHBOURS + 1])
    inside = place + step < len(order)
    left, right = place[inside], (place + step)[inside]
    same = folders[left] == folders[right]
    return order[left[same]], order[right[same]]


def _natural(path: str) -> tuple[str, list[tuple[int, str]]]:
    pure = PurePosixPath(path)
    pieces = re.findall(r"[0-9]+|[^0-9]+", pure.name)
    return pure.parent.as_posix(), [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in pieces]


class _Comparison:
    """Compares pairs of thumbnails, `_CHUNK` pairs at a time, to limit the memory.

    Args:
        thumbnails: RGB, `THUMBNAIL` pixels wide and high.
        crops: whether each shows one cell, not a field.
    """

    def __init__(self, thumbnails: list[bytes], crops: bool) -> None:
        self.crops = crops
        pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3)
        self.colour = pixels.mean(axis=(1, 2), dtype=np.float32)
        self.grey = pixels.mean(axis=3, dtype=np.float32)
        self.cut_out = (self.grey <= _BLACK).mean(axis=(1, 2)) > _CUT_OUT
        self.structure = _without_shade(self.grey)
        self.flat = self.structure.std(axis=(1, 2)) < _FLAT

    def confirm(self, left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether each candidate pair is a duplicate: bool (pairs,)."""
        result = np.zeros(len(left), dtype=np.bool_)
        cells = self.cut_out[left] | self.cut_out[right]
        colour = np.abs(self.colour[left] - self.colour[right]).max(axis=1) <= COLOUR
        worth = np.nonzero(colour & ~self.flat[left] & ~self.flat[right])[0]

        def confirm_some(start: int) -> None:
            some = worth[start : start + _CHUNK]
            fields, cut = some[~cells[some]], some[cells[some]]
            if len(fields):
                least = Match(CELL_CORRELATION, 0.0, CELL_SHIFT) if self.crops else Match()
                result[fields] = _same_spot(self.structure, left[fields], right[fields], least)
            result[cut] = _cell_correlation(self.grey[left[cut]], self.grey[right[cut]]) >= CELL_CORRELATION

        with Threads(min(_MOST_THREADS, cores())) as pool:
            list(pool.map(confirm_some, range(0, len(worth), _CHUNK)))
        return result


def _without_shade(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Thumbnails minus their best quadratic surface. The vignette of a lamp would make all fields similar."""
    axis = np.linspace(-1.0, 1.0, THUMBNAIL)
    x, y = (part.ravel() for part in np.meshgrid(axis, axis))
    basis = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))[0].astype(np.float32)
    flat = grey.reshape(len(grey), -1)
    return np.asarray(flat - (flat @ basis) @ basis.T, dtype=np.float32).reshape(grey.shape)


@dataclass(frozen=True)
class Match:
    """When two images match: see `CORRELATION` and `EVIDENCE`, after a shift of at most ``shift`` pixels."""

    correlation: float = CORRELATION
    evidence: float = EVIDENCE
    shift: int = THUMBNAIL // 2


def _same_spot(
    images: NDArray[np.float32], left: NDArray[np.intp], right: NDArray[np.intp], least: Match
) -> NDArray[np.bool_]:
    """Whether two images match on their overlap after some whole-pixel shift: (pairs,).

    Products at all shifts come from one FFT, sums over the overlaps from integral images. The significance of a
    correlation depends on the number of independent spots in the overlap; large objects give fewer spots.

    Source: J. P. Lewis, Fast Normalized Cross-Correlation, 1995; M. S. Bartlett, 1935, for the number of
    independent spots, n / sum over all lags of the product of both autocorrelations.
    """
    from scipy import fft

    side = 3 * THUMBNAIL // 2  # zero-padded, so that nothing wraps around
    moves = np.arange(-least.shift, least.shift + 1)
    area = np.outer(THUMBNAIL - np.abs(moves), THUMBNAIL - np.abs(moves)).astype(np.float32)
    # Many pairs share an image: everything per image is computed once.
    which, place = np.unique(np.concatenate([left, right]), return_inverse=True)
    a, b = place[: len(left)], place[len(left) :]
    some = images[which]
    spectrum = fft.rfft2(some, s=(side, side))
    total = _overlap_sums(some, moves)
    variance = _overlap_sums(some * some, moves) - total * total / area
    power = (np.abs(spectrum) ** 2).reshape(len(some), -1)
    twice = np.full(spectrum.shape[1:], 2.0, dtype=np.float32)  # rfft2 omits the mirrored half
    twice[:, [0, -1]] = 1.0
    power /= (power @ twice.ravel())[:, None]

    correlation = fft.irfft2(spectrum[a] * spectrum[b].conj(), s=(side, side))[:, moves][:, :, moves]
    # The overlap is the lower right part of one image and the upper left of the other: the shifts are reversed.
    correlation -= total[a] * total[b, ::-1, ::-1] / area
    floor = (_FLAT**2 * area) ** 2  # an empty overlap cannot be compared either
    correlation /= np.sqrt(np.maximum(variance[a] * variance[b, ::-1, ::-1], floor))
    lags = side * side * np.einsum("pf,pf,f->p", power[a], power[b], twice.ravel())
    spots = area / lags[:, None, None]
    deviations = np.arctanh(correlation.clip(-0.999, 0.999)) * np.sqrt(np.maximum(spots - 3.0, 0.0))
    return np.asarray(((correlation >= least.correlation) & (deviations >= least.evidence)).any(axis=(1, 2)))


def _overlap_sums(images: NDArray[np.float32], moves: NDArray[np.intp]) -> NDArray[np.float32]:
    """Sum of each image over its overlap after a shift in y and x: (images, moves, moves)."""
    integral = np.zeros((len(images), THUMBNAIL + 1, THUMBNAIL + 1))
    integral[:, 1:, 1:] = images.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    low, high = np.maximum(moves, 0), THUMBNAIL + np.minimum(moves, 0)
    rows = integral[:, high] - integral[:, low]
    return np.asarray(rows[:, :, high] - rows[:, :, low], dtype=np.float32)


def _cell_correlation(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson correlation over the pixels that are not black in both images, without shifts: (pairs,).

    The black background is excluded, because it would make any two cells similar.
    """
    pixels = THUMBNAIL * THUMBNAIL
    a, b = left.reshape(-1, pixels), right.reshape(-1, pixels)
    inside = (np.maximum(a, b) > _BLACK).astype(np.float32)
    count = np.maximum(inside.sum(axis=1, keepdims=True), 1.0)
    a = (a - (a * inside).sum(axis=1, keepdims=True) / count) * inside
    b = (b - (b * inside).sum(axis=1, keepdims=True) / count) * inside
    power = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(power, 1.0), dtype=np.float32)
