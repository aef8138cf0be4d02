"""Fills in and checks the settings of a training run."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

from ..edge_runtime.errors import UsageError
from ..models import registry
from .augment_names import augment_steps
from .config import OPTIMIZERS, SCHEDULES, TrainSettings
from .data.balance import parse_per_class
from .data.split_settings import check_embargo
from .run_settings import RunSettings
from .runs import build_args
from .stage import Optimizer
from .tasks import registry as tasks
from .teacher import WEIGHT
from .transfer import is_run

T = TypeVar("T")

FINETUNE_IMAGES = 36_000
"""Training images that the fine-tuning shows by default, over all epochs. Small data sets need more epochs, not less
training. Source: docs/decisions/0016-the-default-recipe.md."""
FINETUNE_EPOCHS = (8, 60)
"""Minimum and maximum of the epochs computed from `FINETUNE_IMAGES`."""
HEAD_PATIENCE = 8
"""Default patience of the head stage, in epochs. Fine-tuning has none: while the learning rate is high the validation
loss says little about the epochs to come."""
ADAMW_DECAY = 0.004
"""Default weight decay of ``adamw``, Keras' own."""

_SPLITTING = ("split_by", "embargo", "val_frac", "test_frac", "fold", "per_class")
"""Settings that conflict with `TrainSettings.split`."""


def resolve(settings: TrainSettings) -> TrainSettings:
    """Fill in the defaults of the backbone. Raises UsageError for invalid settings."""
    settings = tasks.get(settings.task).resolve(settings)
    spec = registry.get(settings.model)
    alpha = settings.alpha if settings.alpha is not None or not spec.alphas else 1.0
    settings = replace(settings, alpha=alpha, input_size=settings.input_size or spec.input_hw[0])
    if settings.weights == "none":
        # The features of an untrained backbone are noise: the head is trained with the backbone, not before.
        settings = replace(settings, epochs_head=0)
    args = build_args(RunSettings.of(settings))
    registry.check_args(spec, replace(args, weights="none") if is_run(settings.weights) else args)
    if settings.per_class is not None:
        parse_per_class(settings.per_class)
    _check_split_options(settings)
    augment_steps(settings.augment)
    settings = _resolve_optimizer(settings)
    finetune = 1 if settings.epochs_finetune is None else settings.epochs_finetune
    if settings.epochs_head < 0 or finetune < 0 or settings.epochs_head + finetune < 1:
        raise UsageError(
            "no epochs to train", hint="--epochs-finetune 0 requires pretrained --weights and --epochs-head"
        )
    check_rate("--lr-head", settings.lr_head)
    check_rate("--lr-finetune", filled(settings.lr_finetune))
    check_share("--dropout", settings.dropout)
    patience = 1 if settings.patience is None else settings.patience
    if filled(settings.batch_size) < 1 or patience < 1:
        raise UsageError("--batch-size and --patience must be at least 1")
    return _resolve_teacher(settings)


def check_rate(option: str, value: float) -> None:
    """Raise UsageError unless ``value`` is in (0, 1]."""
    if not 0 < value <= 1:  # also true for NaN
        raise UsageError(f"{option} must be in (0, 1], got {value:g}", hint="give a number above 0 and at most 1")


def check_share(option: str, value: float) -> None:
    """Raise UsageError unless ``value`` is in [0, 1)."""
    if not 0 <= value < 1:
        raise UsageError(f"{option} must be in [0, 1), got {value:g}", hint="give a number from 0 to below 1")


def optimizer_of(settings: TrainSettings) -> Optimizer:
    """The optimizer of resolved settings."""
    return Optimizer(settings.optimizer, settings.schedule, filled(settings.weight_decay), settings.warmup)


def _resolve_optimizer(settings: TrainSettings) -> TrainSettings:
    for name, value, known in (
        ("optimizer", settings.optimizer, OPTIMIZERS),
        ("schedule", settings.schedule, SCHEDULES),
    ):
        if value not in known:
            raise UsageError(f"no {name} called {value!r}", hint=f"choose one of {', '.join(known)}")
    decay = settings.weight_decay
    if decay is None:
        decay = ADAMW_DECAY if settings.optimizer == "adamw" else 0.0
    check_share("--weight-decay", decay)
    check_share("--warmup", settings.warmup)
    if settings.dense is not None and settings.dense < 1:
        raise UsageError(f"--dense must be at least 1, got {settings.dense}", hint="omit it for no hidden layer")
    return replace(settings, weight_decay=decay)


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
    check_rate("--teacher-weight", weight)
    return replace(settings, teacher_weight=weight)
