"""`edgeall bench --on adb:...` against Debian's adbd, through a real adb server, in a separate network.

It has the same processor as the host: the test covers the transport.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fixtures_pi
import pytest
import venvs
from fixtures_models import LABELS, grainy_image
from fixtures_packed import other_units, repack

from edgeall.deploy import package

pytestmark = pytest.mark.device

SERIAL = "127.0.0.1:5555"
ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
REQUIREMENTS = (
    *("numpy", "pillow", "click>=8.2", "rich", "markdown-it-py", "mdurl", "pygments"),
    *("flatbuffers", "ai-edge-litert", "typing_extensions", "protobuf", "backports.strenum", "tqdm"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

STAND_IN = """\
#!/usr/bin/python3
# Does what LiteRT's benchmark_model does with these options, by the same interpreter, and prints the same lines.
import sys, time
sys.path.insert(0, "/home/pi/site")
import numpy as np
from ai_edge_litert.interpreter import Interpreter

options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
interpreter = Interpreter(options["graph"], num_threads=int(options["num_threads"]))
interpreter.allocate_tensors()
(taken,), given = interpreter.get_input_details(), interpreter.get_output_details()
pixels = np.zeros(taken["shape"], taken["dtype"])
if "input_layer_value_files" in options:
    name, _, file = options["input_layer_value_files"].replace("::", "\\0").partition(":")
    assert name.replace("\\0", ":") == options["input_layer"] == taken["name"], taken["name"]
    assert options["input_layer_shape"] == ",".join(map(str, taken["shape"]))
    pixels = np.fromfile(file, taken["dtype"]).reshape(taken["shape"])
times = []
begin = time.time()
while len(times) < int(options["num_runs"]) or time.time() - begin < float(options["min_secs"]):
    interpreter.set_tensor(taken["index"], pixels)
    start = time.perf_counter()
    interpreter.invoke()
    times.append((time.perf_counter() - start) * 1e6)
if "output_filepath" in options:
    with open(options["output_filepath"], "wb") as file:  # all of them, one behind the other
        file.writelines(interpreter.get_tensor(one["index"]).tobytes() for one in given)
t = np.array(times)
print(f"INFO: count=1 first={t[0]:.0f} curr={t[0]:.0f} min={t[0]:.0f} max={t[0]:.0f} avg={t[0]:g} std=0")
print(f"INFO: count={len(t)} first={t[0]:.0f} curr={t[-1]:.0f} min={t.min():.0f} max={t.max():.0f} avg={t.mean():g} "
      f"std={t.std():.0f} p5={np.percentile(t, 5):.0f} median={np.median(t):.0f} p95={np.percentile(t, 95):.0f}")
print(f"INFO: Inference timings in us: Init: 1000, First inference: {t[0]:.0f}, Warmup (avg): {t[0]:g}, "
      f"Inference (avg): {t.mean():g}", file=sys.stderr)
