"""Tries networks under a budget of time or bytes, and hands over the most accurate one as a packed model.

What makes it cheap: time and bytes don't depend on the values of the weights, so a network that is too slow or too
large is refused before it is trained; a trained network is shared by all candidates that are made of it; and a
candidate that falls behind is stopped. See `docs/methods/search.md`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...console.tables import percent
from ...edge_runtime.bundle import open_bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import DataError, EdgeallError, UsageError
from ...edge_runtime.files import file_name, is_empty, output_lock
from ...edge_runtime.images import mark_output, refuse_inside
from ...edge_runtime.tools.atomic import sync
from ...edge_runtime.tools.device import describe_device
from ...models.keras_compat import keras
from ...train.data import cache
from ...train.data.split import Split, check_split, load_split, save_split
from ...train.data.subsets import SUBSETS
from ...train.run import claim, prepare, train
from ...train.runs import (
    complete_run,
    is_damaged,
    is_whole,
    load_model,
    load_own_split,
    load_run,
    load_subsets,
    read_history,
    read_json,
    source_revision,
    start_over,
    versions,
    write_json,
)
from ...train.workers import refuse_cluster
from ..prune import prune
from ..pruning.config import PruneConfig
from ..quantization.config import QuantizeConfig
from ..quantization.result import QuantizationResult
from ..quantization.verify import predict
from ..quantize import quantize
from .candidate import (
    Candidate,
    converted,
    file_bytes_at_most,
    latency_ms,
    spec_of,
    untrained,
)
from .search_result import COSTS, alike, choose, judged, missed, plot_front, write_trials
from .search_settings import SearchSettings, check, space_of, training_of
from .storage import open_storage
from .trials import Space, Trials, differences

SCHEMA = 1
SLACK_MS, SLACK_BYTES = 1.25, 1.6
"""What the estimate for a pruned network may be over the budget, see `candidate.untrained`. Ranking takes more channels
from the late layers, which hold most weights: the bytes come out well below the estimate."""
SEEN = ("validation",)
"""The sides that candidates are evaluated on."""
_COMPUTED = ("schema", "edgeall_version", "created", "labels", "positive_labels", "split", "metrics")
"""What `complete_run` works out itself."""


@dataclass(frozen=True)
class _Search:
    """What all trials of a process share."""

    settings: SearchSettings
    space: Space
    split: Split
    facts: dict[str, Any]
    trials: Trials
    progress: Progress
    cache_dir: Path

    @property
    def out(self) -> Path:
        return self.settings.out


class _Refused(Exception):
    """A candidate breaks the budget, or can't be built."""


class _Stopped(Exception):
    """A candidate has fallen behind."""


def search(settings: SearchSettings, progress: Progress) -> dict[str, Any]:
    """Find the most accurate network within a budget.

    Every candidate that is trained is converted, timed on this machine and classified with, image by image through
    the device's code path, on the validation side. The chosen one alone is then measured on the test side: a figure
    that had a part in the choice would flatter it.

    Writes to ``settings.out``: ``search.json``, ``trials.csv``, ``front.png``; ``runs/``, all that was trained;
    ``best/``, the run that was chosen; ``model.tflite``, made of it, packed and verified.

    Returns:
        What was written to ``search.json``.

    Raises:
        UsageError: settings that can't be meant; a folder or storage that holds another search.
        DataError: data that can't be trained on.
        GateError: nothing fits the budget, or nothing that fits reaches ``min_accuracy``; the message names the
            nearest. All but ``best/`` and ``model.tflite`` is written.
    """
    refuse_cluster("search")
    check(settings)
    space, notes = space_of(settings)
    progress.note(f"{len(space.candidates())} candidates")
    for note in notes:
        progress.note(note)
    storage = open_storage(settings.storage) if settings.storage else None
    identity: dict[str, Any] = {"settings": settings.as_json(), "space": json.loads(json.dumps(asdict(space)))}
    refuse_inside(settings.data, settings.out)
    settings = replace(settings, cache_dir=cache.ready(settings.cache_dir))
    with output_lock(settings.out, "search"):
        return _search(settings, space, notes, storage, identity, progress)


