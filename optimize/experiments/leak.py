"""Measures the leak into the test subset when images are augmented before the split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.preprocess import InputSpec, normalize
from ...edge_runtime.results import Result
from ...models import registry
from ...models.keras_compat import tf
from ...models.registry import BuildArgs
from ...train.augment import AUGMENTS
from ...train.data import cache
from ...train.data.balance import PerClass, parse_per_class
from ...train.data.blocks import EMBARGO
from ...train.data.dataset import load_dataset
from ...train.data.duplicates import Duplicates, groups
from ...train.data.make_split import make_split
from ...train.data.scan import Scan, scan
from ...train.data.split import Split, SplitEntry
from ...train.data.split_settings import SplitSettings, check_embargo
from ...train.data.subsets import SUBSETS
from ...train.data.synth import is_synthetic
from ...train.runs import image_folder

BATCH = 32
WAYS = ("before", "by-origin", "by-group")
"""``before``: copies are split like images, as in the studies. ``by-origin``: an image stays with its copies.
``by-group``: it also stays with its duplicates, and with its subject where the split level asks for it (edgeall)."""


@dataclass(frozen=True)
class LeakConfig:
    """Settings of `measure_leak`.

    Attributes:
        data: folder or manifest.
        model: backbone of the features, with ``alpha``, ``weights`` and ``input_size``.
        alpha: width multiplier; None: 1.0 if the backbone has one.
        weights: ``imagenet`` or a file of weights.
        input_size: pixels; None: the backbone's own.
        per_class: ``TRAIN/VALIDATION/TEST`` images of every class. Every class is augmented, or sampled, to their sum.
        augment: augmentation of the copies.
        split_by: split level of ``by-group``, see `edgeall.train.data.make_split.make_split`.
        embargo: embargo of a split by block; None: the default.
        seeds: number of repetitions, at least 2.
        cache_dir: folder of the pixel cache; None: the default one.
    """

    data: Path
    model: str = "mobilenet_v2"
    alpha: float | None = None
    weights: str = "imagenet"
    input_size: int | None = None
    per_class: str = "700/150/150"
    augment: str = "studies"
    split_by: str = "auto"
    embargo: int | None = None
    seeds: int = 10
    cache_dir: Path | None = None

    @property
    def size(self) -> int:
        """Input size in pixels."""
        return self.input_size or registry.get(self.model).input_hw[0]

    def build_args(self) -> BuildArgs:
        """Arguments of the backbone. Raises UsageError for invalid settings."""
        spec = registry.get(self.model)
        args = BuildArgs(self.size, self.size, 1.0 if self.alpha is None and spec.alphas else self.alpha, self.weights)
        registry.check_args(spec, args)
        if self.weights == "none":
            raise UsageError("the features of an untrained backbone are random", hint="give pretrained --weights")
        if self.seeds < 2 or self.augment not in AUGMENTS:
            raise UsageError(f"--seeds must be at least 2, and --augment one of {', '.join(AUGMENTS)}")
        return args


@dataclass(frozen=True)
class SplitWay(Result):
    """The probes of one way of splitting: means over the seeds.

    Attributes:
        accuracy: on the test subset, 0..1.
        originals_accuracy: on its originals alone.
        seen: share of test images whose original or duplicate is in training.
        train_images: images in the training subset; ``test_images``: in the test subset.
        accuracies: test accuracy of each seed.
    """

    accuracy: float
    originals_accuracy: float
    seen: float
    train_images: float
    test_images: float
    accuracies: list[float]


@dataclass(frozen=True)
class Leak(Result):
    """What `measure_leak` found.

    Attributes:
        data: folder or manifest.
        synthetic: whether the images are drawn.
        split_level: of ``by-group``, with ``embargo`` its embargo.
        model: backbone of the probe, with ``alpha`` and ``input_size``.
        augment: augmentation of the copies.
        per_class: images of each class in the subsets, as `LeakConfig` takes them.
        seeds: number of splits.
        originals: number of images of each class that are originals; ``copies``: of those that are augmented.
        ways: by `WAYS`.
        leak_points: test accuracy of ``before`` minus that of ``by-group`` in percentage points.
        leak_points_se: its standard error over the seeds.
    """

    data: str
    synthetic: bool
    split_level: str
    embargo: int | None
    model: str
    alpha: float | None
    input_size: int
    augment: str
    per_class: str
    seeds: int
    originals: dict[str, int]
    copies: dict[str, int]
    ways: dict[str, SplitWay]
    leak_points: float
    leak_points_se: float


@dataclass(frozen=True)
class _Probed:
    """One probe, see `SplitWay`."""

    accuracy: float
    originals_accuracy: float
    seen: float
    train_images: int
    test_images: int


@dataclass(frozen=True)
class _Pool:
    """Every class augmented to the same number of images, before the split.

    Attributes:
        origin: int ``(images,)``, index of the original that each image is or was made from.
        copy: bool ``(images,)``, True for an augmented copy.
        label: int ``(images,)``.
    """

    origin: NDArray[np.int64]
    copy: NDArray[np.bool_]
    label: NDArray[np.int64]


def measure_leak(config: LeakConfig, progress: Progress) -> Leak:
    """Augment every class to the same number, split in three ways, train a probe on each, and compare.

    The probe is a logistic regression on the features of a frozen backbone. All three ways split the same originals
    and the same copies into subsets of the same sizes (those of ``by-group``, which may be smaller than asked for). The
    difference in accuracy is therefore caused by the way of splitting alone.

    Raises:
        UsageError: invalid settings, or data with given subsets.
        DataError: data that cannot be split.
    """
    wanted = parse_per_class(config.per_class)
    check_embargo(config.split_by, config.embargo)
    args = config.build_args()
    cache_dir = cache.ready(config.cache_dir)
    dataset = load_dataset(config.data)
    with progress.task("reading images", len(dataset.samples)) as advance:
        scanned = scan(dataset, lambda done, total: advance(done, ""))
    if scanned.facts[0].sample.side is not None:
        raise UsageError(f"{config.data}: its subsets are given, and this needs new splits", hint="remove its subsets")
    duplicates = groups(scanned)
    splits = _splits(config, scanned, duplicates, wanted, progress)
    pool = _pool(scanned, wanted.all)
    spec = registry.get(config.model)
    contract = InputSpec(height=config.size, width=config.size, mean=spec.mean, std=spec.std)
    pixels = cache.pixels(image_folder(config.data), splits[0].entries, contract, cache_dir, progress)
    features = _features(spec.build(args), pixels, pool, contract, config.augment, progress)
    group = _groups(len(scanned.facts), duplicates)
    found: dict[str, list[_Probed]] = {way: [] for way in WAYS}
    with progress.task("probing", config.seeds * len(WAYS)) as advance:
        for seed, split in enumerate(splits):
            for way in WAYS:
                found[way].append(_probe(features, pool, _assign(way, pool, split, wanted, seed), group))
                advance(sum(map(len, found.values())), way)
    points, error = _difference(found)
    return Leak(
        data=str(config.data),
        synthetic=is_synthetic(scanned.dataset),
        split_level=splits[0].level,
        embargo=splits[0].embargo,
        model=config.model,
        alpha=args.alpha,
        input_size=config.size,
        augment=config.augment,
        per_class=config.per_class,
        seeds=config.seeds,
        originals={label: _count(pool, number, False) for number, label in enumerate(splits[0].labels)},
        copies={label: _count(pool, number, True) for number, label in enumerate(splits[0].labels)},
        ways={way: _summary(rows) for way, rows in found.items()},
        leak_points=points,
        leak_points_se=error,
    )


def _splits(
    config: LeakConfig, scanned: Scan, duplicates: Duplicates, wanted: PerClass, progress: Progress
) -> list[Split]:
    """One split for each seed, all of the same level."""
    shares = (wanted.validation / wanted.all, wanted.test / wanted.all)
    embargo = EMBARGO if config.embargo is None else config.embargo
    splits: list[Split] = []
    for seed in range(config.seeds):
        settings = SplitSettings(config.split_by, *shares, seed=seed, embargo=embargo)
        note = progress.note if seed == 0 else None
        splits.append(make_split(scanned, settings, duplicates=duplicates, note=note))
        if splits[-1].level != splits[0].level:
            raise DataError(
                f"{config.data}: with seed {seed} auto splits by {splits[-1].level}, with seed 0 by {splits[0].level}",
                hint="give the level with --split-by",
            )
    return splits


def _difference(found: Mapping[str, Sequence[_Probed]]) -> tuple[float, float]:
    """Mean difference of ``before`` and ``by-group`` over the seeds, and its standard error, in percentage points."""
    before, by_group = (np.array([row.accuracy for row in found[way]]) for way in ("before", "by-group"))
    difference = before - by_group
    return 100 * float(difference.mean()), 100 * float(difference.std(ddof=1) / math.sqrt(len(difference)))


def leak_text(result: Leak) -> str:
    """Table of the result of `measure_leak`."""
    from ...console.tables import percent, table

    means = {
        "before": "images and copies split alike (augmented before the split)",
        "by-origin": "originals stay with their copies",
        "by-group": f"also with their duplicates, by {result.split_level} (after the split, as edgeall does)",
    }
    rows = [
        [means[way], percent(row.accuracy), percent(row.originals_accuracy), percent(row.seen)]
        for way, row in result.ways.items()
    ]
    lines = table(["split", "test accuracy", "on originals alone", "test images also trained on"], rows)
    return (
        f"{lines}\n\nAugmenting before the split reads {result.leak_points:.2f} points too high "
        f"(standard error {result.leak_points_se:.2f}, {result.seeds} seeds)."
    )


def _pool(scanned: Scan, count: int) -> _Pool:
    """``count`` images of every class: a sample of a larger class, repeated copies of a smaller one."""
    generator = np.random.default_rng(0)
    labels = scanned.dataset.labels
    target = np.array([labels.index(item.sample.label) for item in scanned.facts])
    origin, copy = [], []
    for number in range(len(labels)):
        members = generator.permutation(np.flatnonzero(target == number))
        origin.append(np.resize(members, count))
        copy.append(np.arange(count) >= len(members))
    every = np.concatenate(origin).astype(np.int64)
    return _Pool(every, np.concatenate(copy), target[every].astype(np.int64))


def _features(
    backbone: Any, pixels: NDArray[np.uint8], pool: _Pool, spec: InputSpec, augment: str, progress: Progress
) -> NDArray[np.float32]:
    """The backbone's output for every image of the pool, ``(images, features)``."""
    rows: list[NDArray[np.float32]] = []
    with progress.task("features", len(pool.origin)) as advance:
        for start in range(0, len(pool.origin), BATCH):
            batch = slice(start, start + BATCH)
            images = pixels[pool.origin[batch]].astype(np.float32)
            changed = AUGMENTS[augment](tf.constant(images), tf.constant([0, start], tf.int64)).numpy()
            images = np.where(pool.copy[batch, None, None, None], changed, images)
            rows.append(backbone.predict_on_batch(normalize(np.rint(images).astype(np.uint8), spec)))
            advance(sum(map(len, rows)), "")
    return np.concatenate(rows)


