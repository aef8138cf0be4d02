"""What a search is asked for, and the networks that it may try."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import UsageError
from ...models import registry
from ...models.registry import BuildArgs
from ...train.data.split_settings import check_embargo
from ...train.run import TrainSettings
from ..quantization.config import GOLDEN_SOURCES
from ..quantization.convert import SCHEMES
from .backbones import check_weights, weights_of
from .candidate import Candidate
from .trials import Axes, Space

SIZES = (96, 128, 160, 192, 224)
"""Tried where no sizes are named."""
_ELSEWHERE = ("data", "out", "cache_dir", "trials", "min_accuracy", "storage", "study", "golden")
"""Settings that change nothing of a trial."""


@dataclass(frozen=True)
class SearchSettings:
    """A search's settings, as the command line names them.

    Attributes:
        data: folder or CSV manifest.
        out: the folder of the search; the same command goes on with it.
        max_latency_ms: of one image through the network, one thread, on this machine.
        max_bytes: of the packed file.
        min_accuracy: on the validation side, 0 to 1, that the chosen model must reach.
        trials: candidates to train, those stopped early included, those refused before not.
        models: backbones.
        alphas: width multipliers; None: all that the backbone has and there are weights for.
        sizes: input pixels; None: those of `SIZES` that the backbone takes.
        macs: shares of the multiply-accumulates that structured pruning leaves; 1 for none.
        schemes: of the conversion.
        weights: ``imagenet``, ``none``, or a folder of files called ``<model>_no_top.h5`` (with an alpha:
            ``mobilenet_v2_0.35_no_top.h5``). A backbone that nobody trained beforehand starts from none.
        epochs_head: epochs on the frozen backbone's features.
        epochs_finetune: epochs of the network itself.
        epochs_prune: epochs after pruning.
        epochs_qat: epochs of quantization-aware training.
        stop: give up candidates that fall behind.
        storage: where the trials are kept: a URL for Optuna or a journal file; None: a journal file in ``out``.
        study: its name in the storage.
        golden: see `edgeall.optimize.quantize.quantize`; of the chosen model.
        seconds: to time each network.

    The others are those of `edgeall.train.run.TrainSettings`.
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
    split_by: str = "auto"
    embargo: int | None = None
    val_frac: float = 0.1
    test_frac: float = 0.15
    fold: str | None = None
    positive: str | None = None
    golden: str = "test"
    seconds: float = 2.0
    seed: int = 0
    cache_dir: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """What decides a trial's result."""
        values = json.loads(json.dumps(asdict(self), default=str))
        return {key: value for key, value in values.items() if key not in _ELSEWHERE}


def check(settings: SearchSettings) -> None:
    """Refuse what can't be meant."""
    if settings.max_latency_ms is None and settings.max_bytes is None:
        raise UsageError("no budget given", hint="say what there is with --max-latency-ms, --max-bytes or both")
    for option, value in (("--max-latency-ms", settings.max_latency_ms), ("--max-bytes", settings.max_bytes)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{option} {value:g} is no budget", hint="give a number above 0")
    if settings.min_accuracy is not None and not 0 <= settings.min_accuracy <= 1:
        raise UsageError(f"--min-accuracy {settings.min_accuracy:g} is not between 0 and 1", hint="97 % is 0.97")
    for option, share in (("--macs", share) for share in settings.macs):
        if not 0 < share <= 1:
            raise UsageError(f"{option} {share:g} is no share", hint="give shares above 0 and at most 1, as 0.5")
    unknown = [scheme for scheme in settings.schemes if scheme not in SCHEMES]
    if unknown:
        raise UsageError(f"no scheme called {unknown[0]!r}", hint=f"there are: {', '.join(SCHEMES)}")
    if settings.golden not in GOLDEN_SOURCES:
        raise UsageError(f"no golden images called {settings.golden!r}", hint=f"there are: {', '.join(GOLDEN_SOURCES)}")
    for option in ("models", "macs", "schemes"):
        if not getattr(settings, option):
            raise UsageError(f"--{option}: none given")
    least = min(settings.trials, settings.epochs_finetune, settings.epochs_prune, settings.epochs_qat)
    if least < 1 or settings.epochs_head < 0:
        raise UsageError("--trials and the epochs of fine-tuning, pruning and qat are at least 1, of the head 0")
    check_weights(settings.weights)
    check_embargo(settings.split_by, settings.embargo)


def space_of(settings: SearchSettings) -> tuple[Space, list[str]]:
    """All candidates, and notes on what was left out of what could have been tried.

    Raises:
        UsageError: something named can't be built, or nothing is left.
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
            missing = weights not in ("imagenet", "none") and not Path(weights).is_file()
            for size in sizes:
                registry.check_args(spec, BuildArgs(size, size, alpha, "none" if missing else weights))
            if missing:
                what = name if alpha is None else f"{name} {alpha:g}"
                notes.append(f"{what} is left out: no weights file of it in {settings.weights}")
            else:
                kept.append(alpha)
        if kept:
            axes.append(Axes(name, tuple(kept), tuple(sorted(set(sizes))), tuple(sorted(set(settings.macs)))))
    if not axes:
        raise UsageError(
            f"{settings.weights}: no weights file of any of the backbones",
            hint="the files are called as in mobilenet_v2_0.35_no_top.h5",
        )
    if settings.alphas is not None and not any(registry.get(name).alphas for name in settings.models):
        raise UsageError(f"{', '.join(settings.models)}: no alpha to choose", hint="leave --alphas out")
    return Space(tuple(axes), tuple(dict.fromkeys(settings.schemes))), notes


def training_of(settings: SearchSettings, candidate: Candidate) -> TrainSettings:
    """How the network that a candidate is made from is trained."""
    weights = weights_of(candidate.model, candidate.alpha, settings.weights)
    return TrainSettings(
        data=settings.data,
        out=settings.out / "runs" / candidate.base,
        model=candidate.model,
        alpha=candidate.alpha,
        weights=weights,
        input_size=candidate.input_size,
        epochs_head=0 if weights == "none" else settings.epochs_head,
        epochs_finetune=settings.epochs_finetune,
        batch_size=settings.batch_size,
        lr_finetune=settings.lr_finetune,
        augment=settings.augment,
        split_by=settings.split_by,
        embargo=settings.embargo,
        val_frac=settings.val_frac,
        test_frac=settings.test_frac,
        fold=settings.fold,
        positive=settings.positive,
        seed=settings.seed,
        cache_dir=settings.cache_dir,
    )
