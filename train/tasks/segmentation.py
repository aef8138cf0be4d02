"""Segmentation: background, cytoplasm or nucleus for each pixel, and the size of the red cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...edge_runtime.errors import UsageError
from ...edge_runtime.masks import CLASSES
from ...edge_runtime.preprocess import InputSpec
from ..data.masked import load_masked
from ..data.samples import Dataset
from ..data.split import Split
from .registry import Epochs, Task, Trained

if TYPE_CHECKING:
    from ...console.progress import Progress
    from ..config import TrainSettings
    from ..run_info import RunInfo
    from ..run_settings import RunSettings
    from ..segmentation.results import MaskMetrics
    from ..stage import Objective, Stage
    from ..teacher import Teacher

INPUT_SIZE = 192
BATCH_SIZE, LEARNING_RATE, PATIENCE = 16, 2e-3, 12
TILES = 800
"""Tiles of one epoch. They are cut out anew each time, so the number of images sets no limit."""
EPOCHS = 25
"""Default epochs of the fine-tuning."""
_UNUSED = ("per_class", "positive", "unfreeze")
"""Settings that only classification has."""


class Segmentation(Task):
    """The images of a subset are `edgeall.train.segmentation.images.MaskedImages`."""

    name = "segmentation"

    def resolve(self, settings: TrainSettings) -> TrainSettings:
        from ...models import registry
        from ...models.decoder import check_decoder
        from ..segmentation.light import check_augment

        given = [name for name in _UNUSED if getattr(settings, name) not in (None, ())]
        if given:
            option = given[0].replace("_", "-")
            raise UsageError(f"--{option} is for classification, not for --task segmentation", hint="remove it")
        check_decoder(registry.get(settings.model))
        check_augment(settings.augment)
        if settings.epochs_finetune == 0:
            raise UsageError("no epochs to train", hint="a decoder is trained with its backbone: --epochs-finetune")
        return replace(
            settings,
            input_size=settings.input_size or INPUT_SIZE,
            epochs_head=0,  # the decoder needs the backbone's inner layers, whose features are not cached
            batch_size=BATCH_SIZE if settings.batch_size is None else settings.batch_size,
            lr_finetune=LEARNING_RATE if settings.lr_finetune is None else settings.lr_finetune,
            patience=PATIENCE if settings.patience is None else settings.patience,
        )

    def list_data(self, path: Path) -> Dataset:
        return load_masked(path)

    def labels(self, split: Split) -> tuple[str, ...]:
        return CLASSES

    def add_head(self, backbone: Any, settings: RunSettings, classes: int) -> Any:
        from ...models import registry
        from ...models.decoder import add_decoder

        return add_decoder(backbone, registry.get(settings.model).skips, classes, settings.dropout)

    def load(self, split: Split, root: Path, spec: InputSpec, cache_dir: Path, progress: Progress) -> dict[str, Any]:
        from ..runs import image_folder
        from ..segmentation.images import load_masked_images

        return dict(load_masked_images(split, image_folder(root), spec, cache_dir, progress))

    def epochs(self, settings: TrainSettings, images: Any) -> Epochs:
        return Epochs(EPOCHS if settings.epochs_finetune is None else settings.epochs_finetune, TILES)

    def batches(self, images: Any, settings: TrainSettings, stage: Stage, classes: int) -> Callable[[int], Any]:
        from ..segmentation.batches import training_tiles

        return lambda epoch: training_tiles(
            images, stage.batch_size, augment=settings.augment, seed=settings.seed, epoch=epoch, count=stage.images
        )

    def validation(self, images: Any) -> Any:
        from ..segmentation.batches import validation_tiles

        return validation_tiles(images, 16)

    def teach(self, teachers: Sequence[Teacher], spec: InputSpec) -> Callable[[Any], Any]:
        from ..segmentation.teaching import ensemble

        return ensemble(teachers, spec)

    def student(self, model: Any, teach: Callable[[Any], Any], weight: float) -> Any:
        from ..segmentation.teaching import make_student

        return make_student(model, teach, weight)

    @property
    def objective(self) -> Objective:
        from ..segmentation.objective import OBJECTIVE

        return OBJECTIVE

    def assess(
        self, out: Path, trained: Trained, settings: RunSettings, evaluated: Sequence[str], progress: Progress
    ) -> dict[str, MaskMetrics]:
        from ..segmentation.assess import KerasSegmenter, assess_images, figures, write_figures

        images, split, found = trained.images, trained.split, {}
        segmenter = KerasSegmenter(trained.model, images["test"].spec)
        for name in evaluated:
            found[name] = assess_images(segmenter, images[name], f"evaluating {name}", progress)
        write_figures(out / "predictions.csv", found)
        return {name: figures(scores, name, split.level, settings.seed) for name, scores in found.items()}

    def report(self, out: Path, run: RunInfo, trained: Trained, progress: Progress) -> None:
        from ..runs import read_history
        from ..segmentation.assess import KerasSegmenter, read_dice
        from ..segmentation.report import draw_overlays, write_run_report

        test = trained.images["test"]
        segmenter = KerasSegmenter(trained.model, test.spec)
        progress.note("drawing the report")
        overlays = draw_overlays(segmenter, test, read_dice(out / "predictions.csv", "test"))
        write_run_report(out, run, overlays, read_history(out))


TASK = Segmentation()
