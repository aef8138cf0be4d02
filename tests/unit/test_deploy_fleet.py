"""`edgeall deploy --to FILE` over real ssh servers: what a failure or an interruption leaves on each device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from drawn_sites import draw_site
from fixtures_packed import repack
from fixtures_ssh import Device
from venvs import HANG_S

from edgeall import cli
from edgeall.console.progress import Progress
from edgeall.deploy import ssh
from edgeall.deploy.environment import Install
from edgeall.deploy.health import HealthConfig
from edgeall.deploy.release import Deployed, RolledBack, deploy
from edgeall.deploy.target import SshTarget
from edgeall.edge_runtime.adaptation.adapt import AdaptConfig, adapt
from edgeall.rig.serve import DEMO_MODEL

SHORT = HealthConfig(seconds=0.2, max_regression_percent=1e6)
"""Nothing here may depend on how fast this machine is at the moment."""
QUICK = ("--health-seconds", "0.2", "--max-regression", "1000000%")
CRASH = 'case "$*" in "bench "*/releases/*) kill -SEGV $$;; esac'
"""The new release crashes in its health check. The one in use is measured as ``.edgeall/current``."""


def put(device: Device, model: Path, health: HealthConfig | None = None) -> Deployed:
    with ssh.connect(SshTarget("127.0.0.1", device.user, device.port)) as shell:
        return deploy(shell, model, Progress(quiet=True), Install(device.wheel), health)


def serving(device: Device) -> bytes | None:
    current = device.root / "current" / "model.tflite"
    return current.read_bytes() if current.exists() else None


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that another laboratory adapted: it deploys like any other."""
    folder = tmp_path_factory.mktemp("adapted")
    site = draw_site(folder / "site", (10, 10, 10, 3))
    return adapt(AdaptConfig(DEMO_MODEL, site, folder / "adapted.tflite", by="A. Nurse")).out


def test_it_stops_at_the_device_that_fails_goes_on_and_goes_back(
    make_device: Callable[[str], Device], adapted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = devices = [make_device(name) for name in ("first", "second", "third")]
    old, new = DEMO_MODEL.read_bytes(), adapted.read_bytes()
    for device in (first, second):
        put(device, DEMO_MODEL)
    repair = second.replace_program(CRASH)
    file = tmp_path / "clinics.txt"
    file.write_text("".join(f"{device.url}  # {device.home.name}\n" for device in devices))

    def edgeall(*options: object) -> tuple[int, list[dict[str, Any]], str]:
        words = ("deploy", adapted, "--to", file, "--wheel", first.wheel, "--json", *options)
        capfd.readouterr()
        status = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return status, json.loads(out)["devices"], err

    status, states, err = edgeall(*QUICK)
    assert (status, [one["state"] for one in states]) == (1, ["updated", "failed", "not tried"])
    assert (
        "killed by a signal" in err and "step 5 of 7, check its health for 0.2 s" in err and "same command again" in err
    )
    assert [serving(device) for device in devices] == [new, old, None]
    assert states[0]["health"]["queries"] >= 3 and states[0]["health"]["before_invoke_p50_ms"] > 0
    assert states[1]["after"] == states[1]["before"] and states[1]["before"]["name"]
    assert len(list((second.root / "releases").iterdir())) == 1, "what failed its check is left lying about"

    repair()
    status, states, _ = edgeall(*QUICK)
    assert (status, [one["state"] for one in states]) == (0, ["unchanged", "updated", "updated"])
    assert [serving(device) for device in devices] == [new, new, new]
    assert all(golden["ok"] for golden in states[0]["golden"]) and states[0]["golden"]
    assert states[2]["before"] is None and states[2]["health"]["before_invoke_p50_ms"] is None

    # The third device has nothing to go back to. A second call leaves alone what is back already.
    for expected in (["rolled back", "rolled back", "failed"], ["unchanged", "unchanged", "failed"]):
        status, states, err = edgeall("--rollback")
        assert (status, [one["state"] for one in states]) == (1, expected)
        assert "no earlier release" in err
        assert [serving(device) for device in devices] == [old, old, new]


def test_a_release_that_fails_in_use_is_rolled_back(device: Device, tmp_path: Path) -> None:
    put(device, DEMO_MODEL)
    device.replace_program('case "$*" in "inspect "*/current/*) echo no such kernel >&2; exit 1;; esac')
    other = repack(DEMO_MODEL, tmp_path / "other.tflite", pad=100)
    with pytest.raises(RolledBack, match=r"no such kernel.*rolled back: .* is active again"):
        put(device, other, SHORT)
    assert serving(device) == DEMO_MODEL.read_bytes()


def test_a_terminated_check_leaves_the_old_model_and_ends_on_the_device(device: Device, tmp_path: Path) -> None:
    put(device, DEMO_MODEL)
    repair = device.replace_program('case "$*" in "bench "*/releases/*) echo $$ > "$HOME/pid";; esac')
    other, file, pid = repack(DEMO_MODEL, tmp_path / "other.tflite", pad=100), tmp_path / "to", device.home / "pid"
    file.write_text(f"{device.url}\nssh://nobody@127.0.0.1:1\n")
    program = Path(sys.executable).with_name("edgeall")
    words = [program, "deploy", other, "--to", file, "--wheel", device.wheel, "--json", "--health-seconds", "3600"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    states = json.loads(out)["devices"]
    assert [one["state"] for one in states] == ["interrupted", "not tried"]
    assert states[0]["after"] == states[0]["before"]
    assert serving(device) == DEMO_MODEL.read_bytes()

    def ended() -> bool:
        with suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
            return False
        return True

    wait_for(ended)
    repair()
    file.write_text(f"{device.url}\n")
    assert (
        cli.main(["deploy", str(other), "--to", str(file), "--wheel", str(device.wheel), "--health-seconds", "0"]) == 0
    )
    assert serving(device) == other.read_bytes()
