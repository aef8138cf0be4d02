"""The systemd unit, and the notifications to systemd, received by a socket of the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from venvs import HANG_S

from edgeall.edge_runtime.errors import EdgeallError, UsageError
from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.rig import service

ARGUMENTS = ["rig", "/opt/edgeall/model.tflite", "--listen", "0.0.0.0:8080"]


@pytest.fixture(params=["path", "abstract"])
def listener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """Systemd's socket, with both kinds of address."""
    abstract = request.param == "abstract"
    name = f"edgeall-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0{name}" if abstract else name)
        channel.settimeout(HANG_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        yield channel


def test_a_status_is_sent_to_systemd(listener: socket.socket) -> None:
    assert service.notify("STATUS=judging")
    assert listener.recv(100) == b"STATUS=judging"


def test_without_systemd_no_status_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    assert not service.notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [("30000000", "own", 30.0), ("500000", "", 0.5), ("30000000", "1", None), ("0", "", None), ("soon", "", None)],
)
def test_the_interval_of_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, process: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if process == "own" else process)
    assert service.watchdog_s() == seconds


def test_ready_then_alive_then_stopping(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    watchdog = service.Watchdog(lambda: True)
    watchdog.start()
    assert [listener.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    watchdog.stop()
    said = [listener.recv(100)]
    while said[-1] == b"WATCHDOG=1":
        said.append(listener.recv(100))
    assert said[-1] == b"STOPPING=1"


def test_a_rig_that_hangs_falls_silent_and_can_still_be_stopped(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    asked, release = threading.Event(), threading.Event()

    def hangs() -> bool:
        asked.set()
        return release.wait(HANG_S)

    dead, hung = service.Watchdog(lambda: False), service.Watchdog(hangs)
    for watchdog in (dead, hung):
        watchdog.start()
        assert listener.recv(100) == b"READY=1"
    assert asked.wait(HANG_S)
    listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        listener.recv(100)
    release.set()
    dead.stop()
    hung.stop()


def test_without_a_watchdog_nothing_runs(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    watchdog = service.Watchdog(lambda: pytest.fail("asked"))
    watchdog.start()
    watchdog.stop()
    assert [listener.recv(100), listener.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_the_systemd_unit_has_the_required_lines() -> None:
    lines = service.unit_text(ARGUMENTS).splitlines()
    for line in (
        "Type=notify",
        f"WatchdogSec={service.WATCHDOG_S}",
        "Restart=on-failure",
        "DynamicUser=yes",
        "StateDirectory=edgeall-rig",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"ExecStart={service.program()} rig /opt/edgeall/model.tflite --listen 0.0.0.0:8080",
    ):
        assert line in lines
    assert any(line.startswith("MemoryMax=") for line in lines)
    assert RESEARCH_USE in service.unit_text(ARGUMENTS)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/opt/a b.tflite", '"/opt/a b.tflite"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "it"', '"say \\"it\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
        (";", '";"'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(word: str, written: str) -> None:
    assert service.unit_text(["rig", word]).count(f" rig {written}\n") == 1


def test_a_line_break_can_not_get_into_a_unit() -> None:
    with pytest.raises(UsageError, match="control character"):
        service.unit_text(["rig", "model\nExecStartPre=/bin/evil"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "program", lambda: Path("/usr/bin/env"))
    unit = tmp_path / "edgeall-rig.service"
    unit.write_text(service.unit_text([*ARGUMENTS, "a b", "100%"]))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "edgeall-rig.service" not in done.stderr, done.stderr  # neither an unknown key nor an invalid value
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSec=often "))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "edgeall-rig.service" in done.stderr, "systemd-analyze would not have said so"


def test_install_writes_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "check_reachable", lambda file: None)
    ran: list[list[str]] = []

    def systemctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(service.subprocess, "run", systemctl)
    monkeypatch.setattr(service.Path, "is_dir", lambda self: True)
    unit = tmp_path / "edgeall-rig.service"
    commands = service.install(ARGUMENTS, unit=unit)
    assert unit.read_text() == service.unit_text(ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == [unit.name]
    assert ran == [["systemctl", "daemon-reload"]]
    assert commands[0] == "systemctl enable --now edgeall-rig"


def test_install_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.os, "geteuid", lambda: 1000)
    with pytest.raises(EdgeallError, match="requires root") as caught:
        service.install(ARGUMENTS, unit=tmp_path / "unit")
    assert "sudo" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_install_names_what_the_service_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "program", lambda: Path(sys.executable))
    home = tmp_path / "home"
    home.mkdir()
    model = home / "model.tflite"
    model.write_bytes(b"")
    for folder in (*tmp_path.parents, tmp_path, home):  # pytest's folders have no permission for others
        monkeypatch.setitem(_MODES, folder, 0o755)
    monkeypatch.setattr(service.Path, "stat", _stat)
    for file in (*Path(sys.executable).absolute().parents, Path(sys.executable).absolute(), model):
        monkeypatch.setitem(_MODES, file, 0o755)
    service.check_reachable(model)
    monkeypatch.setitem(_MODES, home, 0o700)
    with pytest.raises(EdgeallError, match=r"cannot read it, .*home has no permission for others") as caught:
        service.install(ARGUMENTS, [model], unit=tmp_path / "unit")
    assert f"chmod o+x {home}" in caught.value.hint
    monkeypatch.setitem(_MODES, home, 0o755)
    monkeypatch.setitem(_MODES, model, 0o600)
    with pytest.raises(EdgeallError) as caught:
        service.install(ARGUMENTS, [model], unit=tmp_path / "unit")
    assert f"chmod o+r {model}" in caught.value.hint
    with pytest.raises(EdgeallError, match="No such file"):
        service.install(ARGUMENTS, [tmp_path / "none"], unit=tmp_path / "unit")


_MODES: dict[Path, int] = {}
_real_stat = Path.stat


def _stat(path: Path, **options: bool) -> os.stat_result:
    found = list(_real_stat(path, **options))  # an error stays one
    found[0] = _MODES.get(path, found[0])
    return os.stat_result(found)


def test_a_unit_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "check_reachable", lambda file: None)
    with pytest.raises(EdgeallError, match="cannot be written") as caught:
        service.install(ARGUMENTS, unit=tmp_path / "no" / "such" / "unit")
    assert "systemd" in caught.value.hint
