"""Runs every `edgeall` line and every Python example of the documentation on few images.

A line is run as written, in a separate folder with the files that the documentation names: ``smears/``, ``runs/a035``,
``model.tflite``, ``photo.jpg`` ... (see `world`). There are two changes: `PLACES` replaces placeholders, and `smaller`
adds options that make a command quick. The installed program runs it. Only most lines of the commands that load
TensorFlow, which takes longer to load than they take to work, are run in this process (see `fresh`). Of the lines that
train what others train too, `make test` runs the beginning, with the backbones as written (see `LONG`).
Lines that need a device, a camera or a network are in `NOT_RUN`, with the reason; only their options are parsed. Every
other line is run, except a line that is part of a longer one (`is_part`).
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from commandline import leaves

from edgeall.cli import main
from edgeall.edge_runtime.bundle import open_bundle

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "decisions")],
    key=lambda page: page.as_posix(),
)
PROGRAM = Path(sys.executable).parent / "edgeall"
SMALL_CNN = ("--model", "basic_cnn", "--input-size", "32")
IMAGES = 48

PLACES = {
    "DATA": "smears/",
    "/data/all4": "smears/",
    "site/": "smears/",
    "white-cells/": "smears/",
    "framed/crops": "smears/",
    "single/crops": "smears/",
    "DIR": "none",
    "OUT": "found",
    "3f7a90c1": "HEAD",
    "~/.edgeall/current/model.tflite": "model.tflite",
}
"""Placeholders of the documentation, and what replaces them; HEAD becomes the head of the record."""

NOT_RUN = {
    r"ssh://": "no device to reach; tests/unit/test_deploy.py goes over a real ssh connection to this machine",
    r"--to clinics\.txt": "no devices to reach; tests/unit/test_deploy_fleet.py has three",
    r"\badb:": "no phone; tests/unit/test_deploy_benchmark_model.py has a program in adb's place",
    r"\bpicamera2\b": "no camera; `edgeall rig --demo` is run instead",
    r"--exit-at-end": "run with images of cells by tests/unit/test_rig_serve.py",
    r"edgeall data fetch": "downloads from Kaggle; tests/unit/test_fetch.py has a server of its own",
    r"--task segmentation|runs/cells|cells\.tflite": "takes minutes; tests/unit/test_segmentation.py runs the chain",
    r"edgeall web": "needs the npm package; tests/browser/test_web_page.py builds and serves an app",
    r"--protocol grid-48": "48 runs of two large networks; tests/integration/test_protocols.py runs a small grid",
    r"edgeall demo": "takes minutes; tests/e2e/test_demo.py goes through it",
}
"""Patterns of lines that cannot be run here, and why."""

EXTRA = (
    "edgeall models",
    "edgeall models --json",
    "edgeall doctor --json",
    "edgeall data ls smears/ --json",
    "edgeall data leak smears/",
    "edgeall inspect model.tflite --json",
    "edgeall run model.tflite smears/ --csv",
    "edgeall record verify slides --json",
    "edgeall evaluate runs/a035 --json",
)
"""Commands without a code block in the documentation, and more forms of quick commands."""

SLOW = ("train", "import", "evaluate", "quantize", "prune", "compare", "search", "data leak")
"""Commands that load TensorFlow. If a line has all the words of another line, only the longer one is run."""

STATUS = {"doctor": (0, 1), "quantize": (0, 3), "adapt": (0, 3), "search": (0, 3), "compare-bench": (0, 3)}
"""Accepted exit status: gates, and checks that fail on this machine."""

EXPECTED = {
    "train": r"accuracy +\d",
    "evaluate": r"accuracy +\d|\"accuracy\"",
    "quantize": r"agreement with Keras +\d",
    "import": r"normalization +torch \(as named\)",
    "pack": r"golden images +\d|no temperature",
    "prune": r"MACs|zero|sparsity",
    "compare": r"report: .*compare\.html",
    "search": r"accuracy|no candidate fits",
    "models": r"nasnet_large",
    "run": r"Benign|Early|Pre|Pro",
    "cells": r"cells|nucle",
    "bench": r"p50",
    "compare-bench": r"p50|latency",
    "inspect": r"golden",
    "sign": r"members",
    "adapt": r"balanced accuracy|out of distribution",
    "doctor": r"ok",
    "devices ls": r"ssh://|no devices",
    "record verify": r"head",
    "record export": r"frames",
    "record backup": r"missing_images  0",
    "record restore": r"missing_images  0",
    "record prune": r"images",
    "data ls": r"SYNTHETIC|Benign",
    "data synth": r"images",
    "data audit": r"duplicate",
    "data leak": r"leak|before",
}
"""Pattern in the output of each command, stdout or stderr. Other commands are checked by their status."""


@dataclass(frozen=True)
class Line:
    """A command line of the documentation: the first page that has it, and the words after ``edgeall``."""

    where: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(("edgeall", *self.words))

    @property
    def name(self) -> str:
        return " ".join(named(self.words))

    @property
    def reason(self) -> str | None:
        """Why it is not run."""
        return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, self.text)), None)


LEAVES = leaves()


def named(words: tuple[str, ...]) -> tuple[str, ...]:
    """The name of the command of a line."""
    found = next((words[:count] for count in (2, 1) if words[:count] in LEAVES), None)
    assert found is not None, f"no such command: edgeall {' '.join(words)}"
    return found


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of every fenced code block."""
    for match in re.finditer(r"^ *```(\S*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def command_lines(block: str) -> Iterator[tuple[str, ...]]:
    """The words of each call of edgeall: after a prompt, settings, ``sudo`` or a path, and before a pipe."""
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        try:
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        except ValueError:  # a line of an output or of another language
            continue
        while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
            words = words[1:]
        if words and (words[0] == "edgeall" or words[0].endswith("/bin/edgeall")):
            end = next((i for i, word in enumerate(words) if re.fullmatch(r"\d?>+|[|;&]+", word)), len(words))
            if end > 1:  # else it is the line that installs the completion
                yield tuple(words[1:end])


def documented() -> list[Line]:
    """Every line once."""
    found: dict[tuple[str, ...], Line] = {}
    for page in PAGES:
        for language, block in blocks(page):
            if language in ("", "sh", "bash", "console", "shell"):
                for words in command_lines(block):
                    found.setdefault(words, Line(page.relative_to(ROOT).as_posix(), words))
    for text in EXTRA:
        words = tuple(shlex.split(text)[1:])
        found.setdefault(words, Line("extra", words))
    return list(found.values())


LINES = documented()


def is_part(line: Line) -> bool:
    """Whether another line of a slow command has all the words of this one and more."""
    others = [other for other in LINES if other.name == line.name and other.reason is None]
    return line.name in SLOW and any(set(line.words) < set(other.words) for other in others)


RUN = [line for line in LINES if line.reason is None and not is_part(line)]
LONG = (
    r"--alphas|--teacher|--target-sensitivity|--sparsity|--robustness --out|edgeall compare |vgg16|resnet50|runs/two"
    r"|--data framed/crops|runs/white|quantize runs/single|--data single/crops"
)
"""Lines that train or quantize a large network, or do once more what another line or tests/integration does: for
`make test-long`."""
RUN_MARKED = [
    pytest.param(line, id=line.text, marks=pytest.mark.long if re.search(LONG, line.text) else ()) for line in RUN
]


# --- the world --------------------------------------------------------------------------------------------------------


def run(folder: Path, *words: object, status: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """Run the installed program in a folder, which is also the home folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEALL_")}
    environment |= {"HOME": str(folder), "COLUMNS": "120"}
    for name in ("XDG_CONFIG_HOME", "DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    command, typed = [str(PROGRAM), *map(str, words)], "a password of some length\n"
    done = subprocess.run(command, cwd=folder, env=environment, input=typed, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def here(folder: Path, *words: object, status: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, with a folder as working and home folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        patch.setenv("COLUMNS", "120")
        patch.delenv("XDG_CONFIG_HOME", raising=False)
        returned = main([*map(str, words)])
    assert returned in status, f"status {returned}\n{out.getvalue()}\n{err.getvalue()}"
    return subprocess.CompletedProcess(words, returned, out.getvalue(), err.getvalue())


def fresh(line: Line) -> bool:
    """Whether a process of its own runs the line: of the commands that load TensorFlow, the first line of each."""
    return line.name not in SLOW or line == next(other for other in RUN if other.name == line.name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation names, made by the program. Tests copy the folder and do not change it."""
    from fixtures_rig import build_rig

    from edgeall.optimize.packaging.sign import make_key

    folder = tmp_path_factory.mktemp("documented") / "world"
    folder.mkdir()
    run(folder, "data", "synth", "--out", "smears", "--images", IMAGES, "--size", 64)
    run(folder, "data", "synth", "--out", "other-lab", "--images", 16, "--size", 64, "--seed", 9)
    run(folder, "data", "synth", "--out", "cnmc", "--layout", "cnmc", "--images", IMAGES, "--size", 64)
    how = ("--weights", "none", "--epochs-finetune", 1, "--split-by", "image", *SMALL_CNN)
    here(folder, "train", "--data", "smears", "--out", "runs/a035", *how)
    packed = ("--scheme", "ptq-int8", "--representative", 8, "--explain", "--out", "explained.tflite")
    here(folder, "quantize", "runs/a035", *packed)
    for name in ("a100", "half", "teacher", "mine", "single"):
        shutil.copytree(folder / "runs/a035", folder / "runs" / name)
    shutil.copy(folder / "runs/a035/model.keras", folder / "notebook.h5")
    bare_models(folder)
    model_of_cells(folder)
    for name in ("model.tflite", "other.tflite", "adapted.tflite", "runs/a035/model.tflite"):
        shutil.copy(folder / "explained.tflite", folder / name)
    image = next((folder / "other-lab").rglob("*.png"), None) or next((folder / "other-lab").rglob("*.jpg"))
    shutil.copy(image, folder / "photo.jpg")
    (folder / "folder").mkdir()
    shutil.copy(image, folder / "folder")
    for name in ("before.json", "after.json"):
        quick = smaller(("bench", "model.tflite", "--images", "other-lab", "--json"))
        (folder / name).write_text(run(folder, *quick).stdout)
    make_key(folder / "key.pem")
    rig = build_rig(folder / "slides")
    for seed in (1, 2):
        session = rig.session(f"S-{seed}")
        rig.frame(session, seed=seed)
        rig.station.end_session()
    rig.record.close()
    return folder


def bare_models(folder: Path) -> None:
    """``bare.tflite`` with ``labels.txt``, and the SavedModel ``exported``, of a run that edgeall trained."""
    from edgeall.models.keras_compat import quiet, tf
    from edgeall.train.runs import load_model, load_run

    facts = load_run(folder / "runs/a035")
    model = load_model(folder / "runs/a035", facts)
    (folder / "labels.txt").write_text("\n".join(facts.labels))
    with quiet():
        model.export(folder / "exported")
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "exported"))
        (folder / "bare.tflite").write_bytes(converter.convert())


