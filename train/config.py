"""The settings of a training run, named as on the command line, which takes defaults and choices from here.

Imports nothing heavy: `edgeall train --help` must be instant.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

TASKS = ("classification", "segmentation")
"""As in `edgeall.edge_runtime.manifest.TASKS`."""
AUGMENTS = ("none", "light", "microscope", "studies")
"""The keys of `edgeall.train.augment.AUGMENTS`."""
AUGMENT_STEPS = ("brightness", "contrast", "rotation", "flip", "shift", "shear", "zoom", "crop", "jpeg")
"""The steps of ``studies``, which ``augment`` takes one by one too, see `edgeall.train.augment.augment_named`."""
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
SCHEDULES = ("cosine", "constant", "step")
"""See `edgeall.train.stage.Optimizer`, also for `OPTIMIZERS`."""
LEVELS = ("auto", "laboratory", "subject", "block", "image")
"""The values of ``split_by``, see `edgeall.train.data.split_settings.SplitSettings`."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How to split a data set, and what every command that does so takes.

    Attributes:
        split_by: see `edgeall.train.data.split_settings.SplitSettings`; also ``val_frac`` and ``test_frac``.
        embargo: file numbers between the subsets of a split by block; default `edgeall.train.data.blocks.EMBARGO`.
        fold: ``I/K``, fold I (from 1) of K as the test subset.
        positive: the positive classes, comma-separated.
        seed: of the split, the initial weights, the order of the images and the augmentation.
        cache_dir: of preprocessed images and features.
    """

    split_by: str = field(default="auto", metadata={"choices": LEVELS})
    embargo: int | None = None
    val_frac: float = 0.1
    test_frac: float = 0.15
    fold: str | None = None
    positive: str | None = None
    seed: int = 0
    cache_dir: Path | None = None


def own_first(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with those of `SplitOptions` at the end."""
    shared = {item.name for item in fields(SplitOptions)}
    return dict(sorted(values.items(), key=lambda item: item[0] in shared))


@dataclass(frozen=True)
class TrainSettings(SplitOptions):
    """The settings of a run, named as on the command line. None is the default of the task, the backbone or the data.

    Attributes:
        data: folder or CSV manifest.
        out: the run folder.
        task: one of `edgeall.edge_runtime.manifest.TASKS`.
        model: name of the backbone.
        alpha: width multiplier of the backbone.
        weights: ``imagenet``, ``none``, a file, or a run folder, see `edgeall.train.transfer`.
        input_size: pixels; square.
        epochs_head: epochs on the cached features of the frozen backbone.
        epochs_finetune: epochs of the fine-tuning; 0 leaves the backbone unchanged; None: see `FINETUNE_IMAGES`.
        batch_size: images.
        lr_head: peak learning rate of the head stage.
        lr_finetune: peak learning rate of the fine-tuning stage.
        dropout: before the dense layer, in [0, 1).
        dense: units of a hidden dense layer with ReLU before the dropout; None: no such layer.
        augment: a key of `edgeall.train.augment.AUGMENTS`, or steps, see `edgeall.train.augment.augment_named`.
        optimizer: of both stages, see `edgeall.train.stage.Optimizer`; also ``schedule``, ``weight_decay`` and
            ``warmup``.
        unfreeze: how many of the last backbone layers the fine-tuning trains; by default all, or the last stage of the
            largest pretrained backbones (`ModelSpec.unfreeze`).
        class_weights: whether every class gets the same total weight in the loss.
        patience: epochs without a lower validation loss before a stage ends; None: see
            `edgeall.train.settings.HEAD_PATIENCE`.
        split: a ``split.json``, or a run that has one, to use instead of a new split.
        per_class: ``TRAIN/VALIDATION/TEST`` images of every class, see `edgeall.train.data.balance`.
        teacher: complete runs that the fine-tuning learns from, see `edgeall.train.teacher`.
        teacher_weight: their share in the loss.
        force: whether another run in ``out`` is overwritten.
    """

    data: Path
    out: Path
    task: str = field(default="classification", metadata={"choices": TASKS})
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
    dense: int | None = None
    augment: str = "microscope"
    optimizer: str = field(default="adam", metadata={"choices": OPTIMIZERS})
    schedule: str = field(default="cosine", metadata={"choices": SCHEDULES})
    weight_decay: float | None = None
    warmup: float = 0.1
    unfreeze: int | None = None
    class_weights: bool = True
    patience: int | None = None
    split: Path | None = None
    per_class: str | None = None
    teacher: tuple[Path, ...] = ()
    teacher_weight: float | None = None
    force: bool = False

    def as_json(self) -> dict[str, Any]:
        """The settings that determine the result, without folders."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        values["teacher"] = [str(run) for run in self.teacher] or None  # as in runs of versions without teachers
        return own_first({key: value for key, value in values.items() if key not in ("out", "cache_dir", "force")})
