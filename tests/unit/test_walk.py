"""`data ls` and `run` find the same images, and report what they skip."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgeall.cli import main
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.edge_runtime.images import OUTPUT_MARK, find_images, is_output, mark_output, refuse_inside, walk
from edgeall.edge_runtime.pipeline import Prediction, expand
from edgeall.edge_runtime.tools.predictions import prediction_lines
from edgeall.train.data.dataset import load_dataset

LEFT_BY_SYSTEMS = (
    *("@eaDir", ".Trash-1000", ".Trashes", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "#recycle"),
    *("System Volume Information", ".@__thumb", "@Recycle", ".hidden"),
)


def put(path: Path, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (len(path.name) * 20 % 255, 90, 200)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("A/1.png", "A/deep/2.png", "B/1.png", "B/2.png"):
        put(folder / name)
    return folder


def both(root: Path) -> tuple[list[str], dict[str, str]]:
    """Images and skipped files, after checking that both functions find the same."""
    dataset = load_dataset(root)
    skipped: dict[str, str] = {}

    def note(path: Path, reason: str) -> None:
        skipped[path.relative_to(root).as_posix()] = reason

    found = sorted(path.relative_to(root).as_posix() for path in find_images(root, note))
    problems = {problem.path: problem.reason for problem in dataset.problems}
    listed = [sample.path for sample in dataset.samples]
    unlistable = {path: reason for path, reason in problems.items() if reason.startswith("can't be listed")}
    assert sorted([*listed, *unlistable]) == found  # `run` gives an error line for a folder that cannot be listed
    assert {path: reason for path, reason in problems.items() if path not in unlistable} == skipped
    return listed, problems


@pytest.mark.parametrize("name", LEFT_BY_SYSTEMS)
def test_what_systems_leave_among_pictures_is_not_data(root: Path, name: str) -> None:
    before = both(root)
    for place in (root, root / "A", root / "A" / "deep"):
        put(place / name / "thumb.png")
        put(place / name / "more" / "thumb.png")
    put(root / "A" / "._1.png")  # a resource fork beside each file, from a Mac
    assert both(root) == before


def test_what_is_not_taken_is_named(root: Path, tmp_path: Path) -> None:
    (root / "A" / "notes.gif").write_text("x")
    os.symlink(root, root / "A" / "loop")
    os.symlink(tmp_path / "nowhere.png", root / "B" / "broken.png")
    os.mkfifo(root / "B" / "pipe.png")
    shutil.copytree(root / "B", tmp_path / "elsewhere", ignore=shutil.ignore_patterns("*broken*", "*pipe*"))
    os.symlink(tmp_path / "elsewhere", root / "C")
    images, problems = both(root)
    assert images == ["A/1.png", "A/deep/2.png", "B/1.png", "B/2.png", "C/1.png", "C/2.png"]
    assert problems == {
        "A/notes.gif": "not an image suffix (.gif)",
        "A/loop": "a link to a folder: not followed",
        "B/broken.png": "a link that leads nowhere",
        "B/pipe.png": "neither a file nor a folder",
    }


def _without_rights() -> list[str]:
    """A command prefix that enforces file permissions, for root too."""
    if os.geteuid() != 0:
        return []
    drop = [
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
        "--inh-caps",
        "-dac_override,-dac_read_search",
    ]
    if not shutil.which("setpriv") or subprocess.run([*drop, "true"], check=False).returncode:
        pytest.skip("root, and no setpriv to give its rights away")
    return drop


@pytest.mark.parametrize("where", ["A/deep", "B"])
def test_a_folder_that_may_not_be_read_is_named(root: Path, where: str) -> None:
    put(root / "C" / "1.png")
    (root / where).chmod(0)
    program = "import sys\nfrom edgeall.cli import main\nsys.exit(main(['data', 'ls', '--json', sys.argv[1]]))"
    command = [*_without_rights(), sys.executable, "-c", program, root]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        (root / where).chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == [{"path": where, "reason": "can't be listed (Permission denied)"}]


def test_a_root_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="can't be listed"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (OUTPUT_MARK, "x"),
        ("settings.json", '{"edgeall_run": 1}'),
        ("settings.json", '{"edgeall_search": 1}'),
        ("run.json", '{"edgeall_version": "0.1"}'),
    ],
)
def test_what_edgeall_wrote_is_not_data(root: Path, file: str, content: str) -> None:
    images, _ = both(root)
    for folder in (root / "run", root / "A" / "run"):
        put(folder / "plots" / "roc.png")
        (folder / file).write_text(content)
    again, problems = both(root)
    assert again == images
    assert problems == dict.fromkeys(("run", "A/run"), "written by edgeall: no data")
    with pytest.raises(DataError, match="written by edgeall"):
        load_dataset(root / "run")
    assert list(expand([root / "run" / "plots"])) == [str(root / "run" / "plots" / "roc.png")]  # given by name


def test_other_peoples_settings_are_data_like_any(root: Path) -> None:
    for name in ("settings.json", "run.json"):
        for content in ("", "{", "[]", '"edgeall_run"', '{"other": 1}', "[" * 100_000):
            (root / "A" / "deep" / name).write_text(content)
            assert not is_output(root / "A" / "deep")
    assert len(load_dataset(root).samples) == 4


def test_a_folder_that_holds_other_things_is_not_marked(root: Path, tmp_path: Path) -> None:
    mark_output(root)
    assert not is_output(root)
    (tmp_path / "new").mkdir()
    mark_output(tmp_path / "new")
    assert is_output(tmp_path / "new")


def test_output_in_the_data_is_refused(root: Path, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "link")
    for out in (root, root / "run", root / "A" / "new" / "run", tmp_path / "link" / "run", root / "x" / ".." / "run"):
        with pytest.raises(UsageError, match=r"^--out .* is inside the data folder") as error:
            refuse_inside(root, out)
        assert error.value.hint
    refuse_inside(root, tmp_path / "run")
    refuse_inside(root, tmp_path / "data-run")
    (root / "manifest.csv").write_text("path,label\n")
    refuse_inside(root / "manifest.csv", root / "run")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "{data}", "--out", "{data}/run"],
        ["search", "--data", "{data}", "--out", "{data}/A/x", "--max-bytes", "9", "--models", "basic_cnn"],
        ["compare", "--data", "{data}", "--protocol", "60-20-20", "--models", "basic_cnn", "--out", "{data}/x"],
        ["compare", "--data", "{data}", "--protocol", "grid-48", "--weights", "none", "--out", "{data}/x"],
        ["evaluate", "m.tflite", "--data", "{data}", "--html", "{data}/x.html"],
        ["evaluate", "m.tflite", "--data", "{data}", "--plot", "{data}/A/x.png"],
        ["data", "audit", "{data}", "--html", "{data}/x.html"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_refuse_it_before_any_work(root: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(root.rglob("*"))
    assert main([word.format(data=root) for word in command]) == 2
    said = capsys.readouterr().err
    assert f"is inside the data folder {root}" in said
    assert "hint: choose a folder outside the data folder" in said
    assert sorted(root.rglob("*")) == before


def test_a_large_folder_is_walked_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a.png", "a/1.jpeg", "c.webp", "a-b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path, _ in walk(tmp_path)] == [
        *("a/1.jpeg", "a-b.png", "a.png", "b/2.PNG", "c.webp")
    ]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\r\nb", "a\tb", 'a",b', "=1", "-x"])
def test_names_survive_csv(name: str) -> None:
    labels = ("A", "B")
    said = Prediction(name, label="A", probability=1.0, probabilities={"A": 1.0, "B": 0.0})
    lines = list(prediction_lines([said, Prediction(name, error="no")], labels, "csv"))
    rows = list(csv.DictReader(io.StringIO("\n".join(lines), newline="")))
    assert [row["image"] for row in rows] == [name, name]
    assert len("".join(prediction_lines([said], labels, "table")).splitlines()) == 1