def model_of_cells(folder: Path) -> None:
    """``runs/single/model.tflite``, the same model for cells."""
    from edgeall.optimize.packaging.pack import pack

    bundle = open_bundle(folder / "explained.tflite")
    assert bundle.manifest is not None
    golden = [(each.name, each.image_bytes, each.probabilities) for each in bundle.golden]
    manifest = replace(bundle.manifest, unit="cell", novelty={}, drift={}, exemplars={})
    pack(bundle.flatbuffer, manifest, golden, "A model of cells.", folder / "runs/single/model.tflite")


def smaller(words: tuple[str, ...]) -> tuple[str, ...]:
    """The same command line with further options, which take precedence and make it quick on few images."""
    name = " ".join(named(words))
    own_split = {"--split", "--fold", "--split-by", "subject-3-fold"} & set(words)
    image_level = () if own_split else ("--split-by", "image")
    more: tuple[str, ...] = ()
    if name == "train":
        chosen = words[words.index("--model") + 1] if "--model" in words else "mobilenet_v2"
        small = ("--input-size", "96") if chosen == "mobilenet_v2" and "--alpha" in words else SMALL_CNN
        more = ("--weights", "none", "--augment", "none", "--epochs-finetune", "1", *small, *image_level)
    elif name in ("import", "pack"):
        more = image_level
    elif name == "quantize":
        more = ("--epochs", "1", "--representative", "8", "--force")
    elif name == "prune":
        more = ("--epochs", "1")
    elif name == "compare":
        more = ("--schemes", "ptq-int8")
        if "--data" in words:
            more += ("--models", "basic_cnn", "--weights", "none", "--epochs-finetune", "1", "--input-size", "32")
            more += ("--batch-size", "8")
            more += image_level
    elif name == "search":
        sizes = ("--sizes", "96") if "--alphas" in words else ("--models", "basic_cnn", "--sizes", "32")
        more = ("--weights", "none", "--trials", "1", "--macs", "1", "--schemes", "ptq-int8", *sizes, *image_level)
        # The line with --alphas takes a large backbone: it is told that nothing fits, which needs no training.
        latency_ms = "0.000001" if "--alphas" in words else "100000"
        more += ("--epochs-head", "0", "--epochs-finetune", "1", "--max-latency-ms", latency_ms, "--val-frac", "0.2")
    elif name == "bench":
        more = ("--seconds", "0.1", "--min-queries", "3", "--repetitions", "1", "--no-sweep")
    elif name == "data synth":
        more = ("--images", "16", "--size", "64")
    elif name == "data leak":
        more = ("--weights", "basic_cnn_no_top.h5", "--per-class", "4/2/2", "--seeds", "2", *SMALL_CNN, *image_level)
    return (*words, *more)


