"""Joins trained runs into one: a network with one input, in one file, whose logits are the mean of theirs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..console.progress import Progress
from ..console.tables import percent, table
from ..edge_runtime.classifier import Classifier
from ..edge_runtime.errors import UsageError
from ..edge_runtime.files import output_lock
from ..edge_runtime.images import refuse_inside
from ..edge_runtime.results import SPREAD, Result
from ..models.joined import join
from ..models.macs import macs
from ..train.batches import Images
from ..train.data import cache
from ..train.data.split import Split, check_split
from ..train.evaluation.mcnemar import mcnemar
from ..train.run_folder import check_out, claim
from ..train.run_info import EnsembleInfo, Facts, MemberInfo, MemberNetwork, ModelInfo, RunInfo
from ..train.runs import (
    complete_run,
    data_root,
    input_spec,
    load_model,
    load_own_split,
    load_subsets,
    provenance,
    read_history,
    test_probabilities,
)
from ..train.tasks.registry import Trained, only_classification
from ..train.teacher import Teacher, check_split_of, open_teachers
from .experiments.latency import interleaved
from .quantization.convert import convert
from .quantization.fold import fold_batch_normalization

TIMED_S = 2.0


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of `ensemble`.

    Attributes:
        runs: at least two complete runs of classifiers with the same classes, split and input.
        out: folder of the new run.
        data: current location of the images; None: where the first run read them.
        force: overwrite another run in ``out``.
        cache_dir: folder of the pixel cache; None: the default one.
    """

    runs: tuple[Path, ...]
    out: Path
    data: Path | None = None
    force: bool = False
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Worth(Result):
    """What an ensemble gains over its best member, which is chosen by the validation subset.

    Attributes:
        best: run folder of that member.
        gain_points: of test accuracy, in percentage points.
        p_value: of McNemar's exact test.
        further_ms: latency beyond the member's.
        points_per_ms: ratio of the two; None if the ensemble is not slower.
    """

    best: str
    gain_points: float
    p_value: float
    further_ms: float
    points_per_ms: float | None


@dataclass(frozen=True)
class EnsembleResult(Result):
    """The new run, and whether it is worth its latency."""

    run: RunInfo = field(metadata=SPREAD)
    worth: Worth


def ensemble(config: EnsembleConfig, progress: Progress) -> EnsembleResult:
    """Join runs into one run, and measure whether it is worth its latency.

    Nothing is trained: see `edgeall.models.joined.join`. The result is a run like any other: it can be evaluated,
    quantized, pruned and compared, and can be a teacher.

    Raises:
        UsageError: fewer than two runs, runs that do not fit together, or a folder that holds something else, lies in
            the data, or is in use.
        DataError: a run is not complete, or the data is not what it was trained on.
    """
    started = time.perf_counter()
    members = _open_members(config)
    first = members[0].facts
    root = config.data or data_root(first)
    refuse_inside(root, config.out)
    settings = first.settings.with_(ensemble_run_sha256=[member.sha256 for member in members])
    cache_dir = cache.ready(config.cache_dir)
    with output_lock(config.out, "ensemble"):
        begun = check_out(config.out, settings, config.force)
        split = load_own_split(config.runs[0], first)
        check_split(split, root)
        subsets = load_subsets(split, root, input_spec(first.settings), cache_dir, progress)
        networks = [load_model(member.run, member.facts) for member in members]
        model = join(networks, len(split.labels))
        facts = Facts(first.unit, replace(first.data, root=str(root.resolve())))
        if not begun:
            claim(config.out, settings, split, facts)
        latencies = _latencies([model, *networks], split, subsets["validation"], progress)
        run = RunInfo(
            settings=settings,
            **vars(facts),
            model=_model_info(model, members),
            ensemble=_ensemble_info(members, latencies),
            timing={},
            replicas=1,
            **vars(provenance()),
        )
        history = [row for member in members for row in read_history(member.run)]
        run = complete_run(config.out, run, Trained(model, split, subsets, history), started, progress)
        return EnsembleResult(run, _worth(config.out, run, split))


