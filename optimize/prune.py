"""Prunes a trained run to a smaller run: unstructured sparsity, or fewer channels; then trains it further."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..console.progress import Progress
from ..console.tables import percent
from ..edge_runtime.errors import UsageError
from ..edge_runtime.files import output_lock
from ..edge_runtime.images import refuse_inside
from ..edge_runtime.preprocess import InputSpec
from ..models.keras_compat import keras
from ..models.macs import macs as macs_of
from ..models.narrow import groups, narrow
from ..train.data import cache
from ..train.data.split import Split, check_split
from ..train.data.subsets import SUBSETS
from ..train.run_folder import check_out, claim
from ..train.run_info import Facts, PrunedInfo, RunInfo
from ..train.run_settings import RunSettings
from ..train.runs import (
    Provenance,
    complete_run,
    data_root,
    input_spec,
    load_model,
    load_own_split,
    load_run,
    provenance,
    read_history,
    run_digest,
)
from ..train.stage import Row
from ..train.tasks import registry as training
from .experiments.latency import interleaved
from .pruning.channels import Budget
from .pruning.config import PruneConfig
from .pruning.sparsity import prunable, sparsity_of
from .pruning.summary import verdict
from .pruning.tasks import registry as tasks
from .pruning.training import kept_channels, train_pruned
from .quantization.convert import compressed_bytes, convert
from .quantization.fold import fold_batch_normalization

TIMED_S = 2.0


def prune(
    config: PruneConfig,
    progress: Progress,
    *,
    on_model: Callable[[Any], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    evaluated: Sequence[str] = SUBSETS,
) -> RunInfo:
    """Prune a run by magnitude (``sparsity``) or by structure (``macs``), and train the rest.

    Args:
        config: see `PruneConfig`.
        on_model: called with the network before it is trained; may raise.
        on_epoch: see `edgeall.train.stage.FitOptions`.
        evaluated: see `edgeall.train.runs.complete_run`.

    Returns:
        The run, with ``pruned``.

    Raises:
        UsageError: invalid settings, an unreachable target, or a folder that holds something else, lies in the data,
            or is in use.
        DataError: the run is not complete, or the data is not what it was trained on.
    """
    started = time.perf_counter()
    config.check()
    parent = load_run(config.run)
    if config.run.resolve().is_relative_to(config.out.resolve()):
        raise UsageError(f"{config.out}: is or holds the run that is pruned", hint="choose another --out")
    root = config.data or data_root(parent)
    refuse_inside(root, config.out)
    cache_dir = cache.ready(config.cache_dir)
    with output_lock(config.out, "prune"):
        job = _open(config, parent, root, cache_dir, progress)
        prepared = time.perf_counter()
        model = _narrowed(job, progress)
        if on_model:
            on_model(model)
        ranked = time.perf_counter()
        history = train_pruned(config, model, job.teacher, job.subsets, parent, job.settings, progress, on_epoch)
        trained = time.perf_counter()
        pruned = _pruned(job, model, progress)
        timing: dict[str, float | None] = {"prepare_s": prepared - started, "rank_s": ranked - prepared}
        run = _run_info(job, pruned, timing | _training_time(job, history, trained))
        history = [*read_history(config.run), *history]
        whole = training.Trained(model, job.split, job.subsets, history)
        run = complete_run(config.out, run, whole, started, progress, evaluated)
        shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
        return run


@dataclass(frozen=True)
class _Job:
    """The opened parent run: ``teacher`` is its network, ``facts`` what the new run shares with it, ``provenance``
    what this process adds; ``resumed`` tells whether the new run was begun before.
    """

    config: PruneConfig
    parent: RunInfo
    teacher: Any
    split: Split
    spec: InputSpec
    subsets: dict[str, Any]
    settings: RunSettings
    parent_sha256: str
    facts: Facts
    provenance: Provenance
    resumed: bool


def _open(config: PruneConfig, parent: RunInfo, root: Path, cache_dir: Path, progress: Progress) -> _Job:
    """Open the parent run and its data, check the target, and begin or resume the new run's folder."""
    parent_sha256 = run_digest(config.run)
    settings = parent.settings.with_(
        sparsity=config.sparsity,
        macs=config.macs,
        epochs_prune=config.training_epochs,
        lr_prune=config.learning_rate,
        pruned_run_sha256=parent_sha256,
    )
    resumed = check_out(config.out, settings, config.force)
    teacher = load_model(config.run, parent)
    _check_target(config, teacher)
    if config.kind == "macs" and parent.pruned and parent.pruned.kind == "sparsity":
        progress.note(f"{config.run}: its zeros are filled in again; prune by --macs first, then by --sparsity")
    split = load_own_split(config.run, parent)
    check_split(split, root)
    facts = Facts(parent.unit, replace(parent.data, root=str(root.resolve())))
    spec = input_spec(settings)
    subsets = training.of_run(parent).load(split, root, spec, cache_dir, progress)
    if not resumed:
        claim(config.out, settings, split, facts)
    return _Job(config, parent, teacher, split, spec, subsets, settings, parent_sha256, facts, provenance(), resumed)


