"""The end of a search: the choice, its files, and the chosen model."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from ...console.tables import percent
from ...edge_runtime.bundle import open_bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.files import file_name
from ...models.keras_compat import keras
from ...train.data.subsets import SUBSETS
from ...train.runs import (
    complete_run,
    load_model,
    load_own_split,
    load_run,
    load_subsets,
    provenance,
    read_history,
    write_json,
)
from ...train.tasks.registry import Trained
from ..quantization.verify import predict
from .candidate import spec_of
from .search_result import (
    COSTS,
    Budget,
    ChosenModel,
    SearchResult,
    SearchSplit,
    TrialRow,
    alike,
    choose,
    missed,
    plot_front,
    row_of,
    with_choice,
    write_trials,
)
from .search_trial import Search, quantized

SCHEMA = 1


def conclude(search: Search, worker: Mapping[str, str], notes: list[str]) -> SearchResult:
    """Choose, write the results, and make the chosen model. The test subset is used here and nowhere else."""
    settings, out, split = search.settings, search.out, search.split
    cost = "latency_ms" if settings.max_latency_ms is not None else "file_bytes"
    budget = Budget(settings.max_latency_ms, settings.max_bytes, settings.min_accuracy)
    rows = with_choice([row_of(trial) for trial in search.trials.rows()], cost)
    chosen = choose(rows, cost)
    counts = Counter(row.outcome for row in rows)
    gate = None if counts["running"] else missed(rows, budget, cost)
    if counts["running"]:
        notes = [*notes, f"{counts['running']} candidates are still running elsewhere; repeat the command after that"]
    model, more = _chosen_model(search, worker, None if counts["running"] or gate else chosen)
    result = SearchResult(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=json.loads(json.dumps(asdict(settings), default=str)),
        budget=budget,
        cost=cost,
        **vars(provenance()),
        synthetic=search.facts.data.synthetic,
        split=SearchSplit(
            level=split.level,
            embargo=split.embargo,
            left_out=split.left_out,
            sha256=split.sha256,
            **{name: len(split.subset(name)) for name in SUBSETS},
        ),
        candidates=len(search.space.candidates()),
        outcomes={name: counts[name] for name in ("measured", "stopped", "refused", "failed", "running")},
        trials=rows,
        front=[row.trial for row in rows if row.on_front],
        chosen=chosen,
        alike=alike(rows, cost),
        gate=gate.message if gate else None,
        made=model,
        notes=[*notes, *more],
    )
    plot_front(rows, cost, getattr(settings, COSTS[cost][0]), out / "front.png")
    write_trials(out / "trials.csv", rows)
    write_json(out / "search.json", result.to_json())
    if gate:
        raise gate
    return result


def _chosen_model(search: Search, worker: Mapping[str, str], chosen: TrialRow | None) -> tuple[ChosenModel, list[str]]:
    """Make the chosen model unless it exists; its facts for ``search.json``, and notes."""
    looked, model = _test_evaluations(search.out), search.out / "model.tflite"
    notes: list[str] = []
    test = None
    if chosen and chosen.worker != worker["worker"]:
        notes.append(f"trained on {chosen.host} in {chosen.folder}; repeat the command there to get the model")
    elif chosen:
        if looked[-1:] != [chosen.trial] or not model.exists():
            _hand_over(search, chosen)
            looked = [*looked, chosen.trial]
        if looked[:-1]:
            notes.append(f"the test subset was used before, for trial {', '.join(map(str, looked[:-1]))}")
        manifest = open_bundle(model).manifest
        test = manifest.metrics if manifest else None
    if test is None:
        return ChosenModel(looked), notes
    return ChosenModel(looked, test, str(model), model.stat().st_size), notes


def _test_evaluations(out: Path) -> list[int]:
    """The trials whose models were evaluated on the test subset, in order."""
    try:
        return list(json.loads((out / "search.json").read_text(encoding="utf-8"))["looked"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _hand_over(search: Search, chosen: TrialRow) -> None:
    """Make ``best/``, the chosen run evaluated on every subset, and ``model.tflite``, verified on the test subset.

    Raises:
        EdgeallError: the file is not the model that was measured, or exceeds the budget.
    """
    settings, out, progress = search.settings, search.out, search.progress
    started = time.perf_counter()
    keras.backend.clear_session()
    candidate, measured = chosen.candidate, chosen.measured
    assert measured is not None, "only a measured trial is chosen"
    run, best = out / "runs" / measured.run, out / "best"
    progress.note(f"chosen: {candidate.describe()}; evaluating on the test subset")
    facts = load_run(run)
    split = load_own_split(run, facts)
    subsets = load_subsets(split, settings.data, spec_of(candidate), search.cache_dir, progress)
    with _in_place_of(best) as begun:
        # The checkpoint of quantization-aware training in the run makes the same model again.
        shutil.copytree(run, begun, ignore=shutil.ignore_patterns("run.json", "*.tflite"))
        trained = Trained(load_model(run, facts), split, subsets, read_history(run))
        complete_run(begun, facts, trained, started, progress)
    model = out / "model.tflite"
    quantized(search, best, candidate, model, subset="test", golden=settings.golden)
    validation = subsets["validation"]
    predicted = predict(Classifier.open(model, threads=1), validation, "checking the choice", progress).argmax(axis=1)
    accuracy = float((predicted == validation.labels).mean())
    if accuracy != measured.accuracy:
        raise EdgeallError(
            f"{model}: has a validation accuracy of {percent(accuracy)}, but {percent(measured.accuracy)} when it was "
            "chosen; please report this"
        )
    if settings.max_bytes is not None and model.stat().st_size > settings.max_bytes:
        raise EdgeallError(f"{model}: {model.stat().st_size:,} bytes, more than the budget; please report this")


@contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """A path for a new folder that replaces ``folder`` if nothing is raised."""
    begun = folder.with_name(file_name(".", folder.name, "-begun"))
    shutil.rmtree(begun, ignore_errors=True)
    yield begun
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(begun, folder)
