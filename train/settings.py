"""The settings of a training run, their defaults and their checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..edge_runtime.errors import UsageError
from ..models import registry
from .augment import AUGMENTS
from .data.balance import parse_per_class
from .data.split_settings import check_embargo
from .runs import build_args
from .tasks import registry as tasks
from .teacher import WEIGHT

T = TypeVar("T")

FINETUNE_IMAGES = 44_000
"""Training images that the fine-tuning shows by default, over all epochs. Small data sets need more epochs, not less
training. Source: docs/decisions/0016-the-default-recipe.md."""
FINETUNE_EPOCHS = (8, 60)
"""Minimum and maximum of the epochs computed from `FINETUNE_IMAGES`."""

_SPLITTING = ("split_by", "embargo", "val_frac", "test_frac", "fold", "per_class")
"""Settings that conflict with `TrainSettings.split`."""


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a run, named as on the command line. None is the default of the task, the backbone or the data.

    Attributes:
        data: folder or CSV manifest.
        out: the run folder.
        task: one of `edgeall.edge_runtime.manifest.TASKS`.
        model: name of the backbone.
        alpha: width multiplier of the backbone.
        weights: ``imagenet``, ``none`` or a file.
        input_size: pixels; square.
        epochs_head: epochs on the cached features of the frozen backbone.
        epochs_finetune: epochs of the fine-tuning; 0 leaves the backbone unchanged; None: see `FINETUNE_IMAGES`.
        batch_size: images.
        lr_head: peak learning rate of the head stage.
        lr_finetune: peak learning rate of the fine-tuning stage.
        dropout: before the dense layer, in [0, 1).
        augment: a key of `edgeall.train.augment.AUGMENTS`.
        unfreeze: how many of the last backbone layers the fine-tuning trains; by default all, or the last stage of the
            largest pretrained backbones (`ModelSpec.unfreeze`).
        class_weights: whether every class gets the same total weight in the loss.
        patience: epochs without a lower validation loss before a stage ends.
        split_by: see `edgeall.train.data.split_settings.SplitSettings`; also ``val_frac`` and ``test_frac``.
        embargo: file numbers between the subsets of a split by block; default `edgeall.train.data.blocks.EMBARGO`.
        fold: ``I/K``, fold I (from 1) of K as the test subset.
        split: a ``split.json``, or a run that has one, to use instead of a new split.
        per_class: ``TRAIN/VALIDATION/TEST`` images of every class, see `edgeall.train.data.balance`.
        positive: the positive classes, comma-separated.
        seed: of the split, the initial weights, the order of the images and the augmentation.
        teacher: complete runs that the fine-tuning learns from, see `edgeall.train.teacher`.
        teacher_weight: their share in the loss.
        cache_dir: of preprocessed images and features.
        force: whether another run in ``out`` is overwritten.
    """

    data: Path
    out: Path
    task: str = "classification"
    model: str = "mobilenet_v2"
    alpha: float | None = None
    weights: str = "imagenet"
    input_size: int | None = None
    epochs_head: int = 30
    epochs_finetune: int | None = None
    batch_size: int | None = None
    lr_head: float = 3e-3
    lr_finetune: float | None = None
    dropout: float = 0.2
    augment: str = "microscope"
    unfreeze: int | None = None
    class_weights: bool = True
    patience: int | None = None
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
        """The settings that determine the result, without folders."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        values["teacher"] = [str(run) for run in self.teacher] or None  # as in runs of versions without teachers
        return {key: value for key, value in values.items() if key not in ("out", "cache_dir", "force")}


def resolve(settings: TrainSettings) -> TrainSettings:
    """Fill in the defaults of the backbone. Raises UsageError for invalid settings."""
    settings = tasks.get(settings.task).resolve(settings)
    spec = registry.get(settings.model)
    alpha = settings.alpha if settings.alpha is not None or not spec.alphas else 1.0
    settings = replace(settings, alpha=alpha, input_size=settings.input_size or spec.input_hw[0])
    if settings.weights == "none":
        # The features of an untrained backbone are noise: the head is trained with the backbone, not before.
        settings = replace(settings, epochs_head=0)
    registry.check_args(spec, build_args(settings.as_json()))
    if settings.per_class is not None:
        parse_per_class(settings.per_class)
    _check_split_options(settings)
    if settings.augment not in AUGMENTS:
        raise UsageError(f"no augmentation called {settings.augment!r}", hint=f"choose one of {', '.join(AUGMENTS)}")
    finetune = 1 if settings.epochs_finetune is None else settings.epochs_finetune
    if settings.epochs_head < 0 or finetune < 0 or settings.epochs_head + finetune < 1:
        raise UsageError(
            "no epochs to train", hint="--epochs-finetune 0 requires pretrained --weights and --epochs-head"
        )
    for name, rate in (("--lr-head", settings.lr_head), ("--lr-finetune", filled(settings.lr_finetune))):
        if not 0 < rate <= 1:  # also true for NaN
            raise UsageError(f"{name} must be in (0, 1], got {rate:g}", hint="give a number above 0 and at most 1")
    if filled(settings.batch_size) < 1 or filled(settings.patience) < 1 or not 0 <= settings.dropout < 1:
        raise UsageError("--batch-size and --patience must be at least 1, --dropout must be in [0, 1)")
    return _resolve_teacher(settings)


def filled(value: T | None) -> T:
    """A setting with a default that `resolve` has filled in."""
    assert value is not None, "the settings are not resolved"
    return value


def finetune_epochs(settings: TrainSettings, images: int) -> int:
    """Epochs of the fine-tuning: the setting, or `FINETUNE_IMAGES` divided by the number of training images."""
    if settings.epochs_finetune is not None:
        return settings.epochs_finetune
    fewest, most = FINETUNE_EPOCHS
    return min(max(round(FINETUNE_IMAGES / images), fewest), most)


def parse_fold(text: str | None) -> tuple[int, int] | None:
    """``I/K`` as (I, K). Raises UsageError for another text."""
    if text is None:
        return None
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--fold {text}: not a fold", hint="write I/K, as 1/3 for the first of three") from None
    return number, count


def _check_split_options(settings: TrainSettings) -> None:
    """Refuse an embargo without blocks, and options of a new split together with an existing split."""
    if settings.split is None:
        check_embargo(settings.split_by, settings.embargo)
        return
    defaults = {field.name: field.default for field in fields(settings) if field.name in _SPLITTING}
    given = [f"--{name.replace('_', '-')}" for name, default in defaults.items() if getattr(settings, name) != default]
    if given:
        raise UsageError(
            f"--split {settings.split} conflicts with {', '.join(given)}: the file defines the subsets",
            hint="remove one of them",
        )


def _resolve_teacher(settings: TrainSettings) -> TrainSettings:
    if not settings.teacher:
        if settings.teacher_weight is not None:
            raise UsageError("--teacher-weight without a --teacher", hint="name the run to learn from with --teacher")
        return settings
    if settings.epochs_finetune == 0:
        raise UsageError("--teacher requires fine-tuning", hint="give --epochs-finetune")
    weight = WEIGHT if settings.teacher_weight is None else settings.teacher_weight
    if not 0 < weight <= 1:
        raise UsageError(
            f"--teacher-weight must be in (0, 1], got {weight:g}", hint="give a number above 0 and at most 1"
        )
    return replace(settings, teacher_weight=weight)
