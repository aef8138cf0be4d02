"""Parsing, settings, errors and exit status of the command line; the work behind it is replaced by recorders."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from commandline import leaves

from edgeall import __version__, cli
from edgeall.commands import options
from edgeall.edge_runtime.errors import DataError, GateError
from edgeall.optimize.experiments.search_config import SearchSettings
from edgeall.optimize.pruning.config import PruneConfig
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.train.config import TrainSettings

Run = Callable[..., tuple[int, str, str]]
DATA = ("train", "--data", "x", "--out", "y")


LEAVES = leaves()


@pytest.fixture
def edgeall(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process; gives exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def synthesize(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `edgeall data synth` was called with, without drawing anything."""
    called: dict[str, Any] = {}

    def recorder(
        out: Path, images: int, seed: int, layout: str, size: int | None, on_progress: object
    ) -> dict[str, Any]:
        called.update(out=out, images=images, seed=seed, layout=layout, size=size)
        return {"images": images}

    monkeypatch.setattr("edgeall.train.data.synth.synthesize", recorder)
    return called


def failing(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def test_flag_beats_environment_beats_file_beats_default(
    edgeall: Run, synthesize: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "edgeall.toml"
    config.write_text('[data.synth]\nimages = 100\nseed = 1\nlayout = "cnmc"\n[train]\nbatch-size = 8\n')
    command = ["data", "synth", "--out", tmp_path / "out"]

    assert edgeall(*command, "--images", 5)[0] == 0
    assert (synthesize["images"], synthesize["seed"], synthesize["layout"]) == (5, 0, "all4")
    assert edgeall(*command, "--config", config)[0] == 0
    assert (synthesize["images"], synthesize["seed"], synthesize["layout"]) == (100, 1, "cnmc")
    monkeypatch.setenv("EDGEALL_DATA_SYNTH_SEED", "2")
    monkeypatch.setenv("EDGEALL_DATA_SYNTH_IMAGES", "200")
    assert edgeall(*command, "--config", config, "--seed", 3)[0] == 0
    assert (synthesize["images"], synthesize["seed"], synthesize["layout"]) == (200, 3, "cnmc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data.synth]\nsede = 1", "no setting called data.synth.sede"),
        ("[data]\nseed = 1", "no setting called data.seed"),
        ("[trian]\nseed = 1", "no setting called trian"),
        ("[train]\nepoch = 1", "no setting called train.epoch"),
        ("seed = 1", "no setting called seed"),
        ("train = 1", "no setting called train"),
        ("[data.synth]\nimages = 1.5", "'1.5' is not a valid integer"),
        ("[data.synth]\nlayout = 'all5'", "'all5' is not one of"),
        ("[data.synth", "not TOML"),
        ("[data.synth]\nconfig = 'x'", "no setting called data.synth.config"),
    ],
)
def test_wrong_config_is_wrong_usage(
    edgeall: Run, synthesize: dict[str, Any], tmp_path: Path, text: str, message: str
) -> None:
    config = tmp_path / "edgeall.toml"
    config.write_text(text)
    images = [] if "images" in text else ["--images", 4]
    status, out, err = edgeall("data", "synth", "--out", tmp_path, "--config", config, *images)
    assert (status, out) == (2, "")
    assert message in err
    assert not synthesize


def test_missing_config_is_named(edgeall: Run, tmp_path: Path) -> None:
    status, _, err = edgeall("inspect", "x", "--config", tmp_path / "none.toml")
    assert (status, err) == (1, f"error: {tmp_path / 'none.toml'}: No such file or directory\n")


