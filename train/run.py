"""One training run: a folder of images in, a run folder out. The same command after a kill goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.device import describe_device
from edgeall.edge_runtime.errors import UsageError
from edgeall.models import registry
from edgeall.models.head import add_head, head_of
from edgeall.models.keras_compat import keras
from edgeall.models.registry import BuildArgs
from edgeall.train import cache
from edgeall.train.augment import AUGMENTS
from edgeall.train.batches import Images, plain, shuffled
from edgeall.train.dataset import load_dataset, unit
from edgeall.train.fit import Row, Stage, fit, keep_statistics_current, strategy_for, use_accelerator
from edgeall.train.progress import Progress
from edgeall.train.runs import (
    SCHEMA,
    build_args,
    complete_run,
    input_spec,
    load_sides,
    positive_of,
    source_revision,
    versions,
    write_json,
)
from edgeall.train.scan import scan
from edgeall.train.split import Split, check_split, load_split, make_split, save_split
from edgeall.train.synth import is_synthetic


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
    resuming = _check_out(out, settings)
    provenance = {"versions": versions(), "source_revision": source_revision(), "device": describe_device()}
    split, facts = _split(settings, resuming, progress)
    args = build_args(settings.as_json())
    spec = input_spec(settings.as_json())
    accelerated = use_accelerator()
    strategy = strategy_for(devices)
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
        backbone = registry.get(settings.model).build(args)
        model = add_head(backbone, len(split.labels), settings.dropout)
    if not resuming:  # only now: a command that can't work leaves no folder behind
        _claim(out, settings, split, facts)
    cache_dir = settings.cache_dir or cache.default_cache_dir()
    sides = load_sides(split, settings.data, spec, cache_dir, progress)
    prepared = time.perf_counter()
    features = _features(backbone, args, settings, split, sides, cache_dir, progress)
    featured = time.perf_counter()
    history = _train_head(model, features, sides, settings, progress)
    history += _finetune(model, backbone, sides, settings, strategy, progress)
    if accelerated:  # the saved model, and all that is made of it, is float32
        keras.mixed_precision.set_global_policy("float32")
        single = add_head(registry.get(settings.model).build(replace(args, weights="none")), len(split.labels), 0.0)
        single.set_weights(model.get_weights())
        model = single

    timing = {
        "prepare_s": prepared - started,
        "features_s": featured - prepared,
        "head_s": _seconds(history, "head"),
        "finetune_s": _seconds(history, "finetune"),
        "resumed": resuming,  # then total_s is of the last process alone, the stages' seconds are of all of them
        "head_images_per_s": _rate(history, "head"),
        "finetune_images_per_s": _rate(history, "finetune"),
    }
    run = {
        "settings": settings.as_json(),
        **facts,
        "model": {
            "name": settings.model,
            "alpha": settings.alpha,
            "parameters": int(model.count_params()),
            "input": asdict(spec),
        },
        "timing": timing,
        "replicas": strategy.num_replicas_in_sync,
        **provenance,
    }
    run = complete_run(out, run, model, split, sides, history, started)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return run


def _resolve(settings: TrainSettings) -> TrainSettings:
    """Fill in the backbone's defaults and refuse what can't be meant."""
    spec = registry.get(settings.model)
    alpha = settings.alpha if settings.alpha is not None or not spec.alphas else 1.0
    settings = replace(settings, alpha=alpha, input_size=settings.input_size or spec.input_hw[0])
    if settings.weights == "none":
        # The features of an untrained network are noise: its head is trained with it, not before.
        settings = replace(settings, epochs_head=0)
    registry.check_args(spec, build_args(settings.as_json()))
    if settings.augment not in AUGMENTS:
        raise UsageError(f"no augmentation called {settings.augment!r}", hint=f"there are: {', '.join(AUGMENTS)}")
    if settings.epochs_head < 0 or settings.epochs_finetune < 0 or settings.epochs_head + settings.epochs_finetune < 1:
        raise UsageError("nothing to train", hint="--epochs-finetune 0 needs pretrained --weights and --epochs-head")
    for name, rate in (("--lr-head", settings.lr_head), ("--lr-finetune", settings.lr_finetune)):
        if not 0 < rate <= 1:  # refuses NaN too
            raise UsageError(f"{name} {rate:g} is no learning rate", hint="give a number above 0 and at most 1")
    if settings.batch_size < 1 or settings.patience < 1 or not 0 <= settings.dropout < 1:
        raise UsageError("--batch-size and --patience are at least 1, --dropout is at least 0 and below 1")
    return settings


def _check_out(out: Path, settings: TrainSettings) -> bool:
    """Whether ``out`` holds an unfinished run of the same command, to go on with. Changes nothing.

    Raises:
        UsageError: it holds a complete run, another one, or something else, and --force doesn't allow for it.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = _settings_in(out)
    if found is None:
        raise UsageError(f"{out}: exists and is not a run", hint="choose another --out")
    wanted = settings.as_json()
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    complete = (out / "run.json").exists()
    if not complete and not differing:
        return True
    if settings.force:
        return False
    if complete:
        raise UsageError(f"{out}: holds a complete run", hint="choose another --out, or --force to overwrite it")
    changes = ", ".join(f"{key} was {found.get(key)}, is {wanted[key]}" for key in differing)
    raise UsageError(
        f"{out}: holds an unfinished run with other settings ({changes})",
        hint="repeat its settings to go on with it, choose another --out, or --force to start over",
    )