def _search(
    settings: SearchSettings, space: Space, notes: list[str], storage: Any, identity: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """`search`, once the settings are known to be meant and the folder is held."""
    worker, split, facts = _begin(settings, identity, progress)
    identity["split_sha256"] = split.sha256
    if settings.max_latency_ms is not None:  # milliseconds of different machines can't be compared
        device = describe_device()
        identity["device"] = {key: device[key] for key in ("machine", "cpu", "runtime")}
    assert settings.cache_dir is not None
    trials = Trials(
        storage or open_storage(str(settings.out / "trials.journal")),
        settings.study,
        space,
        _flat(identity),
        worker,
        settings.seed,
        free_epochs=max(settings.epochs_head - 1, 0),
    )
    searched = _Search(settings, space, split, facts, trials, progress, settings.cache_dir)
    _run_trials(searched)
    return _conclude(searched, worker, notes)


def _begin(
    settings: SearchSettings, identity: dict[str, Any], progress: Progress
) -> tuple[dict[str, str], Split, dict[str, Any]]:
    """Begin the folder of a search or go on with one: who works in it, the split, the facts of the data."""
    out = settings.out
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        try:
            begun = json.loads((out / "settings.json").read_text(encoding="utf-8"))
            then = begun["identity"] if begun["edgeall_search"] == SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError):
            then = None
        if is_damaged(out / "settings.json"):
            raise DataError(f"{out}/settings.json: empty or damaged", hint=start_over(out))
        if then is None:
            raise UsageError(f"{out}: exists and is not a search", hint="choose another --out")
        differing = differences(_flat(then), _flat(identity))
        if differing:
            raise UsageError(
                f"{out}: holds a search with other settings ({differing})",
                hint="repeat its settings to go on with it, or choose another --out",
            )
        split = load_split(out / "split.json")
        check_split(split, settings.data)
        return begun["worker"], split, read_json(out / "data.json", start_over(out))
    first = training_of(settings, space_of(settings)[0].candidates()[0])
    split, facts = prepare(first, progress)
    worker = {"worker": uuid.uuid4().hex, "host": platform.node(), "folder": str(out.resolve())}
    temporary = out.with_name(file_name(".", out.name, "-begun"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    temporary.mkdir(parents=True)
    mark_output(temporary)
    save_split(split, temporary / "split.json")
    write_json(temporary / "data.json", facts)
    write_json(temporary / "settings.json", {"edgeall_search": SCHEMA, "worker": worker, "identity": identity})
    os.replace(temporary, out)
    sync(out.parent)
    return worker, split, facts


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Settings side by side with the rest, so that a difference is named as the option it came from."""
    return {**identity["settings"], **{key: value for key, value in identity.items() if key != "settings"}}


# --- trials -----------------------------------------------------------------------------------------------------------


def _run_trials(searched: _Search) -> None:
    """Try candidates until as many as wanted were trained, here or elsewhere, or none is left."""
    trials, progress, wanted = searched.trials, searched.progress, searched.settings.trials
    failures = 0
    while (done := _trained(trials.rows())) < wanted:
        drawn = trials.next()
        if drawn is None:
            progress.note("every candidate has been tried")
            break
        trial, candidate = drawn
        outcome = _run_trial(searched, trial, candidate, f"{done + 1} of {wanted}")
        failures = failures + 1 if outcome == "failed" else 0
        if failures == 3:
            reason = next(row["reason"] for row in trials.rows() if row["trial"] == trial.number)
            raise EdgeallError(f"three candidates in a row could not be built; the last: {reason}")


def _trained(rows: list[dict[str, Any]]) -> int:
    return sum(row["outcome"] in ("measured", "stopped", "failed", "running") for row in rows)


def _run_trial(searched: _Search, trial: Any, candidate: Candidate, place: str) -> str:
    """One candidate from its shape to its accuracy; returns the outcome."""
    trials, progress = searched.trials, searched.progress
    started = time.perf_counter()
    outcome, reason, accuracy = "measured", "", None
    keras.backend.clear_session()
    try:
        _refuse(searched, trial, candidate)
        progress.note(f"trial {trial.number} ({place}): {candidate.describe()}")
        result = _measure(searched, trial, candidate)
        trials.note(trial, **result)
        reason = _excess(result, searched.settings) or ""
        accuracy = None if reason else result["accuracy"]
    except _Refused as refusal:
        outcome, reason = "refused", str(refusal)
    except _Stopped as stop:
        outcome, reason = "stopped", str(stop)
    except (DataError, UsageError):  # not this candidate's fault
        raise
    except EdgeallError as error:
        outcome, reason = "failed", error.message
    trials.note(trial, reason=reason, seconds=time.perf_counter() - started)
    trials.end(trial, outcome, accuracy)
    progress.note(f"trial {trial.number}: {candidate.describe()}: {outcome} {reason}".rstrip())
    return outcome


def _refuse(searched: _Search, trial: Any, candidate: Candidate) -> None:
    """Find out what the candidate costs without training it. Raises `_Refused` where that breaks the budget."""
    rows = [row for row in searched.trials.rows() if row["trial"] != trial.number]
    for row in rows:
        if row["outcome"] == "refused" and "untrained" in row and candidate.contains(row["candidate"]):
            raise _Refused(f"larger than {row['candidate'].describe()}, which {row['reason']}")
    known = (row["untrained"] for row in rows if row["candidate"].cost_key == candidate.cost_key and "untrained" in row)
    cost = next(known, None)
    if cost is None:
        try:
            flatbuffer = untrained(candidate, len(searched.split.labels))
        except UsageError as error:  # so few channels, or a layer that can't be quantized
            raise _Refused(error.message) from error
        cost = _cost(flatbuffer, candidate, searched)
    searched.trials.note(trial, untrained=cost)
    slack = (SLACK_MS, SLACK_BYTES) if candidate.macs < 1 else (1.0, 1.0)
    reason = _excess(cost, searched.settings, *slack)
    if reason:
        raise _Refused(reason)


def _cost(flatbuffer: bytes, candidate: Candidate, searched: _Search) -> dict[str, Any]:
    """What a network takes on this machine; ``overshoot``: as a share of the budget, above 1 where it breaks it."""
    settings, spec = searched.settings, spec_of(candidate)
    milliseconds = latency_ms(flatbuffer, searched.split.labels, spec, settings.seconds)
    most = file_bytes_at_most(len(flatbuffer), spec)
    return {
        "latency_ms": milliseconds,
        "flatbuffer_bytes": len(flatbuffer),
        "file_bytes_at_most": most,
        "overshoot": max(milliseconds / (settings.max_latency_ms or math.inf), most / (settings.max_bytes or math.inf)),
    }


def _excess(
    cost: Mapping[str, Any], settings: SearchSettings, slack_ms: float = 1.0, slack_bytes: float = 1.0
) -> str | None:
    """In what a cost breaks the budget, for people; None where it doesn't."""
    most_ms, most_bytes, size = settings.max_latency_ms, settings.max_bytes, cost["file_bytes_at_most"]
    parts = []
    if most_ms is not None and cost["latency_ms"] > slack_ms * most_ms:
        parts.append(f"{cost['latency_ms']:.3g} ms of {most_ms:g}")
    if most_bytes is not None and size > slack_bytes * most_bytes:
        parts.append(f"up to {size:,} bytes of {most_bytes:,}")
    return f"takes {' and '.join(parts)}" if parts else None


def _measure(searched: _Search, trial: Any, candidate: Candidate) -> dict[str, Any]:
    """Train what isn't yet, convert, and measure: accuracy on the validation side, time, bytes."""
    settings, trials = searched.settings, searched.trials

    def on_epoch(row: Mapping[str, Any]) -> None:
        trials.sign_of_life(trial)
        offset = {"head": 0, "finetune": settings.epochs_head}.get(
            row["stage"], settings.epochs_head + settings.epochs_finetune
        )
        trial.report(float(row["val_accuracy"]), offset + int(row["epoch"]) - 1)
        if settings.stop and trial.should_prune():
            raise _Stopped(f"behind the others after {row['stage']} epoch {row['epoch']}")

    run = _trained_run(searched, candidate, on_epoch)
    if candidate.macs < 1:
        run = _pruned_run(searched, trial, run, candidate, on_epoch)
    out = run / f"{candidate.scheme}.tflite"
    # Golden images of the test side would be looked at by the model that is packed with them.
    quantized = _quantized(searched, run, candidate, out, subset="validation", golden="synthetic")
    trials.sign_of_life(trial)
    cost = _cost(open_bundle(out).flatbuffer, candidate, searched)
    return {
        **cost,
        "accuracy": quantized.accuracy,
        "float_accuracy": quantized.float_accuracy,
        "images": quantized.test_images,
        "file_bytes": quantized.file_bytes,
        "parameters": load_run(run)["model"]["parameters"],
        "run": run.name,
    }


def _trained_run(searched: _Search, candidate: Candidate, on_epoch: Any) -> Path:
    """The float run that the candidate is made from; trained, gone on with, or found complete."""
    run = searched.out / "runs" / candidate.base
    if is_whole(run):
        _replay(run, on_epoch)
        return run
    settings = training_of(searched.settings, candidate)
    if not run.exists():
        claim(run, settings.as_json(), searched.split, searched.facts)
    train(settings, searched.progress, on_epoch=on_epoch, evaluated=SEEN)
    return run


def _pruned_run(searched: _Search, trial: Any, base: Path, candidate: Candidate, on_epoch: Any) -> Path:
    """The run with fewer channels; what it costs with the channels that were kept is known before it is trained."""
    settings = searched.settings
    run = searched.out / "runs" / candidate.network
    if is_whole(run):
        _replay(run, on_epoch, after=len(read_history(base)))
        return run

    def check(model: Any) -> None:
        cost = _cost(converted(model, candidate), candidate, searched)
        searched.trials.note(trial, untrained=cost)
        reason = _excess(cost, settings)
        if reason:
            raise _Refused(reason)

    epochs, data, cache_dir = settings.epochs_prune, settings.data, settings.cache_dir
    config = PruneConfig(base, run, macs=candidate.macs, epochs=epochs, data=data, cache_dir=cache_dir)
    prune(config, searched.progress, on_model=check, on_epoch=on_epoch, evaluated=SEEN)
    return run


def _replay(run: Path, on_epoch: Any, after: int = 0) -> None:
    """Report the epochs of a run that another trial has trained."""
    for row in read_history(run)[after:]:
        on_epoch(row)


def _quantized(
    searched: _Search, run: Path, candidate: Candidate, out: Path, subset: str, golden: str
) -> QuantizationResult:
    settings = searched.settings
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
    return quantize(config, searched.progress)


# --- the result -------------------------------------------------------------------------------------------------------


def _conclude(searched: _Search, worker: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """Choose, write everything down, and make the chosen model; the test side is looked at here and nowhere else."""
    settings, out = searched.settings, searched.out
    cost = "latency_ms" if settings.max_latency_ms is not None else "file_bytes"
    budget = {key: getattr(settings, key) for key in ("max_latency_ms", "max_bytes", "min_accuracy")}
    rows = judged(searched.trials.rows(), cost)
    chosen = choose(rows, cost)
    counts = Counter(row["outcome"] for row in rows)
    looked = _looked(out)
    gate = None if counts["running"] else missed(rows, budget, cost)
    test = None
    if counts["running"]:
        notes = [*notes, f"{counts['running']} candidates are being tried elsewhere: give the command again after that"]
    elif chosen and not gate and chosen["worker"] != worker["worker"]:
        notes = [*notes, f"trained on {chosen['host']} in {chosen['folder']}: give the command there for the model"]
    elif chosen and not gate:
        if looked[-1:] != [chosen["trial"]] or not (out / "model.tflite").exists():
            _hand_over(searched, chosen)
            looked = [*looked, chosen["trial"]]
        if looked[:-1]:
            notes = [*notes, f"the test side was looked at before, for trial {', '.join(map(str, looked[:-1]))}"]
        manifest = open_bundle(out / "model.tflite").manifest
        test = manifest.metrics if manifest else None
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
        "budget": budget,
        "cost": cost,
        "device": describe_device(),
        "versions": versions(),
        "source_revision": source_revision(),
        "synthetic": searched.facts["data"]["synthetic"],
        "split": {
            "level": searched.split.level,
            "embargo": searched.split.embargo,
            "left_out": searched.split.left_out,
            "sha256": searched.split.sha256,
            **{side: len(searched.split.subset(side)) for side in SUBSETS},
        },
        "candidates": len(searched.space.candidates()),
        "outcomes": {name: counts[name] for name in ("measured", "stopped", "refused", "failed", "running")},
        "trials": rows,
        "front": [row["trial"] for row in rows if row["on_front"]],
        "chosen": chosen,
        "alike": alike(rows, cost),
        "gate": gate.message if gate else None,
        "looked": looked,
        "test": test,
        "model": str(out / "model.tflite") if test else None,
        "file_bytes": (out / "model.tflite").stat().st_size if test else None,
        "notes": notes,
    }
    plot_front(rows, cost, getattr(settings, COSTS[cost][0]), out / "front.png")
    write_trials(out / "trials.csv", rows)
    write_json(out / "search.json", result)
    if gate:
        raise gate
    return result


def _looked(out: Path) -> list[int]:
    """The trials whose models the test side has been looked at for, in the order of it."""
    try:
        return list(json.loads((out / "search.json").read_text(encoding="utf-8"))["looked"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _hand_over(searched: _Search, chosen: Mapping[str, Any]) -> None:
    """``best/``, the chosen run evaluated on every side, and ``model.tflite``, verified on the test side.

    Raises:
        EdgeallError: the file is not the model that was measured, or doesn't fit after all.
    """
    settings, out, progress = searched.settings, searched.out, searched.progress
    started = time.perf_counter()
    keras.backend.clear_session()
    candidate = Candidate(*(chosen[key] for key in ("model", "alpha", "input_size", "macs", "scheme")))
    run, best = out / "runs" / chosen["run"], out / "best"
    progress.note(f"chosen: {candidate.describe()}; the test side is looked at now")
    facts = load_run(run)
    split = load_own_split(run, facts)
    sides = load_subsets(split, settings.data, spec_of(candidate), searched.cache_dir, progress)
    with _in_place_of(best) as begun:
        # What quantization-aware training has left there makes the same model once more.
        shutil.copytree(run, begun, ignore=shutil.ignore_patterns("run.json", "*.tflite"))
        kept = {key: value for key, value in facts.items() if key not in _COMPUTED}
        complete_run(begun, kept, load_model(run, facts), split, sides, read_history(run), started)
    model = out / "model.tflite"
    _quantized(searched, best, candidate, model, subset="test", golden=settings.golden)
    validation = sides["validation"]
    predicted = predict(Classifier.open(model, threads=1), validation, "checking the choice", progress).argmax(axis=1)
    accuracy = float((predicted == validation.labels).mean())
    if accuracy != chosen["accuracy"]:
        raise EdgeallError(
            f"{model}: is right on {percent(accuracy)} of the validation side, not the {percent(chosen['accuracy'])} "
            "that it was chosen for; please report this"
        )
    if settings.max_bytes is not None and model.stat().st_size > settings.max_bytes:
        raise EdgeallError(f"{model}: {model.stat().st_size:,} bytes, more than was reckoned with; please report this")


@contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """A path for a new folder, which takes this one's place if nothing was raised."""
    begun = folder.with_name(file_name(".", folder.name, "-begun"))
    shutil.rmtree(begun, ignore_errors=True)
    yield begun
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(begun, folder)
