"""What augmenting before the split leaks, measured: the same images dealt out in three ways, the same quick probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.preprocess import InputSpec, normalize
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
"""``before``: copies are dealt like images, as in the studies. ``by-origin``: an image is dealt with its copies.
``by-group``: with what shows the same spot, too, and with its subject where the split asks for it: what we do."""


@dataclass(frozen=True)
class _Pool:
    """Every class augmented to the same number of images, before anything is dealt.

    Attributes:
        origin: int ``(images,)``, index of the original that each image is or was made from.
        copy: bool ``(images,)``, True for an augmented copy.
        label: int ``(images,)``.
    """

    origin: NDArray[np.int64]
    copy: NDArray[np.bool_]
    label: NDArray[np.int64]


def measure_leak(
    data: Path,
    *,
    model: str = "mobilenet_v2",
    alpha: float | None = None,
    weights: str = "imagenet",
    input_size: int | None = None,
    per_class: str = "700/150/150",
    augment: str = "studies",
    split_by: str = "auto",
    embargo: int | None = None,
    seeds: int = 10,
    cache_dir: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Augment every class to the same number, deal in three ways, train a probe on each, compare.

    The probe is a logistic regression on a frozen backbone's features. All three ways deal the same originals and the
    same copies, in the same numbers (those of ``by-group``, whose sides may have fewer images than asked for), so the
    difference in accuracy is what the dealing alone does.

    Args:
        data: folder or manifest.
        model: backbone of the features, with ``alpha``, ``weights`` and ``input_size``.
        per_class: images of every class on each side; their sum is what a class is augmented (or sampled) to.
        augment: how copies are made.
        split_by: level of ``by-group``, and ``embargo`` of its blocks, see `edgeall.train.data.split.make_split`.
        seeds: times that the dealing is repeated.

    Returns:
        ``ways``: for each of `WAYS` the mean test accuracy, the accuracy of each seed, the accuracy on the test
        originals alone and the share of test images whose spot or original is also trained on; ``leak_points``: what
        ``before`` reads above ``by-group``, with ``leak_points_se``, its standard error over the seeds.

    Raises:
        UsageError: a model or a number that can't be meant, weights that are none.
        DataError: data that can't be split.
    """
    wanted = parse_per_class(per_class)
    check_embargo(split_by, embargo)
    spec = registry.get(model)
    alpha = alpha if alpha is not None or not spec.alphas else 1.0
    size = input_size or spec.input_hw[0]
    args = BuildArgs(size, size, alpha, weights)
    registry.check_args(spec, args)
    if weights == "none":
        raise UsageError("features of an untrained backbone measure nothing", hint="give pretrained --weights")
    if seeds < 2 or augment not in AUGMENTS:
        raise UsageError(f"--seeds is at least 2, --augment one of {', '.join(AUGMENTS)}")
    cache_dir = cache.ready(cache_dir)
    dataset = load_dataset(data)
    with progress.task("reading images", len(dataset.samples)) as advance:
        scanned = scan(dataset, lambda done, total: advance(done, ""))
    if scanned.facts[0].sample.side is not None:
        raise UsageError(f"{data}: comes split: a leak is measured by dealing anew", hint="leave out its sides")
    twins, shares = groups(scanned), (_share(wanted.validation, wanted), _share(wanted.test, wanted))
    apart = EMBARGO if embargo is None else embargo
    splits = []
    for seed in range(seeds):
        note = progress.note if seed == 0 else None
        splits.append(
            make_split(scanned, SplitSettings(split_by, *shares, seed=seed, embargo=apart), duplicates=twins, note=note)
        )
        if splits[-1].level != splits[0].level:
            raise DataError(
                f"{data}: with seed {seed} auto splits by {splits[-1].level}, with seed 0 by {splits[0].level}",
                hint="say which with --split-by",
            )
    pool = _pool(scanned, wanted.all)
    contract = InputSpec(height=size, width=size, mean=spec.mean, std=spec.std)
    entries = splits[0].entries
    pixels = cache.pixels(image_folder(data), entries, contract, cache_dir, progress)
    features = _features(spec.build(args), pixels, pool, contract, augment, progress)
    group = _groups(len(scanned.facts), twins)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with progress.task("probing", seeds * len(WAYS)) as advance:
        for seed, split in enumerate(splits):
            for way in WAYS:
                side = _deal(way, pool, split, wanted, seed)
                found[way].append(_probe(features, pool, side, group))
                advance(sum(map(len, found.values())), way)
    difference = np.array([row["accuracy"] for row in found["before"]]) - [row["accuracy"] for row in found["by-group"]]
    return {
        "data": str(data),
        "synthetic": is_synthetic(scanned.dataset),
        "split_level": splits[0].level,
        "embargo": splits[0].embargo,
        "model": model,
        "alpha": alpha,
        "input_size": size,
        "augment": augment,
        "per_class": per_class,
        "seeds": seeds,
        "originals": {label: _count(pool, number, False) for number, label in enumerate(splits[0].labels)},
        "copies": {label: _count(pool, number, True) for number, label in enumerate(splits[0].labels)},
        "ways": {way: _summary(rows) for way, rows in found.items()},
        "leak_points": 100 * float(difference.mean()),
        "leak_points_se": 100 * float(difference.std(ddof=1) / math.sqrt(seeds)),
    }


