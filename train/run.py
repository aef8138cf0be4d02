"""One training run: a folder of images in, a run folder out. The same command after a kill goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..console.progress import Progress
from ..edge_runtime.device import describe_device
from ..edge_runtime.errors import DataError, UsageError
from ..edge_runtime.files import file_name, held, is_empty, sync
from ..edge_runtime.images import mark_output, refuse_inside
from ..models import registry
from ..models.head import add_head, head_of
from ..models.keras_compat import keras
from ..models.macs import macs
from ..models.registry import BuildArgs
from .augment import AUGMENTS
from .batches import Images, plain, shuffled
from .data import cache
from .data.balance import filled, parse_per_class, sample_sides
from .data.blocks import EMBARGO
from .data.dataset import independent_notes, load_dataset, unit
from .data.scan import narrow_range, scan
from .data.split import (
    LEFT_OUT,
    SIDES,
    Split,
    check_embargo,
    check_split,
    load_split,
    make_split,
    save_split,
)
from .data.synth import is_synthetic
from .fit import Row, Stage, fit, keep_statistics_current, strategy_for, use_accelerator
from .runs import (
    SCHEMA,
    build_args,
    complete_run,
    input_spec,
    is_damaged,
    is_whole,
    load_sides,
    positive_of,
    read_json,
    source_revision,
    start_over,
    versions,
    write_json,
)
from .teacher import WEIGHT, Teach, Teacher, check_teachers, ensemble, open_teachers, student
from .workers import Workers, join

FINETUNE_IMAGES = 44_000
"""Training images that the fine-tuning shows by default, each epoch all of them: small sets need more epochs, not less
learning. Source: docs/decisions/0016-the-default-recipe.md."""
FINETUNE_EPOCHS = (8, 60)
"""Fewest and most epochs that `FINETUNE_IMAGES` may come to."""

_SPLITTING = ("split_by", "embargo", "val_frac", "test_frac", "fold", "per_class")
"""Settings of which `TrainSettings.split` leaves nothing to be decided."""


@dataclass(frozen=True)
class TrainSettings:
    """A run's settings, as the command line names them. None means: the backbone's or the data's own default.

    Attributes:
        data: folder or CSV manifest.
        out: the run folder.
        weights: ``imagenet``, ``none`` or a file.
        input_size: pixels; square.
        epochs_head: epochs on the frozen backbone's cached features.
        epochs_finetune: epochs of the network itself; 0 leaves the backbone as it was; None: see `FINETUNE_IMAGES`.
        lr_head: peak learning rate of the head stage.
        lr_finetune: peak learning rate of the fine-tuning stage.
        unfreeze: how many of the last backbone layers the fine-tuning trains; by default all, but of the largest
            pretrained backbones the last stage (`ModelSpec.unfreeze`).
        patience: epochs without a better validation loss before a stage ends.
        embargo: file numbers between the sides of a split by block; by default `edgeall.train.data.blocks.EMBARGO`.
        fold: ``I/K``, fold I (from 1) of K as the test side.
        split: a ``split.json``, or a run that has one, to use in place of a split of its own.
        per_class: ``TRAIN/VALIDATION/TEST`` images of every class, see `edgeall.train.data.balance`.
        positive: labels that count as positive (ALL), comma-separated.
        teacher: complete runs that the fine-tuning learns from, see `edgeall.train.teacher`.
        teacher_weight: their share in its loss.
    """

    data: Path
    out: Path
    model: str = "mobilenet_v2"
    alpha: float | None = None
    weights: str = "imagenet"
    input_size: int | None = None
    epochs_head: int = 30
    epochs_finetune: int | None = None
    batch_size: int = 32
    lr_head: float = 3e-3
    lr_finetune: float = 5e-4
    dropout: float = 0.2
    augment: str = "microscope"
    unfreeze: int | None = None
    class_weights: bool = True
    patience: int = 8
    split_by: str = "auto"
    embargo: int | None = None
    val_frac: float = 0.1
    test_frac: float = 0.15
    fold: str | None = None
    split: Path | None = None
    per_class: str | None = None
    positive: str | None = None
    seed: int = 0
    teacher: tuple[Path, ...] = ()
    teacher_weight: float | None = None
    cache_dir: Path | None = None
    force: bool = False

    def as_json(self) -> dict[str, Any]:
        """What decides the result: everything but where it is kept."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        values["teacher"] = [str(run) for run in self.teacher] or None  # as in a run of a time without teachers
        return {key: value for key, value in values.items() if key not in ("out", "cache_dir", "force")}


