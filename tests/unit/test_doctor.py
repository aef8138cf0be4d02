"""`edgeall doctor` on this machine and on simulated ones: a 32-bit Pi, a throttled Pi, one with the wrong numpy."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeall import cli
from edgeall.edge_runtime import interpreter
from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.tools import doctor
from edgeall.edge_runtime.tools import machine as machine_module
from edgeall.edge_runtime.tools.doctor import diagnose, doctor_text
from edgeall.edge_runtime.tools.machine import Machine, this_machine

INSTALLED = {
    "click": "8.4.0",
    "numpy": "2.4.6",
    "pillow": "13.0.0",
    "rich": "15.0.0",
    "flatbuffers": "25.12.19",
    "ai-edge-litert": "2.3.0",
}
NOW = datetime.datetime(2027, 3, 1, 12, 30, tzinfo=datetime.timezone.utc).timestamp()
SAYS = {"timedatectl": "yes\n", "vcgencmd": "throttled=0x0\n"}


def small_model() -> bytes:
    """An int8 addition of the input to itself, as LiteRT's generated schema writes it."""

    def tensor(name: str) -> Any:
        quantization = schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = [0.5], [0]
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer, made.quantization = name, [1, 4], 9, 0, quantization
        return made

    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode = code.builtinCode = schema.BuiltinOperator.ADD
    code.version = 2
    add = schema.OperatorT()
    add.inputs, add.outputs = [0, 0], [1]
    add.builtinOptionsType, add.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor("x"), tensor("y")], [0], [1], [add]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture
