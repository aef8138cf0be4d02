"""One training run: a folder of images in, a run folder out. The same command after a kill goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeall
from edgeall.edge_runtime.device import describe_device
from edgeall.edge_runtime.errors import UsageError
from edgeall.models import registry
from edgeall.models.head import add_head, head_of
from edgeall.models.keras_compat import keras
from edgeall.models.registry import BuildArgs
from edgeall.train import cache
from edgeall.train.augment import AUGMENTS
from edgeall.train.batches import Images, plain, shuffled
from edgeall.train.dataset import load_dataset, positive_labels, unit
from edgeall.train.fit import Row, Stage, fit, keep_statistics_current, strategy_for, use_accelerator
from edgeall.train.progress import Progress
from edgeall.train.report import write_report
from edgeall.train.runs import (
    SCHEMA,
    build_args,
    input_spec,
    load_sides,
    load_verified_split,
    side_metrics,
    versions,
    write_history,
    write_json,
    write_predictions,
)
from edgeall.train.scan import scan
from edgeall.train.split import SIDES, Split, make_split, save_split
from edgeall.train.synth import MARKER


@dataclass(frozen=True)
class TrainSettings:
    """A run's settings, as the command line names them. None means: the backbone's or the data's own default.

    Attributes:
        data: folder or CSV manifest.
        out: the run folder.
        weights: ``imagenet``, ``none`` or a file.
        input_size: pixels; square.
        epochs_head: epochs on the frozen backbone's cached features.
        epochs_finetune: epochs of the network itself; 0 leaves the backbone as it was.
        lr_head: peak learning rate of the head stage.
        lr_finetune: peak learning rate of the fine-tuning stage.
        unfreeze: how many of the last backbone layers the fine-tuning trains.
        patience: epochs without a better validation loss before a stage ends.
        fold: ``I/K``, fold I (from 1) of K as the test side.
        positive: labels that count as positive (ALL), comma-separated.
    """

    data: Path
    out: Path
    model: str = "mobilenet_v2"
    alpha: float | None = None
    weights: str = "imagenet"
    input_size: int | None = None
    epochs_head: int = 30
    epochs_finetune: int = 16
    batch_size: int = 32
    lr_head: float = 3e-3
    lr_finetune: float = 5e-4
    dropout: float = 0.2
    augment: str = "light"
    unfreeze: int | None = None
    class_weights: bool = True
    patience: int = 8
    split_by: str = "auto"
    val_frac: float = 0.1
    test_frac: float = 0.2
    fold: str | None = None
    positive: str | None = None
    seed: int = 0
    cache_dir: Path | None = None
    force: bool = False

    def as_json(self) -> dict[str, Any]:
        """What decides the result: everything but where it is kept."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in ("out", "cache_dir", "force")}


def train(settings: TrainSettings, progress: Progress, devices: list[str] | None = None) -> dict[str, Any]:
    """Fine-tune a backbone on a folder of images, evaluate it on the test side and report.

    Args:
        settings: see `TrainSettings`.
        progress: where notes and bars go.
        devices: TensorFlow device names to mirror over; by default all GPUs.

    Returns:
        What was written to ``run.json``.

    Raises:
        UsageError: settings that can't be meant, or a run folder that holds another run.
        DataError: data that can't be trained on, weights that don't fit.
    """
    started = time.perf_counter()
    settings = _resolve(settings)
    out = settings.out
    _claim(out, settings)
    split, facts = _split(settings, progress)
    args = build_args(settings.as_json())
    spec = input_spec(settings.as_json())
    cache_dir = settings.cache_dir or cache.default_cache_dir()
    sides = load_sides(split, settings.data, spec, cache_dir, progress)
    prepared = time.perf_counter()

    accelerated = use_accelerator()
    strategy = strategy_for(devices)
    with strategy.scope():
        backbone = registry.get(settings.model).build(args)
        model = add_head(backbone, len(split.labels), settings.dropout)
    features = _features(backbone, args, settings, split, sides, cache_dir, progress)
    featured = time.perf_counter()
    history = _train_head(model, features, sides, settings, progress)
    headed = time.perf_counter()
    history += _finetune(model, backbone, sides, settings, strategy, progress)
    finetuned = time.perf_counter()
    if accelerated:  # the saved model, and all that is made of it, is float32
        keras.mixed_precision.set_global_policy("float32")
        single = add_head(registry.get(settings.model).build(replace(args, weights="none")), len(split.labels), 0.0)
        single.set_weights(model.get_weights())
        model = single

    probabilities = {side: model.predict(plain(sides[side], 64), verbose=0) for side in SIDES}
    positive = _positive(settings, split.labels)
    timing = {
        "prepare_s": prepared - started,
        "features_s": featured - prepared,
        "head_s": headed - featured,
        "finetune_s": finetuned - headed,
        "total_s": time.perf_counter() - started,
        "head_images_per_s": _rate(history, "head"),
        "finetune_images_per_s": _rate(history, "finetune"),
    }
    run = {
        "schema": SCHEMA,
        "edgeall_version": edgeall.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings.as_json(),
        "labels": list(split.labels),
        "positive_labels": list(positive),
        **facts,
        "split": {
            "sha256": split.sha256,
            "level": split.level,
            "fold": settings.fold,
            **{side: len(sides[side]) for side in SIDES},
        },
        "model": {
            "name": settings.model,
            "alpha": settings.alpha,
            "parameters": int(model.count_params()),
            "input": asdict(spec),
        },
        "timing": timing,
        "metrics": {
            side: side_metrics(split, side, sides[side].labels, probabilities[side], positive, settings.seed)
            for side in SIDES
        },
        "versions": versions(),
        "device": describe_device(),
    }
    write_history(out / "history.csv", history)
    write_predictions(out / "predictions.csv", split, sides, probabilities)
    model.save(out / "model.keras")
    write_report(out, run)
    write_json(out / "run.json", run)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return run


