"""The labelled images that a foreign model is packed with."""

from __future__ import annotations

from dataclasses import dataclass

from ...console.progress import Progress
from ...edge_runtime.errors import DataError
from ...train.batches import Images
from ...train.config import TrainSettings
from ...train.data.dataset import load_dataset, unit
from ...train.data.scan import scan
from ...train.data.split import Split, make_entries
from ...train.data.subsets import SUBSETS, TEST
from ...train.prepare import data_info, prepare_data
from ...train.run_info import Facts
from ...train.tasks import registry as tasks
from .config import PackConfig

__all__ = ["Data", "Images", "open_data"]

FEWEST = 20
"""Smallest number of validation images to which a temperature and a threshold are fitted."""


@dataclass(frozen=True)
class Data:
    """The images of a packed model.

    Attributes:
        split: of the images; its labels are the classes of the data.
        facts: ``unit`` and ``data``, as in a run.
        divided: whether there are enough images for three subsets. If not, all are in the test subset.
    """

    split: Split
    facts: Facts
    divided: bool


def open_data(config: PackConfig, progress: Progress) -> Data:
    """List and split the images. Raises DataError for data that cannot be read."""
    shared = {name: getattr(config, name) for name in ("split_by", "embargo", "val_frac", "test_frac", "fold")}
    settings = TrainSettings(data=config.data, out=config.out, split=config.split, seed=config.seed, **shared)
    try:
        prepared = prepare_data(tasks.get(settings.task).resolve(settings), False, progress)
        count = len(prepared.split.subset(SUBSETS[1]))
        if count >= FEWEST:
            return Data(prepared.split, prepared.facts, True)
        reason = f"the validation subset would have {count} images"
    except DataError as error:
        if config.split is not None:
            raise
        reason = error.message
    progress.note(f"{reason}: all images are measured, and no temperature, threshold or detector is fitted")
    return _whole(config)


def _whole(config: PackConfig) -> Data:
    """All images as the test subset."""
    scanned = scan(load_dataset(config.data))
    count = len(scanned.facts)
    entries = make_entries(scanned.facts, [TEST] * count, [None] * count)
    split = Split("image", config.seed, scanned.dataset.labels, scanned.digest, entries)
    return Data(split, Facts(unit(scanned.dataset), data_info(config.data, scanned.dataset, split)), False)