def pi(tmp_path: Path) -> Callable[..., Machine]:
    """``pi(installed=..., programs=..., says=..., **fields)``: a healthy Raspberry Pi with the given changes."""

    def make(
        installed: Mapping[str, str | None] | None = None,
        programs: Sequence[str] = ("ssh", "sshd", "rpicam-still"),
        says: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Machine:
        root = tmp_path / "root"
        (root / "proc/device-tree").mkdir(parents=True, exist_ok=True)
        (root / "proc/device-tree/model").write_text("Raspberry Pi 4 Model B Rev 1.5\0")
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev/video0").touch()
        folder = root / "bin"
        folder.mkdir(exist_ok=True)
        for program in folder.iterdir():
            program.unlink()
        for program in programs:
            (folder / program).touch(mode=0o755)
        versions = INSTALLED | dict(installed or {})
        answers = SAYS | dict(says or {})
        machine = Machine(
            python=(3, 11),
            implementation="CPython",
            bits=64,
            machine="aarch64",
            glibc=(2, 36),
            venv=True,
            root=root,
            path=str(folder),
            version=versions.get,
            run=lambda command: answers.get(command[0]),
            try_model=lambda: {"runtime": "ai_edge_litert", "xnnpack": True},
            free_bytes=20_000_000_000,
            now=NOW,
        )
        return dataclasses.replace(machine, **fields)

    return make


def found(machine: Machine) -> dict[str, dict[str, str]]:
    result = diagnose(machine).to_json()
    checks = {check["name"]: check for check in result["checks"]}
    assert len(checks) == len(result["checks"])
    assert result["ok"] == all(check["state"] != "fail" for check in result["checks"])
    for check in result["checks"]:
        assert check["state"] in ("ok", "warn", "fail")
        assert bool(check["fix"]) == (check["state"] != "ok"), check
    return checks


def states(machine: Machine) -> dict[str, str]:
    """State of every check that is not ok."""
    return {name: check["state"] for name, check in found(machine).items() if check["state"] != "ok"}


def test_the_small_model_is_what_the_schema_writes() -> None:
    assert base64.b64encode(small_model()).decode() == base64.b64encode(machine_module.MODEL).decode()


def test_a_healthy_pi(pi: Callable[..., Machine]) -> None:
    machine = pi()
    assert states(machine) == {}
    text = doctor_text(diagnose(machine))
    assert [line[:4] for line in text.splitlines()] == ["ok  "] * 12
    assert "tflite-runtime does not fit" not in text
    assert "2027-03-01 12:30 UTC, synchronized" in text


OLD = {"ai-edge-litert": None, "tflite-runtime": "2.14.0", "numpy": "1.26.4"}


def builtin() -> dict[str, Any]:
    return {"runtime": "tflite_runtime", "xnnpack": False}


def test_a_32_bit_pi(pi: Callable[..., Machine]) -> None:
    checks = found(pi(OLD, machine="armv7l", bits=32, try_model=builtin))
    assert checks["interpreter"]["state"] == "ok"
    assert "ai-edge-litert does not fit: no wheel for armv7l" in checks["interpreter"]["found"]
    assert checks["machine"]["state"] == "ok"
    assert checks["inference"]["state"] == "warn"
    assert "without XNNPACK" in checks["inference"]["found"]
    assert "64-bit system" in checks["inference"]["fix"]
    assert found(pi(try_model=builtin))["inference"]["fix"].endswith("-m pip install --upgrade ai-edge-litert")


def test_a_32_bit_system_under_a_64_bit_kernel(pi: Callable[..., Machine]) -> None:
    """pip detects aarch64 from the kernel and looks for a LiteRT that 32-bit Python cannot load."""
    checks = found(pi({"ai-edge-litert": None, "numpy": None}, bits=32, try_model=no_interpreter))
    assert checks["machine"]["state"] == "warn"
    assert checks["machine"]["fix"].startswith("linux32 ")
    assert checks["interpreter"]["state"] == "fail"
    assert "tflite-runtime fits" in checks["interpreter"]["found"]
    assert re.fullmatch(r"linux32 \S+ -m pip install 'tflite-runtime==2.14.0' 'numpy<2'", checks["interpreter"]["fix"])
    assert "numpy is missing" in checks["numpy"]["found"]
    assert checks["numpy"]["fix"].endswith("-m pip install 'numpy<2'")
    assert (checks["inference"]["state"], checks["inference"]["found"]) == (
        "fail",
        "no TFLite interpreter is installed",
    )
    assert checks["inference"]["fix"].endswith("-m pip install --force-reinstall 'tflite-runtime==2.14.0' 'numpy<2'")


def no_interpreter() -> NoReturn:
    raise BundleError("no TFLite interpreter is installed")


def test_linux32_makes_the_kernel_say_armv8l(pi: Callable[..., Machine]) -> None:
    checks = found(pi(OLD, machine="armv8l", bits=32))
    assert checks["machine"]["state"] == checks["interpreter"]["state"] == "ok"


def test_python_3_13_on_a_32_bit_pi(pi: Callable[..., Machine]) -> None:
    """Raspberry Pi OS of 2025, 32-bit: neither interpreter has a wheel."""
    checks = found(pi({"ai-edge-litert": None}, machine="armv7l", bits=32, python=(3, 13), try_model=no_interpreter))
    assert checks["Python"]["state"] == "fail"
    assert "--python 3.11" in checks["Python"]["fix"]
    assert "tflite-runtime does not fit: wheels for CPython 3.10 to 3.11" in checks["interpreter"]["found"]


@pytest.mark.parametrize(
    ("fields", "check", "word"),
    [
        ({"python": (3, 9)}, "Python", "CPython 3.9"),
        ({"python": (3, 15)}, "Python", "3.14 is the last"),
        ({"implementation": "PyPy"}, "Python", "PyPy"),
        ({"glibc": (2, 24)}, "C library", "2.24, the wheels need 2.27"),
        ({"glibc": None}, "C library", "not glibc"),
        ({"machine": "armv6l", "bits": 32}, "machine", "armv6l"),
        ({"machine": "x86_64", "bits": 32}, "machine", "i686"),
        ({"free_bytes": 50_000_000}, "disk", "0.1 GB"),
        ({"now": 0.0}, "clock", "1970-01-01"),
    ],
)
def test_what_fails(pi: Callable[..., Machine], fields: dict[str, Any], check: str, word: str) -> None:
    checks = found(pi(**fields))
    assert checks[check]["state"] == "fail"
    assert word in checks[check]["found"]


def test_python_3_10_to_3_14_do(pi: Callable[..., Machine]) -> None:
    for minor in range(10, 15):
        assert states(pi(python=(3, minor))) == {}


def test_debian_without_python3_venv(pi: Callable[..., Machine]) -> None:
    assert states(pi(venv=False)) == {"Python": "warn"}


def test_macos_has_no_glibc_and_needs_none(pi: Callable[..., Machine]) -> None:
    checks = found(pi(machine="arm64", glibc=None))
    assert "C library" not in checks
    assert checks["interpreter"]["state"] == "ok"


def test_numpy_2_with_the_old_runtime(pi: Callable[..., Machine]) -> None:
    check = found(pi(OLD | {"numpy": "2.4.6"}, machine="armv7l", bits=32))["numpy"]
    assert check["state"] == "fail"
    assert "2.4.6 is incompatible with tflite-runtime 2.14.0" in check["found"]
    assert check["fix"].endswith("-m pip install 'numpy<2'")
    assert states(pi({"tflite-runtime": "2.14.0"})) == {}  # LiteRT is installed too, and preferred


def test_old_and_missing_packages(pi: Callable[..., Machine]) -> None:
    assert found(pi({"numpy": "1.21.6"}))["numpy"]["fix"].endswith("-m pip install 'numpy>=1.23.2'")
    check = found(pi({"pillow": "9.4.0", "rich": None, "click": "8.2.0rc1"}))["packages"]
    assert (check["state"], check["found"]) == ("fail", "pillow 9.4.0, rich is missing")
    assert check["fix"].endswith("-m pip install 'pillow>=10.1' 'rich>=13'")


def test_the_slow_runtime_where_the_fast_one_fits(pi: Callable[..., Machine]) -> None:
    check = found(pi(OLD, try_model=builtin))["interpreter"]
    assert (check["state"], check["fix"].partition(" -m ")[2]) == ("warn", "pip install ai-edge-litert")


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        ("throttled=0x0\n", "ok", "never throttled"),
        ("throttled=0x50005\n", "warn", "under-voltage, throttled now"),
        ("throttled=0x80000\n", "warn", "soft temperature limit since boot"),
    ],
)
def test_a_throttled_pi(pi: Callable[..., Machine], said: str, state: str, words: str) -> None:
    check = found(pi(says={"vcgencmd": said}))["power"]
    assert (check["state"], words in check["found"]) == (state, True), check


