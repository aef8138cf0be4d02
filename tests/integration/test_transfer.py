"""Runs that start from the backbone of another run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_seed import SEED

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.train.data.synth import synthesize
from edgeall.train.run import TrainSettings, train
from edgeall.train.runs import load_backbone, load_model, load_run

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fields that `tiny_run` has not seen."""
    folder = tmp_path_factory.mktemp("elsewhere") / "fields"
    synthesize(folder, 48, seed=1003 + SEED, size=96)
    return folder


def test_the_backbone_is_that_of_the_other_run(
    tiny_run: Path, tiny_settings: TrainSettings, elsewhere: Path, tmp_path: Path
) -> None:
    """The head is trained on its frozen features; another input size takes the same weights."""
    settings = replace(tiny_settings, data=elsewhere, out=tmp_path / "run", weights=str(tiny_run), input_size=64)
    made = train(replace(settings, epochs_head=2, epochs_finetune=0), QUIET)
    source = load_run(tiny_run)
    assert made.transfer is not None
    assert (made.transfer.run, made.transfer.dataset_sha256) == (str(tiny_run), source.data.dataset_sha256)
    own, others = load_backbone(tmp_path / "run", load_run(tmp_path / "run")), load_backbone(tiny_run, source)
    assert own.input_shape[1] == 64
    for kept, given in zip(own.get_weights(), others.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, given)
    trained = [layer for layer in load_model(tiny_run, source).layers if layer.name in {x.name for x in others.layers}]
    for layer in trained:  # they are the weights that the other run ended with
        for kept, given in zip(layer.get_weights(), others.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(kept, given)


def _changed(run: Path, to: Path, **facts: Any) -> Path:
    shutil.copytree(run, to)
    found = json.loads((to / "run.json").read_text())
    found["model"] |= facts
    (to / "run.json").write_text(json.dumps(found))
    return to


def test_a_run_that_does_not_fit_is_refused_before_any_work(
    tiny_run: Path, tiny_settings: TrainSettings, elsewhere: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pruned = _changed(tiny_run, tmp_path / "pruned", channels={"conv2d": [0]})
    damaged = _changed(tiny_run, tmp_path / "damaged")
    (damaged / "model.keras").write_bytes(b"PK")
    other = {"model": "mobilenet_v2", "alpha": 0.35, "input_size": 96}
    unseen = {"data": elsewhere}
    for source, changes, kind, message in (
        (tiny_run, {**unseen, **other}, UsageError, "has another backbone"),
        (pruned, unseen, UsageError, "is a pruned run"),
        (tmp_path, unseen, DataError, "not a complete run"),
        (damaged, unseen, DataError, "missing or damaged"),
        (tiny_run, {"out": tiny_run, "force": True}, UsageError, "is --out itself"),
        (tiny_run, {"seed": tiny_settings.seed + 1}, UsageError, "images of this test subset were used"),
        (tmp_path / "nothing", unseen, UsageError, "no such weights file"),
    ):
        with pytest.raises(kind, match=message) as error:
            train(replace(tiny_settings, **{"out": out, "weights": str(source), **changes}), QUIET)
        assert error.value.hint, message
    assert not out.exists()
