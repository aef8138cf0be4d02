"""`edgeall.deploy` over a real ssh server: copies, releases, and every failure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fixtures_models import LABELS, grainy_image
from fixtures_packed import other_units, repack
from fixtures_ssh import Device, Wire
from venvs import HANG_S

from edgeall import cli
from edgeall.console.progress import Progress
from edgeall.deploy import environment, ssh, upload
from edgeall.deploy.bench import RemoteBench, bench_over_ssh
from edgeall.deploy.environment import Install
from edgeall.deploy.release import Deployed, deploy, rollback
from edgeall.deploy.target import DeviceError, SshTarget, parse_target
from edgeall.edge_runtime.errors import BundleError, DataError, EdgeallError

QUIET = Progress(quiet=True)


@contextmanager
def connected(device: Device, port: int | None = None) -> Iterator[ssh.Ssh]:
    with ssh.connect(SshTarget("127.0.0.1", device.user, port or device.port)) as shell:
        yield shell


def put(device: Device, model: Path, port: int | None = None) -> Deployed:
    with connected(device, port) as shell:
        return deploy(shell, model, QUIET, Install(device.wheel))


def serving(device: Device) -> bytes:
    return (device.root / "current" / "model.tflite").read_bytes()


@pytest.fixture
def models(tiny_bundle: Path, tmp_path: Path) -> list[Path]:
    """Three different packed models; the first is as small as possible."""
    return [tiny_bundle, *(repack(tiny_bundle, tmp_path / f"{pad}.tflite", pad=pad) for pad in (100, 4_000_000))]


def test_a_model_is_copied_verified_and_served(device: Device, models: list[Path]) -> None:
    result = put(device, models[0])
    assert serving(device) == models[0].read_bytes()
    assert result.current.sha256 == hashlib.sha256(models[0].read_bytes()).hexdigest()
    assert result.previous is None
    assert [golden.ok for golden in result.golden] == [True, True]
    # The result names the command for the user.
    said = subprocess.run([result.edgeall, "inspect", result.model, "--json"], capture_output=True, text=True)
    assert json.loads(said.stdout)["golden_ok"] is True
    assert list(device.root.rglob("*.part")) == []


def test_the_model_before_is_kept_and_the_one_before_that_goes(device: Device, models: list[Path]) -> None:
    for model in models:
        result = put(device, model)
    kept = {path.name for path in (device.root / "releases").iterdir()}
    assert kept == {result.current.release, result.previous.release}
    assert result.previous.sha256 == hashlib.sha256(models[1].read_bytes()).hexdigest()
    assert serving(device) == models[2].read_bytes()
    assert {path.name for path in (device.root / "env").iterdir()} == {result.current.edgeall}


def test_rollback_goes_back_once(device: Device, models: list[Path]) -> None:
    for model in models[:2]:
        put(device, model)
    with connected(device) as shell:
        result = rollback(shell)
        assert serving(device) == models[0].read_bytes()
        assert (result.current.sha256, result.previous) == (
            hashlib.sha256(models[0].read_bytes()).hexdigest(),
            None,
        )
        with pytest.raises(DeviceError, match="no earlier release"):
            rollback(shell)
    assert serving(device) == models[0].read_bytes()


def test_the_same_model_again_keeps_what_a_rollback_needs(device: Device, models: list[Path]) -> None:
    for model in (*models[:2], models[1]):
        result = put(device, model)
    assert result.previous.sha256 == hashlib.sha256(models[0].read_bytes()).hexdigest()


def test_a_rollback_to_a_model_that_has_rotted_is_refused(device: Device, models: list[Path]) -> None:
    for model in models[:2]:
        result = put(device, model)
    rotten = device.root / "releases" / result.previous.release / "model.tflite"
    content = bytearray(rotten.read_bytes())
    content[1000] ^= 1
    rotten.write_bytes(content)
    with connected(device) as shell, pytest.raises(EdgeallError, match=r"digest.*step 2 of 3.*is still active"):
        rollback(shell)
    assert serving(device) == models[1].read_bytes()


def test_there_is_no_moment_without_a_whole_model(device: Device, models: list[Path]) -> None:
    put(device, models[0])
    known, seen, stop = {hashlib.sha256(m.read_bytes()).hexdigest() for m in models[:2]}, set(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                seen.add(hashlib.sha256(serving(device)).hexdigest())
            except OSError as error:
                seen.add(str(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        put(device, models[1])
        with connected(device) as shell:
            rollback(shell)
    finally:
        stop.set()
        watcher.join()
    assert seen == known


def arrived(device: Device, size_bytes: float) -> Callable[[], bool]:
    """Waits until a part of a file has arrived, before the test cuts the connection."""

    def cut() -> bool:
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            if sum(part.stat().st_size for part in device.root.rglob("*.part")) > size_bytes:
                break
            time.sleep(0.02)
        return True

    return cut


def test_a_cut_connection_leaves_the_old_model_and_the_next_call_sends_the_rest(
    device: Device, models: list[Path]
) -> None:
    put(device, models[0])
    large = models[2]
    size = large.stat().st_size

    with Wire(device.port, limit=size // 2, at_limit=arrived(device, 0.4 * size)) as wire:
        device.trust(wire.port)
        with pytest.raises(DeviceError, match=r"connection is lost.*step 3 of 5, copy the model;.*is still active"):
            put(device, large, wire.port)
    assert serving(device) == models[0].read_bytes()
    (part,) = device.root.rglob("*.part")
    have = part.stat().st_size
    assert 0.2 * size < have < size
    assert large.read_bytes().startswith(part.read_bytes())
    with Wire(device.port) as wire:
        device.trust(wire.port)
        put(device, large, wire.port)
    assert wire.sent < size - have + 300_000, "the whole was sent again"
    assert serving(device) == large.read_bytes()


def test_what_a_user_sees_of_a_cut_connection(device: Device, tiny_bundle: Path) -> None:
    with Wire(device.port, limit=6000) as wire:
        device.trust(wire.port)
        command = [Path(sys.executable).with_name("edgeall"), "deploy", tiny_bundle, f"ssh://127.0.0.1:{wire.port}"]
        done = subprocess.run([*command, "--wheel", device.wheel], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 + done.stderr.count("  hint: "), done.stderr


def test_a_spoilt_part_is_sent_again_whole(device: Device, models: list[Path]) -> None:
    large = models[2]
    with Wire(device.port, limit=1_000_000, at_limit=arrived(device, 100_000)) as wire:
        device.trust(wire.port)
        with pytest.raises(DeviceError):
            put(device, large, wire.port)
    (part,) = device.root.rglob("*.part")
    part.write_bytes(bytes(part.stat().st_size))  # zeros, as after a power failure
    put(device, large)
    assert serving(device) == large.read_bytes()


@pytest.fixture
def small_disk(device: Device) -> Iterator[Path]:
    """A home folder of the device on a real file system of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    (env,) = (device.root / "env").iterdir()
    target = env.resolve()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", device.home], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        (device.root / "env").mkdir(parents=True)
        (device.root / "env" / env.name).symlink_to(target)
        yield device.home
    finally:
        subprocess.run(["umount", "--lazy", device.home], check=True)