def _groups(count: int, duplicates: Duplicates) -> NDArray[np.int64]:
    """One number for each original, the same for duplicates."""
    number = np.arange(count)
    for members in duplicates.near:
        number[list(members)] = members[0]
    return number


def _assign(way: str, pool: _Pool, split: Split, wanted: PerClass, seed: int) -> NDArray[np.int64]:
    """The subset of each image of the pool, as an index into `SUBSETS`; -1: its subsets are full."""
    generator = np.random.default_rng((seed, WAYS.index(way)))
    subset = np.full(len(pool.origin), -1)
    by_group = _subsets(split.entries)
    for label in np.unique(pool.label):
        members = generator.permutation(np.flatnonzero(pool.label == label))
        available = np.bincount(by_group[pool.origin[members]] + 1, minlength=len(SUBSETS) + 1)[1:]
        limits = np.minimum([wanted.train, wanted.validation, wanted.test], available)
        if way == "by-group":
            of_origin = by_group
        elif way == "by-origin":
            of_origin = _random_subsets(
                generator.permutation(np.unique(pool.origin[members])), len(split.entries), wanted
            )
        else:
            subset[members[: limits.sum()]] = np.repeat(np.arange(len(SUBSETS)), limits)
            continue
        for number, limit in enumerate(limits):
            subset[members[of_origin[pool.origin[members]] == number][:limit]] = number
    return subset


