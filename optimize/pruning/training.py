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
from ...models.keras_compat import keras, tf
from ...train.batches import Images, plain, shuffled
from ...train.fit import fit, keep_statistics_current
from ...train.stage import AfterStep, FitOptions, Row, Stage
from .channels import Budget, importance
from .config import PruneConfig
from .sparsity import Masks

RANKING_IMAGES = 320
RANKING_BATCH = 8


def kept_channels(
    config: PruneConfig, teacher: Any, training: Images, settings: Mapping[str, Any], progress: Progress
) -> dict[str, NDArray[np.int64]]:
    """The channels to keep, by group; computed once per run."""
    path = config.out / "checkpoints" / "channels.npz"
    kept = _stored(path)
    if kept is None:
        progress.note("ranking channels")
        steps = RANKING_IMAGES // RANKING_BATCH
        images = _augmented(training, settings, 0, RANKING_BATCH, None).take(steps).map(lambda *batch: batch[0])
        scores = importance(teacher, lambda: images, np.random.default_rng(settings["seed"]))
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
    subsets: dict[str, Images],
    settings: Mapping[str, Any],
    progress: Progress,
    on_epoch: Callable[[Row], None] | None,
) -> list[Row]:
    """Train the pruned network in place; survives a kill.

    The unpruned network is the teacher: labels are halfway between its probabilities and the true ones.

    Returns:
        The rows of the history.
    """
    training, classes = subsets["train"], model.output_shape[-1]
    epochs, batch_size = config.training_epochs, settings["batch_size"]
    name = "prune" if config.kind == "sparsity" else "recover"
    stage = Stage(name, epochs, config.learning_rate, epochs, len(training), batch_size, soft=True)
    after_step: AfterStep | None = None
    if config.kind == "sparsity":
        masks = Masks(model, config.target, epochs * stage.steps)
        after_step = masks.after_step
        stage = replace(stage, settle=-(-masks.settled // stage.steps))
    keep_statistics_current(model, stage.steps)
    weights = training.class_weights(classes) if settings["class_weights"] else None

    def batches(epoch: int) -> Any:
        return _augmented(training, settings, epoch, batch_size, weights).map(
            lambda images, labels, weight: (
                images,
                (teacher(images, training=False) + tf.one_hot(labels, classes)) / 2,
                weight,
            )
        )

    keras.utils.set_random_seed(settings["seed"])
    return fit(
        model,
        stage,
        batches,
        plain(subsets["validation"], 64).map(lambda images, labels: (images, tf.one_hot(labels, classes))),
        config.out / "checkpoints" / f"{name}.npz",
        progress,
        FitOptions(tensorboard=config.out / "tensorboard" / name, after_step=after_step, on_epoch=on_epoch),
    )


def _augmented(
    images: Images, settings: Mapping[str, Any], epoch: int, batch_size: int, weights: NDArray[np.float32] | None
) -> Any:
    return shuffled(
        images,
        batch_size,
        augment=settings["augment"],
        seed=settings["seed"] + 2,  # other augmentations than in training and in quantization-aware training
        epoch=epoch,
        class_weights=weights,
    )
