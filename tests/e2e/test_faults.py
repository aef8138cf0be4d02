"""What goes wrong in the field, through the program: power cuts, full disks, two processes, no home, long names."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from venvs import HANG_S

from edgeall.cli import main
from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, NoSpaceError, UsageError
from edgeall.edge_runtime.files import output_lock
from edgeall.edge_runtime.images import is_output
from edgeall.edge_runtime.results import from_json
from edgeall.edge_runtime.vision.cells_files import Wanted, cells_of_files
from edgeall.optimize.prune import prune
from edgeall.optimize.pruning.config import PruneConfig
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantize import quantize
from edgeall.train.run import train
from edgeall.train.run_folder import check_out, claim
from edgeall.train.run_info import Facts
from edgeall.train.run_settings import RunSettings
from edgeall.train.runs import load_model, load_own_split, load_run

QUIET = Progress(quiet=True)
PROGRAM = [sys.executable, "-c", "import sys; from edgeall.cli import main; sys.exit(main())"]


def recorded(run: Path) -> RunSettings:
    """The settings that a run was begun with."""
    return RunSettings.read(json.loads((run / "settings.json").read_text())["settings"])


def begun(tiny_run: Path, out: Path) -> Path:
    """The run as it was when its training began."""
    facts = from_json(Facts, json.loads((tiny_run / "data.json").read_text()))
    settings = recorded(tiny_run)
    claim(out, settings, load_own_split(tiny_run, load_run(tiny_run)), facts)
    return out


# --- own files, damaged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["settings.json", "data.json", "split.json"])
@pytest.mark.parametrize("content", [b"", b'{"cut": '], ids=["empty", "cut"])
def test_a_begun_run_with_a_damaged_file_names_it(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path, name: str, content: bytes
) -> None:
    out = begun(tiny_run, tmp_path / "run")
    (out / name).write_bytes(content)
    with pytest.raises((UsageError, DataError), match=str(out / name)) as error:
        train(replace(tiny_settings, out=out), QUIET)
    assert "--out" in error.value.hint
    assert (out / name).read_bytes() == content


def test_damaged_settings_may_be_overwritten_by_force_and_other_folders_may_not(tiny_run: Path, tmp_path: Path) -> None:
    wanted = recorded(tiny_run)
    out = begun(tiny_run, tmp_path / "run")
    (out / "settings.json").write_bytes(b"")
    assert check_out(out, wanted, force=True) is False
    (out / "split.json").unlink()  # somebody else's folder may hold an empty settings.json too
    with pytest.raises(UsageError, match="is not a run"):
        check_out(out, wanted, force=True)


def test_an_empty_run_json_is_not_a_complete_run(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    wanted = recorded(out)
    with pytest.raises(UsageError, match="complete run"):
        check_out(out, wanted, force=False)
    (out / "run.json").write_bytes(b"")
    assert check_out(out, wanted, force=False) is True  # the same command goes on with it
    with pytest.raises(DataError, match=r"run\.json: empty") as error:
        load_run(out)
    assert error.value.hint


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:5000], lambda whole: bytes(len(whole))])
def test_a_damaged_model_is_named(tiny_run: Path, tmp_path: Path, damage: Any) -> None:
    (tmp_path / "model.keras").write_bytes(damage((tiny_run / "model.keras").read_bytes()))
    with pytest.raises(DataError, match=r"model\.keras: missing or damaged"):
        load_model(tmp_path, load_run(tiny_run))


def test_a_full_temporary_folder_is_not_a_damaged_model(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NoSpaceError, match="no space is left for temporary files"):
        load_model(tiny_run, load_run(tiny_run))


def test_a_file_that_ends_too_early_is_not_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Click makes an `Abort` of an EOFError, as if somebody had pressed Ctrl-D."""

    def broken() -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("edgeall.edge_runtime.tools.machine.this_machine", broken)
    with pytest.raises(EOFError, match="No data left"):
        main(["doctor"])