def train(
    settings: TrainSettings,
    progress: Progress,
    devices: list[str] | None = None,
    *,
    on_epoch: Callable[[Row], None] | None = None,
    evaluated: Sequence[str] = SIDES,
) -> dict[str, Any]:
    """Fine-tune a backbone on a folder of images, evaluate it on the test side and report.

    Args:
        settings: see `TrainSettings`.
        progress: where notes and bars go.
        devices: TensorFlow device names to mirror over; by default all GPUs.
        on_epoch: see `edgeall.train.fit.fit`.
        evaluated: see `complete_run`.

    Returns:
        What was written to ``run.json``.

    Raises:
        UsageError: settings that can't be meant; a run folder that holds another run, lies in the data, or is in use.
        DataError: data that can't be trained on, weights that don't fit, no space for preprocessed images.
    """
    started = time.perf_counter()
    settings = _resolve(settings)
    refuse_inside(settings.data, settings.out)
    teachers = open_teachers(settings.teacher, settings.out)
    settings = replace(settings, cache_dir=cache.ready(settings.cache_dir))
    workers = join(os.environ.get("TF_CONFIG"), progress) or Workers(strategy=strategy_for(devices))
    with workers.together(), ExitStack() as lock:
        workers.from_chief(lambda: lock.enter_context(held(settings.out, "train")))
        return _train(settings, teachers, workers, progress, on_epoch, evaluated, started)


def _train(
    settings: TrainSettings,
    teachers: tuple[Teacher, ...],
    workers: Workers,
    progress: Progress,
    on_epoch: Callable[[Row], None] | None,
    evaluated: Sequence[str],
    started: float,
) -> dict[str, Any]:
    """`train`, once the settings are known to be meant and the other workers, if any, are there."""
    out = settings.out
    provenance = {"versions": versions(), "source_revision": source_revision(), "device": describe_device()}
    resuming, split, facts = _begin(settings, teachers, workers, progress)
    args = build_args(settings.as_json())
    spec = input_spec(settings.as_json())
    accelerated = use_accelerator()
    with workers.scope():
        teach = ensemble(teachers) if teachers else None
    keras.utils.set_random_seed(settings.seed)

    def build(weights: str) -> tuple[Any, Any]:
        backbone = registry.get(settings.model).build(replace(args, weights=weights))
        return backbone, add_head(backbone, len(split.labels), settings.dropout)

    backbone: Any = None
    model: Any = None

    def begin() -> None:
        nonlocal backbone, model
        # Of several workers the chief trains the head, on a network of its own; that of all is built below.
        with workers.scope() if workers.alone else nullcontext():
            backbone, model = build(args.weights)

    workers.from_chief(begin)
    assert settings.cache_dir is not None
    sides = load_sides(split, settings.data, spec, settings.cache_dir, progress)
    if not resuming:  # only now: a command that can't work leaves no folder behind
        workers.from_chief(lambda: claim(out, settings.as_json(), split, facts))
    training = sides
    if settings.per_class is not None:
        training = {**sides, "train": filled(sides["train"], parse_per_class(settings.per_class).train)}
    prepared = featured = time.perf_counter()

    def head_stage() -> list[Row]:
        nonlocal featured
        features = _features(backbone, args, settings, split, sides, progress)
        featured = time.perf_counter()
        return _train_head(model, features, training, settings, progress, on_epoch)

    history = workers.from_chief(head_stage)
    if not workers.alone:
        begun = model.get_weights() if workers.chief else []
        with workers.scope():
            backbone, model = build("none")
        if workers.chief:
            workers.put(model, begun)
    history += _finetune(model, backbone, training, settings, teach, workers, progress, on_epoch)
    weights = workers.weights(model)
    if accelerated:  # the saved model, and all that is made of it, is float32
        keras.mixed_precision.set_global_policy("float32")
    if accelerated or not workers.alone:
        _, model = build("none")
        model.set_weights(weights)

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
        "settings": {**settings.as_json(), "epochs_finetune": finetune_epochs(settings, len(training["train"]))},
        **facts,
        "model": {
            "name": settings.model,
            "alpha": settings.alpha,
            "parameters": int(model.count_params()),
            "macs": macs(model),
            "input": asdict(spec),
        },
        "timing": timing,
        "workers": workers.count,
        "replicas": workers.replicas,
        **provenance,
    }

    def finish() -> dict[str, Any]:
        complete = complete_run(out, run, model, split, sides, history, started, evaluated)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return complete

    return workers.from_chief(finish)


