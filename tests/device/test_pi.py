"""edgeall on an emulated Raspberry Pi: installed by `edgeall deploy`, with its outputs there.

`make test-device` runs these: they take minutes, and need root, QEMU, mmdebstrap and the network for packages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import fixtures_pi
import pytest
from fixtures_models import LABELS, grainy_image
from fixtures_packed import repack
from fixtures_pi import PATH, Pi, fresh_home, make_root, sshd_in

from edgeall.console.progress import Progress
from edgeall.deploy import package, ssh
from edgeall.deploy.bench import RemoteBench, bench_over_ssh
from edgeall.deploy.environment import Install
from edgeall.deploy.health import HealthConfig
from edgeall.deploy.release import Deployed, deploy, rollback
from edgeall.deploy.target import SshTarget
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify

pytestmark = pytest.mark.device

PROGRAM = "import sys; from edgeall.cli import main; sys.exit(main())"
OLDER_PILLOW = """
# Debian's Pillow, 9.4, is older than edgeall asks for, and newer ones for 32 bits are at piwheels alone. All that it
# lacks is an argument; the images here have no orientation to apply.
from PIL import ImageOps

def upright(image, *, in_place):
    assert in_place and 0x0112 not in image.getexif()

ImageOps.exif_transpose = upright
"""
ARMV7_UNITS = 3
"""How far tflite-runtime's integer kernels may be off: edge_runtime/tools/golden.py."""


@pytest.fixture(scope="session")
def edgeall_wheel() -> Path:
    """The wheel of this checkout, built by the code of `edgeall deploy`."""
    return package.wheel()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(6):
        path = folder / LABELS[seed % 4] / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        grainy_image(seed, (90, 70)).save(path)
    return folder


@pytest.fixture(scope="session")
def other_model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in another model file."""
    return repack(tiny_bundle, tmp_path_factory.mktemp("other") / "other.tflite", pad=1000)


@pytest.fixture(scope="session")
def pi64(
    ssh_keys: Path, edgeall_wheel: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pi, SshTarget, Deployed]]:
    """A Pi 4 with a 64-bit system and sshd, and the tiny model deployed to it without a network."""
    root = make_root("arm64")
    folder = tmp_path_factory.mktemp("pi64")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    user_home = folder / "user"
    (user_home / ".ssh").mkdir(parents=True)
    shutil.copy(ssh_keys / "user", user_home / ".ssh" / "id_ecdsa")
    key = (ssh_keys / "server.pub").read_text()
    (user_home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
    with fresh_home(root, "pi") as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(user_home))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        # Byte-compiling under emulation takes longer than all the rest.
        environment = {"HOME": "/home/pi", "PATH": PATH, "QEMU_CPU": "cortex-a72", "PIP_NO_COMPILE": "1"}
        with sshd_in(root, ssh_keys, port, environment, folder / "sshd.log"):
            target = SshTarget("127.0.0.1", "root", port)
            with ssh.connect(target) as shell:
                result = deploy(shell, tiny_bundle, Progress(), Install(edgeall_wheel, offline=True))
            assert (home / ".edgeall" / "current" / "model.tflite").read_bytes() == tiny_bundle.read_bytes()
            yield Pi(root, "cortex-a72", {"HOME": "/home/pi", "PATH": PATH}), target, result


def test_a_deployed_int8_model_is_bit_exact_there(pi64: tuple[Pi, SshTarget, Deployed]) -> None:
    golden = pi64[2].golden
    assert len(golden) == 2
    for image in golden:
        assert (image.ok, image.difference, image.tolerance, image.unit) == (True, 0, 0, "units")


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a53"])
def test_every_pi_of_64_bits_gives_the_same_numbers(
    pi64: tuple[Pi, SshTarget, Deployed], cpu: str, tiny_bundle: Path, photographs: Path
) -> None:
    pi, _, deployed = pi64
    board = Pi(pi.root, cpu, pi.environment)
    facts = board.json(deployed.edgeall, "inspect", deployed.model, "--json")
    assert facts["runtime"].startswith("ai-edge-litert")
    assert [image["difference"] for image in facts["golden"]] == [0, 0]
    there = pi.root / "home" / "pi" / "photographs"
    shutil.copytree(photographs, there, dirs_exist_ok=True)
    said = board.run(deployed.edgeall, "run", deployed.model, "/home/pi/photographs", "--json").stdout
    here = {Path(p.image).name: p for p in classify(Classifier.open(tiny_bundle, threads=1), [str(photographs)])}
    answers = [json.loads(line) for line in said.splitlines()]
    assert len(answers) == len(here) == 6
    for answer in answers:
        assert answer["probabilities"] == dict(here[Path(answer["image"]).name].probabilities)


def test_bench_runs_there_and_comes_home(
    pi64: tuple[Pi, SshTarget, Deployed], edgeall_wheel: Path, tiny_bundle: Path, photographs: Path
) -> None:
    options = ("--seconds", "0.5", "--min-queries", "5", "--repetitions", "1", "--no-sweep")
    with ssh.connect(pi64[1]) as shell:
        job = RemoteBench(tiny_bundle, photographs, options, Install(edgeall_wheel))
        result = bench_over_ssh(shell, job, Progress())
    assert result.device.machine == "aarch64"
    assert result.model_sha256 == hashlib.sha256(tiny_bundle.read_bytes()).hexdigest()
    assert result.accuracy_images == 6
    assert not list((pi64[0].root / "home" / "pi" / ".edgeall" / "bench").iterdir())


def test_doctor_finds_the_install_in_order(pi64: tuple[Pi, SshTarget, Deployed]) -> None:
    """Warnings are allowed, e.g. for a missing camera; no check fails."""
    pi, _, deployed = pi64
    report = pi.json(deployed.edgeall, "doctor", "--json")
    assert {check["name"] for check in report["checks"] if check["state"] == "fail"} == set()
    assert {check["name"]: check["state"] for check in report["checks"]}["interpreter"] == "ok"


def test_deploy_again_and_roll_back(
    pi64: tuple[Pi, SshTarget, Deployed], edgeall_wheel: Path, tiny_bundle: Path, other_model: Path
) -> None:
    """Runs last: the wheel is already installed, so only the model is copied and verified."""
    current = pi64[0].root / "home" / "pi" / ".edgeall" / "current" / "model.tflite"
    with ssh.connect(pi64[1]) as shell:
        check = HealthConfig(seconds=1, max_regression_percent=1e6)  # an emulated processor is as fast as its host
        second = deploy(shell, other_model, Progress(), Install(edgeall_wheel, offline=True), check)
        assert second.health is not None
        assert second.health.before_invoke_p50_ms is not None
        assert current.read_bytes() == other_model.read_bytes()
        assert second.current.edgeall == pi64[2].current.edgeall
        back = rollback(shell)
    assert back.current.release == pi64[2].current.release
    assert current.read_bytes() == tiny_bundle.read_bytes()


@pytest.fixture(scope="session")
def pi32(edgeall_wheel: Path) -> Iterator[Pi]:
    """A Pi with a 32-bit system: tflite-runtime, with Debian's numpy and Pillow."""
    root = make_root("armhf")
    with fresh_home(root, "pi") as home:
        needed = ["tflite-runtime==2.14.0", "click>=8.2", "rich", "markdown-it-py", "mdurl", "pygments", "flatbuffers"]
        platforms = ("manylinux2014_armv7l", "manylinux_2_34_armv7l", "linux_armv7l")
        fixtures_pi.install_beside(home / "site", edgeall_wheel, needed, platforms)
        (home / "site" / "sitecustomize.py").write_text(OLDER_PILLOW)
        yield Pi(root, "max", {"HOME": "/home/pi", "PATH": PATH, "PYTHONPATH": "/home/pi/site"})


