"""The same number of images of every class: too many are sampled, too few are filled up with augmented copies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import UsageError
from ..batches import Images
from .split import Split
from .subsets import LEFT_OUT, SUBSETS


@dataclass(frozen=True)
class PerClass:
    """Images of each class on each side."""

    train: int
    validation: int
    test: int

    def __str__(self) -> str:
        return f"{self.train}/{self.validation}/{self.test}"

    @property
    def all(self) -> int:
        """On the three sides together."""
        return self.train + self.validation + self.test


def parse_per_class(text: str) -> PerClass:
    """``700/150/150``. Raises UsageError for anything else."""
    parts = text.split("/")
    if len(parts) != len(SUBSETS) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--per-class {text}: not three numbers of images above 0", hint="write train/validation/test: 700/150/150"
        )
    return PerClass(*map(int, parts))


def sample_subsets(split: Split, wanted: PerClass, seed: int) -> Split:
    """Leave out, at random, the images of a class that are more than wanted on their side.

    A side with fewer stays as it is: an augmented copy of a test image is no new evidence, and for training copies
    are made batch by batch, see `filled`.
    """
    generator = np.random.default_rng(seed)
    limits = dict(zip(SUBSETS, (wanted.train, wanted.validation, wanted.test), strict=True))
    out: set[int] = set()
    for label in split.labels:
        for side in SUBSETS:
            members = [i for i, entry in enumerate(split.entries) if (entry.label, entry.side) == (label, side)]
            out.update(generator.permutation(members)[limits[side] :].tolist())
    entries = [replace(entry, side=LEFT_OUT) if i in out else entry for i, entry in enumerate(split.entries)]
    return replace(split, entries=tuple(entries))


def filled(images: Images, count: int) -> Images:
    """Every class ``count`` times: a class with fewer images has each of them once and then again, in turn.

    An image that comes several times in an epoch is augmented differently each time, and differently again in the
    next epoch; without augmentation the copies are plain repeats.
    """
    chosen: list[NDArray[np.intp]] = []
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        chosen.append(np.resize(members, max(count, len(members))))
    order = np.concatenate(chosen)
    return replace(images, rows=images.rows[order], labels=images.labels[order])