def _resolve(settings: TrainSettings) -> TrainSettings:
    """Fill in the backbone's defaults and refuse what can't be meant."""
    spec = registry.get(settings.model)
    alpha = settings.alpha if settings.alpha is not None or not spec.alphas else 1.0
    settings = replace(settings, alpha=alpha, input_size=settings.input_size or spec.input_hw[0])
    if settings.weights == "none":
        # The features of an untrained network are noise: its head is trained with it, not before.
        settings = replace(settings, epochs_head=0)
    registry.check_args(spec, build_args(settings.as_json()))
    if settings.per_class is not None:
        parse_per_class(settings.per_class)
    _check_split_options(settings)
    if settings.augment not in AUGMENTS:
        raise UsageError(f"no augmentation called {settings.augment!r}", hint=f"there are: {', '.join(AUGMENTS)}")
    finetune = 1 if settings.epochs_finetune is None else settings.epochs_finetune
    if settings.epochs_head < 0 or finetune < 0 or settings.epochs_head + finetune < 1:
        raise UsageError("nothing to train", hint="--epochs-finetune 0 needs pretrained --weights and --epochs-head")
    for name, rate in (("--lr-head", settings.lr_head), ("--lr-finetune", settings.lr_finetune)):
        if not 0 < rate <= 1:  # refuses NaN too
            raise UsageError(f"{name} {rate:g} is no learning rate", hint="give a number above 0 and at most 1")
    if settings.batch_size < 1 or settings.patience < 1 or not 0 <= settings.dropout < 1:
        raise UsageError("--batch-size and --patience are at least 1, --dropout is at least 0 and below 1")
    return _resolve_teacher(settings)


def _check_split_options(settings: TrainSettings) -> None:
    """Refuse an embargo without blocks, and ways of splitting beside a split that is there already."""
    if settings.split is None:
        check_embargo(settings.split_by, settings.embargo)
        return
    made = {field.name: field.default for field in fields(settings) if field.name in _SPLITTING}
    given = [f"--{name.replace('_', '-')}" for name, default in made.items() if getattr(settings, name) != default]
    if given:
        raise UsageError(
            f"--split {settings.split} with {', '.join(given)}: the sides are as that file says",
            hint="leave out one or the other",
        )


def _resolve_teacher(settings: TrainSettings) -> TrainSettings:
    if not settings.teacher:
        if settings.teacher_weight is not None:
            raise UsageError("--teacher-weight without a --teacher", hint="name the run to learn from with --teacher")
        return settings
    if settings.epochs_finetune == 0:
        raise UsageError("--teacher has nothing to teach", hint="it is the fine-tuning that learns: --epochs-finetune")
    weight = WEIGHT if settings.teacher_weight is None else settings.teacher_weight
    if not 0 < weight <= 1:
        raise UsageError(f"--teacher-weight {weight:g} is no share", hint="give a number above 0 and at most 1")
    return replace(settings, teacher_weight=weight)


