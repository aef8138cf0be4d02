"""Search under a budget: what is refused, trained, chosen and looked at; kills, gates and shared storages."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures_models import LABELS

from edgeall.console.progress import Progress
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.errors import DataError, GateError, UsageError
from edgeall.edge_runtime.files import output_lock
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.optimize.experiments import candidate, search_choice, search_trial
from edgeall.optimize.experiments.candidate import (
    Candidate,
    file_bytes_at_most,
    latency_ms,
    median_ms,
    spec_of,
    untrained,
)
from edgeall.optimize.experiments.search import search
from edgeall.optimize.experiments.search_config import SearchSettings
from edgeall.optimize.experiments.search_result import SearchResult, search_text
from edgeall.optimize.experiments.search_settings import space_of
from edgeall.optimize.experiments.storage import open_storage
from edgeall.optimize.experiments.trials import MAX_ATTEMPTS, Axes, Space, Trials
from edgeall.train import runs
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate

QUIET = Progress(quiet=True)
SPACE = Space((Axes("basic_cnn", (None,), (32, 48), (1.0,)),), ("ptq-int8", "qat-int8"))


class Listening(Progress):
    """Keeps the notes; interrupts, like Ctrl-C, at the first that begins with ``at``."""

    def __init__(self, at: str | None = None) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []
        self.at = at

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.at and text.startswith(self.at):
            raise KeyboardInterrupt


class Sealed:
    """Stands in for the images of the test subset: how many there are is all that it tells."""

    def __init__(self, images: Any) -> None:
        self._count = len(images)

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test subset was looked at: {name}")


@pytest.fixture(scope="module")
def settings(synthetic_fields: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    """A space of four: two sizes, one far too slow, pruned or not."""
    folder = tmp_path_factory.mktemp("search")
    # As far from the slowest that is to be trained as from the fastest that is not, on this machine as it is now.
    borders = (Candidate("basic_cnn", None, 32, 1.0, "ptq-int8"), Candidate("basic_cnn", None, 224, 0.5, "ptq-int8"))
    times = [latency_ms(untrained(border, 4), LABELS, spec_of(border), 0.2) for border in borders]
    assert times[1] > 4 * times[0]
    return SearchSettings(
        data=synthetic_fields,
        out=folder / "out",
        max_latency_ms=float(np.sqrt(times[0] * times[1])),
        max_bytes=400_000,
        trials=4,
        models=("basic_cnn",),
        sizes=(32, 224),
        macs=(1.0, 0.5),
        schemes=("ptq-int8",),
        weights="none",
        epochs_finetune=2,
        epochs_prune=1,
        epochs_qat=1,
        lr_finetune=3e-3,
        storage=str(folder / "shared" / "trials.journal"),
        seconds=0.2,
        cache_dir=folder / "pixels",
    )


@pytest.fixture(scope="module")
def found(settings: SearchSettings) -> tuple[SearchResult, Listening]:
    """What a search found that was interrupted after an epoch and begun again, with the test subset sealed."""
    load_subsets = runs.load_subsets
    hand_over = search_choice._hand_over

    def sealed(*arguments: Any) -> dict[str, Any]:
        sides = load_subsets(*arguments)
        return {**sides, "test": Sealed(sides["test"])}

    def unsealed(*arguments: Any) -> None:
        patch.setattr(runs, "load_subsets", load_subsets)
        hand_over(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load_subsets", sealed)
        patch.setattr(search_choice, "_hand_over", unsealed)
        with pytest.raises(KeyboardInterrupt):
            search(settings, Listening("finetune 1/2"))
        again = Listening()
        result = search(settings, again)
    return result, again


def test_what_is_too_slow_is_never_trained(settings: SearchSettings, found: Any) -> None:
    result, _ = found
    outcomes = {(row.candidate.input_size, row.candidate.macs): row.outcome for row in result.trials}
    assert outcomes == {(32, 0.5): "measured", (32, 1.0): "measured", (224, 0.5): "refused", (224, 1.0): "refused"}
    assert sorted(path.name for path in (settings.out / "runs").iterdir()) == ["basic_cnn-32", "basic_cnn-32-macs0.5"]
    reasons = [row.reason for row in result.trials if row.outcome == "refused"]
    assert all(f"{settings.max_latency_ms:g}" in reason for reason in reasons)
    assert all(row.measured.latency_ms < settings.max_latency_ms for row in result.trials if row.measured)


def test_an_interrupted_search_continues(found: Any) -> None:
    result, again = found
    assert "finetune: resumed after epoch 1 of 2" in again.notes
    assert len(result.trials) == 4, "the interrupted trial counts once"


def test_the_choice_and_its_file(settings: SearchSettings, found: Any, synthetic_fields: Path) -> None:
    """Its figures come out again by other code; only its run knows the test subset."""
    result, _ = found
    chosen = result.chosen.measured
    assert chosen.accuracy == max(row.measured.accuracy for row in result.trials if row.measured)
    split, model = settings.out / "split.json", settings.out / "model.tflite"
    for side, figure in (("validation", chosen.accuracy), ("test", result.made.test["accuracy"])):
        told = evaluate(model, EvaluateSettings(data=synthetic_fields, split=split, side=side), QUIET).to_json()
        assert told["accuracy"] == figure, side
    best = json.loads((settings.out / "best" / "run.json").read_text())
    assert set(best["metrics"]) == {"train", "validation", "test"}
    assert (settings.out / "best" / "report.html").exists()
    for run in (settings.out / "runs").iterdir():
        assert set(json.loads((run / "run.json").read_text())["metrics"]) == {"validation"}
        with (run / "predictions.csv").open(newline="") as stream:
            assert {row["side"] for row in csv.DictReader(stream)} == {"validation"}
        manifest = open_bundle(run / "ptq-int8.tflite").manifest
        assert manifest is not None and manifest.metrics["split"] == "validation"
        assert "synthetic" in manifest.golden["source"]


def test_bytes_are_known_before_training(settings: SearchSettings, found: Any) -> None:
    for row in found[0].trials:
        if row.measured:
            packed = settings.out / "runs" / row.measured.run / "ptq-int8.tflite"
            assert row.measured.file_bytes == packed.stat().st_size
            assert row.untrained_flatbuffer_bytes == pytest.approx(row.measured.flatbuffer_bytes, abs=2048), "names"
            assert packed.stat().st_size < file_bytes_at_most(row.untrained_flatbuffer_bytes, InputSpec(32, 32))


def test_quantization_gets_the_settings_of_the_search(
    settings: SearchSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search above trains nothing for the integers, which takes longest: here is what it would be told."""
    asked: list[Any] = []
    monkeypatch.setattr(search_trial, "quantize_classifier", lambda config, progress: asked.append(config))
    tuned = Candidate("basic_cnn", None, 32, 1.0, "qat-int8")
    given: Any = SimpleNamespace(settings=replace(settings, epochs_qat=7), progress=QUIET)
    search_trial.quantized(given, tmp_path / "run", tuned, tmp_path / "out.tflite", "validation", "synthetic")
    (config,) = asked
    assert (config.scheme, config.epochs, config.subset) == ("qat-int8", 7, "validation")


