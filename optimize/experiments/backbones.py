"""Trains a list of backbones under one protocol and holds them against each other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.files import output_lock
from ...edge_runtime.images import mark_output
from ...models import registry
from ...models.keras_compat import keras
from ...train.run import TrainSettings, is_complete, train
from ...train.workers import refuse_cluster
from .compare import (
    DEFAULT_SCHEMES,
    SECONDS,
    attempt,
    check_out,
    compare_groups,
    failure_of,
    options_of,
)
from .protocols import protocol_named, split_settings


def compare_backbones(
    data: Path,
    models: Sequence[str],
    protocol: str,
    out: Path,
    schemes: Sequence[str] = DEFAULT_SCHEMES,
    *,
    weights: str = "imagenet",
    split_by: str | None = None,
    embargo: int | None = None,
    training: Mapping[str, Any] | None = None,
    qat_epochs: int = 4,
    seconds: float = SECONDS,
    cache_dir: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Train backbones one after the other under one protocol, then `compare_runs`.

    Runs lie in ``out/<model>/``, or ``out/<model>/fold-<i>/`` under cross-validation. The same command goes on where
    it was stopped: complete runs are kept, a cut one is resumed. A model that fails is reported, the others go on.

    Args:
        data: folder or manifest.
        models: ``mobilenet_v2`` or ``mobilenet_v2:0.35``, with its alpha.
        protocol: see `edgeall.optimize.experiments.protocols.PROTOCOLS`.
        out: folder for the runs and the report.
        schemes: as in `compare_runs`, like the rest that isn't named here.
        weights: ``imagenet``, ``none``, or a folder of ``<model>_no_top.h5`` (``mobilenet_v2_0.35_no_top.h5`` where
            there is an alpha). A backbone that nobody trained beforehand starts from none.
        split_by: another level than the protocol's own; ``embargo`` of its blocks.
        training: other settings of `TrainSettings`, by name: epochs, learning rates, seed, input size.

    Raises:
        UsageError: an unknown model, protocol, scheme or setting, a folder that holds other runs; before any work.
        DataError: not one model could be trained.
    """
    refuse_cluster("compare")
    chosen = protocol_named(protocol)
    options = options_of(schemes, qat_epochs, seconds, data, cache_dir)
    dealt = split_settings(chosen, split_by, embargo)
    extra = _training(training or {})
    plans, failures = _plan(data, models, dealt, out, weights, {**extra, "cache_dir": options.cache_dir})
    with output_lock(out, "compare"):
        groups = _trained(plans, chosen.name, out, failures, progress)
        order = list(dict.fromkeys(model_name(*_backbone(text)) for text in models))
        failures.sort(key=lambda failure: order.index(failure["model"]))
        about = {
            "name": chosen.name,
            "summary": chosen.summary,
            "source": chosen.source,
            "folds": chosen.folds,
            "per_class": chosen.per_class,
            "split_by": split_by or chosen.split_by,
            "embargo": embargo,
            "weights": weights,
            "training": dict(training or {}),
        }
        return compare_groups(groups, out, options, failures, about, progress)


def _trained(
    plans: Mapping[str, Sequence[TrainSettings]],
    protocol: str,
    out: Path,
    failures: list[dict[str, Any]],
    progress: Progress,
) -> dict[str, list[Path]]:
    """The runs of every model that could be trained; the others join the failures."""
    out.mkdir(parents=True, exist_ok=True)
    mark_output(out)
    groups: dict[str, list[Path]] = {}
    for name, settings in plans.items():
        progress.note(f"{name}: {protocol}")
        trained = attempt(name, None, functools.partial(_train, settings, progress))
        if isinstance(trained, dict):
            progress.note(f"{name}: failed: {trained['error']}")
            failures.append(trained)
        else:
            groups[name] = trained
        keras.backend.clear_session()
    if not groups:
        raise DataError(f"none of the models could be trained; {failures[0]['model']}: {failures[0]['error']}")
    return groups


def _training(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for `TrainSettings` that the protocol leaves open. Raises UsageError for any other."""
    fixed = {"data", "out", "model", "alpha", "weights", "split_by", "embargo"}
    fixed |= {"val_frac", "test_frac", "fold", "per_class"}
    known = {field.name for field in fields(TrainSettings)} - fixed
    for name in given:
        if name not in known:
            raise UsageError(f"{name} is no setting that a comparison can change", hint=f"there are: {sorted(known)}")
    return {name: value for name, value in given.items() if value is not None}


def _backbone(text: str) -> tuple[str, float | None]:
    """``mobilenet_v2:0.35`` to its name and alpha, the backbone's default where none is given."""
    name, _, alpha = text.partition(":")
    spec = registry.get(name)
    try:
        return name, float(alpha) if alpha else (1.0 if spec.alphas else None)
    except ValueError:
        raise UsageError(f"{text}: {alpha!r} is no alpha", hint="write it as in mobilenet_v2:0.35") from None


def model_name(name: str, alpha: float | None) -> str:
    """``mobilenet_v2_0.35``: of its folder, its row and its weights file."""
    return name if alpha is None else f"{name}_{alpha if alpha != int(alpha) else f'{alpha:.1f}'}"


def check_weights(weights: str) -> None:
    """Raise UsageError unless ``weights`` is ``imagenet``, ``none`` or a folder."""
    if weights not in ("imagenet", "none") and not Path(weights).is_dir():
        raise UsageError(f"--weights {weights}: no such folder", hint="give imagenet, none or a folder of .h5 files")


def weights_of(name: str, alpha: float | None, weights: str) -> str:
    """What `TrainSettings.weights` is for one backbone, given the whole comparison's ``weights``."""
    if not registry.get(name).pretrained:
        return "none"
    if weights in ("imagenet", "none"):
        return weights
    return str(Path(weights) / f"{model_name(name, alpha)}_no_top.h5")


def _plan(
    data: Path,
    models: Sequence[str],
    dealt: Sequence[Mapping[str, Any]],
    out: Path,
    weights: str,
    extra: Mapping[str, Any],
) -> tuple[dict[str, list[TrainSettings]], list[dict[str, Any]]]:
    """The runs of every model, and the models whose weights aren't there."""
    if not models:
        raise UsageError("no models to compare", hint=f"there are: {', '.join(registry.names())}")
    check_out(out, [data])
    check_weights(weights)
    plans: dict[str, list[TrainSettings]] = {}
    failures: list[dict[str, Any]] = []
    for text in models:
        backbone, alpha = _backbone(text)
        name = model_name(backbone, alpha)
        if name in plans:
            raise UsageError(f"{name} is named twice")
        source = weights_of(backbone, alpha, weights)
        settings = [
            replace(
                TrainSettings(data=data, out=_run_folder(out / name, one), model=backbone, alpha=alpha, weights=source),
                **{**one, **extra},
            )
            for one in dealt
        ]
        if source not in ("imagenet", "none") and not Path(source).is_file():
            failures.append(failure_of(name, None, DataError(f"{source}: no such weights file")))
            continue
        for one in settings:  # refuses here what could never be trained
            is_complete(one)
        plans[name] = settings
    return plans, failures


def _run_folder(folder: Path, dealt: Mapping[str, Any]) -> Path:
    return folder / f"fold-{dealt['fold'].partition('/')[0]}" if "fold" in dealt else folder


def _train(every: Sequence[TrainSettings], progress: Progress) -> list[Path]:
    """The folders of one model's runs, trained where they aren't complete."""
    for settings in every:
        if is_complete(settings):
            progress.note(f"{settings.out}: complete")
        else:
            train(settings, progress)
    return [settings.out for settings in every]