def prepare(line: Line, folder: Path) -> None:
    """Create or remove the files that a line expects to exist or not to exist."""
    words = line.words
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    if out is not None and (folder / out).exists():
        shutil.rmtree(folder / out) if (folder / out).is_dir() else (folder / out).unlink()
    if line.name == "rig-user add":
        (folder / "users.json").unlink(missing_ok=True)
    if line.name == "rig-user rm":
        run(folder, "rig-user", "add", words[2], "--role", "view", "--users", "users.json")
    if line.name == "record restore":
        run(folder, "record", "backup", "slides", "--out", words[2])
    if line.name == "devices rm":
        run(folder, "devices", "add", words[2], "ssh://pi@localhost")
    if line.name == "sign" and "--new-key" in words:
        for name in ("key.pem", "key.pem.pub"):
            (folder / name).unlink()
    if "--require-signature" in words:
        run(folder, "sign", "model.tflite", "--key", "key.pem")
    if line.name == "evaluate" and "--robustness" in words:  # every image is changed in 70 ways
        for image in sorted(folder.glob("smears/[!.]*/*"))[::2]:
            image.unlink()
    if line.name == "data leak":
        from edgeall.models import registry
        from edgeall.models.registry import BuildArgs

        network = registry.get("basic_cnn").build(BuildArgs(32, 32, None, "none"))
        network.save_weights(folder / "basic_cnn_no_top.h5")