def _subsets(entries: tuple[SplitEntry, ...]) -> NDArray[np.int64]:
    """The subset of each original, as an index into `SUBSETS`; -1: left out."""
    return np.array([SUBSETS.index(entry.side) if entry.side in SUBSETS else -1 for entry in entries])


def _random_subsets(originals: NDArray[np.int64], total: int, wanted: PerClass) -> NDArray[np.int64]:
    """Assign the originals of one class, already in random order, in the wanted proportions."""
    ends = np.rint(np.cumsum([wanted.train, wanted.validation]) / wanted.all * len(originals)).astype(int)
    subsets = np.full(total, -1)
    for number, members in enumerate(np.split(originals, ends)):
        subsets[members] = number
    return subsets


def _probe(features: NDArray[np.float32], pool: _Pool, subset: NDArray[np.int64], group: NDArray[np.int64]) -> _Probed:
    """Fit on the training subset, evaluate on the test subset. Nothing is chosen, so validation is not used."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = subset == SUBSETS.index("train"), subset == SUBSETS.index("test")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(features[train], pool.label[train])
    right = probe.predict(features[test]) == pool.label[test]
    return _Probed(
        accuracy=float(right.mean()),
        originals_accuracy=float(right[~pool.copy[test]].mean()),
        seen=float(np.isin(group[pool.origin[test]], group[pool.origin[train]]).mean()),
        train_images=int(train.sum()),
        test_images=int(test.sum()),
    )


def _summary(rows: list[_Probed]) -> SplitWay:
    means = {item.name: float(np.mean([getattr(row, item.name) for row in rows])) for item in fields(_Probed)}
    return SplitWay(**means, accuracies=[row.accuracy for row in rows])


def _count(pool: _Pool, label: int, copy: bool) -> int:
    return int(((pool.label == label) & (pool.copy == copy)).sum())
