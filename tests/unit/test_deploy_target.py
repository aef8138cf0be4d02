"""Targets and the list of devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import leaves

from edgeall import cli
from edgeall.deploy.command import given_options
from edgeall.deploy.devices import add_device, find_target, list_file, read_devices, remove_device
from edgeall.deploy.target import AdbTarget, SshTarget, parse_target
from edgeall.edge_runtime.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def _own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ssh://pi@raspberrypi.local", SshTarget("raspberrypi.local", "pi")),
        ("ssh://10.0.0.7:2222", SshTarget("10.0.0.7", None, 2222)),
        ("ssh://pi@[fe80::1]:22", SshTarget("fe80::1", "pi", 22)),
        ("adb:R58M123ABC", AdbTarget("R58M123ABC")),
        ("adb:192.168.1.5:5555", AdbTarget("192.168.1.5:5555")),
    ],
)
def test_targets_are_read_and_written_alike(text: str, target: SshTarget | AdbTarget) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        *("ssh://", "ssh://pi@", "ssh://pi@host/folder", "http://host", "ssh://host:port", "ssh://host:99999"),
        *("adb:", "adb:a b", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://host?x=1"),
    ],
)
def test_what_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="password") as caught:
        parse_target("ssh://pi:raspberry@host")
    assert "raspberry" not in caught.value.message + caught.value.hint
    assert "ssh-copy-id pi@host" in caught.value.hint


def test_the_list_keeps_what_it_is_told() -> None:
    assert read_devices() == {}
    add_device("pi4", "ssh://pi@pi4.local")
    assert add_device("a-phone", "adb:R58") == {"a-phone": "adb:R58", "pi4": "ssh://pi@pi4.local"}
    add_device("pi4", "ssh://pi@other:2222")
    assert find_target("pi4") == SshTarget("other", "pi", 2222)
    assert find_target("adb:R58") == AdbTarget("R58")
    assert remove_device("a-phone") == read_devices() == {"pi4": "ssh://pi@other:2222"}
    assert set(json.loads(list_file().read_text())) == {"pi4"}


def test_the_list_refuses_what_is_not_a_device() -> None:
    for name, target in (
        ("pi", "pi4.local"),
        ("", "ssh://h"),
        ("a b", "ssh://h"),
        ("-x", "ssh://h"),
        ("x", "ssh://u:p@h"),
    ):
        with pytest.raises(UsageError):
            add_device(name, target)
    with pytest.raises(UsageError, match="not on the list"):
        remove_device("pi")
    with pytest.raises(UsageError, match="no such device"):
        find_target("pi")
    assert not list_file().exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"pi": 4}'])
def test_a_spoilt_list_is_an_error(content: str) -> None:
    list_file().parent.mkdir(parents=True)
    list_file().write_text(content)
    with pytest.raises(DataError, match=r"devices\.json"):
        read_devices()


def test_options_are_given_to_the_device_as_they_were_given_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def forwarded(*arguments: str) -> list[str]:
        command = leaves()["bench",]
        words = ["model.tflite", *arguments]
        ctx = command.make_context("bench", words, obj={}, auto_envvar_prefix="EDGEALL_BENCH")
        return given_options(ctx, leave_out=("images", "json", "html", "on", "wheel", "device_python"))

    here = ("--on", "ssh://pi@host", "--images", "smears", "--json", "--html", "card.html", "--wheel", "w.whl")
    assert forwarded(*here) == []
    assert forwarded("--threads", "4", "--no-sweep", *here) == ["--threads", "4", "--no-sweep"]
    assert forwarded("--profile", "--sweep") == ["--sweep", "--profile"]
    monkeypatch.setenv("EDGEALL_BENCH_SECONDS", "2")
    monkeypatch.setenv("EDGEALL_BENCH_PROFILE", "0")
    assert forwarded() == ["--seconds", "2.0"]
    with pytest.raises(UsageError, match="--labels names a file on this host"):
        forwarded("--labels", "labels.txt")


def test_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "add", "pi", "ssh://pi@host"]) == 0
    assert cli.main(["devices", "ls", "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == {"devices": {"pi": "ssh://pi@host"}}
    assert cli.main(["devices", "ls"]) == 0
    assert "ssh://pi@host" in capfd.readouterr().out
    assert cli.main(["devices", "rm", "pi"]) == 0
    assert cli.main(["devices", "rm", "pi"]) == 2