def check_out(out: Path, wanted: dict[str, Any], force: bool) -> bool:
    """Whether ``out`` holds an unfinished run of the same command, to go on with. Changes nothing.

    Args:
        out: the run folder.
        wanted: the command's settings, as `claim` writes them.
        force: whether what is there may be overwritten.

    Raises:
        UsageError: it holds a complete run, another one, or something else, and --force doesn't allow for it.
    """
    if not out.exists() or (out.is_dir() and is_empty(out)):
        return False
    found = _settings_in(out)
    if found is None:
        if not (is_damaged(out / "settings.json") and (out / "split.json").exists()):
            raise UsageError(f"{out}: exists and is not a run", hint="choose another --out")
        if force:
            return False
        raise UsageError(
            f"{out}/settings.json: empty or damaged: the run can't be resumed",
            hint="--force to start over, or choose another --out",
        )
    differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    complete = is_whole(out)
    if not complete and not differing:
        return True
    if force:
        return False
    if complete:
        raise UsageError(f"{out}: holds a complete run", hint="choose another --out, or --force to overwrite it")
    changes = ", ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in differing)
    raise UsageError(
        f"{out}: holds an unfinished run with other settings ({changes})",
        hint="repeat its settings to go on with it, choose another --out, or --force to start over",
    )


def is_complete(settings: TrainSettings) -> bool:
    """Whether ``settings.out`` holds this very run, and complete. Changes nothing.

    Raises:
        UsageError: settings that can't be meant, or the folder holds another run or something else.
    """
    settings = _resolve(settings)
    out, wanted = settings.out, settings.as_json()
    if not is_whole(out):
        check_out(out, wanted, settings.force)
        return False
    found = _settings_in(out) or {}
    differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if differing and not settings.force:
        changes = ", ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in differing)
        raise UsageError(f"{out}: holds another run ({changes})", hint="choose another --out")
    return not differing


def claim(out: Path, settings: dict[str, Any], split: Split, facts: dict[str, Any]) -> None:
    """Begin a run folder, whole or not at all; what `check_out` allowed to be overwritten goes.

    The folder is to be `held` by this process.
    """
    begun = out.with_name(file_name(".", out.name, "-begun"))
    shutil.rmtree(begun, ignore_errors=True)  # of a killed process: this one alone holds the folder
    begun.mkdir(parents=True)
    mark_output(begun)
    save_split(split, begun / "split.json")
    write_json(begun / "data.json", facts)
    write_json(begun / "settings.json", {"edgeall_run": SCHEMA, "settings": settings})
    if out.exists():
        shutil.rmtree(out)
    os.replace(begun, out)
    sync(out.parent)