# --- two processes, one folder ----------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_by_every_command_that_writes_it(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with output_lock(out, "train"):
        for work in (
            lambda: train(replace(tiny_settings, out=out), QUIET),
            lambda: prune(PruneConfig(tiny_run, out, sparsity=0.5, cache_dir=tiny_settings.cache_dir), QUIET),
            lambda: cells_of_files([tmp_path], out),
        ):
            with pytest.raises(UsageError, match="in use by `edgeall train`") as error:
                work()
            assert error.value.hint
    assert not out.exists()


@pytest.mark.long
def test_two_trainings_with_one_out_end_with_one_run(synthetic_fields: Path, tmp_path: Path) -> None:
    """Whichever comes second is told so, at once, and the other's run is whole."""
    command = [
        *PROGRAM,
        "train",
        "--data",
        str(synthetic_fields),
        "--out",
        str(tmp_path / "run"),
        "--model",
        "basic_cnn",
    ]
    command += ["--weights", "none", "--input-size", "32", "--augment", "none", "--epochs-finetune", "1"]
    command += ["--cache-dir", str(tmp_path / "c")]
    rates = ("0.002", "0.003")
    both = [
        subprocess.Popen(
            [*command, "--lr-finetune", rate], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        for rate in rates
    ]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    first, second = (0, 1) if both[0].returncode == 0 else (1, 0)
    # In use while the first trains, complete when the second was slower to start than the first to train.
    assert "in use by `edgeall train`" in said[second] or "holds a complete run" in said[second]
    for name in ("run.json", "settings.json"):
        assert json.loads((tmp_path / "run" / name).read_text())["settings"]["lr_finetune"] == float(rates[first])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "run"]


