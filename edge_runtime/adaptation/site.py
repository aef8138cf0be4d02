"""The images of a site: reads them, and runs the model on each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...console.progress import QUIET, Progress
from ..classifier import Classifier
from ..drift import image_facts
from ..errors import BundleError, DataError, ImageError
from ..images import decode_rgb, find_images
from ..messages import message
from ..preprocess import preprocess


@dataclass(frozen=True)
class Site:
    """Images of another laboratory as the model sees them. Repeated images are counted once.

    Attributes:
        paths: of the images.
        sha256: digests of the files.
        truth: class indices ``(n,)``; None for unlabelled images.
        probabilities: float32 ``(n, labels)``, not calibrated.
        features: float32 ``(n, features)``, pooled.
        facts: float64 ``(n, facts)``, see `edgeall.edge_runtime.drift.image_facts`.
        repeated: number of files that repeat another one.
        problems: messages about images that could not be read.
    """

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    truth: NDArray[np.int64] | None
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    facts: NDArray[np.float64]
    repeated: int = 0
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def read_site(
    classifier: Classifier,
    folder: Path,
    labelled: bool,
    skipped: Callable[[Path, str], None] | None = None,
    progress: Progress = QUIET,
) -> Site:
    """Read every image of a folder and run the model on it.

    Args:
        classifier: of a packed model.
        folder: if labelled, one folder for each class, named like it, with images at any depth.
        labelled: False ignores the names of folders.
        skipped: see `edgeall.edge_runtime.images.find_images`.
        progress: shows the number of images.

    Raises:
        BundleError: the model has no second output.
        DataError: no such folder, no readable image, a folder that is not named like a class, or one image with two
            labels.
    """
    if classifier.model.second is None:
        text = message("{file}: has no second output with features", file=classifier.model.name)
        raise BundleError(text, hint="pack it with `edgeall quantize`")
    if not folder.is_dir():
        text = message("{folder}: no such folder", folder=folder)
        raise DataError(text, hint="give the folder with the images of the site")
    labels = _labelled(folder, classifier.labels, skipped) if labelled else _unlabelled(folder, skipped)
    seen: dict[str, tuple[Path, int | None]] = {}
    answers, problems, repeated = [], [], 0
    with progress.task("reading the site", len(labels)) as advance:
        for done, (path, label) in enumerate(labels, start=1):
            advance(done, "")
            try:
                data = path.read_bytes()
                pixels = preprocess(decode_rgb(data, str(path)), classifier.input)
            except (ImageError, OSError) as error:
                problems.append(error.message if isinstance(error, ImageError) else f"{path}: {error.strerror}")
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest in seen:
                _check_repeated(path, label, *seen[digest])
                repeated += 1
                continue
            answer = classifier.infer(pixels)
            assert answer.units is not None
            seen[digest] = path, label
            answers.append((answer.probabilities, classifier.pooled(answer.units), image_facts(pixels)))
    if not answers:
        raise DataError(message("{folder}: no readable image in it", folder=folder), hint="check the path")
    probabilities, features, facts = (np.stack(rows) for rows in zip(*answers, strict=True))
    if not (np.isfinite(probabilities).all() and np.isfinite(features).all()):
        text = message("{folder}: the model's outputs for some of its images are not finite numbers", folder=folder)
        raise DataError(text)
    paths = tuple(path for path, _ in seen.values())
    truth = np.array([label for _, label in seen.values()], np.int64) if labelled else None
    return Site(paths, tuple(seen), truth, probabilities, features, facts, repeated, tuple(problems))


def _check_repeated(path: Path, label: int | None, first: Path, other: int | None) -> None:
    if other != label:
        text = message("{path}: the same image as {first}, with another label", path=path, first=first)
        raise DataError(text, hint="remove one of them")


def _unlabelled(folder: Path, skipped: Callable[[Path, str], None] | None) -> list[tuple[Path, int | None]]:
    return [(path, None) for path in find_images(folder, skipped)]


def _labelled(
    folder: Path, labels: Sequence[str], skipped: Callable[[Path, str], None] | None
) -> list[tuple[Path, int | None]]:
    """Every image below the folders of the classes, with its class."""
    found = list(find_images(folder, skipped))
    names = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in found]
    unknown = sorted({name for name in names if name not in labels})
    if unknown:
        where = unknown[0] or "images outside of the folders of the classes"
        raise DataError(
            f"{folder}: {where}: not a class of the model ({', '.join(labels)})",
            hint="the layout is SITE/<class>/<images>; --unlabelled takes images without labels",
        )
    return [(path, labels.index(name)) for path, name in zip(found, names, strict=True)]