@pytest.mark.parametrize("line", RUN_MARKED)
def test_a_documented_line_does_what_it_says(line: Line, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if line.name == "rig":
        _serve(line, tmp_path)
        return
    folder = tmp_path / "here"
    shutil.copytree(request.getfixturevalue("world"), folder)
    prepare(line, folder)
    head = ""
    if "slides" in line.words:
        head = json.loads(run(folder, "record", "verify", "slides", "--json").stdout)["head"]
    words = [PLACES.get(word, word).replace("HEAD", head) for word in line.words]
    start = run if fresh(line) else here
    done = start(folder, *smaller(tuple(words)), status=STATUS.get(line.name, (0,)))
    if "--json" in words:
        for row in done.stdout.splitlines():
            json.loads(row, parse_constant=_no_json)
    elif line.name in EXPECTED:
        assert re.search(EXPECTED[line.name], done.stdout + done.stderr), done.stdout + done.stderr
    for option in ("--out", "--html", "--plot", "--explain"):
        if option in words and words[-1] != option and done.returncode == 0:
            value = words[words.index(option) + 1]
            assert value.startswith("-") or (folder / value).exists(), f"{option} {value}"


class Begun(BaseException):
    """Raised in place of a training."""


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in RUN
        if line.name in ("train", "compare") and re.search(LONG, line.text) and "--data" in line.words
    ],
    ids=lambda line: line.text,
)
def test_a_documented_training_begins(line: Line, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, backbones, protocol and settings as written; only the weights are not downloaded."""
    from edgeall.optimize.experiments import backbones
    from edgeall.train import run as training
    from edgeall.train.settings import resolve

    def begin(settings: Any, *_: Any, **__: Any) -> None:
        resolve(settings)
        raise Begun

    for module in (training, backbones):
        monkeypatch.setattr(module, "train", begin)
    for name in ("smears", "cnmc", "runs"):
        (tmp_path / name).symlink_to(world / name)
    words = [PLACES.get(word, word) for word in line.words]
    with pytest.raises(Begun):
        here(tmp_path, *words, "--weights", "none")


PYTHON = [(page, block) for page in PAGES for language, block in blocks(page) if language == "python"]
QUICK = {
    "alpha=0.35": 'model="basic_cnn", weights="none", input_size=32, epochs_finetune=1, split_by="image"',
    "max_drop=0.5": "max_drop=100, representative=8",
}
"""What makes an example in Python quick on few images."""


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page.stem for page, _ in PYTHON])
def test_a_documented_python_example_runs(page: Path, block: str, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    for text, quick in QUICK.items():
        block = block.replace(text, quick)
    environment = {**os.environ, "HOME": str(folder)}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def _no_json(text: str) -> Any:
    raise AssertionError(f"{text} is not JSON")


def _serve(line: Line, folder: Path) -> None:
    """A rig runs until it gets a signal."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    words = [str(PROGRAM), *line.words, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for text in process.stderr:
            said += text
            if text.startswith("the page: "):
                break
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read()
    assert "the page: http://127.0.0.1:" in said
    assert "Traceback" not in said
    assert process.returncode == 0, said


# --- completeness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [line for line in LINES if line not in RUN], ids=lambda line: line.text)
def test_the_options_of_a_line_that_is_not_run_exist(line: Line) -> None:
    name = named(line.words)
    LEAVES[name].make_context(line.name, list(line.words[len(name) :]), obj={})


def test_every_page_has_lines_that_are_found() -> None:
    found = {page for page in PAGES for language, block in blocks(page) if language == "" and any(command_lines(block))}
    others = ("index", "install", "command-line", "python")  # without a line, or with lines of the shell alone
    how_to = {page for page in (ROOT / "docs/how-to").glob("*.md") if page.stem not in others}
    assert found >= {ROOT / "README.md", ROOT / "docs/tutorial.md", *how_to}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_installed_as_documented(shell: str, tmp_path: Path) -> None:
    line = f"_EDGEALL_COMPLETE={shell}_source edgeall > "
    assert line in (ROOT / "docs/how-to/command-line.md").read_text(encoding="utf-8")
    environment = {**os.environ, "_EDGEALL_COMPLETE": f"{shell}_source"}
    script = subprocess.run([str(PROGRAM)], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"_EDGEALL_COMPLETE={shell}_complete" in script
    asked = {"COMP_WORDS": "edgeall qu", "COMP_CWORD": "1" if shell != "fish" else "qu"}
    environment = {**os.environ, **asked, "_EDGEALL_COMPLETE": f"{shell}_complete"}
    assert "quantize" in subprocess.run([str(PROGRAM)], env=environment, capture_output=True, text=True).stdout


def test_every_reason_not_to_run_a_line_has_one() -> None:
    every = [line.text for line in LINES] + ["edgeall demo"]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, text) for text in every)] == []