# --- ended from outside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """`data synth` draws for longer than anybody waits; then the status of an interruption."""
    command = [*PROGRAM, "data", "synth", "--out", str(tmp_path / "drawn"), "--images", "100000", "--size", "64"]
    # Under nohup the test inherits an ignored SIGHUP, which the program leaves alone.
    usual = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=usual) as process:
        while not list(tmp_path.glob("drawn/*/*.png")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=HANG_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn"]  # no lock stays


def test_nohup_is_left_alone(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        main(["models", "--help"])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_ended_while_it_preprocesses_leaves_nothing(synthetic_fields: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    program = (
        "import sys, time\n"
        "from edgeall.train.data import cache\n"
        "slow = cache.load_input\n"
        "cache.load_input = lambda *given: (time.sleep(1), slow(*given))[1]\n"
        "from edgeall.cli import main\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "train", "--data", str(synthetic_fields), "--out", str(tmp_path / "run")]
    command += ["--model", "basic_cnn", "--weights", "none", "--input-size", "32", "--cache-dir", str(cache)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (cache.exists() and list(cache.glob(".pixels-*"))):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert list(cache.iterdir()) == []


# --- no home, names that break something ------------------------------------------------------------------------------


def test_without_a_home_no_folder_called_tilde_appears(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "import pwd\n"
        "def nobody(number): raise KeyError(number)\n"
        "pwd.getpwuid = nobody\n"
        "from edgeall.cli import main\n"
        "from edgeall.edge_runtime.parallel import Layout\n"
        "from edgeall.edge_runtime.tools.layout import _remember, layouts_file\n"
        "_remember(layouts_file(), 'key', Layout(1, 1))\n"
        "print(layouts_file())\n"
        "sys.exit(main(['devices', 'ls']) or main(['devices', 'add', 'pi', 'ssh://pi@pi']))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"TMPDIR": str(tmp_path / "tmp")}
    environment.pop("XDG_CONFIG_HOME", None)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(tmp_path / "tmp"))
    assert "no devices" in done.stdout
    assert "error: the list of devices needs a home folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_a_home_that_can_not_be_written_is_said_before_anything_is_begun(
    synthetic_fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("edgeall.train.prepare.scan", lambda *_: pytest.fail("scanned"))
    command = ["train", "--data", str(synthetic_fields), "--out", str(tmp_path / "new" / "run"), "--model", "basic_cnn"]
    assert main([*command, "--weights", "none"]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'home'}" in said
    assert "--cache-dir" in said
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


NAMES = ["n" * 246, "ä" * 123, "a\nb", "a\tb", 'a"b,c', os.fsdecode(b"a\xffb"), "-- -x", "日" * 82]


@pytest.fixture
def odd_names(tmp_path: Path, synthetic_fields: Path) -> Path:
    (source,) = list(synthetic_fields.glob("Pro/*.png"))[:1]
    (tmp_path / "odd" / "A").mkdir(parents=True)
    for number, name in enumerate(NAMES, start=1):  # turned and cut: other images than the run's own
        with Image.open(source) as image:
            image.rotate(90).crop((0, 0, 90, 90 - number)).save(tmp_path / "odd" / "A" / f"{name}.png")
    return tmp_path / "odd"


def test_cells_of_images_with_odd_names(odd_names: Path, tmp_path: Path) -> None:
    result = cells_of_files([odd_names], tmp_path / "cells", Wanted(crops=True))
    assert len(result["images"]) == len(NAMES)
    assert not any("error" in image for image in result["images"])
    assert is_output(tmp_path / "cells")
    for image in result["images"]:
        assert (tmp_path / "cells" / image["overlay"]).is_file()
        assert all(row["crop"] is None or (tmp_path / "cells" / row["crop"]).is_file() for row in image["cells"])
    with open(tmp_path / "cells" / "cells.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["cells"]


def test_an_image_whose_cells_can_not_be_written_is_one_error(
    odd_names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save

    def refuse(self: Image.Image, path: Any, *rest: Any, **more: Any) -> None:
        if "0002-" in str(path):
            raise OSError(36, "File name too long", str(path))
        save(self, path, *rest, **more)

    monkeypatch.setattr(Image.Image, "save", refuse)
    result = cells_of_files([odd_names], tmp_path / "cells", Wanted(crops=True))
    errors = [image["error"] for image in result["images"] if "error" in image]
    assert len(errors) == 1
    assert "can't be written (File name too long)" in errors[0]
    assert len(result["images"]) == len(NAMES)


def test_a_run_explains_and_lists_images_with_odd_names(tiny_run: Path, odd_names: Path, tmp_path: Path) -> None:
    """`evaluate --explain` of a run, and its tables."""
    (odd_names / "A").rename(odd_names / "Pro")
    out = tmp_path / "why"
    assert main(["evaluate", str(tiny_run), "--data", str(odd_names), "--explain", str(out), "--json"]) == 0
    drawn = [path for path in out.iterdir() if path.suffix == ".png"]
    assert len(drawn) == min(len(NAMES), 16)
    assert all(len(os.fsencode(path.name)) <= 255 for path in drawn)


def test_predictions_of_a_run_on_images_with_odd_names_can_be_read_back(
    synthetic_fields: Path, tiny_settings: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_fields, data)
    (data / "manifest.csv").unlink()
    for image, name in zip(sorted((data / "Pro").glob("*.png")), NAMES, strict=False):
        image.rename(image.with_name(f"{name}.png"))
    run = tmp_path / "run"
    train(replace(tiny_settings, data=data, out=run, epochs_finetune=1, cache_dir=tmp_path / "cache"), QUIET)
    split = load_own_split(run, load_run(run))
    with open(run / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {entry.path for entry in split.entries}
    result = quantize(QuantizeConfig(run, "float32", tmp_path / "m.tflite", cache_dir=tmp_path / "cache"), QUIET)
    assert result.test_images == len(split.subset("test"))


# --- pixels that lie --------------------------------------------------------------------------------------------------


def test_twelve_bits_in_sixteen_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for label in ("A", "B"):
        (tmp_path / label).mkdir()
        for index, most in enumerate((4096, 4096, 65536)):
            values = rng.integers(0, most, (40, 40, 3), np.uint16)
            values[0, 0] = most - 1
            cv2.imwrite(str(tmp_path / label / f"{index}.png"), values)
    assert main(["data", "ls", str(tmp_path)]) == 0
    assert "4 images use at most a sixteenth of their range (12 bits in 16?)" in capsys.readouterr().out
    assert main(["data", "audit", str(tmp_path)]) == 0
    assert "WARNING: 4 images use at most a sixteenth of their range (12 bits in 16?)" in capsys.readouterr().out
