"""Probes for shortcuts: how well a class can be predicted from features that do not depend on the cells.

Each probe is a random forest on a few features per image. It is scored by cross-validation with subjects, or at least
duplicates, kept together. A network can learn from the images whatever the forest learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from ...edge_runtime.images import open_rgb
from ...edge_runtime.network import cores
from ...edge_runtime.threads import Threads
from .scan import Facts

MAX_SIDE = 256
"""Images are reduced to at most this many pixels per side."""
FOLDS = 5
TREES = 150
MANY = 1000
"""Images from which a forest is faster on all cores: the trees of fewer cost less than the threads."""
BRIGHTEST = 0.2
"""Share of the brightest pixels that count as background: in a smear, the glass between the cells."""
BLACK = 8
CUT_OUT = 0.25
"""An image of a segmented cell has at least this share of black pixels."""
FRAME = 0.04
"""Width of the border, as a share of the image side."""
CORNER = 0.2
"""Width and height of a corner, as a share of the image side: a scale bar with its text fits in."""
INK, PURE = 70, 120
"""Ink has no channel above the first; the channels of a pure colour differ by the second. Stained cells are neither."""
RESAMPLES = 1000

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """A set of features to predict the class from.

    Attributes:
        name: in tables and JSON.
        looks_at: the features in words.
        sees_cells: whether the features also depend on the cells. Such a probe alone does not prove a shortcut.
    """

    name: str
    looks_at: str
    sees_cells: bool = False


PROBES = (
    Probe("background", "the colour of the background alone"),
    Probe("border", "the outermost pixels alone"),
    Probe("corners", "marks in the four corners alone (scale bars, text)"),
    Probe("size", "width and height alone"),
    Probe("file", "the file's length alone"),
    Probe("metadata", "the file's format, compression tables and tags alone"),
    Probe("colour", "nine colour statistics of the whole image", sees_cells=True),
    Probe("shape", "shapes and textures without colour", sees_cells=True),
)
"""The last one is the reference for the others: a small model of the features that a pathologist uses."""


@dataclass(frozen=True)
class Score:
    """The result of a probe.

    Attributes:
        accuracy: cross-validated balanced accuracy, 0..1; chance is 1 / number of classes.
        low: lower end of the 95 % interval, by bootstrap over the groups that were kept together.
        high: upper end.
        predicted: predicted class of each image, ``(images,)``.
        confidence: probability of the predicted class, 0..1, ``(images,)``.
    """

    accuracy: float
    low: float
    high: float
    predicted: NDArray[np.int64]
    confidence: Features


def measure(
    root: Path, facts: Sequence[Facts], on_progress: Callable[[int], None] = lambda done: None
) -> dict[str, Features]:
    """The features of each of `PROBES` for all images: ``(images, features)`` by name."""
    with Threads(min(16, cores())) as pool:
        rows = []
        for row in pool.map(lambda item: _look(root / item.sample.path, item), facts):
            rows.append(row)
            on_progress(len(rows))
    return {probe.name: np.stack([row[probe.name] for row in rows]) for probe in PROBES}


def score(features: Features, classes: NDArray[np.int64], groups: NDArray[np.int64], seed: int = 0) -> Score:
    """Predict the class of every image with a forest that was trained without its group.

    Args:
        features: ``(images, features)``.
        classes: ``(images,)``, from 0.
        groups: group numbers to keep together, ``(images,)``.
        seed: of folds, forest and bootstrap.
    """
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    jobs = -1 if len(features) >= MANY else None  # the same forest
    forest = RandomForestClassifier(
        TREES, min_samples_leaf=2, class_weight="balanced_subsample", n_jobs=jobs, random_state=seed
    )
    shares = cross_val_predict(forest, features, classes, groups=groups, cv=folds, method="predict_proba")
    predicted = shares.argmax(axis=1)
    low, high = _interval(classes, predicted, groups, seed)
    accuracy = float(balanced_accuracy_score(classes, predicted))
    return Score(accuracy, low, high, predicted, shares.max(axis=1))


def background_of(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The background pixels, ``(h, w)``: the brightest fifth, or the black around a segmented cell."""
    black = pixels.max(axis=2) <= BLACK
    if black.mean() >= CUT_OUT:
        return np.asarray(black)
    brightness = pixels.sum(axis=2, dtype=np.int32)
    return np.asarray(brightness >= np.quantile(brightness, 1 - BRIGHTEST))


def _look(path: Path, facts: Facts) -> dict[str, Features]:
    image = open_rgb(path)
    if max(image.size) > MAX_SIDE:
        image = image.resize(_within(image.size), Image.Resampling.BOX)
    pixels = np.asarray(image)
    away = pixels[background_of(pixels)].astype(np.float64)
    height, width = facts.height, facts.width
    length = path.stat().st_size
    return {
        "background": np.concatenate([away.mean(axis=0), away.std(axis=0)]),
        "border": _border(pixels),
        "corners": _corners(pixels),
        "size": np.array([width, height, width / height]),
        "file": np.array([length, length / (width * height)]),
        "metadata": _metadata(path),
        "colour": _colour(pixels),
        "shape": _shape(image),
    }


