"""The studies' grid of backbone, split protocol, learning rate and dropout, and the settings of a run over a grid."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import UsageError
from ...models import registry
from ...train.config import TrainSettings
from ...train.run_folder import is_complete
from .backbones import check_weights, model_name, weights_of
from .protocols import protocol_named, split_settings


@dataclass(frozen=True)
class Point:
    """One combination of a grid."""

    model: str
    protocol: str
    learning_rate: float
    dropout: float

    @property
    def slug(self) -> str:
        """Name of its run folder."""
        spec = registry.get(self.model)
        name = model_name(spec.name, 1.0 if spec.alphas else None)
        return f"{name}-{self.protocol}-lr{self.learning_rate:g}-dropout{self.dropout:g}"


@dataclass(frozen=True)
class Grid:
    """What is combined with what, and what is the same in all combinations."""

    name: str
    source: str
    models: tuple[str, ...]
    protocols: tuple[str, ...]
    learning_rates: tuple[float, ...]
    dropouts: tuple[float, ...]
    epochs: int
    batch_size: int = 32

    def points(self) -> list[Point]:
        """Every combination, in the order of the table."""
        return [Point(*values) for values in itertools.product(*self.space().values())]

    def space(self) -> dict[str, list[Any]]:
        """Search space of Optuna's GridSampler."""
        return {
            "model": list(self.models),
            "protocol": list(self.protocols),
            "learning_rate": list(self.learning_rates),
            "dropout": list(self.dropouts),
        }


GRID_48 = Grid(
    name="grid-48",
    source="a study of the four-class set (README, 2024): best of 48 runs, Adam",
    models=("inception_resnet_v2", "nasnet_large"),
    protocols=("global-70-15-15", "balanced-700-150-150"),
    learning_rates=(0.1, 0.01, 0.001, 0.0001),
    dropouts=(0.4, 0.2, 0.0),
    epochs=60,
)


@dataclass(frozen=True)
class GridConfig:
    """Settings of `edgeall.optimize.experiments.grid.run_grid`.

    Attributes:
        data: folder or manifest.
        out: folder for the runs, ``grid.json`` and ``grid.csv``. Several workers may share it or have their own.
        grid: the combinations.
        weights: as in `edgeall.optimize.experiments.backbones.BackbonesConfig`.
        frozen: train the last layer alone on the features of the frozen backbone; False: train the whole network.
        storage: Optuna URL, or path of a journal file; None: ``out/study.journal``.
        study: name of the study in the storage; None: the grid's name.
        input_size: pixels; None: each backbone's own.
        seed: seed of every run.
        cache_dir: folder of the pixel cache; None: the default one.
    """

    data: Path
    out: Path
    grid: Grid = GRID_48
    weights: str = "imagenet"
    frozen: bool = True
    storage: str | None = None
    study: str | None = None
    input_size: int | None = None
    seed: int = 0
    cache_dir: Path | None = None

    def training(self, point: Point) -> TrainSettings:
        """Training settings of one point of the grid."""
        spec = registry.get(point.model)
        alpha = 1.0 if spec.alphas else None
        weights = weights_of(spec.name, alpha, self.weights)
        frozen = self.frozen and weights != "none"  # the features of an untrained network are random
        (split,) = split_settings(protocol_named(point.protocol))
        return TrainSettings(
            data=self.data,
            out=self.out / point.slug,
            model=spec.name,
            alpha=alpha,
            weights=weights,
            input_size=self.input_size,
            epochs_head=self.grid.epochs if frozen else 0,
            epochs_finetune=0 if frozen else self.grid.epochs,
            batch_size=self.grid.batch_size,
            lr_head=point.learning_rate,
            lr_finetune=point.learning_rate,
            dropout=point.dropout,
            patience=self.grid.epochs,
            seed=self.seed,
            cache_dir=self.cache_dir,
            **split,
        )

    def check(self) -> None:
        """Raise UsageError for an unknown backbone or missing weights, before any work."""
        check_weights(self.weights)
        for model in self.grid.models:
            settings = self.training(replace(self.grid.points()[0], model=model))
            if settings.weights not in registry.WEIGHT_WORDS and not Path(settings.weights).is_file():
                raise UsageError(
                    f"{settings.weights}: no such weights file", hint="every backbone of a grid needs its file"
                )
            is_complete(settings)
