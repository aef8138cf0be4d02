"""Checks the settings of a search, and derives its candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import UsageError
from ...models import registry
from ...models.registry import BuildArgs
from ...train.config import AUGMENTS, TrainSettings
from ...train.data.split_settings import check_embargo
from ...train.settings import check_rate, check_share
from ..quantization.schemes import check_golden, check_scheme
from .backbones import check_weights, weights_of
from .candidate import Candidate
from .search_config import SearchSettings
from .trials import Axes, Space

SIZES = (96, 128, 160, 192, 224)
"""Default input sizes in pixels."""
_OF_TRAINING = (
    *("epochs_finetune", "batch_size", "lr_finetune", "augment", "split_by", "embargo", "val_frac", "test_frac"),
    *("fold", "positive", "seed", "cache_dir"),
)
"""Settings that the training of every network takes over."""


def check(settings: SearchSettings) -> None:
    """Raise UsageError for invalid settings."""
    if settings.max_latency_ms is None and settings.max_bytes is None:
        raise UsageError("no budget given", hint="give --max-latency-ms, --max-bytes or both")
    for option, value in (("--max-latency-ms", settings.max_latency_ms), ("--max-bytes", settings.max_bytes)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{option} must be above 0 and finite, got {value:g}")
    if settings.min_accuracy is not None and not 0 <= settings.min_accuracy <= 1:
        raise UsageError(f"--min-accuracy must be in [0, 1], got {settings.min_accuracy:g}", hint="97 % is 0.97")
    for share in settings.macs:
        if not 0 < share <= 1:
            raise UsageError(f"--macs must be in (0, 1], got {share:g}", hint="0.5 leaves half of the MACs")
    for scheme in settings.schemes:
        check_scheme(scheme)
    _check_training(settings)
    check_golden(settings.golden)
    for option in ("models", "macs", "schemes"):
        if not getattr(settings, option):
            raise UsageError(f"--{option} must name at least one")
    least = min(settings.trials, settings.epochs_finetune, settings.epochs_prune, settings.epochs_qat)
    if least < 1 or settings.epochs_head < 0:
        raise UsageError("--trials and the epochs of fine-tuning, pruning and qat must be at least 1, of the head 0")
    check_weights(settings.weights)
    check_embargo(settings.split_by, settings.embargo)


def _check_training(settings: SearchSettings) -> None:
    """Raise UsageError for settings of the training that `train` would refuse."""
    for rate in settings.learning_rates or ():
        check_rate("--learning-rates", rate)
    for option, values in (("--dropouts", settings.dropouts), ("--weight-decays", settings.weight_decays)):
        for value in values or ():
            check_share(option, value)
    for augment in settings.augments or ():
        if augment not in AUGMENTS:
            raise UsageError(f"no augmentation called {augment!r}", hint=f"choose one of {', '.join(AUGMENTS)}")
    if any(layers < 1 for layers in settings.unfreezes or ()):
        raise UsageError("--unfreezes must be at least 1")


def space_of(settings: SearchSettings) -> tuple[Space, list[str]]:
    """All candidates, and notes on the backbones that were left out.

    Raises:
        UsageError: a setting that cannot be built, or no candidate is left.
    """
    axes, notes = [], []
    for name in dict.fromkeys(settings.models):
        spec = registry.get(name)
        alphas: Sequence[float | None] = spec.alphas or (None,)
        if settings.alphas is not None and spec.alphas:
            alphas = settings.alphas
        low, high = spec.sizes
        sizes = settings.sizes or [size for size in SIZES if low <= size <= high] or [spec.input_hw[0]]
        kept = []
        for alpha in sorted(set(alphas), key=lambda value: value or 0.0):
            weights = weights_of(name, alpha, settings.weights)
            missing = weights not in registry.WEIGHT_WORDS and not Path(weights).is_file()
            for size in sizes:
                registry.check_args(spec, BuildArgs(size, size, alpha, "none" if missing else weights))
            if missing:
                what = name if alpha is None else f"{name} {alpha:g}"
                notes.append(f"{what} is left out: no weights file in {settings.weights}")
            else:
                kept.append(alpha)
        if kept:
            axes.append(Axes(name, tuple(kept), tuple(sorted(set(sizes))), tuple(sorted(set(settings.macs)))))
    if not axes:
        raise UsageError(
            f"{settings.weights}: no weights file of any backbone",
            hint="files are named like mobilenet_v2_0.35_no_top.h5",
        )
    if settings.alphas is not None and not any(registry.get(name).alphas for name in settings.models):
        raise UsageError(f"{', '.join(settings.models)}: no alpha to choose", hint="remove --alphas")
    return Space(tuple(axes), tuple(dict.fromkeys(settings.schemes)), _training_axes(settings)), notes


def _training_axes(settings: SearchSettings) -> dict[str, tuple[Any, ...]]:
    """The choices for each setting of the training that is searched, in rising order."""
    given = {
        "learning_rate": settings.learning_rates,
        "dropout": settings.dropouts,
        "weight_decay": settings.weight_decays,
        "unfreeze": settings.unfreezes,
    }
    found: dict[str, tuple[Any, ...]] = {name: tuple(sorted(set(values))) for name, values in given.items() if values}
    if settings.augments:
        found["augment"] = tuple(dict.fromkeys(settings.augments))
    return found


def training_of(settings: SearchSettings, candidate: Candidate) -> TrainSettings:
    """Training settings of the network that a candidate is made from."""
    weights = weights_of(candidate.model, candidate.alpha, settings.weights)
    return TrainSettings(
        data=settings.data,
        out=settings.out / "runs" / candidate.base,
        model=candidate.model,
        alpha=candidate.alpha,
        weights=weights,
        input_size=candidate.input_size,
        epochs_head=0 if weights == "none" else settings.epochs_head,
        **{**{name: getattr(settings, name) for name in _OF_TRAINING}, **candidate.training},
    )