def _check_target(config: PruneConfig, teacher: Any) -> None:
    """Raise UsageError for a target that the network cannot reach."""
    if config.kind == "macs":
        Budget(teacher).check(config.target)
        return
    if not prunable(teacher):
        raise UsageError(f"{config.run}: {teacher.name} has no layer to prune by --sparsity", hint="try --macs")
    found = sparsity_of(teacher)
    if found > config.target:
        raise UsageError(f"{config.run}: {percent(found)} of its weights are zero already", hint="give a larger share")


def _narrowed(job: _Job, progress: Progress) -> Any:
    """A copy of the parent's network, without the channels that ``macs`` removes."""
    keras.utils.set_random_seed(job.settings.seed)
    if job.config.kind == "sparsity":
        return narrow(job.teacher, {})
    images = job.subsets["train"]
    return narrow(job.teacher, kept_channels(job.config, job.teacher, images, job.parent, job.settings, progress))


def _pruned(job: _Job, model: Any, progress: Progress) -> PrunedInfo:
    kind, teacher = job.config.kind, job.teacher
    channels = None
    if kind == "macs":
        after = {group.name: group.channels for group in groups(model)}
        channels = {group.name: [group.channels, after[group.name]] for group in groups(teacher)}
    size, latency = _measured(job, model, progress)
    return PrunedInfo(
        kind=kind,
        asked=job.config.target,
        found=sparsity_of(model) if kind == "sparsity" else macs_of(model) / macs_of(teacher),
        parent=str(job.config.run.resolve()),
        run_sha256=job.parent_sha256,
        parent_accuracy={name: metrics.accuracy for name, metrics in job.parent.classified.items()},
        parent_dice={name: metrics.dice for name, metrics in job.parent.segmented.items()} or None,
        parameters=int(model.count_params()),
        parent_parameters=int(teacher.count_params()),
        macs=macs_of(model),
        parent_macs=macs_of(teacher),
        channels=channels,
        size=size,
        latency=latency,
        verdict=verdict(kind, size, latency),
    )


def _measured(job: _Job, model: Any, progress: Progress) -> tuple[dict[str, int], dict[str, float]]:
    """Size and latency of both networks as float32 flatbuffers."""
    progress.note("measuring size and latency")
    made = {
        "parent_float32": convert(fold_batch_normalization(job.teacher), "float32", job.spec),
        "float32": convert(fold_batch_normalization(model), "float32", job.spec),
    }
    task = tasks.of_run(job.parent)
    image = task.example(job.subsets["validation"])
    opened = {name: (task.open(made[name], job.parent, job.spec, name), image) for name in made}
    _, times = interleaved(opened, TIMED_S, progress)
    sizes = {f"{name}_bytes": len(flatbuffer) for name, flatbuffer in made.items()}
    sizes |= {f"{name}_gzip_bytes": compressed_bytes(flatbuffer) for name, flatbuffer in made.items()}
    return sizes, {f"{name}_p50_ms": times[name].p50_ms for name in made}


def _training_time(job: _Job, history: list[Row], trained: float) -> dict[str, float | None]:
    """Seconds and speed of the training, which ended at ``trained``, and seconds of what followed."""
    stage = history[-1]["stage"]
    return {
        f"{stage}_s": sum(row["seconds"] for row in history),
        "measure_s": time.perf_counter() - trained,
        "resumed": job.resumed,
        f"{stage}_images_per_s": float(np.median([row["images_per_s"] for row in history])),
    }


def _run_info(job: _Job, pruned: PrunedInfo, timing: dict[str, float | None]) -> RunInfo:
    """The run without what `complete_run` adds."""
    model = replace(job.parent.model, parameters=pruned.parameters, macs=pruned.macs)
    if pruned.channels:  # otherwise the parent's, if it has any
        model = replace(model, channels={name: after for name, (_, after) in pruned.channels.items()})
    return RunInfo(
        settings=job.settings,
        **vars(job.facts),
        model=model,
        pruned=pruned,
        timing=timing,
        replicas=1,
        **vars(job.provenance),
    )
