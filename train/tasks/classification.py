"""Classification: one label for each image."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.preprocess import InputSpec
from ...edge_runtime.tools import atomic
from ..data.dataset import load_dataset
from ..data.samples import Dataset
from ..data.split import Split
from .registry import Epochs, Task, Trained

if TYPE_CHECKING:
    from ...console.progress import Progress
    from ..config import TrainSettings
    from ..evaluation.metrics import Metrics
    from ..run_info import RunInfo
    from ..run_settings import RunSettings
    from ..stage import Objective, Stage
    from ..teacher import Teacher

BATCH_SIZE, LEARNING_RATE = 32, 5e-4


class Classification(Task):
    """The images of a subset are `edgeall.train.batches.Images`."""

    name = "classification"

    def resolve(self, settings: TrainSettings) -> TrainSettings:
        return replace(
            settings,
            batch_size=BATCH_SIZE if settings.batch_size is None else settings.batch_size,
            lr_finetune=LEARNING_RATE if settings.lr_finetune is None else settings.lr_finetune,
        )

    def list_data(self, path: Path) -> Dataset:
        return load_dataset(path)

    def labels(self, split: Split) -> tuple[str, ...]:
        return split.labels

    def add_head(self, backbone: Any, settings: RunSettings, classes: int) -> Any:
        from ...models.head import add_head

        return add_head(backbone, classes, settings.dropout, settings.dense)

    def load(self, split: Split, root: Path, spec: InputSpec, cache_dir: Path, progress: Progress) -> dict[str, Any]:
        from ..runs import load_subsets

        return load_subsets(split, root, spec, cache_dir, progress)

    def epochs(self, settings: TrainSettings, images: Any) -> Epochs:
        from ..settings import finetune_epochs

        return Epochs(finetune_epochs(settings, len(images)), len(images))

    def batches(self, images: Any, settings: TrainSettings, stage: Stage, classes: int) -> Callable[[int], Any]:
        from ..batches import shuffled

        weights = images.class_weights(classes) if settings.class_weights else None
        return lambda epoch: shuffled(
            images,
            stage.batch_size,
            augment=settings.augment,
            seed=settings.seed,
            epoch=epoch,
            class_weights=weights,
        )

    def validation(self, images: Any) -> Any:
        from ..batches import plain

        return plain(images, 64)

    def teach(self, teachers: Sequence[Teacher], spec: InputSpec) -> Callable[[Any], Any]:
        from ..teacher import ensemble

        return ensemble(teachers)

    def student(self, model: Any, teach: Callable[[Any], Any], weight: float) -> Any:
        from ..teacher import make_student

        return make_student(model, teach, weight)

    def changed(self, images: Any, settings: TrainSettings) -> Any:
        from ..batches import changed

        return None if settings.augment == "none" else changed(images, 64, augment=settings.augment)

    @property
    def objective(self) -> Objective:
        from ..fit import CLASSIFICATION

        return CLASSIFICATION

    def assess(
        self, out: Path, trained: Trained, settings: RunSettings, evaluated: Sequence[str], progress: Progress
    ) -> dict[str, Metrics]:
        from ..evaluation.metrics import metrics_of
        from ..runs import positive_of

        images, split = trained.images, trained.split
        progress.note("evaluating")
        probabilities = {name: trained.model.predict(self.validation(images[name]), verbose=0) for name in evaluated}
        positive = positive_of(settings.positive, split.labels)
        write_predictions(out / "predictions.csv", split, probabilities)
        return {
            name: metrics_of(
                split.subset(name), split.labels, probabilities[name], positive, name, split.level, settings.seed
            )
            for name in evaluated
        }

    def report(self, out: Path, run: RunInfo, trained: Trained, progress: Progress) -> None:
        from ..reports.augmented import draw_augmented
        from ..reports.report import write_report

        folder = out / "plots"
        folder.mkdir(exist_ok=True)
        draw_augmented(folder, trained.images["train"], run.settings.augment, run.settings.seed)
        write_report(out, run)


def write_predictions(path: Path, split: Split, probabilities: dict[str, NDArray[np.float32]]) -> None:
    """One row per image of every evaluated subset: path, side, label, predicted, and the probability of each class."""
    # A file name may be invalid Unicode: its bytes are written unchanged.
    with (
        atomic.atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["path", "side", "label", "predicted", *(f"p_{label}" for label in split.labels)])
        for name in probabilities:
            for entry, row in zip(split.subset(name), probabilities[name], strict=True):
                predicted = split.labels[int(row.argmax())]
                writer.writerow([entry.path, name, entry.label, predicted, *(f"{value:.9g}" for value in row)])


TASK = Classification()
