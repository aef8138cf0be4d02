"""One trial of a search: the cost of a candidate, its training, and its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.bundle import open_bundle
from ...edge_runtime.errors import DataError, EdgeallError, UsageError
from ...models.keras_compat import keras
from ...train.data.split import Split
from ...train.run import train
from ...train.run_folder import claim
from ...train.run_info import Facts
from ...train.run_settings import RunSettings
from ...train.runs import is_whole, load_run, read_history
from ...train.settings import resolve
from ..prune import prune
from ..pruning.config import PruneConfig
from ..quantization.config import QuantizeConfig
from ..quantization.result import QuantizationResult
from ..quantize import quantize_classifier
from .candidate import Candidate, converted, file_bytes_at_most, latency_ms, spec_of, untrained
from .liveness import sign_of_life
from .search_config import SearchSettings
from .search_settings import training_of
from .trials import Cost, Measurement, Space, Trials

SLACK_MS, SLACK_BYTES = 1.25, 1.6
"""Accepted ratio of the estimate for a pruned network to the budget, see `candidate.untrained`. Ranking removes more
channels from the late layers, which hold most weights, so the final size is well below the estimate."""
OnEpoch = Callable[[Mapping[str, Any]], None]
EVALUATED = ("validation",)
"""The subsets that candidates are evaluated on."""


@dataclass(frozen=True)
class Search:
    """What all trials of a process share."""

    settings: SearchSettings
    space: Space
    split: Split
    facts: Facts
    trials: Trials
    progress: Progress
    cache_dir: Path

    @property
    def out(self) -> Path:
        return self.settings.out


class RefusedError(Exception):
    """A candidate exceeds the budget, or cannot be built."""


class StoppedError(Exception):
    """A candidate is behind the others."""


def run_trial(search: Search, trial: Any, candidate: Candidate, place: str) -> str:
    """Measure one candidate, from its cost to its accuracy; returns the outcome, see `Trials`."""
    trials, progress = search.trials, search.progress
    started = time.perf_counter()
    outcome, reason, accuracy = "measured", "", None
    keras.backend.clear_session()
    try:
        _refuse(search, trial, candidate)
        progress.note(f"trial {trial.number} ({place}): {candidate.describe()}")
        cost, measured = _measure(search, trial, candidate)
        trials.note(trial, **{**cost.to_json(), **measured.to_json()})
        reason = _excess(cost, search.settings) or ""
        accuracy = None if reason else measured.accuracy
    except RefusedError as refusal:
        outcome, reason = "refused", str(refusal)
    except StoppedError as stop:
        outcome, reason = "stopped", str(stop)
    except (DataError, UsageError):  # independent of the candidate
        raise
    except EdgeallError as error:
        outcome, reason = "failed", error.message
    trials.note(trial, reason=reason, seconds=time.perf_counter() - started)
    trials.end(trial, outcome, accuracy)
    progress.note(f"trial {trial.number}: {candidate.describe()}: {outcome} {reason}".rstrip())
    return outcome


def _refuse(search: Search, trial: Any, candidate: Candidate) -> None:
    """Measure the cost of a candidate without training it. Raises RefusedError if it exceeds the budget."""
    rows = [row for row in search.trials.rows() if row.trial != trial.number]
    for row in rows:
        if row.outcome == "refused" and row.untrained and candidate.contains(row.candidate):
            raise RefusedError(f"larger than {row.candidate.describe()}, which {row.reason}")
    known = (row.untrained for row in rows if row.candidate.cost_key == candidate.cost_key and row.untrained)
    cost = next(known, None)
    if cost is None:
        try:
            flatbuffer = untrained(candidate, len(search.split.labels))
        except UsageError as error:  # too few channels, or a layer that cannot be quantized
            raise RefusedError(error.message) from error
        cost = cost_of(flatbuffer, candidate, search)
    search.trials.note(trial, untrained=cost.to_json())
    slack = (SLACK_MS, SLACK_BYTES) if candidate.macs < 1 else (1.0, 1.0)
    reason = _excess(cost, search.settings, *slack)
    if reason:
        raise RefusedError(reason)


def cost_of(flatbuffer: bytes, candidate: Candidate, search: Search) -> Cost:
    """Measure a network on this machine."""
    settings, spec = search.settings, spec_of(candidate)
    milliseconds = latency_ms(flatbuffer, search.split.labels, spec, settings.seconds)
    most = file_bytes_at_most(len(flatbuffer), spec)
    overshoot = max(milliseconds / (settings.max_latency_ms or math.inf), most / (settings.max_bytes or math.inf))
    return Cost(milliseconds, len(flatbuffer), most, overshoot)


def _excess(cost: Cost, settings: SearchSettings, slack_ms: float = 1.0, slack_bytes: float = 1.0) -> str | None:
    """How a cost exceeds the budget, as text; None if it does not."""
    most_ms, most_bytes, size = settings.max_latency_ms, settings.max_bytes, cost.file_bytes_at_most
    parts = []
    if most_ms is not None and cost.latency_ms > slack_ms * most_ms:
        parts.append(f"{cost.latency_ms:.3g} ms of {most_ms:g}")
    if most_bytes is not None and size > slack_bytes * most_bytes:
        parts.append(f"up to {size:,} bytes of {most_bytes:,}")
    return f"takes {' and '.join(parts)}" if parts else None


def _measure(search: Search, trial: Any, candidate: Candidate) -> tuple[Cost, Measurement]:
    """Train the candidate's networks that are not trained yet, convert, and measure validation accuracy and cost."""
    settings = search.settings

    def on_epoch(row: Mapping[str, Any]) -> None:
        sign_of_life(trial)
        offset = {"head": 0, "finetune": settings.epochs_head}.get(
            row["stage"], settings.epochs_head + settings.epochs_finetune
        )
        trial.report(float(row["val_accuracy"]), offset + int(row["epoch"]) - 1)
        if settings.stop and trial.should_prune():
            raise StoppedError(f"behind the others after {row['stage']} epoch {row['epoch']}")

    run = _trained_run(search, candidate, on_epoch)
    if candidate.macs < 1:
        run = _pruned_run(search, trial, run, candidate, on_epoch)
    out = run / f"{candidate.scheme}.tflite"
    # Golden images of the test subset would be seen by the model that is packed with them.
    result = quantized(search, run, candidate, out, subset="validation", golden="synthetic")
    sign_of_life(trial)
    cost = cost_of(open_bundle(out).flatbuffer, candidate, search)
    return cost, Measurement(
        accuracy=result.accuracy,
        float_accuracy=result.float_accuracy,
        images=result.test_images,
        latency_ms=cost.latency_ms,
        flatbuffer_bytes=cost.flatbuffer_bytes,
        file_bytes=result.file_bytes,
        parameters=load_run(run).model.parameters,
        run=run.name,
    )


