"""Searches for the most accurate network within a budget of latency or bytes, and packs it as a model.

Latency and size do not depend on the values of the weights, so a network that exceeds the budget is refused before it
is trained. A trained network is shared by all candidates made of it. A candidate that is behind the others is stopped.
See `docs/methods/search.md`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, EdgeallError, UsageError
from ...edge_runtime.files import file_name, is_empty, output_lock
from ...edge_runtime.images import mark_output, refuse_inside
from ...edge_runtime.results import from_json
from ...edge_runtime.tools.atomic import sync
from ...edge_runtime.tools.device import describe_device
from ...train.data import cache
from ...train.data.split import Split, check_split, load_split, save_split
from ...train.prepare import prepare
from ...train.run_info import Facts
from ...train.runs import is_damaged, read_json, start_over, write_json
from ...train.workers import refuse_cluster
from .search_choice import SCHEMA, conclude
from .search_config import SearchSettings
from .search_result import SearchResult
from .search_settings import check, space_of, training_of
from .search_trial import Search, run_trial
from .storage import differences, open_storage
from .trials import Space, Trials, Tried


def search(settings: SearchSettings, progress: Progress) -> SearchResult:
    """Find the most accurate network within a budget.

    Every trained candidate is converted, timed on this machine, and evaluated on the validation subset through the
    device's code path. The chosen model alone is then evaluated on the test subset; an accuracy that took part in the
    choice would be optimistic.

    Writes to ``settings.out``: ``search.json``, ``trials.csv``, ``front.png``; ``runs/``, the trained runs;
    ``best/``, the chosen run; ``model.tflite``, made of it, packed and verified.

    Returns:
        The content of ``search.json``.

    Raises:
        UsageError: invalid settings; a folder or storage that holds another search.
        DataError: data that cannot be trained on.
        GateError: no candidate fits the budget, or none that fits reaches ``min_accuracy``; the message names the
            nearest. Everything but ``best/`` and ``model.tflite`` is written.
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
) -> SearchResult:
    """`search` with checked settings, while the folder is locked."""
    worker, split, facts = _begin(settings, identity, progress)
    identity["split_sha256"] = split.sha256
    if settings.max_latency_ms is not None:  # latencies of different machines cannot be compared
        device = describe_device()
        identity["device"] = {"machine": device.machine, "cpu": device.cpu, "runtime": device.runtime}
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
    searched = Search(settings, space, split, facts, trials, progress, settings.cache_dir)
    _run_trials(searched)
    return conclude(searched, worker, notes)


def _begin(
    settings: SearchSettings, identity: dict[str, Any], progress: Progress
) -> tuple[dict[str, str], Split, Facts]:
    """Begin or resume the folder of a search; returns its worker, the split and the facts of the data."""
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
                hint="repeat its settings to resume it, or choose another --out",
            )
        split = load_split(out / "split.json")
        check_split(split, settings.data)
        return begun["worker"], split, from_json(Facts, read_json(out / "data.json", start_over(out)))
    first = training_of(settings, space_of(settings)[0].candidates()[0])
    split, facts = prepare(first, progress)
    worker = {"worker": uuid.uuid4().hex, "host": platform.node(), "folder": str(out.resolve())}
    temporary = out.with_name(file_name(".", out.name, "-begun"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    temporary.mkdir(parents=True)
    mark_output(temporary)
    save_split(split, temporary / "split.json")
    write_json(temporary / "data.json", facts.to_json())
    write_json(temporary / "settings.json", {"edgeall_search": SCHEMA, "worker": worker, "identity": identity})
    os.replace(temporary, out)
    sync(out.parent)
    return worker, split, facts


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without nesting, so that a difference is named like its option."""
    return {**identity["settings"], **{key: value for key, value in identity.items() if key != "settings"}}


def _run_trials(search: Search) -> None:
    """Try candidates until the wanted number was trained, here or elsewhere, or none is left."""
    trials, progress, wanted = search.trials, search.progress, search.settings.trials
    failures = 0
    while (done := _trained(trials.rows())) < wanted:
        drawn = trials.next()
        if drawn is None:
            progress.note("every candidate has been tried")
            break
        trial, candidate = drawn
        outcome = run_trial(search, trial, candidate, f"{done + 1} of {wanted}")
        failures = failures + 1 if outcome == "failed" else 0
        if failures == 3:
            reason = next(row.reason for row in trials.rows() if row.trial == trial.number)
            raise EdgeallError(f"three candidates in a row could not be built; the last: {reason}")


def _trained(rows: Sequence[Tried]) -> int:
    return sum(row.outcome in ("measured", "stopped", "failed", "running") for row in rows)
