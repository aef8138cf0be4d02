"""Pruning of a classifier: its probabilities are taught, its logits rank the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....console.tables import percent
from ....edge_runtime.classifier import Classifier
from ....edge_runtime.network import Network
from ....edge_runtime.preprocess import InputSpec
from ....models.head import LOGITS
from ....models.keras_compat import tf
from ....train.batches import Images, plain, shuffled
from ....train.fit import CLASSIFICATION
from ....train.run_info import RunInfo
from ....train.run_settings import RunSettings
from ....train.stage import Objective, Stage
from .registry import PruningTask


class ClassificationPruning(PruningTask):
    """See `PruningTask`."""

    name = "classification"
    scores = (LOGITS,)
    figure = "accuracy"

    def ranking(self, images: Images, settings: RunSettings, batch_size: int) -> Any:
        return _augmented(images, settings, 0, batch_size, None).map(lambda *batch: batch[0])

    def epoch_images(self, images: Images) -> int:
        return len(images)

    def batches(
        self, images: Images, settings: RunSettings, stage: Stage, teacher: Any, classes: int
    ) -> Callable[[int], Any]:
        weights = images.class_weights(classes) if settings.class_weights else None
        return lambda epoch: _augmented(images, settings, epoch, stage.batch_size, weights).map(
            lambda pixels, labels, weight: (
                pixels,
                (teacher(pixels, training=False) + tf.one_hot(labels, classes)) / 2,
                weight,
            )
        )

    def validation(self, images: Images, classes: int) -> Any:
        return plain(images, 64).map(lambda pixels, labels: (pixels, tf.one_hot(labels, classes)))

    @property
    def objective(self) -> Objective:
        return CLASSIFICATION

    def open(self, flatbuffer: bytes, run: RunInfo, spec: InputSpec, name: str) -> Network[Any]:
        return Classifier.from_flatbuffer(flatbuffer, run.labels, spec, name=name)

    def example(self, images: Images) -> NDArray[Any]:
        pixels: NDArray[Any] = images.pixels[images.rows[0]]
        return pixels

    def figures(self, run: RunInfo) -> dict[str, float]:
        return {name: metrics.accuracy for name, metrics in run.classified.items()}

    def shown(self, value: float | None) -> str:
        return percent(value) or ""


TASK = ClassificationPruning()


def _augmented(
    images: Images, settings: RunSettings, epoch: int, batch_size: int, weights: NDArray[np.float32] | None
) -> Any:
    return shuffled(
        images,
        batch_size,
        augment=settings.augment,
        seed=settings.seed + 2,  # other augmentations than in training and in quantization-aware training
        epoch=epoch,
        class_weights=weights,
    )
