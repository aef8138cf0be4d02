"""The parts of `edgeall deploy --to` that need no device: its file, its limits, and the states that it reports."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeall import cli
from edgeall.console.progress import Progress
from edgeall.deploy import fleet, ssh
from edgeall.deploy.command import DeployRequest
from edgeall.deploy.devices import add_device
from edgeall.deploy.environment import Install
from edgeall.deploy.fleet import DeviceState, Fleet, FleetJob, fleet_text, update_fleet
from edgeall.deploy.fleet_list import Listed, read_fleet
from edgeall.deploy.health import Health, HealthConfig, check_health, judge
from edgeall.deploy.release import PackedModel, Release, RolledBack
from edgeall.deploy.remote import Installed
from edgeall.deploy.shell import Finished, Line
from edgeall.deploy.signals import uninterrupted
from edgeall.deploy.target import DeviceError, SshTarget
from edgeall.edge_runtime.errors import GateError, UsageError
from edgeall.rig.serve import DEMO_MODEL


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host lab\n HostName 10.0.0.3\n User pi\n Port 2222\n")


def read(folder: Path, content: str | bytes) -> list[Listed]:
    file = folder / "clinics.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_fleet(file)


def test_a_file_has_one_device_a_line(tmp_path: Path) -> None:
    add_device("ward-2", "ssh://pi@ward2.local")
    content = (
        "\ufeff# clinics\r\n\r\nssh://pi@ward1.local # the old Pi 3\r\n  ward-2\r\n#ssh://pi@off.local\r\nssh://lab"
    )
    assert read(tmp_path, content) == [
        Listed("ssh://pi@ward1.local", SshTarget("ward1.local", "pi")),
        Listed("ward-2", SshTarget("ward2.local", "pi")),
        Listed("ssh://lab", SshTarget("lab")),
    ]


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    add_device("ward", "ssh://pi@10.0.0.1")
    lines = [
        "ssh://pi@10.0.0.1",
        "ward",
        "ward4",
        "# nothing",
        "ssh://pi:raspberry@10.0.0.2",
        "adb:R58M",
        "ssh://pi@10.0.0.3:2222",
        "ssh://lab",
        "ssh://pi@10.0.0.4 ssh://pi@10.0.0.5",
    ]
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "\n".join(lines))
    message = caught.value.message
    assert message.startswith(
        f"{tmp_path / 'clinics.txt'}: line 2: ward is the device of line 1; line 3: ward4: no such"
    )
    assert "line 5: ssh://pi:...@10.0.0.2: a password" in message and "raspberry" not in message
    assert "line 6: adb:R58M: deploy needs an ssh target" in message
    assert "line 8: ssh://lab is the device of line 7" in message, "~/.ssh/config was not read"
    assert "line 9: " in message
    assert not any(f"line {number}:" in message for number in (1, 4, 7))


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "names no device"), ("# all off\n\n", "names no device"), (b"\xff\xfe\x00", "not a text")],
)
def test_a_file_without_a_device_is_refused(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"clinics\.txt: {reason}"):
        read(tmp_path, content)


def test_wrong_usage_is_refused_before_anything_is_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "clinics.txt"
    file.write_text("ssh://nobody@127.0.0.1:1\n")
    model, to = str(DEMO_MODEL), ("--to", str(file))
    for words, reason in (
        ((model, "--to", str(tmp_path / "none.txt")), "none.txt: No such file"),
        ((model, "ssh://pi@host", *to), "give MODEL and TARGET, or MODEL and --to FILE"),
        (("--rollback", model, *to, "--health-seconds", "5"), "--health-seconds does not apply"),
        ((model, "ssh://pi@host", "--max-regression", "50%"), "--max-regression is a limit of the health check"),
        ((model, *to, "--max-regression", "much"), "not a percentage"),
    ):
        assert cli.main(["deploy", *words]) == 2
        assert reason in capfd.readouterr().err


def test_a_trial_takes_place_with_to_alone_by_default() -> None:
    many, one = Path("clinics.txt"), None
    assert DeployRequest(("m",), many).health() == HealthConfig(60, 100)
    assert DeployRequest(("m", "t"), one).health() is None
    assert DeployRequest(("m",), many, back=True).health() is None
    assert DeployRequest(("m",), many, health_seconds=0).health() is None
    assert DeployRequest(("m", "t"), one, health_seconds=5, max_regression="20%").health() == HealthConfig(5, 20)


def measured(slices: tuple[float, ...], differ: int | None = 0) -> Any:
    return SimpleNamespace(
        queries=1000,
        stages={"invoke": SimpleNamespace(p50_ms=slices[0])},
        repetitions=[SimpleNamespace(invoke_p50_ms=ms) for ms in slices],
        answers_differ=differ,
        warnings=["slowed down", "repetitions differ by 9.0 %: increase --seconds"],
    )


def test_the_slowest_part_of_a_trial_is_compared_with_the_release_before() -> None:
    config = HealthConfig(60, 100)
    assert config.slices == 12
    health = judge("pi", measured((10, 19.9)), 10, config)
    assert health == Health(60, 1000, 10, 19.9, 10, ["slowed down"])
    assert judge("pi", measured((10, 99)), None, config).before_invoke_p50_ms is None
    with pytest.raises(
        GateError, match=r"pi: .* up to 20\.1 ms .* before 10\.0 ms: 101 % more \(allowed 100 %\)"
    ) as caught:
        judge("pi", measured((10, 20.1)), 10, config)
    assert caught.value.hint.endswith("--max-regression 160%")
    with pytest.raises(DeviceError, match="3 of 1,000 answers differ"):
        judge("pi", measured((10,), differ=3), 10, config)
    assert "not compared" in judge("pi", measured((10,), differ=None), 10, config).warnings[-1]


class BrokenDevice:
    """The release in use does not run there, and the new one does."""

    name = "pi"

    def __init__(self, result: dict[str, Any]) -> None:
        self.commands: list[str] = []
        self._result = result

    def run(self, command: str, stdin: Iterable[bytes] = (), on_stderr: Line | None = None) -> Finished:
        self.commands.append(command)
        if "/current/" in command:
            return Finished(1, "", "worn out")
        assert on_stderr is not None
        for number in range(1, 13):
            on_stderr(f"single stream, {number} of 12")
        return Finished(0, json.dumps(self._result), "")


def test_a_release_that_does_not_run_does_not_keep_its_successor_away() -> None:
    repetition = {"queries": 100, "images_per_s": 50.0, "invoke_p50_ms": 9.0, "end_to_end_p50_ms": 10.0}
    stages = {"invoke": {"p50_ms": 9.0, "p90_ms": 9.0, "p99_ms": 9.0}}
    device = BrokenDevice(
        {"queries": 1200, "stages": stages, "repetitions": [repetition] * 12, "warnings": [], "answers_differ": 0}
    )
    new, old = Installed("env/bin/edgeall", "releases/new/model.tflite"), Installed.in_folder("/home/pi/current")
    health = check_health(device, HealthConfig(60), new, old, Progress(quiet=True))
    assert (health.queries, health.slowest_invoke_p50_ms, health.before_invoke_p50_ms) == (1200, 9.0, None)
    assert "does not run (pi: bench failed with status 1 (worn out))" in health.warnings[0]
    shared = "--min-queries 3 --no-sweep"
    assert device.commands == [
        f"{old.edgeall} bench {old.model} --json --seconds 5 --repetitions 1 {shared}",
        f"{new.edgeall} bench {new.model} --json --seconds 5 --repetitions 12 {shared}",
    ]


OLD, NEW = (Release("smears", digit * 64, "env", None, "2026-11-30T10:00:00Z", f"{digit * 12}-env") for digit in "ab")
DEVICES = [Listed(name, SshTarget(name)) for name in ("one", "two", "three")]


@pytest.mark.parametrize(
    ("error", "answers", "state", "after"),
    [
        (DeviceError("disk full"), True, "failed", OLD),
        (DeviceError("the connection is lost"), False, "unknown", None),
        (RolledBack("no kernel"), True, "rolled back", OLD),
        (GateError("slow"), True, "failed", OLD),
        (KeyboardInterrupt(), True, "interrupted", OLD),
        (KeyboardInterrupt(), False, "unknown", None),
    ],
)
def test_the_state_of_a_device_that_fails_is_asked_of_it(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, answers: bool, state: str, after: Release | None
) -> None:
    connections: list[str] = []

    @contextmanager
    def connect(target: SshTarget) -> Iterator[str]:
        if not answers and connections[-1:] == [target.host]:
            raise DeviceError("can't be reached")
        connections.append(target.host)
        yield target.host

    def deploy(shell: str, *_: object) -> Any:
        if shell == "two":
            raise error
        return SimpleNamespace(current=NEW, golden=[], health=None)

    monkeypatch.setattr(ssh, "connect", connect)
    monkeypatch.setattr(fleet, "deploy", deploy)
    monkeypatch.setattr(fleet, "release_in_use", lambda *_: (OLD, Installed("edgeall", "model")))
    monkeypatch.setattr(fleet, "open_packed", lambda model: PackedModel(model, "smears", "b" * 64))
    monkeypatch.setattr(fleet.package, "wheel", lambda given: given)
    monkeypatch.setattr(fleet.package, "environment_name", lambda wheel: "env")
    job = FleetJob(Path("model.tflite"), Install(Path("edgeall.whl")))
    result, stopped = update_fleet(DEVICES, job, Progress(quiet=True))
    assert stopped is error
    assert [(one.state, one.before, one.after) for one in result.devices] == [
        ("updated", OLD, NEW),
        (state, OLD, after),
        ("not tried", None, None),
    ]
    assert connections == ["one", "two", *(["two"] if answers else [])]


def test_the_table_names_each_device() -> None:
    states = [
        DeviceState("ward-1", "ssh://one", "updated", OLD, NEW),
        DeviceState("ward-2", "ssh://two", "unknown", OLD),
        DeviceState("ward-3", "ssh://three", "not tried"),
    ]
    lines = fleet_text(Fleet(1, "model.tflite", "b" * 64, False, states)).splitlines()
    assert lines[0].split() == ["device", "before", "after", "state"]
    assert lines[2].split() == ["ward-1", "smears", "a" * 12, "smears", "b" * 12, "updated"]
    assert lines[3].split() == ["ward-2", "smears", "a" * 12, "?", "unknown"]
    assert lines[4].split() == ["ward-3", "not", "tried"]
    assert lines[5] == "1 updated, 1 unknown, 1 not tried"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step(number: signal.Signals) -> None:
    before: Any = signal.getsignal(number)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    done: list[str] = []

    def step() -> None:
        with uninterrupted():
            signal.raise_signal(number)
            done.append("step")

    signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            step()
        assert done == ["step"]
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
