"""Files for a device: content of the wheel, requirements, reproducible archives."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgeall.deploy import package
from edgeall.deploy.bench import pack_images
from edgeall.deploy.environment import pack
from edgeall.edge_runtime.errors import DataError, EdgeallError, UsageError

METADATA = """\
Metadata-Version: 2.1
Name: edgeall
Version: 0.1.0
Requires-Dist: click>=8.2
Requires-Dist: numpy>=1.23.2; platform_machine not in "armv6l armv7l armv8l"
Requires-Dist: numpy<2,>=1.23.2; platform_machine in "armv6l armv7l armv8l"
Requires-Dist: tomli>=2; python_version < "3.11"
Requires-Dist: ai-edge-litert>=2.1; platform_machine not in "armv6l armv7l armv8l"
Requires-Dist: tflite-runtime==2.14.0; platform_machine in "armv6l armv7l armv8l"
Requires-Dist: tensorflow==2.21.*; extra == "train"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small source tree with the same build."""
    root = tmp_path / "checkout"
    (root / "deploy").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "setup.cfg").write_text(
        "[metadata]\nname = edgeall\nversion = 9.0\n[options]\npackage_dir =\n    edgeall = .\n"
        "packages =\n    edgeall\n    edgeall.deploy\n"
    )
    (root / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "nothing"\n')
    for name in ("__init__.py", "cli.py", "README.md", "deploy/__init__.py", "deploy/ssh.py", "tests/test_x.py"):
        (root / name).write_text("")
    return root


def test_the_sources_are_all_that_the_wheel_is_made_of(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in package._sources(repository)}
    assert {"cli.py", "setup.cfg", "edge_runtime/bundle.py", "deploy/on_device.py"} <= files
    assert {path for path in files if path.endswith(".html")}, "no templates"
    assert not {path for path in files if path.startswith(("tests", "benchmarks", ".venv", "build"))}


def test_a_wheel_is_built_once_for_each_state_of_the_source(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(source: Path, files: list[Path], folder: Path) -> Path:
        folder.mkdir(parents=True)
        built.append(folder)
        path = folder / "edgeall-9.0-py3-none-any.whl"
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(package, "_build", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkout.parent / "cache"))
    first = package.wheel(checkout=checkout)
    (checkout / "tests" / "test_x.py").write_text("another test")
    (checkout / "deploy" / "__pycache__").mkdir()
    (checkout / "deploy" / "__pycache__" / "ssh.pyc").write_text("leftover")
    assert package.wheel(checkout=checkout) == first
    (checkout / "deploy" / "ssh.py").write_text("changed")
    second = package.wheel(checkout=checkout)
    (checkout / "deploy" / "ssh.py").rename(checkout / "deploy" / "renamed.py")
    assert len({first, second, package.wheel(checkout=checkout)}) == len(built) == 3


def test_a_build_that_fails_is_reported(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkout.parent / "cache"))
    with pytest.raises(EdgeallError, match="can't be built on this host") as caught:
        package.wheel(checkout=checkout)
    assert "--wheel FILE" in caught.value.hint
    assert list((checkout.parent / "cache").rglob("*.whl")) == []


def test_only_an_edgeall_wheel_is_taken(tmp_path: Path, checkout: Path) -> None:
    other = tmp_path / "numpy-2.0-py3-none-any.whl"
    other.write_bytes(b"")
    for given in (other, tmp_path / "edgeall-1.0-py3-none-any.whl"):
        with pytest.raises(UsageError, match="not a wheel of edgeall"):
            package.wheel(given)
    (checkout / "setup.cfg").unlink()
    with pytest.raises(UsageError, match="was installed from a wheel"):
        package.wheel(checkout=checkout)


def test_environments_are_named_by_version_and_content(tmp_path: Path) -> None:
    wheel = tmp_path / "edgeall-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"one")
    first = package.environment_name(wheel)
    wheel.write_bytes(b"two")
    assert first.startswith("0.1.0-")
    assert first != package.environment_name(wheel)


@pytest.mark.parametrize(
    ("machine", "python", "expected"),
    [
        ("aarch64", "3.11", {"click>=8.2", "numpy>=1.23.2", "ai-edge-litert>=2.1"}),
        ("aarch64", "3.10", {"click>=8.2", "numpy>=1.23.2", "tomli>=2", "ai-edge-litert>=2.1"}),
        ("armv7l", "3.11", {"click>=8.2", "numpy<2,>=1.23.2", "tflite-runtime==2.14.0"}),
    ],
)
def test_requirements_are_those_of_the_device_not_of_this_machine(
    tmp_path: Path, machine: str, python: str, expected: set[str]
) -> None:
    wheel = tmp_path / "edgeall-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("edgeall-0.1.0.dist-info/METADATA", METADATA)
    found = package.requirements(wheel, {"platform_machine": machine, "python_version": python})
    assert set(found) == expected


def test_an_archive_of_the_same_files_is_the_same_bytes(tmp_path: Path) -> None:
    """So that an interrupted copy can be resumed."""
    archives = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("b.whl", "a.whl"):
            (folder / file).write_text(file)
        archives.append(folder / "out.tar")
        pack(sorted(folder.glob("*.whl")), folder, archives[-1])
        shutil.copystat(tmp_path, folder)
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_images_keep_the_folders_that_may_be_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smears/Early/1.png", "smears/Pre/2.png", "smears/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    inside = pack_images(tmp_path / "smears" / "Early", tmp_path / "out.tar")
    assert inside == "smears/Early"
    assert names(tmp_path / "out.tar") == ["smears/Early/1.png"]
    monkeypatch.chdir(tmp_path)
    inside = pack_images(Path("smears"), tmp_path / "out.tar")
    assert inside == f"{tmp_path.name}/smears"
    assert names(tmp_path / "out.tar") == [f"{tmp_path.name}/smears/{name}" for name in ("Early/1.png", "Pre/2.png")]
    with pytest.raises(DataError):
        pack_images(tmp_path / "nowhere", tmp_path / "out.tar")


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()
