"""Scans without image files, and a slow, simple check of the embargo."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from edgeall.train.data.samples import Dataset, Sample
from edgeall.train.data.scan import THUMBNAIL, Facts, Scan
from edgeall.train.data.subsets import NOWHERE


def facts(path: str, label: str, subject: str | None = None, pixels: str | None = None) -> Facts:
    """Facts of an image without a file. Its thumbnail is black, so only equal ``pixels`` make it a duplicate."""
    digest = hashlib.sha256(path.encode()).hexdigest()
    return Facts(
        Sample(path, label, subject), digest, pixels or digest, 8, 8, int(digest[:16], 16), bytes(THUMBNAIL**2 * 3)
    )


def scan_of(items: list[Facts]) -> Scan:
    items = sorted(items, key=lambda item: item.sample.path)
    labels = tuple(sorted({item.sample.label for item in items}))
    return Scan(Dataset(Path("data"), "folders", labels, tuple(item.sample for item in items)), tuple(items))


def number_of(path: str) -> int:
    return int(re.findall("[0-9]+", PurePosixPath(path).stem)[-1])


def too_near(paths: list[str], subset: np.ndarray, embargo: int) -> list[tuple[str, str]]:
    """Pairs of images of one series in different subsets within the embargo, by comparing all pairs."""
    of_series = defaultdict(list)
    for path, one in zip(paths, subset, strict=True):
        if one != NOWHERE:
            of_series[re.sub("[0-9]+(?=[.]png)", "#", path)].append((number_of(path), one, path))
    found = []
    for members in of_series.values():
        members.sort()
        for place, (number, one, path) in enumerate(members):
            for other, another, near in members[place + 1 :]:
                if other - number > embargo:
                    break
                if one != another:
                    found.append((path, near))
    return found
