"""The import rules of setup.cfg, the ban on bare names, and how little a start loads."""

from __future__ import annotations

import ast
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


@pytest.fixture
def copied_package(repository: Path, tmp_path: Path) -> Path:
    """A folder that holds a copy of our package, to be spoilt."""
    package = tmp_path / "edgeall"
    package.mkdir()
    for name in ("__init__.py", "cli.py"):
        shutil.copy(repository / name, package)
    for name in top_folders(repository):
        shutil.copytree(repository / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_import_rules_hold(repository: Path, tmp_path: Path) -> None:
    result = lint_imports(repository, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("edge_runtime", "import edgeall.train", "imports run down"),
        ("edge_runtime", "import edgeall.models.registry", "imports run down"),
        ("models", "import edgeall.edge_runtime.images", "imports run down"),
        ("train", "import edgeall.optimize", "imports run down"),
        ("train", "import edgeall.deploy.target", "imports run down"),
        ("deploy", "import edgeall.optimize", "imports run down"),
        ("deploy", "import edgeall.models.registry", "deploying knows nothing of training"),
        ("edge_runtime", "import sklearn", "the device needs"),
        ("edge_runtime", "def late():\n    import tensorflow", "the device needs"),
        ("train", "import tf_keras", "only door to"),
        ("benchmarks", "import edgeall.train", "benchmarks import edge_runtime alone"),
        ("edge_runtime", "import edgeall.benchmarks", "doesn't import its benchmarks"),
        ("edge_runtime", "import fastapi", "the device needs"),
        ("edge_runtime", "import edgeall.edge_runtime.rig.quality", "knows nothing of it"),
        ("edge_runtime/rig", "import edgeall.train", "imports run down"),
        ("edge_runtime/rig", "import sklearn", "the device needs"),
    ],
)
def test_import_rules_fire(repository: Path, copied_package: Path, module: str, line: str, rule: str) -> None:
    (copied_package / "edgeall" / module / "spoilt.py").write_text(line + "\n")
    result = lint_imports(repository, copied_package)
    broken = " ".join(result.stdout.partition("Broken contracts")[2].split())
    assert result.returncode == 1, result.stdout + result.stderr
    assert rule in broken, result.stdout


def test_no_bare_import_of_our_folders(repository: Path) -> None:
    result = ruff(repository, "--select", "TID251", ".")
    assert result.returncode == 0, result.stdout


def test_the_ban_on_bare_names_covers_every_folder(repository: Path) -> None:
    names = ["cli", *top_folders(repository)]
    for name in names:
        for statement in (f"import {name}", f"from {name} import anything", f"import {name}.anything"):
            result = ruff(
                repository, "--select", "TID251", "--stdin-filename", "train/x.py", "-", text=statement + "\n"
            )
            assert "TID251" in result.stdout, statement
    assert set(names) >= {"cli", "edge_runtime", "models", "optimize", "train", "benchmarks"}


def test_only_init_and_cli_at_the_root(repository: Path) -> None:
    assert sorted(path.name for path in repository.glob("*.py")) == ["__init__.py", "cli.py"]


DEVICE = {"numpy", "PIL", "cryptography", "edgeall.edge_runtime", *sys.stdlib_module_names}
"""All that edge_runtime may import, late imports included; the interpreter comes by `importlib`, see below. The device
install has no cryptography: it is asked for where a signature is."""
RIG = DEVICE | {
    "edgeall.__version__",
    "fastapi",
    "starlette",
    "uvicorn",
    "anyio",
    "jinja2",
    "argon2",
    "cv2",
    "skimage",
    "picamera2",
}
"""What rig/ may import besides: its extra, and what drives a camera."""
HARMLESS = ("importlib.metadata", "import importlib.util", "importlib.util.find_spec")
"""What looks for a package and imports nothing of it."""


def imported(source: str) -> set[str]:
    """The top-level names of every import in ``source``, wherever it stands; of edgeall's the folder as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "edgeall" else {module}
    return {".".join(name.split(".")[: 2 if name.startswith("edgeall") else 1]) for name in names}


def test_the_device_imports_nothing_but_what_is_listed(repository: Path) -> None:
    files = sorted((repository / "edge_runtime").rglob("*.py"))
    assert len(files) > 10
    for file in files:
        assert imported(file.read_text()) <= (RIG if file.parent.name == "rig" else DEVICE), file


def test_a_name_beyond_the_list_is_seen() -> None:
    source = "import numpy.typing\nfrom os import path\n\ndef late():\n    {}\n"
    assert imported(source.format("pass")) == {"numpy", "os"}
    for line, name in (
        ("import requests.adapters", "requests"),
        ("from rich.table import Table", "rich"),
        ("from edgeall import train", "edgeall.train"),
        ("from edgeall.models.registry import get", "edgeall.models"),
        ("import edgeall", "edgeall"),
    ):
        assert imported(source.format(line)) - DEVICE == {name}
    assert imported("from . import errors") - DEVICE


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