def test_the_kernel_tells_of_throttling_without_vcgencmd(pi: Callable[..., Machine]) -> None:
    machine = pi(says={"vcgencmd": ""})
    assert "power" not in found(machine)
    file = machine.root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    file.parent.mkdir(parents=True)
    file.write_text("1\n")
    assert "under-voltage now" in found(machine)["power"]["found"]


def test_camera_and_ssh(pi: Callable[..., Machine]) -> None:
    assert found(pi(programs=()))["camera"]["fix"] == "sudo apt install rpicam-apps"
    checks = found(pi(programs=("ssh", "v4l2-ctl")))
    assert checks["camera"]["state"] == "ok"
    assert checks["ssh"]["state"] == "warn"
    assert checks["ssh"]["fix"] == "sudo apt install openssh-server"
    machine = pi(programs=("ssh", "v4l2-ctl"))
    (machine.root / "dev/video0").unlink()
    (machine.root / "proc/device-tree/model").unlink()
    assert found(machine)["camera"]["fix"].endswith("v4l2-ctl --list-devices")
    (Path(machine.path) / "v4l2-ctl").unlink()
    assert found(machine)["camera"]["fix"] == "sudo apt install v4l-utils"


def test_a_clock_that_nothing_sets(pi: Callable[..., Machine]) -> None:
    assert found(pi(says={"timedatectl": "no\n"}))["clock"]["fix"] == "sudo timedatectl set-ntp true"
    assert found(pi(says={"timedatectl": ""}))["clock"]["state"] == "warn"