def test_every_command_is_run_or_has_a_reason_not_to_be() -> None:
    executed = {line.name for line in RUN}
    excused = {line.name for line in LINES if line.reason} | {"demo"}
    every = {" ".join(name) for name in LEAVES}
    assert every - executed - excused == set(), "put a line into docs/how-to or into EXTRA"
    assert excused - executed <= {"demo", "deploy", "devices add", "data fetch", "web"}


def test_settings_and_examples_in_other_blocks_are_valid(tmp_path: Path) -> None:
    """TOML blocks are settings files; JSON blocks are JSON."""
    seen = set()
    for page in PAGES:
        for language, block in blocks(page):
            if language == "json":
                json.loads(block)
            elif language == "toml":
                (tmp_path / "edgeall.toml").write_text(block)
                run(tmp_path, "models", "--config", "edgeall.toml")
            seen.add(language)
    assert {"json", "toml"} <= seen


def test_options_named_beside_a_command_in_the_text_exist() -> None:
    """Inline code that begins with a command: `edgeall quantize --explain`."""
    checked = 0
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`edgeall ([^`]+)`", text):
            words = tuple(" ".join(span.split()).split(" "))
            name = next((words[:count] for count in (2, 1) if words[:count] in LEAVES), None)
            if name is None:
                groups = {key[0] for key in LEAVES if len(key) > 1}
                assert words[0] in groups, f"{page.name}: edgeall {span}"
                continue
            known = {text for option in LEAVES[name].params for text in (*option.opts, *option.secondary_opts)}
            known |= {"--help", "-h"}
            for word in words[len(name) :]:
                if word.startswith("-"):
                    assert word.partition("=")[0] in known, f"{page.name}: edgeall {span}"
            checked += 1
    assert checked
