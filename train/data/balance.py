"""Equal class sizes: larger classes are sampled, smaller ones are filled up with augmented copies."""

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
    """Number of images of each class in each subset."""

    train: int
    validation: int
    test: int

    def __str__(self) -> str:
        return f"{self.train}/{self.validation}/{self.test}"

    @property
    def all(self) -> int:
        """Sum of the three subsets."""
        return self.train + self.validation + self.test


def parse_per_class(text: str) -> PerClass:
    """Parse ``train/validation/test``, for example ``700/150/150``. Raises UsageError for another text."""
    parts = text.split("/")
    if len(parts) != len(SUBSETS) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--per-class {text}: not three numbers of images above 0", hint="write train/validation/test: 700/150/150"
        )
    return PerClass(*map(int, parts))


def sample_subsets(split: Split, wanted: PerClass, seed: int) -> Split:
    """Leave out random images of each class that exceed the wanted number of their subset.

    A subset with fewer images is unchanged: augmented copies of test images add no evidence, and copies for training
    are made in each batch, see `filled`.
    """
    generator = np.random.default_rng(seed)
    limits = dict(zip(SUBSETS, (wanted.train, wanted.validation, wanted.test), strict=True))
    out: set[int] = set()
    for label in split.labels:
        for name in SUBSETS:
            members = [i for i, entry in enumerate(split.entries) if (entry.label, entry.side) == (label, name)]
            out.update(generator.permutation(members)[limits[name] :].tolist())
    entries = [replace(entry, side=LEFT_OUT) if i in out else entry for i, entry in enumerate(split.entries)]
    return replace(split, entries=tuple(entries))


def filled(images: Images, count: int) -> Images:
    """At least ``count`` images of every class: the images of a smaller class are repeated in turn.

    Each repetition in an epoch, and each epoch, is augmented differently. Without augmentation the copies are equal.
    """
    chosen: list[NDArray[np.intp]] = []
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        chosen.append(np.resize(members, max(count, len(members))))
    order = np.concatenate(chosen)
    return replace(images, rows=images.rows[order], labels=images.labels[order])