def _claim(out: Path, settings: TrainSettings, split: Split, facts: dict[str, Any]) -> None:
    """Begin a run folder, whole or not at all; what `_check_out` allowed to be overwritten goes."""
    begun = out.with_name(f".{out.name}-{os.getpid()}")
    begun.mkdir(parents=True)
    save_split(split, begun / "split.json")
    write_json(begun / "data.json", facts)
    write_json(begun / "settings.json", {"edgeall_run": SCHEMA, "settings": settings.as_json()})
    if out.exists():
        shutil.rmtree(out)
    os.replace(begun, out)


def _settings_in(out: Path) -> dict[str, Any] | None:
    """The settings a run folder was begun with; None where it is no run folder of ours."""
    try:
        begun = json.loads((out / "settings.json").read_text(encoding="utf-8"))
        return dict(begun["settings"]) if begun["edgeall_run"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _split(settings: TrainSettings, resuming: bool, progress: Progress) -> tuple[Split, dict[str, Any]]:
    """The split of this run, made once, and the facts of the data for ``run.json``."""
    if resuming:
        split = load_split(settings.out / "split.json")
        check_split(split, settings.data)
        return split, json.loads((settings.out / "data.json").read_text(encoding="utf-8"))
    dataset = load_dataset(settings.data)
    with progress.task("reading images", len(dataset.samples)) as advance:
        scanned = scan(dataset, lambda done, total: advance(done, ""))
    dataset = scanned.dataset
    if dataset.problems:
        progress.note(f"{len(dataset.problems)} files skipped, first: {dataset.problems[0].path}")
    split = make_split(
        scanned,
        by=settings.split_by,
        val_frac=settings.val_frac,
        test_frac=settings.test_frac,
        seed=settings.seed,
        fold=_fold(settings.fold),
    )
    positive_of(settings.positive, split.labels)
    return split, {
        "unit": unit(dataset),
        "data": {
            "root": str(settings.data.resolve()),
            "layout": dataset.layout,
            "synthetic": is_synthetic(dataset),
            "dataset_sha256": split.dataset_sha256,
            "images": len(split.entries),
            "problems": [asdict(problem) for problem in dataset.problems],
            "exact_duplicates": split.exact_duplicates,
            "near_duplicates": split.near_duplicates,
        },
    }


def _fold(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--fold {text}: not a fold", hint="write I/K, as 1/3 for the first of three") from None
    return number, count


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
    if settings.epochs_head == 0:
        return None
    weights = [hashlib.sha256(value.tobytes()).hexdigest() for value in backbone.get_weights()]
    policy = keras.mixed_precision.global_policy().name
    spec = asdict(sides["train"].spec)
    facts = [cache.FORMAT, spec, settings.model, args.alpha, policy, weights, [item.sha256 for item in split.entries]]
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


def _seconds(history: list[Row], stage: str) -> float:
    return float(sum(row["seconds"] for row in history if row["stage"] == stage))


def _rate(history: list[Row], stage: str) -> float | None:
    """Median images/s of a stage's epochs; the first one, which traces the graph, weighs no more than another."""
    rates = [row["images_per_s"] for row in history if row["stage"] == stage]
    return float(np.median(rates)) if rates else None
