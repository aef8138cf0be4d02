"""The settings of a search, from which the command line takes its defaults. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...train.config import SplitOptions, own_first
from ..quantization.schemes import GOLDEN_SOURCES

_ELSEWHERE = ("data", "out", "cache_dir", "trials", "min_accuracy", "storage", "study", "golden")
"""Settings that do not affect the result of a trial."""

_ADDED = ("learning_rates", "dropouts", "weight_decays", "augments", "unfreezes")


@dataclass(frozen=True)
class SearchSettings(SplitOptions):
    """A search's settings, as the command line names them.

    Attributes:
        data: folder or CSV manifest.
        out: folder of the search; the same command resumes it.
        max_latency_ms: latency budget of one image, network only, one thread, on this machine.
        max_bytes: size budget of the packed model.
        min_accuracy: validation accuracy that the chosen model must reach, 0..1.
        trials: number of candidates to train; stopped ones count, refused ones do not.
        models: backbones.
        alphas: width multipliers; None: all of the backbone for which there are weights.
        sizes: input sizes in pixels; None: those of `SIZES` that the backbone takes.
        macs: shares of the multiply-accumulates that channel pruning leaves; 1: no pruning.
        schemes: conversion schemes.
        learning_rates: peak learning rates of the fine-tuning to choose from; None: ``lr_finetune``, not searched.
        dropouts: the same for the dropout; ``weight_decays``: for the weight decay; ``augments``: for the augmentation;
            ``unfreezes``: for the number of backbone layers that are fine-tuned.
        weights: ``imagenet``, ``none``, or a folder of ``<model>_no_top.h5`` files (with an alpha:
            ``mobilenet_v2_0.35_no_top.h5``). A backbone without published weights starts untrained.
        epochs_head: epochs of the head on the features of the frozen backbone.
        epochs_finetune: epochs of the whole network.
        epochs_prune: epochs after pruning.
        epochs_qat: epochs of quantization-aware training.
        stop: stop candidates that are behind the others.
        storage: Optuna URL or journal file; None: a journal file in ``out``.
        study: name of the study in the storage.
        golden: golden images of the chosen model, see `edgeall.optimize.quantization.config.QuantizeConfig`.
        seconds: time for which each network is timed.

    The other settings are those of `edgeall.train.config.TrainSettings`.
    """

    data: Path
    out: Path
    max_latency_ms: float | None = None
    max_bytes: int | None = None
    min_accuracy: float | None = None
    trials: int = 20
    models: tuple[str, ...] = ("mobilenet_v2",)
    alphas: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None
    macs: tuple[float, ...] = (1.0, 0.75, 0.5)
    schemes: tuple[str, ...] = ("ptq-int8", "qat-int8")
    learning_rates: tuple[float, ...] | None = None
    dropouts: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    augments: tuple[str, ...] | None = None
    unfreezes: tuple[int, ...] | None = None
    weights: str = "imagenet"
    epochs_head: int = 10
    epochs_finetune: int = 8
    epochs_prune: int = 4
    epochs_qat: int = 2
    stop: bool = True
    storage: str | None = None
    study: str = "search"
    batch_size: int = 32
    lr_finetune: float = 5e-4
    augment: str = "microscope"
    golden: str = field(default="test", metadata={"choices": GOLDEN_SOURCES})
    seconds: float = 2.0

    def as_json(self) -> dict[str, Any]:
        """The settings that affect the result of a trial."""
        values = json.loads(json.dumps(asdict(self), default=str))
        added = [name for name in _ADDED if values[name] is None]  # not in the studies of older versions
        return own_first({key: value for key, value in values.items() if key not in (*_ELSEWHERE, *added)})
