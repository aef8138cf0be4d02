"""Begins a run folder, and decides whether an existing one is resumed, overwritten or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..edge_runtime.errors import UsageError
from ..edge_runtime.files import file_name, is_empty
from ..edge_runtime.images import mark_output
from ..edge_runtime.manifest import TASKS
from ..edge_runtime.tools.atomic import sync
from .config import TrainSettings
from .data.split import Split, save_split
from .run_info import SCHEMA, Facts
from .run_settings import RunSettings
from .runs import is_damaged, is_whole, write_json
from .settings import resolve

_DEFAULTS = {
    "task": TASKS[0],
    "dense": None,
    "optimizer": "adam",
    "schedule": "cosine",
    "weight_decay": 0.0,
    "warmup": 0.1,
}
"""Settings that runs of older versions do not record, with the values that they had."""


def check_out(out: Path, wanted: RunSettings, force: bool) -> bool:
    """Whether ``out`` holds an unfinished run of the same command, which can be resumed. Changes nothing.

    Args:
        out: the run folder.
        wanted: the settings of the command, as `claim` writes them.
        force: whether the folder may be overwritten.

    Raises:
        UsageError: it holds a complete run, another run, or something else, and ``force`` does not allow to overwrite
            that.
    """
    if not out.exists() or (out.is_dir() and is_empty(out)):
        return False
    found = _settings_in(out)
    if found is None:
        if not (is_damaged(out / "settings.json") and (out / "split.json").exists()):
            raise UsageError(f"{out}: exists and is not a run", hint="choose another --out")
        if force:
            return False
        raise UsageError(
            f"{out}/settings.json: empty or damaged: the run can't be resumed",
            hint="--force to start over, or choose another --out",
        )
    changes = _changes(found, wanted)
    complete = is_whole(out)
    if not complete and not changes:
        return True
    if force:
        return False
    if complete:
        raise UsageError(f"{out}: holds a complete run", hint="choose another --out, or --force to overwrite it")
    raise UsageError(
        f"{out}: holds an unfinished run with other settings ({changes})",
        hint="repeat its settings to resume it, choose another --out, or --force to start over",
    )


def is_complete(settings: TrainSettings) -> bool:
    """Whether ``settings.out`` holds a complete run with these settings. Changes nothing.

    Raises:
        UsageError: invalid settings, or the folder holds another run or something else.
    """
    settings = resolve(settings)
    out, wanted = settings.out, RunSettings.of(settings)
    if not is_whole(out):
        check_out(out, wanted, settings.force)
        return False
    changes = _changes(_settings_in(out) or {}, wanted)
    if changes and not settings.force:
        raise UsageError(f"{out}: holds another run ({changes})", hint="choose another --out")
    return not changes


def claim(out: Path, settings: RunSettings, split: Split, facts: Facts) -> None:
    """Create a run folder atomically. Whatever `check_out` allowed to overwrite is removed.

    This process must hold the lock of the folder.
    """
    begun = out.with_name(file_name(".", out.name, "-begun"))
    shutil.rmtree(begun, ignore_errors=True)  # left by a killed process: this process holds the lock
    begun.mkdir(parents=True)
    mark_output(begun)
    save_split(split, begun / "split.json")
    write_json(begun / "data.json", facts.to_json())
    write_json(begun / "settings.json", {"edgeall_run": SCHEMA, "settings": settings.to_json()})
    if out.exists():
        shutil.rmtree(out)
    os.replace(begun, out)
    sync(out.parent)


def _changes(found: Mapping[str, object], wanted: RunSettings) -> str:
    """The settings that differ, in words; empty if none do."""
    asked = wanted.recorded
    differing = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    return ", ".join(f"{key} was {found.get(key)}, is {asked.get(key)}" for key in differing)


def _settings_in(out: Path) -> Mapping[str, object] | None:
    """The settings that a run folder was created with; None for another folder."""
    try:
        begun = json.loads((out / "settings.json").read_text(encoding="utf-8"))
        return {**_DEFAULTS, **begun["settings"]} if begun["edgeall_run"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