def test_what_is_kept_takes_space(pi: Callable[..., Machine], tmp_path: Path) -> None:
    assert "cache" not in found(pi(cache=tmp_path / "none yet"))
    cache = tmp_path / "cache"
    (cache / "opened").mkdir(parents=True)
    (cache / "pixels-0123.npy").write_bytes(bytes(2_000_000))
    (cache / "opened" / "x").write_bytes(bytes(400_000))
    assert found(pi(cache=cache))["cache"]["found"] == f"2.4 MB in {cache}, which edgeall can regenerate"
    left = cache / ".pixels-0123-1.npy"
    left.write_bytes(bytes(1_000_000))
    os.utime(left, (0, 0))  # older than any running process
    said = found(pi(cache=cache))["cache"]["found"]
    assert said.startswith("3.4 MB in ")
    assert "; 1.0 MB of it left by killed processes" in said


def test_a_disk_that_fills_up(pi: Callable[..., Machine]) -> None:
    assert states(pi(free_bytes=300_000_000)) == {"disk": "warn"}


def test_lowest_versions_are_those_of_setup_cfg(repository: Path) -> None:
    needs = (repository / "setup.cfg").read_text().partition("install_requires =")[2].partition("\n\n")[0]
    for package, low in [*doctor.PACKAGES.items(), ("numpy", doctor.LOWEST_NUMPY)]:
        assert re.search(rf"^    {package}>={re.escape(low)}(,|;|$)", needs, flags=re.MULTILINE), package
    for wheel, package in zip(machine_module.WHEELS, interpreter.RUNTIMES, strict=True):
        assert wheel.package == package.replace("_", "-")
        assert re.search(rf"^    {wheel.package}[=>]=", needs, flags=re.MULTILINE)


def test_on_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor", "--json"])
    out = capfd.readouterr().out
    result = json.loads(out)
    checks = {check["name"]: check for check in result["checks"]}
    assert status == (0 if result["ok"] else 1)
    assert checks["Python"]["found"].startswith(f"CPython {sys.version_info.major}.{sys.version_info.minor}, 64 bit")
    assert [checks[name]["state"] for name in ("interpreter", "numpy", "packages")] == ["ok"] * 3
    assert checks["inference"]["found"] == "ai_edge_litert runs int8 through XNNPACK"
    assert cli.main(["doctor"]) == status
    assert "inference    ai_edge_litert runs" in capfd.readouterr().out


def test_a_failure_is_status_1(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    broken = dataclasses.replace(this_machine(), try_model=no_interpreter)
    monkeypatch.setattr(machine_module, "this_machine", lambda: broken)
    assert cli.main(["doctor"]) == 1
    assert re.search(r"^fail  inference +no TFLite.*\n +> .*--force-reinstall", capfd.readouterr().out, re.MULTILINE)


def test_it_works_where_nothing_else_does(tmp_path: Path, repository: Path) -> None:
    """An environment without an interpreter and with a broken numpy: only click works."""
    for package in ("numpy", "PIL", "ai_edge_litert", "tflite_runtime", "rich", "flatbuffers"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('built for another Python')\n")
    script = "import sys; from edgeall.cli import main; sys.exit(main(['doctor', '--json']))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (check,) = (check for check in json.loads(done.stdout)["checks"] if check["name"] == "inference")
    assert check["state"] == "fail"
    assert "built for another Python" in check["found"]


def test_it_starts_without_what_it_examines() -> None:
    script = textwrap.dedent("""
        import sys
        import edgeall.edge_runtime.tools.doctor
        print(*sorted({name.partition(".")[0] for name in sys.modules}))
    """)
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "PIL", "rich", "ai_edge_litert", "flatbuffers"} & set(loaded)
