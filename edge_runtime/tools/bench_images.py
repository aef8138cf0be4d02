"""The images of a benchmark: which are timed, their digest, and the accuracy on those with a known label."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..classifier import Classifier
from ..errors import DataError, ImageError
from ..images import decode_rgb, open_rgb
from ..network import Network, cores
from ..parallel import Pool
from ..pipeline import expand, prediction
from ..preprocess import load_input
from .layout import layouts_in_memory, possible_layouts

MAX_TIMED_IMAGES = 200
"""Taken evenly from the folder: enough to cover its sizes and formats, few enough to stay in the page cache."""

Decode = Callable[[], Image.Image]


def list_files(images: Path | None) -> list[str]:
    """Every image in a folder, or the one image. None gives an empty list. Raises DataError as `expand` does."""
    return [] if images is None else list(expand([images]))


def decoders(files: Sequence[str], network: Network[Any]) -> dict[str, Decode]:
    """By name, the functions that decode the images to time: `MAX_TIMED_IMAGES` of ``files``, else the golden images.

    Raises:
        DataError: there are no files, and the model has no golden images.
    """
    if files:
        chosen = np.unique(np.linspace(0, len(files) - 1, MAX_TIMED_IMAGES).astype(int))
        return {files[index]: functools.partial(open_rgb, files[index]) for index in chosen}
    golden = network.bundle.golden if network.bundle else ()
    if not golden:
        raise DataError("the model has no golden images to time", hint="give images with --images DIR")
    return {item.name: functools.partial(decode_rgb, item.image_bytes, item.name) for item in golden}


def images_digest(network: Network[Any], files: Sequence[str]) -> str:
    """Hex SHA-256 of the image contents, in order. File names do not count, so copies of a folder have one digest."""
    digest = hashlib.sha256()
    if not files and network.bundle:
        for golden in network.bundle.golden:
            digest.update(hashlib.sha256(golden.image_bytes).digest())
    for file in files:
        try:
            digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
        except OSError:  # listed under problems
            digest.update(b"unreadable")
    return digest.hexdigest()


def true_labels(root: Path | None, files: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """The label of each file that has one: the first folder below ``root`` with the name of a label.

    If no folder below ``root`` has such a name, the name of ``root`` itself counts (of a single image: its folder).
    """
    if root is None:
        return {}
    top = Path(os.path.abspath(root if root.is_dir() else root.parent))
    found = {}
    for file in files:
        folders = [*Path(os.path.abspath(file)).relative_to(top).parts[:-1], top.name]
        label = next((folder for folder in folders if folder in labels), None)
        if label is not None:
            found[file] = label
    return found


def accuracy(classifier: Classifier, labels: Mapping[str, str], problems: dict[str, str]) -> tuple[float | None, int]:
    """Accuracy over the labelled files that can be classified, and their number. Adds the others to ``problems``.

    Uses the same code as `edgeall run`, on all cores.
    """
    right = counted = 0
    with Pool(classifier, layouts_in_memory(classifier, possible_layouts(cores()))[0]) as pool:
        for file, outcome in pool.map(lambda file: load_input(file, classifier.input), labels):
            if isinstance(outcome, ImageError):
                problems[file] = outcome.message
                continue
            found = prediction(classifier, file, outcome)
            if found.error is not None:
                problems[file] = found.error
                continue
            counted += 1
            right += found.label == labels[file]
    return right / counted if counted else None, counted
