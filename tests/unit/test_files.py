"""Atomic writes, output locks, leftovers of killed processes, and file names."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeall.edge_runtime import cache
from edgeall.edge_runtime.errors import NoSpaceError, UsageError
from edgeall.edge_runtime.files import file_name, is_empty, output_lock
from edgeall.edge_runtime.tools import atomic
from edgeall.edge_runtime.tools.atomic import atomic_write, scratch, sweep, sync_tree, write_text


@contextlib.contextmanager
def other(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process that runs ``code``, prints a line and waits until it is killed."""
    program = (
        "import time\nfrom pathlib import Path\n"
        "from edgeall.edge_runtime.files import *\nfrom edgeall.edge_runtime.tools.atomic import *\n"
        f"{code}\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def writing(path: Path) -> str:
    return (
        f"with atomic_write(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_bytes(bytes(1000)); print('ready', flush=True); time.sleep(600)"
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_text(path, "one")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text(f"two {1 / 0}")
    assert path.read_text() == "one"
    write_text(path, "three")
    assert path.read_text() == "three"
    assert os.listdir(path.parent) == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_file_and_folder_reach_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to ask which file is synced")

    def noted_fsync(file: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def noted_replace(old: Path, new: Path) -> None:
        done.append(("replace", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    path = tmp_path / "x.json"
    write_text(path, "one")
    assert [kind for kind, _ in done] == ["sync", "replace", "sync"]
    assert done[0][1].startswith(str(tmp_path / ".x-"))
    assert done[1:] == [("replace", str(path)), ("sync", str(tmp_path))]
    done.clear()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "y").write_text("two")
    sync_tree(tmp_path)
    assert {name for _, name in done} == {str(tmp_path), str(path), str(tmp_path / "sub"), str(tmp_path / "sub" / "y")}


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "pixels-0123.npy"
    with other(writing(path)) as process:
        assert sweep(tmp_path) == 0
        (temporary,) = tmp_path.iterdir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert temporary.stat().st_size == 1000
        assert sweep(tmp_path) == 1000
    assert is_empty(tmp_path)


def test_the_next_one_to_write_the_same_file_removes_what_was_left(tmp_path: Path) -> None:
    with other(writing(tmp_path / "finetune.npz")) as process:
        process.kill()
        process.wait()
    assert len(os.listdir(tmp_path)) == 1
    write_text(tmp_path / "finetune.npz", "whole")
    assert os.listdir(tmp_path) == ["finetune.npz"]


def test_the_number_of_a_process_that_runs_now_saves_no_older_file(tmp_path: Path) -> None:
    """A container reuses the same process numbers after each start."""
    own = os.getpid()
    older, newer = tmp_path / f".pixels-00-{own}.npy", tmp_path / f".pixels-01-{own}.npy"
    for path in (older, newer):
        path.write_bytes(b"left by an older version, without a lock")
    os.utime(older, (1e9, 1e9))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    gone = tmp_path / f".pixels-02-{int(dead.stdout)}.npy"
    gone.write_bytes(b"x")
    others = [tmp_path / name for name in ("pixels-03-1.npy", ".hidden", "layouts.json", ".mine-99.npy")]
    for path in others:
        path.write_bytes(b"x")
    sweep(tmp_path)
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc that says since when a process runs")
    assert set(tmp_path.iterdir()) == {newer, *others}


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    code = f"with output_lock(Path({str(out)!r}), 'train'):\n    print('ready', flush=True); time.sleep(600)"
    with other(code) as process:
        said = rf"in use by `edgeall train` \(process {process.pid} on "
        with pytest.raises(UsageError, match=said) as error, output_lock(out, "train"):
            pass
        assert error.value.hint
        process.kill()
        process.wait()
        with output_lock(out, "prune"):  # a dead process holds no lock
            assert not out.exists()
    assert os.listdir(out.parent) == []  # created by the killed process


def test_a_folder_of_which_the_parent_may_not_be_written_is_held_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a volume mounted at /out."""
    opened = os.open

    def refuse(path: object, *args: object, **kwargs: object) -> int:
        if Path(str(path)).parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="can't be written"), output_lock(tmp_path / "absent", "cells"):
        pass
    (tmp_path / "out").mkdir()
    with output_lock(tmp_path / "out", "cells"):
        assert is_empty(tmp_path / "out")
        with pytest.raises(UsageError, match="in use"), output_lock(tmp_path / "out", "cells"):
            pass
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["a" * 250, "ä" * 125, "日" * 83 + "x", os.fsdecode(b"\xff" * 250)])
def test_derived_names_fit_and_differ(tmp_path: Path, name: str) -> None:
    for derived in (file_name("0001-", name, "-12.png"), file_name(".", name, ".lock")):
        assert len(os.fsencode(derived)) <= 255
        (tmp_path / derived).write_bytes(b"x")
        if os.fsdecode(os.fsencode(name)).isprintable():
            assert derived.encode("utf-8")  # no character is split
    assert file_name("1-", name + "a", ".png") != file_name("1-", name + "b", ".png")
    assert file_name("1-", "short", ".png") == "1-short.png"
    write_text(tmp_path / (name[:-6] if name.isascii() else name), "x")  # its temporary file fits too


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(NoSpaceError, match=rf"^{tmp_path}: no space is left for x.npz") as error, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.hint
    assert os.listdir(tmp_path) == []
    with pytest.raises(NoSpaceError, match="temporary files") as error, scratch() as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))
    assert "TMPDIR" in error.value.hint
    with pytest.raises(OSError, match="elsewhere"), scratch():  # not a problem of the temporary folder
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/x")


def test_without_a_home_things_are_kept_in_a_folder_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache._among_temporary.cache_clear()
    try:
        folder = cache.cache_dir()
        assert folder == tmp_path / f"edgeall-{os.getuid()}"
        assert folder.stat().st_mode & 0o777 == 0o700
        cache._among_temporary.cache_clear()
        folder.chmod(0o777)  # another user could have put models there
        assert cache.cache_dir() != folder
        assert cache.cache_dir() == cache.cache_dir()
    finally:
        shutil.rmtree(cache._among_temporary(), ignore_errors=True)
        cache._among_temporary.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.cache")  # a settings file does not expand it
    assert "~" not in str(cache.cache_dir())
    cache._among_temporary.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_since_when_a_process_runs() -> None:
    assert atomic._runs_since(os.getpid(), time.time())
    assert not atomic._runs_since(os.getpid(), time.time() - 365 * 86400)
    assert not atomic._runs_since(2**22 + 1, time.time())
