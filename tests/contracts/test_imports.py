"""The import rules of setup.cfg, the ban on bare names, and how little a start loads."""

from __future__ import annotations

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeall.edge_runtime import interpreter

HEAVY = (
    *("numpy", "PIL", "rich", "paramiko", "adbutils"),
    *("ai_edge_litert", "tensorflow", "tf_keras", "sklearn", "matplotlib", "scipy"),
)


def lint_imports(repository: Path, code: Path) -> subprocess.CompletedProcess[str]:
    """Check the package ``code/edgeall``, or the installed one when ``code`` holds none."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", repository / "setup.cfg"]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    return subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)


def ruff(repository: Path, *arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", repository / "ruff.toml", *arguments]
    return subprocess.run(command, cwd=repository, input=text, capture_output=True, text=True)


def top_folders(repository: Path) -> list[str]:
    return sorted(path.parent.name for path in repository.glob("*/__init__.py"))


def test_import_rules_hold(repository: Path, tmp_path: Path) -> None:
    result = lint_imports(repository, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


SPOILT = [
    ("edge_runtime", "import edgeall.train", "imports run down"),
    ("edge_runtime", "import edgeall.models.registry", "imports run down"),
    ("models", "import edgeall.edge_runtime.images", "imports run down"),
    ("train", "import edgeall.optimize", "imports run down"),
    ("train", "import edgeall.deploy.target", "imports run down"),
    ("deploy", "import edgeall.optimize", "imports run down"),
    ("rig", "import edgeall.train", "imports run down"),
    ("console", "import edgeall.edge_runtime.errors", "imports run down"),
    ("deploy", "import edgeall.models.registry", "deploying knows nothing of training"),
    ("edge_runtime", "import sklearn", "the device needs"),
    ("edge_runtime", "def late():\n    import tensorflow", "the device needs"),
    ("edge_runtime", "import fastapi", "the device needs"),
    ("console", "import numpy", "the console needs"),
    ("rig", "import sklearn", "the rig needs no training"),
    ("browser", "import edgeall.rig.serve", "imports run down"),
    ("browser", "import cv2", "the app in the browser needs"),
    ("train", "import tf_keras", "only door to"),
    ("benchmarks", "import edgeall.train", "benchmarks import edge_runtime alone"),
    ("edge_runtime", "import edgeall.benchmarks", "doesn't import its benchmarks"),
    ("train", "import edgeall.rig.station", "no room below the command line imports the rig"),
    ("edge_runtime", "import edgeall.edge_runtime.vision.quality", "running a model needs neither"),
]
"""A folder, a line that it must not hold, and the rule that forbids it."""


def test_import_rules_fire(repository: Path, tmp_path: Path) -> None:
    """One copy of the package with a file for each forbidden import; each is reported under its rule."""
    package = tmp_path / "edgeall"
    package.mkdir()
    for name in ("__init__.py", "__main__.py", "api.py", "cli.py"):
        shutil.copy(repository / name, package)
    for name in top_folders(repository):
        shutil.copytree(repository / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    for number, (folder, line, _) in enumerate(SPOILT):
        (package / folder / f"spoilt_{number}.py").write_text(line + "\n")
    result = lint_imports(repository, tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = " ".join(result.stdout.partition("Broken contracts")[2].split())
    names = configparser.ConfigParser()
    names.read(repository / "setup.cfg")
    rules = [names[section]["name"] for section in names.sections() if section.startswith("importlinter:contract:")]
    starts = sorted((broken.index(rule), rule) for rule in rules if rule in broken)
    ends = [start for start, _ in starts[1:]] + [len(broken)]
    found = {rule: broken[start:end] for (start, rule), end in zip(starts, ends, strict=True)}
    for number, (folder, line, rule) in enumerate(SPOILT):
        own = [text for name, text in found.items() if rule in name]
        assert own, f"{line!r} in {folder} breaks no rule called {rule!r}"
        assert f"edgeall.{folder}.spoilt_{number} " in own[0], f"{line!r} in {folder} is not reported under {rule!r}"


def test_imports_inside_the_package_are_relative(repository: Path) -> None:
    """A tool that reads a checkout, whatever its folder is called, then resolves them."""
    own = ("from edgeall", "import edgeall")
    for folder in top_folders(repository):
        for file in sorted((repository / folder).rglob("*.py")) if folder != "benchmarks" else ():
            absolute = [line for line in file.read_text().splitlines() if line.lstrip().startswith(own)]
            assert absolute == [], file


def test_no_bare_import_of_our_folders(repository: Path) -> None:
    result = ruff(repository, "--select", "TID251", ".")
    assert result.returncode == 0, result.stdout


def test_the_ban_on_bare_names_covers_every_folder(repository: Path) -> None:
    names = ["cli", *top_folders(repository)]
    forms = ("import {}", "from {} import anything", "import {}.anything")
    lines = [form.format(name) for name in names for form in forms]
    options = ("--select", "TID251", "--output-format", "json", "--stdin-filename", "train/x.py", "-")
    found = json.loads(ruff(repository, *options, text="\n".join(lines) + "\n").stdout)
    banned = {fault["location"]["row"] for fault in found if fault["code"] == "TID251"}
    assert [line for number, line in enumerate(lines, 1) if number not in banned] == []
    assert set(names) >= {"cli", "edge_runtime", "models", "optimize", "train", "benchmarks"}


def test_only_init_and_cli_at_the_root(repository: Path) -> None:
    assert sorted(path.name for path in repository.glob("*.py")) == ["__init__.py", "__main__.py", "api.py", "cli.py"]


DEVICE = {"numpy", "PIL", "cryptography", ".edge_runtime", ".console", *sys.stdlib_module_names}
"""All that edge_runtime may import, late imports included; the interpreter comes by `importlib`, see below. The device
install has no cryptography: it is asked for where a signature is."""
RIG = DEVICE | {
    ".",
    ".rig",
    ".browser",
    "fastapi",
    "pydantic",
    "starlette",
    "uvicorn",
    "anyio",
    "jinja2",
    "argon2",
    "markupsafe",
    "cv2",
    "skimage",
    "picamera2",
    "fpdf",
    "tifffile",
    "uharfbuzz",
    "segno",
}
"""What rig/ may import besides: its extra, what drives a camera, and the app that it serves. "." is the package itself,
for its version."""
HARMLESS = ("importlib.metadata", "import importlib.util", "importlib.util.find_spec")
"""What looks for a package and imports nothing of it."""


def imported(source: str, *folders: str) -> set[str]:
    """The top-level names of every import in ``source``, wherever it stands; of our own the folder, behind a dot.

    Args:
        source: of a module.
        folders: those that it lies in, from the package down.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = folders[: len(folders) - node.level + 1]
            inside = [*above, *(node.module.split(".") if node.module else [])]
            names |= {f".{inside[0]}"} if inside else {f".{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            names.add(node.module.split(".")[0])
    return {"." if name.startswith(".__") else name for name in names}


@pytest.mark.parametrize(("folder", "allowed"), [("edge_runtime", DEVICE), ("rig", RIG)])
def test_the_device_imports_nothing_but_what_is_listed(repository: Path, folder: str, allowed: set[str]) -> None:
    files = sorted((repository / folder).rglob("*.py"))
    assert len(files) > 10
    for file in files:
        # The extras cells and rig bring OpenCV; a device without them imports nothing of vision that needs it.
        more = {"cv2"} if file.parent.name == "vision" else set()
        assert imported(file.read_text(), *file.relative_to(repository).parent.parts) <= allowed | more, file


def test_a_name_beyond_the_list_is_seen() -> None:
    source = "import numpy.typing\nfrom os import path\n\ndef late():\n    {}\n"
    place = ("edge_runtime", "tools")
    assert imported(source.format("from ..errors import DataError"), *place) == {"numpy", "os", ".edge_runtime"}
    for line, name in (
        ("import requests.adapters", "requests"),
        ("from rich.table import Table", "rich"),
        ("from ... import train", ".train"),
        ("from ...models.registry import get", ".models"),
        ("from ...models import registry", ".models"),
        ("import edgeall", "edgeall"),
    ):
        assert imported(source.format(line), *place) - DEVICE == {name}


def without(text: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text


def test_the_only_dynamic_import_of_the_device_is_the_interpreter(repository: Path) -> None:
    users = [
        file.name
        for file in sorted((repository / "edge_runtime").rglob("*.py"))
        if "importlib" in without(file.read_text(), HARMLESS) or "__import__" in file.read_text()
    ]
    assert users == ["interpreter.py"]
    assert interpreter.RUNTIMES == ("ai_edge_litert", "tflite_runtime")
    tree = ast.parse((repository / "edge_runtime" / "interpreter.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "importlib.import_module"]
    assert {ast.unparse(call.args[0]) for call in calls} == {"f'{package}.interpreter'"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["run", "--help"], ["trian"]])
def test_nothing_heavy_is_imported_until_a_command_runs(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from edgeall.cli import main\n"
        "main(sys.argv[1:])\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    loaded = result.stdout.rpartition("LOADED")[2].split()
    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_list_of_backbones_comes_without_tensorflow() -> None:
    script = "import sys\nfrom edgeall.cli import main\nassert main(['models']) == 0\nprint('LOADED', *sys.modules)\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    listed, _, loaded = result.stdout.rpartition("LOADED")
    assert "nasnet_large" in listed
    assert not {"tensorflow", "tf_keras", "sklearn"} & set(loaded.split())