def test_tables_and_plot(settings: SearchSettings, found: Any) -> None:
    result, _ = found
    assert json.loads((settings.out / "search.json").read_text())["chosen"] == result.chosen.to_json()
    with (settings.out / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["trial"]) for row in rows] == [row.trial for row in result.trials]
    assert (settings.out / "front.png").read_bytes().startswith(b"\x89PNG")
    text = search_text(result)
    assert f"{100 * result.made.test['accuracy']:.2f} %" in text
    assert "basic_cnn, 32 px, 50 % of the MACs, ptq-int8" in text


def test_the_same_command_once_more_does_nothing(settings: SearchSettings, found: Any) -> None:
    before = (settings.out / "model.tflite").stat().st_mtime_ns
    result = search(settings, QUIET)
    assert (result.chosen, result.made.looked) == (found[0].chosen, [found[0].chosen.trial])
    assert (settings.out / "model.tflite").stat().st_mtime_ns == before


def test_another_machine_shares_the_trials(settings: SearchSettings, found: Any, tmp_path: Path) -> None:
    other = search(replace(settings, out=tmp_path / "other"), QUIET)
    assert other.chosen is not None and other.chosen.trial == found[0].chosen.trial
    assert other.made.test is None and not (tmp_path / "other" / "model.tflite").exists()
    assert any(str(settings.out) in note for note in other.notes)


