"""An ensemble is a run like any other, whose logits are the mean of its members'."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall import cli
from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import UsageError
from edgeall.models.head import LOGITS
from edgeall.models.keras_compat import keras
from edgeall.optimize.ensemble import EnsembleConfig, EnsembleResult, ensemble, ensemble_text
from edgeall.optimize.quantization.convert import with_second_output
from edgeall.optimize.quantization.fold import fold_batch_normalization
from edgeall.train.run_folder import check_out
from edgeall.train.run_settings import RunSettings
from edgeall.train.runs import load_model, load_run

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def other_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same split with other weights."""
    run = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(tiny_run, run)
    facts = load_run(run)
    model = load_model(run, facts)
    noise = np.random.default_rng(0)
    model.set_weights([value * noise.uniform(0.9, 1.1, value.shape) for value in model.get_weights()])
    model.save(run / "model.keras")
    (run / "run.json").write_text(json.dumps({**facts.to_json(), "created": "another"}), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def made(
    tiny_run: Path, other_run: Path, tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EnsembleResult]:
    out = tmp_path_factory.mktemp("ensemble") / "both"
    return out, ensemble(EnsembleConfig((tiny_run, other_run), out, cache_dir=tiny_settings.cache_dir), QUIET)


def test_its_logits_are_the_mean_of_its_members(
    tiny_run: Path, other_run: Path, made: tuple[Path, EnsembleResult]
) -> None:
    def logits(run: Path) -> np.ndarray:
        model = load_model(run, load_run(run))
        values: np.ndarray = keras.Model(model.input, model.get_layer(LOGITS).output)(images).numpy()
        return values

    images = np.random.default_rng(1).uniform(-1, 1, (4, 48, 48, 3)).astype(np.float32)
    first, second, both = map(logits, (tiny_run, other_run, made[0]))
    assert np.abs(first - second).max() > 1e-3, "two different networks"
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-5)


def test_it_is_a_run_with_its_members_on_record(
    tiny_run: Path, other_run: Path, made: tuple[Path, EnsembleResult]
) -> None:
    out, result = made
    facts = load_run(out)
    written = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(result.to_json())) == {**written, "worth": result.worth.to_json()}
    assert facts.to_json() == written, "what is read is what was written"
    assert facts.ensemble is not None
    assert [member.run for member in facts.ensemble.members] == [str(tiny_run), str(other_run)]
    assert facts.model.parameters == 2 * load_run(tiny_run).model.parameters - len(facts.labels)
    assert (out / "report.html").exists() and (out / "predictions.csv").exists()
    text = ensemble_text(result)
    assert "points of test accuracy over tiny" in text and "ms more" in text


def test_the_converter_and_the_second_output_take_it(made: tuple[Path, EnsembleResult]) -> None:
    model = load_model(made[0], load_run(made[0]))
    features = with_second_output(fold_batch_normalization(model), explain=False).outputs[0]
    assert features.shape == (None, 2 * 128)


def test_runs_that_do_not_fit_together_are_refused(tiny_run: Path, other_run: Path, tmp_path: Path) -> None:
    def refused(match: str, *runs: Path, out: Path = tmp_path / "out") -> None:
        with pytest.raises(UsageError, match=match):
            ensemble(EnsembleConfig(runs, out), QUIET)
        assert not (tmp_path / "out").exists()

    def changed(name: str, **changes: Any) -> Path:
        run = tmp_path / name
        shutil.copytree(tiny_run, run)
        (run / "run.json").write_text(json.dumps({**load_run(run).to_json(), **changes}), encoding="utf-8")
        return run

    facts = load_run(tiny_run).to_json()
    refused("at least two runs", tiny_run)
    refused("given twice", tiny_run, tiny_run)
    refused("is --out itself", tiny_run, other_run, out=other_run)
    refused("has the classes", tiny_run, changed("labels", labels=["a", "b", "c", "d"]))
    refused("another split", tiny_run, changed("split", split={**facts["split"], "sha256": "0" * 64}))
    wide = {**facts["model"], "input": {**facts["model"]["input"], "width": 64}}
    refused("another input size", tiny_run, changed("input", model=wide))


def test_a_complete_ensemble_is_not_overwritten(
    made: tuple[Path, EnsembleResult], tiny_run: Path, other_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ensemble", str(tiny_run), str(other_run), "--out", str(made[0])]) == 2
    assert "holds a complete run" in capsys.readouterr().err


def test_settings_that_an_older_version_did_not_record_are_its_defaults(tiny_settings: Any, tmp_path: Path) -> None:
    wanted = replace(tiny_settings, optimizer="adam").as_json() | {"weight_decay": 0.0, "batch_size": 32}
    old = {key: value for key, value in wanted.items() if key not in ("optimizer", "schedule", "warmup", "dense")}
    (tmp_path / "settings.json").write_text(json.dumps({"edgeall_run": 1, "settings": old}), encoding="utf-8")
    assert check_out(tmp_path, RunSettings.read(json.loads(json.dumps(wanted))), force=False), "it can be resumed"