def _within(size: tuple[int, int]) -> tuple[int, int]:
    longest = max(size)
    return max(1, size[0] * MAX_SIDE // longest), max(1, size[1] * MAX_SIDE // longest)


def _colour(pixels: NDArray[np.uint8]) -> Features:
    """Mean, standard deviation and skewness of red, green and blue."""
    levels = np.arange(256.0)
    shares = np.stack([np.bincount(pixels[:, :, c].ravel(), minlength=256) for c in range(3)]) / pixels[:, :, 0].size
    mean = shares @ levels
    moments = [(shares * (levels - mean[:, None]) ** power).sum(axis=1) for power in (2, 3)]
    spread = np.sqrt(moments[0])
    return np.concatenate([mean, spread, moments[1] / np.maximum(spread, 1e-6) ** 3])


def _border(pixels: NDArray[np.uint8]) -> Features:
    """Minimum, median and maximum of each colour in the strip along each edge: tints, frames and scale bars."""
    down, across = (max(1, round(FRAME * side)) for side in pixels.shape[:2])
    strips = (pixels[:down], pixels[-down:], pixels[:, :across], pixels[:, -across:])
    return np.concatenate([np.quantile(strip.reshape(-1, 3), (0.0, 0.5, 1.0), axis=0).ravel() for strip in strips])


def _corners(pixels: NDArray[np.uint8]) -> Features:
    """For each corner: shares of ink and of pure colour, and the longest line. Marks are black or of a pure colour."""
    down, across = (max(2, round(CORNER * side)) for side in pixels.shape[:2])
    tops, sides = (slice(0, down), slice(-down, None)), (slice(0, across), slice(-across, None))
    return np.concatenate([_marks(pixels[top, side]) for top in tops for side in sides])


def _marks(corner: NDArray[np.uint8]) -> Features:
    most, least = corner.max(axis=2).astype(np.int64), corner.min(axis=2).astype(np.int64)
    ink = most <= INK
    run, longest = np.zeros(len(ink), np.int64), 0
    for column in ink.T:
        run = (run + 1) * column
        longest = max(longest, int(run.max()))
    pure = (most - least >= PURE) & (least <= INK)
    return np.array([ink.mean(), pure.mean(), longest / ink.shape[1]])


def _metadata(path: Path) -> Features:
    """Format, mode, compression tables and tags; no pixels."""
    with Image.open(path) as image:
        tables = getattr(image, "quantization", None) or {}
        sums = [float(sum(table)) for _, table in sorted(tables.items())][:2]
        firsts = [float(table[0]) for _, table in sorted(tables.items())][:2]
        density = image.info.get("dpi", (0, 0))
        return np.array(
            [
                float(sum(map(ord, image.format or ""))),
                float(sum(map(ord, image.mode))),
                *[*sums, 0.0, 0.0][:2],
                *[*firsts, 0.0, 0.0][:2],
                float(len(image.info)),
                float(len(image.getexif())),
                float(density[0]),
                float("icc_profile" in image.info),
                float("progressive" in image.info),
            ]
        )


def _shape(image: Image.Image) -> Features:
    """Histograms of edge strength and direction at four scales, of the grey image with unit contrast.

    All images have the same mean and contrast then, so lamp and stain have no effect.
    """
    grey = np.asarray(image.convert("L"), np.float64)
    grey = (grey - grey.mean()) / max(grey.std(), 1e-6)
    found = []
    for _ in range(4):
        down, across = np.gradient(grey)
        strength = np.hypot(down, across)
        # A slide has no orientation, so only changes of direction are used: the curvature of edges.
        turned = np.abs(np.gradient(np.arctan2(down, across), axis=1))
        histogram, _edges = np.histogram(strength, bins=np.geomspace(0.01, 4, 13))
        bends, _edges = np.histogram(np.minimum(turned, 2 * np.pi - turned)[strength > 0.3], bins=8, range=(0, np.pi))
        levels = np.quantile(grey, (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.95))
        found += [histogram / strength.size, bends / max(1, bends.sum()), levels]
        height, width = (side // 2 * 2 for side in grey.shape)
        if min(height, width) < 16:
            break
        grey = grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    row = np.concatenate(found)
    return np.pad(row, (0, 4 * 27 - len(row)))


def _interval(
    classes: NDArray[np.int64], predicted: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    """95 % interval of the balanced accuracy, over resampled groups."""
    generator = np.random.default_rng(seed)
    _, owner = np.unique(groups, return_inverse=True)
    count = int(owner.max()) + 1
    kinds = np.unique(classes)
    images = np.stack([np.bincount(owner, classes == kind, count) for kind in kinds])
    right = np.stack([np.bincount(owner, (classes == kind) & (predicted == kind), count) for kind in kinds])
    times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    recalls = (times @ right.T) / np.maximum(times @ images.T, 1)
    low, high = np.percentile(recalls.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