def _settings_in(out: Path) -> dict[str, Any] | None:
    """The settings a run folder was begun with; None where it is no run folder of ours."""
    try:
        begun = json.loads((out / "settings.json").read_text(encoding="utf-8"))
        return dict(begun["settings"]) if begun["edgeall_run"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare(settings: TrainSettings, progress: Progress) -> tuple[Split, dict[str, Any]]:
    """The split that `train` would make, and the facts of the data: to be given to several runs with `claim`."""
    return _split(_resolve(settings), False, progress)


def _begin(
    settings: TrainSettings, teachers: tuple[Teacher, ...], workers: Workers, progress: Progress
) -> tuple[bool, Split, dict[str, Any]]:
    """Whether a run is gone on with, its split, and the facts of its data: the chief's, on every worker."""
    record = [teacher.record() for teacher in teachers]
    if workers.alone:
        return _own_begin(settings, teachers, record, progress)
    _check_shares(settings, workers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "split.json")

        def begin() -> tuple[Any, ...]:
            resuming, split, facts = _own_begin(settings, teachers, record, progress)
            if len(split.side("train")) < settings.batch_size:
                raise UsageError(
                    f"--batch-size {settings.batch_size}: the train side has {len(split.side('train'))} images",
                    hint="several workers share whole batches: give a smaller one",
                )
            save_split(split, path)
            return settings.as_json(), resuming, facts, path.read_text(encoding="utf-8")

        wanted, resuming, facts, text = workers.from_chief(begin)
        path.write_text(text, encoding="utf-8")
        split = load_split(path)
    own = settings.as_json()
    differing = [f"{key} is {own[key]}, the first worker's {wanted[key]}" for key in own if own[key] != wanted[key]]
    if differing:
        raise UsageError(
            f"other settings than the first worker's ({', '.join(differing)})", hint="give the same command"
        )
    if not workers.chief:
        check_split(split, settings.data)
        if facts["teachers"] != record:
            raise DataError("--teacher: not the run that the first worker has there", hint="copy it from there")
    return resuming, split, facts


def _own_begin(
    settings: TrainSettings, teachers: tuple[Teacher, ...], record: list[dict[str, Any]], progress: Progress
) -> tuple[bool, Split, dict[str, Any]]:
    resuming = check_out(settings.out, settings.as_json(), settings.force)
    split, facts = _split(settings, resuming, progress)
    check_teachers(teachers, split, input_spec(settings.as_json()))
    if facts.get("teachers", record) != record:
        raise UsageError(
            f"{settings.out}: was begun with another run at {', '.join(map(str, settings.teacher))}",
            hint="restore that, or --force to start over",
        )
    return resuming, split, {**facts, "teachers": record}


def _check_shares(settings: TrainSettings, workers: Workers) -> None:
    if settings.batch_size % workers.replicas:
        raise UsageError(
            f"--batch-size {settings.batch_size} can't be shared equally by {workers.replicas} devices",
            hint=f"it is what all of them work on together: give a multiple of {workers.replicas}",
        )
    if settings.epochs_finetune == 0:
        raise UsageError("several workers, and nothing to share", hint="it is the fine-tuning that they do together")


def _split(settings: TrainSettings, resuming: bool, progress: Progress) -> tuple[Split, dict[str, Any]]:
    """The split of this run, made once, and the facts of the data for ``run.json``."""
    if resuming:
        split = _own_split(settings.out)
        check_split(split, settings.data)
        return split, read_json(settings.out / "data.json", start_over(settings.out))
    dataset = load_dataset(settings.data)
    with progress.task("reading images", len(dataset.samples)) as advance:
        scanned = scan(dataset, lambda done, total: advance(done, ""))
    dataset = scanned.dataset
    if dataset.problems:
        first = dataset.problems[0]
        progress.note(f"{len(dataset.problems)} files skipped, first: {first.path}: {first.reason}")
    for said in independent_notes(dataset):
        progress.note(said)
    narrow = narrow_range(scanned.facts)
    if narrow:
        progress.note(f"warning: {narrow}")
    if settings.split is not None:
        split = load_split(settings.split / "split.json" if settings.split.is_dir() else settings.split)
        check_split(split, settings.data)
    else:
        split = make_split(
            scanned,
            by=settings.split_by,
            val_frac=settings.val_frac,
            test_frac=settings.test_frac,
            seed=settings.seed,
            fold=_fold(settings.fold),
            embargo=EMBARGO if settings.embargo is None else settings.embargo,
            note=progress.note,
        )
        if split.level in ("block", "given"):
            progress.note(split.level_text)
    if settings.per_class is not None:
        split = sample_sides(split, parse_per_class(settings.per_class), settings.seed)
    positive_of(settings.positive, split.labels)
    return split, {
        "unit": unit(dataset),
        "data": {
            "root": str(settings.data.resolve()),
            "layout": dataset.layout,
            "synthetic": is_synthetic(dataset),
            "dataset_sha256": split.dataset_sha256,
            "images": len(split.entries),
            "left_out": sum(entry.side == LEFT_OUT for entry in split.entries),
            "problems": [asdict(problem) for problem in dataset.problems],
            "exact_duplicates": split.exact_duplicates,
            "near_duplicates": split.near_duplicates,
        },
    }


def _own_split(out: Path) -> Split:
    """The split of a begun run. Raises DataError where it is damaged."""
    try:
        return load_split(out / "split.json")
    except DataError as error:
        raise DataError(error.message, hint=start_over(out)) from error


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
    progress: Progress,
) -> NDArray[np.float32] | None:
    """The frozen backbone's output for every image of the split, ``(images, features)``, computed once."""
    if settings.epochs_head == 0:
        return None
    weights = [hashlib.sha256(value.tobytes()).hexdigest() for value in backbone.get_weights()]
    policy = keras.mixed_precision.global_policy().name
    spec = asdict(sides["train"].spec)
    facts = [cache.FORMAT, spec, settings.model, args.alpha, policy, weights, [item.sha256 for item in split.entries]]
    assert settings.cache_dir is not None
    path = settings.cache_dir / f"features-{cache.digest(facts)}.npy"
    shape = (len(split.entries), int(backbone.output_shape[-1]))
    features = cache.load(path, shape, np.float32, progress)
    if features is None:
        every = np.arange(len(split.entries))
        images = replace(sides["train"], rows=every, labels=np.zeros_like(every))
        values = []
        with progress.task("features", len(every)) as advance:
            for batch, _ in plain(images, 64):
                values.append(backbone.predict_on_batch(batch))
                advance(sum(map(len, values)), "")
        features = np.concatenate(values).astype(np.float32)
        cache.save(path, shape, np.float32, [features])
    return features


