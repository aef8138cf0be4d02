"""Cached arrays: damaged files are made again, and a full disk gives a one-line error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, NoSpaceError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.train.data import cache
from edgeall.train.data.split import SplitEntry

QUIET = Progress(quiet=True)
SPEC = InputSpec(height=32, width=32, mean=127.5, std=127.5)


@pytest.fixture
def entries(tmp_path: Path) -> list[SplitEntry]:
    rng, found = np.random.default_rng(0), []
    for index in range(9):
        Image.fromarray(rng.integers(1, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        found.append(SplitEntry(f"{index}.png", "A", None, f"{index:064x}", "train"))
    return found


def at(share: float, content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(int(share * path.stat().st_size))
            file.write(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 1000),
        lambda path: os.truncate(path, 20_000),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128)),
        lambda path: np.save(path, np.load(path)),  # of a version without checksums
        lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
        at(0.5, bytes(4096)),
        at(0.5, b"\xff"),
        at(0.0, b"\x93NUMPY\x01\x00\xff\xff"),
    ],
    ids=[
        "empty",
        "garbage",
        "cut",
        "a byte short",
        "zeros",
        "black",
        "old",
        "pickle",
        "zeroed page",
        "a byte",
        "header",
    ],
)
def test_a_damaged_cache_is_made_anew(
    entries: list[SplitEntry], tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    whole = np.array(cache.pixels(tmp_path, entries, SPEC, folder, QUIET))
    assert whole.min() > 0
    assert whole.shape == (9, 32, 32, 3)
    (path,) = folder.iterdir()
    damage(path)
    again = cache.pixels(tmp_path, entries, SPEC, folder, Progress())
    np.testing.assert_array_equal(again, whole)
    assert not again.flags.writeable
    assert f"{path}: damaged; it is made again" in capsys.readouterr().err
    assert list(folder.iterdir()) == [path]


def test_a_sound_cache_is_read_and_not_made(entries: list[SplitEntry], tmp_path: Path) -> None:
    whole = cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET)
    for entry in entries:
        (tmp_path / entry.path).unlink()
    cache._checked.clear()
    np.testing.assert_array_equal(cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET), whole)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 1 << 20), (3, (1 << 20) + 7)])
def test_an_array_is_what_it_was(tmp_path: Path, shape: tuple[int, int]) -> None:
    array = np.random.default_rng(1).random(shape, np.float32)
    cache.save(tmp_path / "x.npy", shape, np.float32, list(array))
    found = cache.load(tmp_path / "x.npy", shape, np.float32, QUIET)
    assert found is not None
    np.testing.assert_array_equal(found, array)
    assert cache.load(tmp_path / "x.npy", (*shape, 1), np.float32, QUIET) is None


def test_space_is_asked_for_before_anything_is_decoded(
    entries: list[SplitEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    monkeypatch.setattr(cache, "load_input", lambda *_: pytest.fail("decoded"))
    with pytest.raises(NoSpaceError, match=r"needs 0\.0 MB, 0\.0 MB are free") as error:
        cache.pixels(tmp_path, entries, SPEC, tmp_path / "cache", QUIET)
    assert "--cache-dir" in error.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_can_not_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="can't be kept there") as error:
        cache.ready(tmp_path / "file" / "below")
    assert "--cache-dir" in error.value.hint
    assert cache.ready(tmp_path / "new" / "cache").is_dir()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk: root on Linux")
def test_a_disk_that_gets_full_is_one_line(entries: list[SplitEntry], tmp_path: Path) -> None:
    """A full disk under a memory map ends the process with SIGBUS."""
    program = f"""
import json, os, shutil
from pathlib import Path
from edgeall.train.data import cache
from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import NoSpaceError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.train.data.split import SplitEntry
root, small = Path({str(tmp_path)!r}), Path({str(tmp_path / "small")!r})
entries = [SplitEntry(f"{{i}}.png", "A", None, "0", "train") for i in range(9)]
said = []
for free in (shutil.disk_usage, lambda _: type("Usage", (), {{"free": 1 << 40}})):  # another process fills it meanwhile
    shutil.disk_usage = free
    try:
        spec = InputSpec(height=128, width=128, mean=127.5, std=127.5)
        cache.pixels(root, entries, spec, cache.ready(small), Progress(quiet=True))
    except NoSpaceError as error:
        said.append([error.message, error.hint, os.listdir(small)])
print(json.dumps(said))
"""
    (tmp_path / "small").mkdir()
    (tmp_path / "program.py").write_text(program)
    mount = f"mount -t tmpfs -o size=200k none {tmp_path / 'small'} && exec {sys.executable} {tmp_path / 'program.py'}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for message, hint, left in json.loads(done.stdout):
        assert message.startswith(f"{tmp_path / 'small'}: ")
        assert "--cache-dir" in hint
        assert left == []
    assert len(json.loads(done.stdout)) == 2
