"""Channel ranking and training of a pruned network, kept in the run folder so that both survive a kill."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.tools.atomic import atomic_write
from ...models.keras_compat import keras
from ...train.fit import fit, keep_statistics_current
from ...train.run_info import RunInfo
from ...train.run_settings import RunSettings
from ...train.stage import AfterStep, FitOptions, Row, Stage
from .channels import Budget, importance
from .config import PruneConfig
from .sparsity import Masks
from .tasks import registry as tasks

RANKING_IMAGES = 320
RANKING_BATCH = 8


def kept_channels(
    config: PruneConfig, teacher: Any, training: Any, run: RunInfo, settings: RunSettings, progress: Progress
) -> dict[str, NDArray[np.int64]]:
    """The channels to keep, by group; computed once per run. ``run`` is the parent."""
    path = config.out / "checkpoints" / "channels.npz"
    kept = _stored(path)
    if kept is None:
        progress.note("ranking channels")
        steps = RANKING_IMAGES // RANKING_BATCH
        task = tasks.of_run(run)
        images = task.ranking(training, settings, RANKING_BATCH).take(steps)
        scores = importance(teacher, lambda: images, np.random.default_rng(settings.seed), task.scores)
        kept = {**Budget(teacher).allocate(scores, config.target)}
        arrays: dict[str, Any] = dict(kept)
        with atomic_write(path) as temporary:
            np.savez(temporary, **arrays)
    return kept


def _stored(path: Path) -> dict[str, NDArray[np.int64]] | None:
    """The choice of an earlier call; None for a missing or damaged file."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            return dict(kept)
    except (FileNotFoundError, ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError):
        return None


def train_pruned(
    config: PruneConfig,
    model: Any,
    teacher: Any,
    subsets: Mapping[str, Any],
    run: RunInfo,
    settings: RunSettings,
    progress: Progress,
    on_epoch: Callable[[Row], None] | None,
) -> list[Row]:
    """Train the pruned network in place; survives a kill.

    The unpruned network is the teacher: targets are halfway between its outputs and the labels.

    Args:
        config: of the pruning.
        model: the pruned network.
        teacher: the unpruned one.
        subsets: the images of the run.
        run: the parent.
        settings: of the new run.
        progress: notes and progress bar.
        on_epoch: see `FitOptions`.

    Returns:
        The rows of the history.
    """
    task, training, classes = tasks.of_run(run), subsets["train"], len(run.labels)
    epochs, batch_size = config.training_epochs, settings.batch_size
    name = "prune" if config.kind == "sparsity" else "recover"
    images = task.epoch_images(training)
    stage = Stage(name, epochs, config.learning_rate, epochs, images, batch_size, soft=True)
    after_step: AfterStep | None = None
    if config.kind == "sparsity":
        masks = Masks(model, config.target, epochs * stage.steps)
        after_step = masks.after_step
        stage = replace(stage, settle=-(-masks.settled // stage.steps))
    keep_statistics_current(model, stage.steps)
    batches = task.batches(training, settings, stage, teacher, classes)
    keras.utils.set_random_seed(settings.seed)
    return fit(
        model,
        stage,
        batches,
        task.validation(subsets["validation"], classes),
        config.out / "checkpoints" / f"{name}.npz",
        progress,
        FitOptions(
            tensorboard=config.out / "tensorboard" / name,
            after_step=after_step,
            on_epoch=on_epoch,
            objective=task.objective,
        ),
    )