def _train_head(
    model: Any,
    features: NDArray[np.float32] | None,
    sides: dict[str, Images],
    settings: TrainSettings,
    progress: Progress,
    on_epoch: Callable[[Row], None] | None,
) -> list[Row]:
    """Train the dense layer on cached features and put it into ``model``."""
    if features is None:
        return []
    from .features import feature_batches

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
        on_epoch=on_epoch,
    )
    model.get_layer("logits").set_weights(head.get_layer("logits").get_weights())
    return history


def _finetune(
    model: Any,
    backbone: Any,
    sides: dict[str, Images],
    settings: TrainSettings,
    teach: Teach | None,
    workers: Workers,
    progress: Progress,
    on_epoch: Callable[[Row], None] | None,
) -> list[Row]:
    """Train the network, or its upper part, on augmented images."""
    if settings.epochs_finetune == 0:
        return []
    train_side = sides["train"]
    stage = Stage(
        "finetune",
        finetune_epochs(settings, len(train_side)),
        settings.lr_finetune,
        settings.patience,
        len(train_side),
        settings.batch_size,
        # An untrained network is no candidate: by its statistics its activations vanish, and no int8 range holds them.
        settle=1 if settings.weights == "none" else 0,
    )
    unfreeze = settings.unfreeze
    if unfreeze is None and settings.weights != "none":  # an untrained network has nothing worth keeping
        unfreeze = registry.get(settings.model).unfreeze
    if unfreeze is not None:
        for layer in backbone.layers[: max(len(backbone.layers) - unfreeze, 0)]:
            layer.trainable = False
    keep_statistics_current(model, stage.steps)
    weights = train_side.class_weights(model.output_shape[-1]) if settings.class_weights else None
    learner = model
    if teach:
        with workers.scope():
            learner = student(model, teach, settings.teacher_weight or WEIGHT)
    keras.utils.set_random_seed(settings.seed)
    return fit(
        learner,
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
        workers=workers,
        tensorboard=settings.out / "tensorboard" / "finetune",
        on_epoch=on_epoch,
    )


def finetune_epochs(settings: TrainSettings, images: int) -> int:
    """Epochs of the fine-tuning: those asked for, or `FINETUNE_IMAGES` over the images on the train side."""
    if settings.epochs_finetune is not None:
        return settings.epochs_finetune
    fewest, most = FINETUNE_EPOCHS
    return min(max(round(FINETUNE_IMAGES / images), fewest), most)


def _seconds(history: list[Row], stage: str) -> float:
    return float(sum(row["seconds"] for row in history if row["stage"] == stage))


def _rate(history: list[Row], stage: str) -> float | None:
    """Median images/s of a stage's epochs; the first one, which traces the graph, weighs no more than another."""
    rates = [row["images_per_s"] for row in history if row["stage"] == stage]
    return float(np.median(rates)) if rates else None