def _resolve(settings: TrainSettings) -> TrainSettings:
    """Fill in the backbone's defaults and refuse what can't be meant."""
    spec = registry.get(settings.model)
    alpha = settings.alpha if settings.alpha is not None or not spec.alphas else 1.0
    weights = settings.weights
    settings = replace(
        settings, alpha=alpha, weights=weights, input_size=settings.input_size or spec.input_hw[0], data=settings.data
    )
    registry.check_args(spec, build_args(settings.as_json()))
    if settings.augment not in AUGMENTS:
        raise UsageError(f"no augmentation called {settings.augment!r}", hint=f"there are: {', '.join(AUGMENTS)}")
    if settings.epochs_head < 0 or settings.epochs_finetune < 0 or settings.epochs_head + settings.epochs_finetune < 1:
        raise UsageError("nothing to train: --epochs-head and --epochs-finetune are both 0")
    if weights == "none" and settings.epochs_finetune == 0:
        raise UsageError("--weights none with --epochs-finetune 0 would leave the backbone untrained")
    if settings.batch_size < 1 or settings.patience < 1 or not 0 <= settings.dropout < 1:
        raise UsageError("--batch-size and --patience are at least 1, --dropout is at least 0 and below 1")
    return settings


def _claim(out: Path, settings: TrainSettings) -> None:
    """Make the run folder ours: new, or begun by the same command, or given up with --force."""
    if settings.force and (out / "settings.json").exists():  # never somebody's other folder
        shutil.rmtree(out)
    if (out / "run.json").exists():
        raise UsageError(f"{out}: holds a complete run", hint="choose another --out, or --force to overwrite it")
    path = out / "settings.json"
    wanted = settings.as_json()
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            changes = ", ".join(f"{key} was {found.get(key)}, is {wanted[key]}" for key in differing)
            raise UsageError(
                f"{out}: holds an unfinished run with other settings ({changes})",
                hint="repeat its settings to go on with it, choose another --out, or --force to start over",
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not a run", hint="choose another --out")
    else:
        write_json(path, wanted)


def _split(settings: TrainSettings, progress: Progress) -> tuple[Split, dict[str, Any]]:
    """The split of this run, made once, and the facts of the data for ``run.json``."""
    path, facts_path = settings.out / "split.json", settings.out / "data.json"
    if path.exists() and facts_path.exists():
        return load_verified_split(settings.out, settings.data), json.loads(facts_path.read_text(encoding="utf-8"))
    dataset = load_dataset(settings.data)
    with progress.task("reading images", len(dataset.samples)) as advance:
        scanned = scan(dataset, lambda done, total: advance(done, ""))
    if scanned.dataset.problems:
        progress.note(f"{len(scanned.dataset.problems)} files skipped, first: {scanned.dataset.problems[0].path}")
    split = make_split(
        scanned,
        by=settings.split_by,
        val_frac=settings.val_frac,
        test_frac=settings.test_frac,
        seed=settings.seed,
        fold=_fold(settings.fold),
    )
    _positive(settings, split.labels)
    facts = {
        "unit": unit(dataset),
        "data": {
            "root": str(settings.data.resolve()),
            "layout": dataset.layout,
            "synthetic": (dataset.root / MARKER).exists(),
            "dataset_sha256": split.dataset_sha256,
            "images": len(split.entries),
            "problems": [asdict(problem) for problem in scanned.dataset.problems],
            "exact_duplicates": split.exact_duplicates,
            "near_duplicates": split.near_duplicates,
        },
    }
    save_split(split, path)
    write_json(facts_path, facts)
    return split, facts


def _fold(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--fold {text}: not a fold", hint="write I/K, as 1/3 for the first of three") from None
    return number, count


def _positive(settings: TrainSettings, labels: tuple[str, ...]) -> tuple[str, ...]:
    if settings.positive is None:
        return positive_labels(labels)
    chosen = tuple(part.strip() for part in settings.positive.split(","))
    unknown = [label for label in chosen if label not in labels]
    if unknown:
        raise UsageError(f"--positive {unknown[0]}: no such class", hint=f"there are: {', '.join(labels)}")
    return chosen


def _features(
    backbone: Any,
    args: BuildArgs,
    settings: TrainSettings,
    split: Split,
    sides: dict[str, Images],
    cache_dir: Path,
    progress: Progress,
) -> NDArray[np.float32] | None:
    """The frozen backbone's output for every image of the split, ``(images, features)``, computed once."""
    if settings.epochs_head == 0 or args.weights == "none":
        return None  # the features of an untrained network are noise: its head is trained with it
    weights = [hashlib.sha256(value.tobytes()).hexdigest() for value in backbone.get_weights()]
    facts = [settings.model, asdict(args), weights, [entry.sha256 for entry in split.entries]]
    path = cache_dir / f"features-{cache.digest(facts)}.npy"
    if not path.exists():
        every = np.arange(len(split.entries))
        images = replace(sides["train"], rows=every, labels=np.zeros_like(every))
        values = []
        with progress.task("features", len(every)) as advance:
            for batch, _ in plain(images, 64):
                values.append(backbone.predict_on_batch(batch))
                advance(sum(map(len, values)), "")
        with cache.replacing(path) as temporary:
            np.save(temporary, np.concatenate(values).astype(np.float32))
    features: NDArray[np.float32] = np.load(path)
    return features


def _train_head(
    model: Any,
    features: NDArray[np.float32] | None,
    sides: dict[str, Images],
    settings: TrainSettings,
    progress: Progress,
) -> list[Row]:
    """Train the dense layer on cached features and put it into ``model``."""
    if features is None:
        return []
    from edgeall.train.features import feature_batches

    train_side, validation = sides["train"], sides["validation"]
    classes = model.output_shape[-1]
    keras.utils.set_random_seed(settings.seed)
    head = head_of(features.shape[1], classes, settings.dropout)
    weights = train_side.class_weights(classes) if settings.class_weights else None
    stage = Stage(
        "head", settings.epochs_head, settings.lr_head, settings.patience, len(train_side), settings.batch_size
    )
    history = fit(
        head,
        stage,
        lambda epoch: feature_batches(features, train_side, stage, settings.seed, epoch, weights),
        feature_batches(features, validation),
        settings.out / "checkpoints" / "head.npz",
        progress,
        tensorboard=settings.out / "tensorboard" / "head",
    )
    model.get_layer("logits").set_weights(head.get_layer("logits").get_weights())
    return history


def _finetune(
    model: Any, backbone: Any, sides: dict[str, Images], settings: TrainSettings, strategy: Any, progress: Progress
) -> list[Row]:
    """Train the network, or its upper part, on augmented images."""
    if settings.epochs_finetune == 0:
        return []
    train_side = sides["train"]
    stage = Stage(
        "finetune",
        settings.epochs_finetune,
        settings.lr_finetune,
        settings.patience,
        len(train_side),
        settings.batch_size,
    )
    unfreeze = settings.unfreeze if settings.unfreeze is not None else registry.get(settings.model).unfreeze
    if unfreeze is not None:
        for layer in backbone.layers[: max(len(backbone.layers) - unfreeze, 0)]:
            layer.trainable = False
    keep_statistics_current(model, stage.steps)
    weights = train_side.class_weights(model.output_shape[-1]) if settings.class_weights else None
    keras.utils.set_random_seed(settings.seed)
    return fit(
        model,
        stage,
        lambda epoch: shuffled(
            train_side,
            settings.batch_size,
            augment=settings.augment,
            seed=settings.seed,
            epoch=epoch,
            class_weights=weights,
        ),
        plain(sides["validation"], 64),
        settings.out / "checkpoints" / "finetune.npz",
        progress,
        strategy=strategy,
        tensorboard=settings.out / "tensorboard" / "finetune",
    )


def _rate(history: list[Row], stage: str) -> float | None:
    """Median images/s of a stage's epochs; the first one, which traces the graph, weighs no more than another."""
    rates = [row["images_per_s"] for row in history if row["stage"] == stage]
    return float(np.median(rates)) if rates else None