def _open_members(config: EnsembleConfig) -> tuple[Teacher, ...]:
    """The runs to join. Raises UsageError where they do not fit together."""
    if len(config.runs) < 2:
        raise UsageError("an ensemble needs at least two runs", hint="give run folders of `edgeall train`")
    for number, run in enumerate(config.runs):
        if run.resolve() in [other.resolve() for other in config.runs[:number]]:
            raise UsageError(f"{run}: is given twice", hint="give each run once")
    members = open_teachers(config.runs, config.out, option="")
    first = members[0]
    hint = f"train it with --split {first.run}"
    for member in members:
        only_classification(member.facts, "ensemble")
        check_split_of(member.facts, f"{member.run}", first.facts.labels, first.facts.split.sha256, hint)
        if member.facts.model.input != first.facts.model.input:
            raise UsageError(
                f"{member.run}: has another input size or normalization than {first.run}",
                hint="train it with the same --input-size, on a backbone of the same normalization",
            )
    return members


def _model_info(model: Any, members: Sequence[Teacher]) -> ModelInfo:
    return ModelInfo(
        name=" + ".join(_name(member.facts.model) for member in members),
        alpha=None,
        parameters=int(model.count_params()),
        macs=macs(model),
        input=members[0].facts.model.input,
        members=[MemberNetwork(member.facts.settings, member.facts.model) for member in members],
    )


def _name(model: ModelInfo) -> str:
    return model.name if model.alpha is None else f"{model.name} {model.alpha:g}"


def _ensemble_info(members: Sequence[Teacher], latencies: Sequence[float]) -> EnsembleInfo:
    """``latencies`` are in milliseconds: the ensemble's, then each member's."""
    infos = [
        MemberInfo(**vars(member.record()), latency_ms=latency_ms)
        for member, latency_ms in zip(members, latencies[1:], strict=True)
    ]
    return EnsembleInfo(infos, latencies[0])


def _latencies(models: Sequence[Any], split: Split, images: Images, progress: Progress) -> list[float]:
    """Median milliseconds of one image on one thread, as float32 flatbuffers, measured in turn."""
    progress.note("measuring latency")
    image, spec = images.pixels[images.rows[0]], images.spec
    opened = {}
    for number, model in enumerate(models):
        flatbuffer = convert(fold_batch_normalization(model), "float32", spec)
        name = str(number)
        opened[name] = (Classifier.from_flatbuffer(flatbuffer, split.labels, spec, name=name), image)
    _, times = interleaved(opened, TIMED_S, progress)
    return [times[name].p50_ms for name in opened]


def _worth(out: Path, run: RunInfo, split: Split) -> Worth:
    assert run.ensemble is not None
    best = max(run.ensemble.members, key=lambda member: member.accuracy["validation"])
    truth = np.array([split.labels.index(entry.label) for entry in split.subset("test")])
    own, others = (test_probabilities(folder, split).argmax(axis=1) == truth for folder in (out, Path(best.run)))
    gain_points = 100.0 * float(own.mean() - others.mean())
    further_ms = run.ensemble.latency_ms - best.latency_ms
    per_ms = gain_points / further_ms if further_ms > 0 else None
    return Worth(best.run, gain_points, mcnemar(own, others).p_value, further_ms, per_ms)


def ensemble_text(result: EnsembleResult) -> str:
    """What ``edgeall ensemble`` prints."""
    found, worth = result.run.ensemble, result.worth
    assert found is not None
    own = {subset: metrics.accuracy for subset, metrics in result.run.classified.items()}
    every = [(Path(member.run).name, member.accuracy, member.latency_ms) for member in found.members]
    rows = [
        [name, percent(accuracy.get("validation")), percent(accuracy.get("test")), f"{latency_ms:.2f}"]
        for name, accuracy, latency_ms in (*every, ("ensemble", own, found.latency_ms))
    ]
    per_ms = "" if worth.points_per_ms is None else f", {worth.points_per_ms:+.2f} points per ms"
    gain = (
        f"{worth.gain_points:+.2f} points of test accuracy over {Path(worth.best).name}, the best member in "
        f"validation (p = {worth.p_value:.2g}), for {worth.further_ms:.2f} ms more{per_ms}"
    )
    return table(["run", "validation", "test", "ms (float32, one thread)"], rows) + "\n\n" + gain