@pytest.mark.parametrize(("change", "named"), [({"epochs_qat": 3}, "epochs_qat"), ({"max_latency_ms": 0.9}, "max_lat")])
def test_other_settings_are_refused(
    settings: SearchSettings, found: Any, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    for out in (settings.out, tmp_path / "other"):
        with pytest.raises(UsageError, match=named):
            search(replace(settings, out=out, **change), QUIET)


def test_a_gate_that_is_not_met(settings: SearchSettings, found: Any, tmp_path: Path) -> None:
    out = tmp_path / "hopeless"
    with pytest.raises(GateError, match=r"nearest, basic_cnn, 32 px, .*ptq-int8, takes") as caught:
        search(replace(settings, out=out, storage=None, max_latency_ms=1e-6), QUIET)
    assert caught.value.exit_status == 3
    assert not (out / "runs").exists(), "nothing was trained"
    assert json.loads((out / "search.json").read_text())["gate"] == caught.value.message


def test_backbones_without_weights_are_left_out(settings: SearchSettings, tmp_path: Path) -> None:
    (tmp_path / "mobilenet_v2_0.35_no_top.h5").touch()
    given = replace(settings, models=("mobilenet_v2", "vgg16"), weights=str(tmp_path), sizes=None, macs=(0.5, 1.0, 0.5))
    space, notes = space_of(given)
    assert space.axes == (Axes("mobilenet_v2", (0.35,), (96, 128, 160, 192, 224), (0.5, 1.0)),)
    assert [note.partition(" is left out")[0] for note in notes][-2:] == ["mobilenet_v2 1.4", "vgg16"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_latency_ms": None, "max_bytes": None}, "no budget"),
        ({"max_latency_ms": float("nan")}, "--max-latency-ms"),
        ({"max_bytes": 0}, "--max-bytes"),
        ({"min_accuracy": 97.0}, "--min-accuracy"),
        ({"macs": (1.0, 1.2)}, r"--macs must be in \(0, 1\], got 1.2"),
        ({"schemes": ("int4",)}, "int4"),
        ({"models": ("mobilnet",)}, "mobilnet"),
        ({"sizes": (4096,)}, "4096"),
        ({"alphas": (0.35,)}, "alpha"),
        ({"models": ("mobilenet_v2",), "alphas": (0.4,), "sizes": (96,)}, "0.4"),
        ({"weights": "/nowhere"}, "/nowhere"),
        ({"storage": "nosuch://place"}, "nosuch"),
        ({"trials": 0}, "--trials"),
    ],
)
def test_invalid_arguments_are_refused(
    settings: SearchSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search(replace(settings, out=tmp_path / "out", **change), QUIET)


def test_a_foreign_folder_is_not_touched(settings: SearchSettings, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a search"):
        search(replace(settings, out=tmp_path), QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_one_folder_serves_one_process(settings: SearchSettings, tmp_path: Path) -> None:
    with output_lock(tmp_path / "out", "search"), pytest.raises(UsageError, match="in use by `edgeall search`"):
        search(replace(settings, out=tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()


def test_a_search_with_damaged_settings_names_them(settings: SearchSettings, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(b"")
    with pytest.raises(DataError, match=r"settings\.json: empty or damaged") as error:
        search(replace(settings, out=tmp_path), QUIET)
    assert error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(("gone", "found_ms"), [((0, 10, 10), 1.0), ((10, 10, 10), 11.0)])
def test_a_busy_machine_does_not_make_a_network_slow(
    gone: tuple[int, ...], found_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of a millisecond, from which the processor is gone for ten more: two of three times, or always."""
    absences = itertools.cycle(gone)
    spent = {"all": 0, "own": 0}

    def query() -> None:
        spent["own"] += 1_000_000
        spent["all"] += 1_000_000 * (1 + next(absences))

    clock = SimpleNamespace(
        perf_counter=lambda: spent["all"] / 1e9,
        perf_counter_ns=lambda: spent["all"],
        thread_time_ns=lambda: spent["own"],
    )
    monkeypatch.setattr(candidate, "time", clock)
    assert median_ms(query, 0.2) == found_ms


# --- trials without training ------------------------------------------------------------------------------------------


def _trials(folder: Path, worker: str = "one", **changes: Any) -> Trials:
    given: dict[str, Any] = {"identity": {"epochs": 1}, "seed": 0, "free_epochs": 1, **changes}
    return Trials(open_storage(str(folder / "trials.journal")), "search", SPACE, worker={"worker": worker}, **given)


def test_every_candidate_is_tried_once(tmp_path: Path) -> None:
    trials = _trials(tmp_path)
    tried = []
    while (drawn := trials.next()) is not None:
        tried.append(drawn[1])
        trials.end(drawn[0], "measured", 0.5)
    assert tried[0] == Candidate("basic_cnn", None, 32, 1.0, "ptq-int8"), "the smallest first"
    assert sorted(tried, key=str) == sorted(SPACE.candidates(), key=str)
    assert [row.candidate for row in trials.rows()] == tried


def test_a_candidate_that_always_kills_the_process_is_given_up(tmp_path: Path) -> None:
    deadly = None
    for _ in range(MAX_ATTEMPTS):
        drawn = _trials(tmp_path).next()  # and the process dies
        assert drawn is not None and (deadly is None or drawn[1] == deadly)
        deadly = drawn[1]
    trials = _trials(tmp_path)
    rest = []
    while (drawn := trials.next()) is not None:
        rest.append(drawn[1])
        trials.end(drawn[0], "measured", 0.5)
    assert deadly not in rest and len(rest) == len(SPACE.candidates()) - 1


def test_a_trial_running_elsewhere_is_left_alone_until_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = _trials(tmp_path, "two").next()
    assert theirs is not None
    ours = _trials(tmp_path, "one").next()
    assert ours is not None and ours[1] != theirs[1]
    monkeypatch.setattr("edgeall.optimize.experiments.trials.STALE_S", -1.0)
    taken_up = _trials(tmp_path, "three").next()
    assert taken_up is not None and taken_up[1] in (theirs[1], ours[1])


def test_what_falls_behind_is_stopped(tmp_path: Path) -> None:
    space = Space((Axes("basic_cnn", (None,), (32, 48, 64, 80, 96, 112), (1.0,)),), ("ptq-int8",))
    storage = open_storage(str(tmp_path / "journal"))
    trials = Trials(storage, "search", space, {}, {"worker": "one"}, seed=0, free_epochs=1)
    for accuracy in (0.90, 0.92, 0.94, 0.96):
        drawn = trials.next()
        assert drawn is not None
        for epoch in (0, 1):
            drawn[0].report(accuracy, epoch)
        trials.end(drawn[0], "measured", accuracy)
    for accuracy, behind in ((0.80, True), (0.95, False)):
        drawn = trials.next()
        assert drawn is not None
        drawn[0].report(accuracy, 0)
        assert not drawn[0].should_prune(), "the first epochs say little"
        drawn[0].report(accuracy, 1)
        assert drawn[0].should_prune() == behind