def test_config_reaches_flags_and_paths(edgeall: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: dict[str, Any] = {}

    def recorder(model: Path, config: Any, note: Any) -> NoReturn:
        called.update(vars(config), model=model, note=note)
        raise DataError("enough")

    monkeypatch.setattr("edgeall.edge_runtime.tools.bench.bench", recorder)
    config = tmp_path / "c.toml"
    config.write_text('[bench]\nimages = "folder"\nseconds = 2\nlabels = "names.txt"\nmean = 127.5\n')
    assert edgeall("bench", "m.tflite", "--config", config, "--std", 2)[0] == 1
    assert callable(called.pop("note"))
    assert called == {
        "min_queries": 50,
        "repetitions": 3,
        "sweep": True,
        "profile": False,
        "model": Path("m.tflite"),
        "images": Path("folder"),
        "seconds": 2.0,
        "threads": 1,
        "labels_file": Path("names.txt"),
        "mean": 127.5,
        "std": 2.0,
        "input_size": None,
    }


@pytest.mark.parametrize(
    ("words", "environment", "file", "report"),
    [
        ((), None, None, False),
        (("--layer-report",), None, None, True),
        (("--layer-report", "RUN"), None, None, True),
        (("--layer-report", "--force"), None, None, True),
        (("--layer-report", "found.json"), None, None, Path("found.json")),
        (("--layer-report=found.json",), None, None, Path("found.json")),
        ((), "1", None, True),
        ((), "0", "true", False),
        ((), "found.json", None, Path("found.json")),
        ((), None, "true", True),
        ((), None, '"found.json"', Path("found.json")),
        (("--layer-report",), "found.json", None, True),
    ],
)
def test_the_layer_report_is_a_flag_that_may_name_a_file(
    edgeall: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    environment: str | None,
    file: str | None,
    report: bool | Path,
) -> None:
    called: list[QuantizeConfig] = []

    def recorder(config: QuantizeConfig, _: object) -> NoReturn:
        called.append(config)
        raise DataError("enough")

    monkeypatch.setattr("edgeall.optimize.quantize.quantize", recorder)
    if environment:
        monkeypatch.setenv("EDGEALL_QUANTIZE_LAYER_REPORT", environment)
    config = tmp_path / "c.toml"
    config.write_text(f"[quantize]\nlayer-report = {file}\n" if file else "")
    run = () if "RUN" in words else ("RUN",)
    assert edgeall("quantize", *words, *run, "--out", "m.tflite", "--config", config)[0] == 1
    assert (called[0].run, called[0].layer_report) == (Path("RUN"), report)


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_flag_is_named_like_its_setting(command: tuple[str, ...]) -> None:
    """Names of environment variables and config keys come from the parameter, help from the flag."""
    for option in LEAVES[command].params:
        if isinstance(option, click.Option) and option.expose_value:
            assert f"--{str(option.name).replace('_', '-')}" in option.opts


def test_json_may_be_asked_for_by_environment_and_file(
    edgeall: Run, synthesize: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ("data", "synth", "--out", "x", "--images", 4)
    assert edgeall(*command)[1] == "images  4\n"
    config = tmp_path / "c.toml"
    config.write_text("[data.synth]\njson = true\n")
    assert edgeall(*command, "--config", config)[1] == '{"images": 4}\n'
    monkeypatch.setenv("EDGEALL_DATA_SYNTH_JSON", "1")
    assert edgeall(*command)[1] == '{"images": 4}\n'
    monkeypatch.setenv("EDGEALL_DATA_SYNTH_JSON", "0")
    assert edgeall(*command, "--config", config)[1] == "images  4\n"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("x.jpg: damaged", hint="copy it again"), 1, "error: x.jpg: damaged\n  hint: copy it again\n"),
        (DataError("x.jpg: damaged"), 1, "error: x.jpg: damaged\n"),
        (GateError("lost 2 points"), 3, "error: lost 2 points\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "error: /x: No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_one_line_and_a_status(
    edgeall: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    monkeypatch.setattr("edgeall.train.data.synth.synthesize", failing(error))
    found, out, err = edgeall("data", "synth", "--out", "x", "--images", 4)
    assert (found, out, err.lstrip("\n")) == (status, "", message)


def test_missing_training_stack_names_the_extra(edgeall: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorflow", "sklearn.metrics"):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        monkeypatch.setattr("edgeall.train.data.synth.synthesize", failing(error))
        status, _, err = edgeall("data", "synth", "--out", "x", "--images", 4)
        assert status == 1
        assert 'pip install ".[train]"' in err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ModuleNotFoundError("no edgeall.x", name="edgeall.x")])
def test_a_bug_keeps_its_traceback(edgeall: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("edgeall.train.data.synth.synthesize", failing(error))
    with pytest.raises(type(error)):
        edgeall("data", "synth", "--out", "x", "--images", 4)


def test_traceback_only_with_debug(edgeall: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeall.train.data.synth.synthesize", failing(DataError("broken")))
    command = ("data", "synth", "--out", "x", "--images", 4)
    assert "Traceback" not in edgeall(*command)[2]
    assert "Traceback" in edgeall(*command, "--debug")[2]
    monkeypatch.setenv("EDGEALL_DEBUG", "1")
    assert "Traceback" in edgeall(*command)[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("trian",),
        ("train",),
        ("train", "--data", "x"),
        (*DATA, "--epochs-head", "-1"),
        (*DATA, "--test-frac", "1.0"),
        (*DATA, "--seed", "1099511627776"),
        (*DATA, "--seed", "-1"),
        ("data", "synth", "--out", "x", "--images", "4", "--seed", "4294967296"),
        ("quantize", "run"),
        ("quantize", "run", "--out", "m.tflite", "--scheme", "int4"),
        ("quantize", "run", "--out", "m.tflite", "--layer-report=found.csv"),
        ("run", "m.tflite"),
        ("run", "m.tflite", "x.png", "--threads", "0"),
        ("run", "m.tflite", "x.png", "--json", "--csv"),
        ("bench", "m.tflite", "--seconds", "0"),
        ("data", "synth", "--images", "4"),
        ("data", "fetch", "imagenet"),
    ],
)
def test_wrong_usage_is_one_error_line_and_a_hint(edgeall: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = edgeall(*arguments)
    assert (status, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "  hint"]


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_a_group_without_a_command_shows_its_help_and_fails(edgeall: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = edgeall(*arguments)
    assert (status, out) == (2, "")
    assert err == edgeall(*arguments, "--help")[1]


@pytest.mark.parametrize("command", cli.cli.list_commands(click.Context(cli.cli)))
def test_every_command_explains_itself(edgeall: Run, command: str) -> None:
    status, out, _ = edgeall(command, "--help")
    assert status == 0
    assert out.startswith(f"Usage: edgeall {command}")


@pytest.mark.parametrize(
    ("command", "config", "own"),
    [
        ("train", TrainSettings, set()),
        ("quantize", QuantizeConfig, {"subset", "robust"}),  # a search's own; --robustness
        ("prune", PruneConfig, set()),
        ("search", SearchSettings, {"batch_size", "lr_finetune", "augment", "seconds"}),
    ],
)
def test_every_field_of_a_config_is_an_option(command: str, config: type, own: set[str]) -> None:
    names = {parameter.name for parameter in LEAVES[command,].params}
    assert {field.name for field in fields(config)} - own <= names


def test_choices_are_the_names_in_the_registries() -> None:
    from edgeall.edge_runtime.manifest import TASKS
    from edgeall.optimize.experiments.grid_config import GRID_48
    from edgeall.optimize.experiments.protocols import PROTOCOLS
    from edgeall.train import config
    from edgeall.train.augment import AUGMENTS, STUDIES

    assert set(config.AUGMENTS) == set(AUGMENTS)
    assert tuple(STUDIES) == config.AUGMENT_STEPS
    assert config.TASKS == TASKS
    assert set(options.PROTOCOLS) == {*PROTOCOLS, GRID_48.name}
    assert GRID_48.name == options.GRID


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--out", "x"), "nothing to compare"),
        (("RUN", "--models", "resnet50", "--out", "x"), "trained already"),
        (("--data", "d", "--protocol", "grid-48", "--models", "resnet50", "--out", "x"), "its own models"),
    ],
)
def test_compare_takes_runs_or_models(edgeall: Run, arguments: tuple[str, ...], told: str) -> None:
    status, out, err = edgeall("compare", *arguments)
    assert (status, out) == (2, "")
    assert told in err


def test_lists_of_numbers_are_numbers(edgeall: Run) -> None:
    status, _, err = edgeall("search", "--data", "d", "--out", "o", "--max-bytes", "9", "--sizes", "96,many")
    assert status == 2
    assert "--sizes 96,many" in err


@pytest.mark.parametrize("drawn", [True, False])
def test_results_of_drawn_images_are_marked(
    edgeall: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drawn: bool
) -> None:
    from edgeall.edge_runtime.results import from_json
    from edgeall.optimize.quantization.result import QuantizationResult
    from edgeall.train.evaluation.evaluate import Evaluation
    from edgeall.train.run_info import read_run
    from edgeall.train.settings import TrainSettings

    settings = TrainSettings(Path("data"), Path("run")).as_json()
    run = {"schema": 1, "settings": settings, "metrics": {}, "data": {"synthetic": drawn}}
    monkeypatch.setattr("edgeall.train.run.train", lambda *_: read_run(run))
    quantized = from_json(QuantizationResult, {"synthetic": drawn})
    monkeypatch.setattr("edgeall.optimize.quantize.quantize", lambda *_: quantized)
    evaluated = from_json(Evaluation, {"model": "any"})
    monkeypatch.setattr("edgeall.train.evaluation.evaluate.evaluate", lambda *_, **__: evaluated)
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "data" / "Pro").mkdir(parents=True)
    (tmp_path / "data" / "Pro" / "1.jpg").touch()
    if drawn:
        (tmp_path / "data" / ".synthetic.json").touch()
    for command in (
        DATA,
        ("quantize", tmp_path, "--scheme", "float32", "--out", "x"),
        ("evaluate", tmp_path),
        ("evaluate", "model.tflite", "--data", tmp_path / "data"),
    ):
        status, _, err = edgeall(*command, "--json")
        assert (status, "SYNTHETIC images" in err) == (0, drawn), command


def test_version_is_the_package_s(edgeall: Run) -> None:
    assert edgeall("--version") == (0, f"edgeall {__version__}\n", "")


def test_json_goes_to_stdout_alone(edgeall: Run, synthesize: dict[str, Any], tmp_path: Path) -> None:
    status, out, err = edgeall("data", "synth", "--out", tmp_path, "--images", 16, "--json")
    assert (status, json.loads(out)) == (0, {"images": 16})
    assert "SYNTHETIC" in err