def leak_text(result: Mapping[str, Any]) -> str:
    """`measure_leak`'s result for people."""
    from ...console.tables import percent, table

    means = {
        "before": "images and copies dealt alike (before the split)",
        "by-origin": "originals dealt with their copies",
        "by-group": f"and with their duplicates, by {result['split_level']} (after the split, as edgeall does)",
    }
    rows = [
        [means[way], percent(row["accuracy"]), percent(row["originals_accuracy"]), percent(row["seen"])]
        for way, row in result["ways"].items()
    ]
    lines = table(["dealt", "test accuracy", "on originals alone", "test images also trained on"], rows)
    return (
        f"{lines}\n\nAugmenting before the split reads {result['leak_points']:.2f} points too high "
        f"(standard error {result['leak_points_se']:.2f}, {result['seeds']} seeds)."
    )


def _share(images: int, wanted: PerClass) -> float:
    return images / wanted.all


def _pool(scanned: Scan, count: int) -> _Pool:
    """``count`` images of every class: sampled where there are more, copies of each in turn where there are fewer."""
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


def _groups(count: int, twins: Duplicates) -> NDArray[np.int64]:
    """One number for each original, the same for those that show the same spot."""
    number = np.arange(count)
    for members in twins.near:
        number[list(members)] = members[0]
    return number


def _deal(way: str, pool: _Pool, split: Split, wanted: PerClass, seed: int) -> NDArray[np.int64]:
    """The side of each image of the pool, as an index into `SUBSETS`; -1 for one that no side has room for."""
    generator = np.random.default_rng((seed, WAYS.index(way)))
    side = np.full(len(pool.origin), -1)
    by_group = _sides(split.entries)
    for label in np.unique(pool.label):
        members = generator.permutation(np.flatnonzero(pool.label == label))
        held = np.bincount(by_group[pool.origin[members]] + 1, minlength=len(SUBSETS) + 1)[1:]
        limits = np.minimum([wanted.train, wanted.validation, wanted.test], held)
        if way == "by-group":
            of_origin = by_group
        elif way == "by-origin":
            of_origin = _random_sides(
                generator.permutation(np.unique(pool.origin[members])), len(split.entries), wanted
            )
        else:
            side[members[: limits.sum()]] = np.repeat(np.arange(len(SUBSETS)), limits)
            continue
        for number, limit in enumerate(limits):
            side[members[of_origin[pool.origin[members]] == number][:limit]] = number
    return side


def _sides(entries: tuple[SplitEntry, ...]) -> NDArray[np.int64]:
    """The side of each original, as an index into `SUBSETS`; -1 for one that is left out."""
    return np.array([SUBSETS.index(entry.side) if entry.side in SUBSETS else -1 for entry in entries])


def _random_sides(originals: NDArray[np.int64], total: int, wanted: PerClass) -> NDArray[np.int64]:
    """Deal one class's originals, in random order already, in the wanted proportions."""
    ends = np.rint(np.cumsum([wanted.train, wanted.validation]) / wanted.all * len(originals)).astype(int)
    sides = np.full(total, -1)
    for number, members in enumerate(np.split(originals, ends)):
        sides[members] = number
    return sides


def _probe(
    features: NDArray[np.float32], pool: _Pool, side: NDArray[np.int64], group: NDArray[np.int64]
) -> dict[str, float]:
    """Fit on the train side, judge on the test side. Validation isn't needed: nothing is chosen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = side == SUBSETS.index("train"), side == SUBSETS.index("test")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(features[train], pool.label[train])
    right = probe.predict(features[test]) == pool.label[test]
    return {
        "accuracy": float(right.mean()),
        "originals_accuracy": float(right[~pool.copy[test]].mean()),
        "seen": float(np.isin(group[pool.origin[test]], group[pool.origin[train]]).mean()),
        "train_images": int(train.sum()),
        "test_images": int(test.sum()),
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {**means, "accuracies": [row["accuracy"] for row in rows]}


def _count(pool: _Pool, label: int, copy: bool) -> int:
    return int(((pool.label == label) & (pool.copy == copy)).sum())