def test_a_full_disk_is_refused_before_anything_is_copied(device: Device, small_disk: Path, models: list[Path]) -> None:
    put(device, models[0])
    (small_disk / "others").write_bytes(bytes(14_000_000))
    with pytest.raises(DeviceError, match=r"disk is too full.*step 3 of 5.*is still active") as caught:
        put(device, models[2])
    assert "free some space" in caught.value.hint
    assert serving(device) == models[0].read_bytes()


def test_a_disk_that_fills_up_meanwhile_leaves_the_old_model_and_no_part(
    device: Device, small_disk: Path, models: list[Path]
) -> None:
    put(device, models[0])

    def fill() -> bool:
        with (small_disk / "others").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        return False

    with Wire(device.port, limit=2_000_000, at_limit=fill) as wire:
        device.trust(wire.port)
        with pytest.raises(DeviceError, match=r"disk is too full.*step 3 of 5.*is still active"):
            put(device, models[2], wire.port)
    assert serving(device) == models[0].read_bytes()
    assert list(device.root.rglob("*.part")) == []
    (small_disk / "others").unlink()
    put(device, models[2])
    assert serving(device) == models[2].read_bytes()


@pytest.mark.skipif(shutil.which("ssh-keyscan") is None, reason="the hint's own command needs OpenSSH's client")
def test_an_unknown_host_is_not_trusted(device: Device, tiny_bundle: Path) -> None:
    (device.user_home / ".ssh" / "known_hosts").unlink()
    with pytest.raises(DeviceError, match=r"not in ~/\.ssh/known_hosts") as caught:
        put(device, tiny_bundle)
    key = device.user_home / "server_key.pub"
    printed = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout.split()[1]
    assert printed in caught.value.message, "not the fingerprint that OpenSSH prints"
    scan = f"ssh-keyscan -p {device.port} 127.0.0.1 >> ~/.ssh/known_hosts"
    assert scan in caught.value.hint
    # The command of the hint resolves it.
    subprocess.run(scan, shell=True, check=True, capture_output=True)
    put(device, tiny_bundle)


