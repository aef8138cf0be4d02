"""Pruning of a segmentation network: its mask and its size of the red cells are taught, and rank the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....console.tables import four
from ....edge_runtime.network import Network
from ....edge_runtime.preprocess import InputSpec
from ....edge_runtime.segmenter import Segmenter
from ....models.decoder import RED_CELL, SCORES
from ....train.run_info import RunInfo
from ....train.run_settings import RunSettings
from ....train.segmentation.batches import training_tiles, validation_tiles
from ....train.segmentation.images import RED_CELL_PX, MaskedImages
from ....train.segmentation.objective import OBJECTIVE, halfway
from ....train.segmentation.tiles import plain_tiles
from ....train.stage import Objective, Stage
from ....train.tasks import segmentation as training
from .registry import PruningTask


class SegmentationPruning(PruningTask):
    """See `PruningTask`."""

    name = "segmentation"
    scores = (SCORES, RED_CELL)
    figure = "Dice"

    def ranking(self, images: MaskedImages, settings: RunSettings, batch_size: int) -> Any:
        return _augmented(images, settings, 0, batch_size, self.epoch_images(images)).map(lambda *batch: batch[0])

    def epoch_images(self, images: MaskedImages) -> int:
        return training.TILES

    def batches(
        self, images: MaskedImages, settings: RunSettings, stage: Stage, teacher: Any, classes: int
    ) -> Callable[[int], Any]:
        def taught(pixels: Any, truth: Any) -> Any:
            return pixels, halfway(truth, teacher(pixels, training=False))

        return lambda epoch: _augmented(images, settings, epoch, stage.batch_size, stage.images).map(taught)

    def validation(self, images: MaskedImages, classes: int) -> Any:
        return validation_tiles(images, 16)

    @property
    def objective(self) -> Objective:
        return OBJECTIVE

    def open(self, flatbuffer: bytes, run: RunInfo, spec: InputSpec, name: str) -> Network[Any]:
        return Segmenter.from_flatbuffer(flatbuffer, run.labels, spec, red_cell_px=RED_CELL_PX, name=name)

    def example(self, images: MaskedImages) -> NDArray[Any]:
        return np.ascontiguousarray(plain_tiles(images)[0][0])

    def figures(self, run: RunInfo) -> dict[str, float]:
        return {name: metrics.dice for name, metrics in run.segmented.items()}

    def shown(self, value: float | None) -> str:
        return four(value)


TASK = SegmentationPruning()


def _augmented(images: MaskedImages, settings: RunSettings, epoch: int, batch_size: int, count: int) -> Any:
    return training_tiles(
        images,
        batch_size,
        augment=settings.augment,
        seed=settings.seed + 2,  # other tiles than in training and in quantization-aware training
        epoch=epoch,
        count=count,
    )
