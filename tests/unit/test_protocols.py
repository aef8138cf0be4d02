"""Protocols of the studies: the same number of every class, subsets, and which workers live."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.optimize.experiments.protocols import PROTOCOLS, protocol_named, split_settings
from edgeall.train.batches import Images
from edgeall.train.data.balance import filled, parse_per_class, sample_subsets
from edgeall.train.data.split import Split, SplitEntry
from edgeall.train.data.subsets import LEFT_OUT, SUBSETS

QUIET = Progress(quiet=True)


def _split(counts: dict[tuple[str, str], int]) -> Split:
    entries = [
        SplitEntry(f"{label}/{side}{n}.png", label, None, f"{label}{side}{n}", side)
        for (label, side), count in counts.items()
        for n in range(count)
    ]
    return Split("image", 0, tuple(sorted({label for label, _ in counts})), "ab" * 32, tuple(entries))


# --- the same number of every class -----------------------------------------------------------------------------------


def test_too_many_are_sampled_and_stay_in_the_split() -> None:
    split = _split({("a", "train"): 9, ("a", "validation"): 3, ("a", "test"): 5, ("b", "train"): 2, ("b", "test"): 1})
    dealt = sample_subsets(split, parse_per_class("4/2/3"), seed=1)
    counts = Counter((entry.label, entry.side) for entry in dealt.entries)
    assert counts == {
        ("a", "train"): 4,
        ("a", "validation"): 2,
        ("a", "test"): 3,
        ("a", LEFT_OUT): 8,
        ("b", "train"): 2,
        ("b", "test"): 1,
    }
    assert [entry.path for entry in dealt.entries] == [entry.path for entry in split.entries]
    assert dealt == sample_subsets(split, parse_per_class("4/2/3"), seed=1)
    assert dealt != sample_subsets(split, parse_per_class("4/2/3"), seed=2)


def test_too_few_are_filled_up_evenly() -> None:
    labels = np.array([0] * 3 + [1] * 10)
    images = Images(np.zeros((20, 2, 2, 3), np.uint8), np.arange(5, 18), labels, InputSpec(2, 2))
    full = filled(images, 8)
    times = Counter(full.rows.tolist())
    assert [times[row] for row in (5, 6, 7)] == [3, 3, 2]
    assert [times[row] for row in range(8, 18)] == [1] * 10, "nothing is thrown away here: `sample_subsets` does that"
    assert (full.labels == np.where(full.rows < 8, 0, 1)).all()


@pytest.mark.parametrize("text", ["700", "700/150", "700/0/150", "a/b/c", "700/150/150/1", "-1/2/3"])
def test_numbers_per_class_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="--per-class"):
        parse_per_class(text)


# --- protocols --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_deals_what_its_name_says(name: str, tmp_path: Path) -> None:
    from edgeall.train.data.dataset import load_dataset
    from edgeall.train.data.synth import synthesize
    from edgeall.train.prepare import prepare_data
    from edgeall.train.run import TrainSettings

    synthesize(tmp_path / "cells", 120, seed=5, size=64, layout="cnmc")
    tests = []
    for settings in split_settings(protocol_named(name)):
        found = prepare_data(TrainSettings(tmp_path / "cells", tmp_path / "run", **settings), False, QUIET)
        split, facts = found.split, found.facts
        assert split.level == "subject", "they are known here, so no protocol may part them"
        of = {side: {entry.subject for entry in split.subset(side)} for side in SUBSETS}
        assert not of["test"] & (of["train"] | of["validation"])
        tests.append({entry.path for entry in split.subset("test")})
        assert facts.data.left_out == 0
    every = {sample.path for sample in load_dataset(tmp_path / "cells").samples}
    if name == "subject-3-fold":
        assert len(tests) == 3
        assert sum(map(len, tests)) == len(every)
        assert set.union(*tests) == every
    else:
        wanted = {"global-70-15-15": 0.15, "balanced-700-150-150": 0.15, "60-20-20": 0.2}[name]
        assert len(tests[0]) / len(every) == pytest.approx(wanted, abs=0.08), "subjects are few and whole"


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        protocol_named("60-20-2")
    assert "did you mean 60-20-20?" in raised.value.hint
    with pytest.raises(UsageError, match="splits by subject"):
        split_settings(protocol_named("subject-3-fold"), "image")
    assert {one["split_by"] for one in split_settings(protocol_named("60-20-20"), "block")} == {"block"}


# --- what augmenting first leaks --------------------------------------------------------------------------------------


def test_leak_needs_features_that_mean_something(tmp_path: Path) -> None:
    from edgeall.optimize.experiments.leak import LeakConfig, measure_leak

    with pytest.raises(UsageError, match="untrained"):
        measure_leak(LeakConfig(tmp_path, model="basic_cnn", weights="none"), QUIET)


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_signs_of_life() -> None:
    from types import SimpleNamespace

    from edgeall.optimize.experiments.grid_trials import STALE_S, is_dead
    from edgeall.optimize.experiments.liveness import machine

    def trial(name: str, pid: int, seen_s_ago: float) -> Any:
        attributes = {"worker": {"machine": name, "pid": pid}, "alive": time.time() - seen_s_ago}
        return SimpleNamespace(user_attrs=attributes, datetime_start=datetime.now())

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert is_dead(trial(machine(), gone.pid, 1))
    assert not is_dead(trial(machine(), os.getpid(), 1))
    assert not is_dead(trial("another", gone.pid, 1)), "its process number says nothing here"
    assert is_dead(trial("another", gone.pid, STALE_S + 1))
