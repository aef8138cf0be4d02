"""Trains a list of backbones under one protocol and compares them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.files import output_lock
from ...edge_runtime.images import mark_output
from ...models import registry
from ...models.keras_compat import keras
from ...train.config import TrainSettings
from ...train.run import train
from ...train.run_folder import is_complete
from ...train.workers import refuse_cluster
from .compare import attempt, check_out, compare_groups, failure_of
from .compare_config import CompareOptions
from .compare_result import Comparison, Failure, ProtocolInfo
from .protocols import protocol_named, split_settings


@dataclass(frozen=True)
class BackbonesConfig:
    """Settings of `compare_backbones`.

    Attributes:
        data: folder or manifest.
        models: backbones, as ``mobilenet_v2`` or, with its alpha, ``mobilenet_v2:0.35``.
        protocol: name of one of `edgeall.optimize.experiments.protocols.PROTOCOLS`.
        out: folder for the runs and the report.
        weights: ``imagenet``, ``none``, or a folder of ``<model>_no_top.h5`` files
            (``mobilenet_v2_0.35_no_top.h5`` with an alpha). A backbone without published weights starts untrained.
        split_by: split level instead of the protocol's own.
        embargo: embargo of a split by block; None: the default.
        training: other settings of `edgeall.train.run.TrainSettings` by name: epochs, learning rates, seed, input size.
    """

    data: Path
    models: Sequence[str]
    protocol: str
    out: Path
    weights: str = "imagenet"
    split_by: str | None = None
    embargo: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


def compare_backbones(config: BackbonesConfig, options: CompareOptions, progress: Progress) -> Comparison:
    """Train backbones one after the other under one protocol, then compare them like `compare_runs`.

    Runs lie in ``out/<model>/``, or ``out/<model>/fold-<i>/`` under cross-validation. The same command resumes:
    complete runs are kept, an unfinished one continues. A model that fails is reported, and the others continue.

    Raises:
        UsageError: an unknown model, protocol, scheme or setting, or a folder that holds other runs; before any work.
        DataError: no model could be trained.
    """
    refuse_cluster("compare")
    protocol = protocol_named(config.protocol)
    options = replace(options, data=config.data).checked()
    splits = split_settings(protocol, config.split_by, config.embargo)
    extra = {**_training(config.training), "cache_dir": options.cache_dir}
    plans, failures = _plan(config, splits, extra)
    with output_lock(config.out, "compare"):
        groups = _trained(plans, protocol.name, config.out, failures, progress)
        order = list(dict.fromkeys(model_name(*_backbone(text)) for text in config.models))
        failures.sort(key=lambda failure: order.index(failure.model))
        about = ProtocolInfo(
            **{key: getattr(protocol, key) for key in ("name", "summary", "source", "folds", "per_class")},
            split_by=config.split_by or protocol.split_by,
            embargo=config.embargo,
            weights=config.weights,
            training=config.training,
        )
        return compare_groups(groups, config.out, options, failures, about, progress)


def _trained(
    plans: Mapping[str, Sequence[TrainSettings]],
    protocol: str,
    out: Path,
    failures: list[Failure],
    progress: Progress,
) -> dict[str, list[Path]]:
    """The runs of every model that could be trained; the others are added to ``failures``."""
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    groups: dict[str, list[Path]] = {}
    for name, settings in plans.items():
        progress.note(f"{name}: {protocol}")
        trained = attempt(name, None, functools.partial(_train, settings, progress))
        if isinstance(trained, Failure):
            progress.note(f"{name}: failed: {trained.error}")
            failures.append(trained)
        else:
            groups[name] = trained
        keras.backend.clear_session()
    if not groups:
        raise DataError(f"no model could be trained; {failures[0]}")
    return groups


def _training(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings of `TrainSettings`. Raises UsageError for one that the protocol fixes."""
    fixed = {"data", "out", "model", "alpha", "weights", "split_by", "embargo"}
    fixed |= {"val_frac", "test_frac", "fold", "per_class"}
    known = {field.name for field in fields(TrainSettings)} - fixed
    for name in given:
        if name not in known:
            raise UsageError(f"a comparison cannot change the setting {name}", hint=f"there are: {sorted(known)}")
    return {name: value for name, value in given.items() if value is not None}


def _backbone(text: str) -> tuple[str, float | None]:
    """Name and alpha of ``mobilenet_v2:0.35``; the default alpha if none is given."""
    name, _, alpha = text.partition(":")
    spec = registry.get(name)
    try:
        return name, float(alpha) if alpha else (1.0 if spec.alphas else None)
    except ValueError:
        raise UsageError(f"{text}: alpha must be a number, got {alpha!r}", hint="as in mobilenet_v2:0.35") from None


def model_name(name: str, alpha: float | None) -> str:
    """``mobilenet_v2_0.35``: name of its folder, its row and its weights file."""
    return name if alpha is None else f"{name}_{alpha if alpha != int(alpha) else f'{alpha:.1f}'}"


def check_weights(weights: str) -> None:
    """Raise UsageError unless ``weights`` is ``imagenet``, ``none`` or a folder."""
    if weights not in registry.WEIGHT_WORDS and not Path(weights).is_dir():
        raise UsageError(f"--weights {weights}: no such folder", hint="give imagenet, none or a folder of .h5 files")


def weights_of(name: str, alpha: float | None, weights: str) -> str:
    """`TrainSettings.weights` of one backbone, from the ``weights`` of the whole comparison."""
    if not registry.get(name).pretrained:
        return "none"
    if weights in registry.WEIGHT_WORDS:
        return weights
    return str(Path(weights) / f"{model_name(name, alpha)}_no_top.h5")


def _plan(
    config: BackbonesConfig, splits: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
) -> tuple[dict[str, list[TrainSettings]], list[Failure]]:
    """Settings of the runs of every model, and a failure for each model without its weights file."""
    if not config.models:
        raise UsageError("no models to compare", hint=f"there are: {', '.join(registry.names())}")
    check_out(config.out, [config.data])
    check_weights(config.weights)
    plans: dict[str, list[TrainSettings]] = {}
    failures: list[Failure] = []
    for text in config.models:
        backbone, alpha = _backbone(text)
        name = model_name(backbone, alpha)
        if name in plans:
            raise UsageError(f"{name} is named twice")
        weights = weights_of(backbone, alpha, config.weights)
        settings = [
            TrainSettings(
                data=config.data,
                out=_run_folder(config.out / name, split),
                model=backbone,
                alpha=alpha,
                weights=weights,
                **{**split, **extra},
            )
            for split in splits
        ]
        if weights not in registry.WEIGHT_WORDS and not Path(weights).is_file():
            failures.append(failure_of(name, None, DataError(f"{weights}: no such weights file")))
            continue
        for one in settings:  # refuses settings that cannot be trained
            is_complete(one)
        plans[name] = settings
    return plans, failures


def _run_folder(folder: Path, split: Mapping[str, Any]) -> Path:
    return folder / f"fold-{split['fold'].partition('/')[0]}" if "fold" in split else folder


def _train(every: Sequence[TrainSettings], progress: Progress) -> list[Path]:
    """Train the runs of one model that are not complete; returns their folders."""
    for settings in every:
        if is_complete(settings):
            progress.note(f"{settings.out}: complete")
        else:
            train(settings, progress)
    return [settings.out for settings in every]