def test_another_host_key_than_before_is_refused(device: Device, ssh_keys: Path, tiny_bundle: Path) -> None:
    wrong = (ssh_keys / "wrong.pub").read_text()
    (device.user_home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{device.port} {wrong}")
    with pytest.raises(DeviceError, match="another machine responds") as caught:
        put(device, tiny_bundle)
    assert f"ssh-keygen -R '[127.0.0.1]:{device.port}'" in caught.value.hint
    assert not (device.root / "releases").exists()


def test_a_key_that_is_not_let_in(device: Device, ssh_keys: Path, tiny_bundle: Path) -> None:
    (device.user_home / ".ssh" / "id_ecdsa").write_bytes((ssh_keys / "wrong").read_bytes())
    with pytest.raises(DeviceError, match="no key is accepted") as caught:
        put(device, tiny_bundle)
    assert "ssh-copy-id" in caught.value.hint


def test_a_device_that_is_switched_off(device: Device, tiny_bundle: Path) -> None:
    with Wire(device.port) as wire:
        pass
    with pytest.raises(DeviceError, match="can't be reached"):
        put(device, tiny_bundle, wire.port)


def test_names_and_keys_come_from_the_ssh_config(device: Device, tiny_bundle: Path) -> None:
    keys = device.user_home / ".ssh"
    (keys / "id_ecdsa").rename(keys / "elsewhere")
    (keys / "config").write_text(
        f"Host pi\n HostName 127.0.0.1\n Port {device.port}\n User {device.user}\n IdentityFile {keys / 'elsewhere'}\n"
    )
    target = parse_target("ssh://pi")
    assert isinstance(target, SshTarget)
    with ssh.connect(target) as shell:
        deploy(shell, tiny_bundle, QUIET, Install(device.wheel))
    assert serving(device) == tiny_bundle.read_bytes()


def test_a_model_whose_golden_check_fails_there_never_serves(
    device: Device, tiny_bundle: Path, models: list[Path], tmp_path: Path
) -> None:
    put(device, models[1])
    spoilt = repack(tiny_bundle, tmp_path / "spoilt.tflite", other_units)
    with pytest.raises(BundleError, match=r"0.png differs by \d+ units.*step 4 of 5, verify it;.*is still active"):
        put(device, spoilt)
    assert serving(device) == models[1].read_bytes()
    assert len(list((device.root / "releases").iterdir())) == 1, "what failed its check is left lying about"


def test_a_foreign_or_damaged_model_never_leaves(
    device: Device, tiny_bundle: Path, tiny_flatbuffers: dict[str, bytes], tmp_path: Path
) -> None:
    foreign, damaged = tmp_path / "foreign.tflite", tmp_path / "damaged.tflite"
    foreign.write_bytes(tiny_flatbuffers["uint8"])
    content = bytearray(tiny_bundle.read_bytes())
    content[500] ^= 255
    damaged.write_bytes(content)
    for model, reason in ((foreign, "not packed by edgeall"), (damaged, "does not match its digest")):
        with pytest.raises(BundleError, match=reason):
            put(device, model)
    assert not (device.root / "releases").exists()


def test_an_install_that_fails_leaves_the_old_model(device: Device, tiny_bundle: Path, tmp_path: Path) -> None:
    """pip refuses an invalid wheel."""
    put(device, tiny_bundle)
    broken = tmp_path / "edgeall-9.9.9-py3-none-any.whl"
    broken.write_bytes(b"no zip")
    with connected(device) as shell, pytest.raises(DeviceError, match=r"step 2 of 5, install edgeall;.*still active"):
        deploy(shell, tiny_bundle, QUIET, Install(broken))
    assert serving(device) == tiny_bundle.read_bytes()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"python": [3, 9, 2], "bits": 64}, "needs CPython 3.10"),
        ({"python": [3, 13, 0], "bits": 32}, "32-bit system with Python 3.13.0"),
    ],
)
def test_a_python_that_no_interpreter_fits(device: Device, facts: dict[str, Any], reason: str) -> None:
    with connected(device) as shell, pytest.raises(DeviceError, match=reason):
        environment.check_python(shell, {"implementation": "cpython", **facts})


def test_a_device_without_python(device: Device, tiny_bundle: Path) -> None:
    with connected(device) as shell, pytest.raises(DeviceError, match="no python9 on the device") as caught:
        deploy(shell, tiny_bundle, QUIET, Install(device.wheel, "python9"))
    assert "--device-python" in caught.value.hint


