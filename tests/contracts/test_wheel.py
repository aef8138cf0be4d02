"""The wheel holds the product and nothing else, and its install without extras is a working device."""

from __future__ import annotations

import json
import shutil
import sys
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
from fixtures_models import grainy_image
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from venvs import make_venv, run

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify_one

NOT_SHIPPED = {"benchmarks", "tests"}
NO_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
"""A leftover build/lib would end up in the wheel."""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(repository, source, ignore=NO_SOURCE)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", source.parent, source])
    (path,) = source.parent.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=["linked", pytest.param("installed", marks=pytest.mark.long)])
def device(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel, without extras: what it requires is linked, or installed by pip."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    if request.param == "installed":
        return make_venv(folder, [str(wheel)]).parent
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in _required(_requirements(wheel)):
        for link, target in _top_level(name):
            if not (site / link).exists():  # a namespace that distributions share
                (site / link).symlink_to(target)
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--disable-pip-version-check", wheel])
    return folder / "bin"


def _requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def _required(wanted: list[Requirement]) -> set[str]:
    """Names of the distributions that pip installs for requirements without extras, as they are installed here."""
    names: set[str] = set()
    while wanted:
        each = wanted.pop()
        name = canonicalize_name(each.name)
        if name not in names and (each.marker is None or each.marker.evaluate({"extra": ""})):
            names.add(name)
            wanted += map(Requirement, distribution(name).requires or [])
    return names


def _top_level(name: str) -> Iterator[tuple[str, Path]]:
    """Name and path of each folder and module of a distribution of this environment."""
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
        yield top, Path(str(installed.locate_file(top)))


def test_wheel_holds_every_package_and_nothing_else(repository: Path, wheel: Path) -> None:
    tops = {path.parent for path in repository.glob("*/__init__.py")} - {repository / name for name in NOT_SHIPPED}
    packages = {path.parent for top in tops for path in top.rglob("__init__.py")}
    shipped = ("*.py", "*.tflite", "templates/*", "static/*", "fonts/*", "locale/*/LC_MESSAGES/*.mo")
    expected = {path for package in packages for pattern in shipped for path in package.glob(pattern)}
    expected |= {repository / name for name in ("__init__.py", "__main__.py", "api.py", "cli.py", "py.typed")}
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(f"edgeall/{path.relative_to(repository).as_posix()}" for path in expected)


@pytest.mark.parametrize(
    ("machine", "interpreter"),
    [
        ("x86_64", "ai-edge-litert"),
        ("aarch64", "ai-edge-litert"),
        ("armv6l", "tflite-runtime"),
        ("armv7l", "tflite-runtime"),
        ("armv8l", "tflite-runtime"),  # a 32-bit program under a 64-bit kernel
    ],
)
def test_each_machine_gets_one_interpreter_and_one_numpy(wheel: Path, machine: str, interpreter: str) -> None:
    found = _requirements(wheel)
    here = {"platform_machine": machine, "python_version": "3.11", "extra": ""}
    taken = [each for each in found if each.marker is None or each.marker.evaluate(here)]
    names = [each.name for each in taken]
    assert [name for name in names if name in ("ai-edge-litert", "tflite-runtime")] == [interpreter]
    (numpy,) = [each for each in taken if each.name == "numpy"]
    assert ("2.0" in numpy.specifier) == (interpreter == "ai-edge-litert")


def test_device_install_has_no_training_stack(device: Path) -> None:
    program = "from importlib.metadata import distributions\nprint(*(one.name.lower() for one in distributions()))"
    installed = set(run([device / "python", "-c", program]).stdout.split())
    assert {"edgeall", "ai-edge-litert"} <= installed
    assert not installed & {"tensorflow", "tf-keras", "tf_keras", "keras", "scikit-learn", "matplotlib", "scipy"}
    run([device / "python", "-c", "import tensorflow"], status=1)


def test_device_install_shows_help(device: Path, tmp_path: Path) -> None:
    assert "Classify images" in run([device / "edgeall", "--help"], cwd=tmp_path).stdout


def test_device_install_classifies(device: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    grainy_image(0).save(tmp_path / "image.png")
    lines = run([device / "edgeall", "run", tiny_bundle, "image.png", "--json"], cwd=tmp_path).stdout.splitlines()
    (prediction,) = map(json.loads, lines)
    here = classify_one(Classifier.open(tiny_bundle), str(tmp_path / "image.png"))
    assert prediction["label"] == here.label
    assert prediction["probabilities"] == pytest.approx(here.probabilities, abs=1e-7)


def test_device_install_inspects(device: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    facts = json.loads(run([device / "edgeall", "inspect", tiny_bundle, "--json"], cwd=tmp_path).stdout)
    assert (facts["digest_ok"], facts["golden_ok"]) == (True, True)


def test_device_install_names_the_extra_that_training_needs(device: Path, tmp_path: Path) -> None:
    result = run([device / "edgeall", "train", "--data", "x", "--out", "y"], cwd=tmp_path, status=1)
    assert 'pip install ".[train]"' in result.stderr
    assert "Traceback" not in result.stderr