"""


class Phone:
    """A root with adbd in a separate network, and edgeall's command line in it."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes], home: Path) -> None:
        self.root, self._process, self._home = root, process, home

    def inside(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", *map(str, words)]
        environment = {**os.environ, "HOME": str(self._home)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    def bench(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        edgeall = Path(sys.executable).with_name("edgeall")
        return self.inside(edgeall, "bench", *arguments, "--on", f"adb:{SERIAL}", "--json")

    @property
    def left_behind(self) -> list[Path]:
        return list((self.root / "data" / "local" / "tmp").iterdir())


@pytest.fixture(scope="module")
def phone(edgeall_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    if shutil.which("adb") is None:
        venvs.unavailable("no adb here: apt install adb")
    root = fixtures_pi.make_root("amd64")
    home = tmp_path_factory.mktemp("adb")
    with fixtures_pi.fresh_home(root, "pi") as site:
        fixtures_pi.install_beside(site / "site", edgeall_wheel, REQUIREMENTS, PLATFORMS)
        shutil.rmtree(site / "site" / "edgeall")  # which is sent along
        start = f"ip link set lo up && exec chroot {root} /usr/bin/env -i PATH=/usr/bin:/bin {ADBD}"
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(["unshare", "--net", "sh", "-c", start], stderr=log)
        made = Phone(root, process, home)
        try:
            for _ in range(100):
                if f"connected to {SERIAL}" in made.inside("adb", "connect", SERIAL).stdout:
                    break
                time.sleep(0.2)
            else:
                pytest.fail(f"adbd doesn't answer: {(home / 'log').read_text()}", pytrace=False)
            yield made
        finally:
            made.inside("adb", "kill-server")
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def edgeall_wheel() -> Path:
    return package.wheel()


@pytest.fixture(scope="module")
def python(phone: Phone) -> str:
    """A Python on the device that finds the packages next to it."""
    script = phone.root / "home" / "pi" / "python"
    script.write_text('#!/bin/sh\nPYTHONPATH="$PYTHONPATH:/home/pi/site" exec /usr/bin/python3 "$@"\n')
    script.chmod(0o755)
    return "/home/pi/python"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "benchmark_model"
    path.write_text(STAND_IN)
    return path


QUICK = ("--seconds", "0.2", "--min-queries", "5", "--repetitions", "1", "--no-sweep")


def test_edgeall_runs_there(phone: Phone, python: str, edgeall_wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for seed in range(4):
        path = tmp_path / "smears" / LABELS[seed] / f"{seed}.png"
        path.parent.mkdir(parents=True)
        grainy_image(seed).save(path)
    given = ("--device-python", python, "--wheel", edgeall_wheel, *QUICK)
    done = phone.bench(tiny_bundle, "--images", tmp_path / "smears", *given)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model_sha256"] == hashlib.sha256(tiny_bundle.read_bytes()).hexdigest()
    assert result["accuracy_images"] == 4
    assert phone.left_behind == []


def test_a_program_s_exit_status_comes_home(
    phone: Phone, python: str, edgeall_wheel: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A Python without packages: its message, and exit status 1."""
    done = phone.bench(tiny_bundle, "--wheel", edgeall_wheel)
    assert done.returncode == 1
    assert "No module named" in done.stderr
    done = phone.bench(tiny_bundle, "--wheel", edgeall_wheel, "--device-python", "/no/python")
    assert done.returncode == 1
    assert "/no/python" in done.stderr
    spoilt = repack(tiny_bundle, tmp_path / "spoilt.tflite", other_units)
    done = phone.bench(spoilt, "--wheel", edgeall_wheel, "--device-python", python)
    assert done.returncode == 1
    assert "golden images give other outputs" in done.stderr
    assert phone.left_behind == []


def test_the_network_alone_by_benchmark_model(phone: Phone, program: Path, tiny_bundle: Path) -> None:
    done = phone.bench(tiny_bundle, "--benchmark-model", program, "--seconds", "0.2", "--threads", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["golden"], result["threads"]) == (2, 2)
    assert result["queries"] >= 50
    assert 0 < result["invoke"]["min_ms"] <= result["invoke"]["p50_ms"] <= result["invoke"]["max_ms"]
    assert phone.left_behind == []


def test_benchmark_model_has_to_give_the_golden_outputs(
    phone: Phone, program: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    spoilt = repack(tiny_bundle, tmp_path / "spoilt.tflite", other_units)
    done = phone.bench(spoilt, "--benchmark-model", program)
    assert done.returncode == 1
    assert "differs by" in done.stderr
    broken = tmp_path / "benchmark_model"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 9\n")
    done = phone.bench(tiny_bundle, "--benchmark-model", broken)
    assert done.returncode == 1
    assert "failed with status 9 (it is broken)" in done.stderr
    assert phone.left_behind == []


def test_a_phone_that_is_not_there(phone: Phone, tiny_bundle: Path) -> None:
    edgeall = Path(sys.executable).with_name("edgeall")
    done = phone.inside(edgeall, "bench", tiny_bundle, "--on", "adb:NOBODY")
    assert done.returncode == 1
    assert f"adb sees: {SERIAL} (device)" in done.stderr
