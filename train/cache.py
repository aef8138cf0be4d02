"""Preprocessed images on disk, made once: training reads bytes, it never decodes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.cache import cache_dir
from edgeall.edge_runtime.preprocess import InputSpec, load_input
from edgeall.train.progress import Progress
from edgeall.train.split import SplitEntry

FORMAT = 1
"""Raised whenever `edge_runtime.preprocess` changes what it returns."""


default_cache_dir = cache_dir
"""The device keeps its own things there too."""


def pixels(
    root: Path, entries: Sequence[SplitEntry], spec: InputSpec, cache_dir: Path, progress: Progress
) -> NDArray[np.uint8]:
    """The preprocessed images of ``entries``, memory-mapped.

    Args:
        root: the data folder the entries' paths are relative to.
        entries: images, in the order of the rows wanted.
        spec: input contract.
        cache_dir: where to look and to write.

    Returns:
        uint8 array ``(len(entries), height, width, 3)``, read-only.

    Raises:
        ImageError: an image that could be read when the split was made no longer can.
    """
    facts = {"format": FORMAT, "spec": asdict(spec), "images": [entry.sha256 for entry in entries]}
    path = cache_dir / f"pixels-{digest(facts)}.npy"
    if not path.exists():
        with replacing(path) as temporary:
            _fill(temporary, root, entries, spec, progress)
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return mapped


def digest(facts: Any) -> str:
    """A short name for what a cached file was made from."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


class replacing:
    """Context manager: a temporary path beside ``path`` that takes its place if nothing was raised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _fill(path: Path, root: Path, entries: Sequence[SplitEntry], spec: InputSpec, progress: Progress) -> None:
    shape = (len(entries), spec.height, spec.width, 3)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.task("preprocessing", len(entries)) as advance:
        images = pool.map(lambda entry: load_input(root / entry.path, spec), entries)
        for index, image in enumerate(images):
            rows[index] = image
            advance(index + 1, "")
    rows.flush()