def _trained_run(search: Search, candidate: Candidate, on_epoch: OnEpoch) -> Path:
    """The float run that the candidate is made from; trained, resumed, or already complete."""
    run = search.out / "runs" / candidate.base
    if is_whole(run):
        _replay(run, on_epoch)
        return run
    settings = training_of(search.settings, candidate)
    if not run.exists():
        claim(run, RunSettings.of(resolve(settings)), search.split, search.facts)
    train(settings, search.progress, on_epoch=on_epoch, evaluated=EVALUATED)
    return run


def _pruned_run(search: Search, trial: Any, base: Path, candidate: Candidate, on_epoch: OnEpoch) -> Path:
    """The run with fewer channels. Its exact cost is measured before it is trained."""
    settings = search.settings
    run = search.out / "runs" / candidate.network
    if is_whole(run):
        _replay(run, on_epoch, after=len(read_history(base)))
        return run

    def check(model: Any) -> None:
        cost = cost_of(converted(model, candidate), candidate, search)
        search.trials.note(trial, untrained=cost.to_json())
        reason = _excess(cost, settings)
        if reason:
            raise RefusedError(reason)

    epochs, data, cache_dir = settings.epochs_prune, settings.data, settings.cache_dir
    config = PruneConfig(base, run, macs=candidate.macs, epochs=epochs, data=data, cache_dir=cache_dir)
    prune(config, search.progress, on_model=check, on_epoch=on_epoch, evaluated=EVALUATED)
    return run


def _replay(run: Path, on_epoch: OnEpoch, after: int = 0) -> None:
    """Report the epochs of a run that another trial trained."""
    for row in read_history(run)[after:]:
        on_epoch(row)


def quantized(
    search: Search, run: Path, candidate: Candidate, out: Path, subset: str, golden: str
) -> QuantizationResult:
    """Quantize a run with the search's settings; see `QuantizeConfig`."""
    settings = search.settings
    config = QuantizeConfig(
        run,
        candidate.scheme,
        out,
        epochs=settings.epochs_qat,
        data=settings.data,
        golden=golden,
        subset=subset,
        force=True,
        cache_dir=settings.cache_dir,
    )
    return quantize_classifier(config, search.progress)