def test_a_command_that_talks_much_on_both_sides_does_not_hang(device: Device) -> None:
    """More data than a pipe or the ssh window holds, in both directions at once."""
    data = os.urandom(5_000_000)
    with connected(device) as shell:
        done = shell.run("tee /dev/stderr | od -An -v -tx1 | tr -d ' \\n' | tail -c 10; exit 7", stdin=[data])
        assert (done.status, done.out) == (7, data[-5:].hex())
        assert len(done.err) > 1_000_000
        # A command that does not read its stdin.
        assert shell.run("exit 3", stdin=[data]).status == 3


def test_a_command_that_a_signal_kills_is_no_lost_connection(device: Device) -> None:
    """The kernel kills the largest program where memory is short: often pip on a small board."""
    with connected(device) as shell:
        done = shell.run("echo packing >&2; kill -KILL $$")
        assert (done.status, done.reason) == (-1, "killed by a signal: packing")
        assert shell.run("exit 4").status == 4


def test_bench_runs_there_and_leaves_nothing(device: Device, tiny_bundle: Path, tmp_path: Path) -> None:
    for seed in range(4):
        path = tmp_path / "smears" / LABELS[seed] / f"{seed}.png"
        path.parent.mkdir(parents=True)
        grainy_image(seed).save(path)
    options = ("--seconds", "0.1", "--repetitions", "1", "--no-sweep", "--threads", "2")
    with connected(device) as shell:
        install = Install(device.wheel)
        result = bench_over_ssh(shell, RemoteBench(tiny_bundle, tmp_path / "smears", options, install), QUIET)
        assert result.model_sha256 == hashlib.sha256(tiny_bundle.read_bytes()).hexdigest()
        assert (result.threads, result.images, result.accuracy_images) == (2, 4, 4)
        assert result.stages["invoke"].p50_ms > 0
        with pytest.raises(DeviceError, match=r"status 2.*no-such-option"):
            bench_over_ssh(shell, RemoteBench(tiny_bundle, None, ["--no-such-option"], install), QUIET)
        with pytest.raises(DataError, match="no such"):
            bench_over_ssh(shell, RemoteBench(tiny_bundle, tmp_path / "nowhere", [], install), QUIET)
    assert list((device.root / "bench").iterdir()) == []


def test_bench_checks_the_golden_images_first(device: Device, tiny_bundle: Path, tmp_path: Path) -> None:
    spoilt = repack(tiny_bundle, tmp_path / "spoilt.tflite", other_units)
    with connected(device) as shell, pytest.raises(BundleError, match="golden images"):
        bench_over_ssh(shell, RemoteBench(spoilt, install=Install(device.wheel)), QUIET)


def test_a_file_that_changes_while_it_is_copied_is_not_accepted(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))

    class Changing(Progress):
        def task(self, title: str, total: int, start: int = 0) -> Any:
            file.write_bytes(os.urandom(1000))
            return super().task(title, total, start)

    with connected(device) as shell, pytest.raises(DeviceError, match=r"the digest of .* differs"):
        upload.upload(shell, "python3", file, "x/file", Changing(quiet=True))
    assert not (device.root / "x" / "file").exists()


def test_the_command_line(
    device: Device, models: list[Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edgeall(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        return (cli.main([str(argument) for argument in arguments]), *capfd.readouterr())

    url = f"ssh://{device.user}@127.0.0.1:{device.port}"
    assert edgeall("devices", "add", "pi", url)[0] == 0
    for model in models[:2]:
        status, out, err = edgeall("deploy", model, "pi", "--wheel", device.wheel)
        assert status == 0, err
    assert "current/model.tflite" in out
    assert "research use only" in err
    status, out, err = edgeall("deploy", "--rollback", "pi", "--json")
    assert status == 0, err
    assert json.loads(out)["current"]["sha256"] == hashlib.sha256(models[0].read_bytes()).hexdigest()
    bench = (
        "bench",
        models[0],
        "--on",
        "pi",
        "--wheel",
        device.wheel,
        "--seconds",
        "0.05",
        "--repetitions",
        "1",
        "--no-sweep",
        "--threads",
        "2",
    )
    status, out, err = edgeall(*bench, "--json")
    assert status == 0, err
    assert json.loads(out)["threads"] == 2
    assert edgeall("deploy", models[0])[0] == 2
    assert edgeall("deploy", "--rollback", models[0], "pi")[0] == 2
    assert edgeall("deploy", models[0], "adb:123")[0] == 2
    assert edgeall("deploy", models[0], "nobody")[0] == 2