def test_32_bits_agree_within_three_units(pi32: Pi, tiny_bundle: Path, photographs: Path) -> None:
    there = pi32.root / "home" / "pi"
    shutil.copy(tiny_bundle, there / "model.tflite")
    shutil.copytree(photographs, there / "photographs", dirs_exist_ok=True)
    assert pi32.run("python3", "-c", "import platform; print(platform.architecture()[0])").stdout.strip() == "32bit"
    edgeall = ("python3", "-c", PROGRAM)
    facts = pi32.json(*edgeall, "inspect", "/home/pi/model.tflite", "--json")
    assert facts["runtime"] == "tflite-runtime 2.14.0"
    assert facts["golden_ok"] is True
    assert all(image["pixels_ok"] and image["difference"] <= ARMV7_UNITS for image in facts["golden"])
    said = pi32.run(*edgeall, "run", "/home/pi/model.tflite", "/home/pi/photographs", "--json").stdout
    classifier = Classifier.open(tiny_bundle, threads=1)
    here = {Path(p.image).name: p for p in classify(classifier, [str(photographs)])}
    step = classifier.model.output.scale
    for answer in map(json.loads, said.splitlines()):
        expected = here[Path(answer["image"]).name].probabilities
        for label, probability in answer["probabilities"].items():
            assert abs(probability - expected[label]) <= (ARMV7_UNITS + 0.01) * step


def test_bench_runs_on_32_bits(pi32: Pi, tiny_bundle: Path) -> None:
    shutil.copy(tiny_bundle, pi32.root / "home" / "pi" / "model.tflite")
    options = ("--seconds", "0.5", "--min-queries", "5", "--repetitions", "1", "--no-sweep")
    result = pi32.json("python3", "-c", PROGRAM, "bench", "/home/pi/model.tflite", "--json", *options)
    assert result["runtime"] == "tflite-runtime 2.14.0"
    assert result["stages"]["invoke"]["p50_ms"] > 0
