"""`edgeall bench` on an Android device, through adb: by a Python there, or by LiteRT's ``benchmark_model``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adbutils
import numpy as np

from ..edge_runtime.bundle import Bundle, Golden, open_bundle
from ..edge_runtime.errors import BundleError, UsageError
from ..edge_runtime.foreign import OPEN, sizes_of
from ..edge_runtime.images import decode_rgb
from ..edge_runtime.preprocess import preprocess
from ..edge_runtime.tools.golden import UNITS_TOLERANCE, pixels_digest
from . import benchmark_model, package
from .bench import answer, pack_images
from .release import PYTHON, verify_answer
from .shell import Finished, Reporter, command_line
from .target import AdbTarget, DeviceError
from .upload import sha256

FOLDER = "/data/local/tmp"
"""The one place where adb's user may put programs and run them."""
CONNECT_S = 20
EDGEALL = "import sys; from edgeall.cli import main; sys.exit(main())"


class Adb:
    """One device that answers, and a folder there that is removed in the end."""

    def __init__(self, device: adbutils.AdbDevice, name: str, folder: str) -> None:
        self._device = device
        self.name = name
        self.folder = folder

    def run(self, *words: object, into: str = "") -> Finished:
        """Run a program in the device's shell; its exit status is the program's.

        Args:
            words: the program and its arguments.
            into: a file there that takes its stdout.

        Raises:
            DeviceError: the connection is lost.
        """
        line = command_line(*words) + (f" > {command_line(into)}" if into else "")
        try:
            done = self._device.shell2(line, timeout=None, v2=True)
        except (adbutils.AdbError, OSError) as error:
            raise DeviceError(f"{self.name}: the connection is lost ({error})") from error
        # A device older than Android 7 has one stream for both.
        return Finished(done.returncode, done.stdout or done.output, done.stderr)

    def checked(self, *words: object) -> Finished:
        """`run` of what has to succeed. Raises DeviceError with the program's words when it doesn't."""
        done = self.run(*words)
        if done.status:
            raise DeviceError(f"{self.name}: {words[0]} failed with status {done.status} ({done.reason})")
        return done

    def push(self, source: Path | bytes, name: str, mode: int = 0o644) -> str:
        """Copy a file, or bytes, into the folder there, and compare digests; returns its path there.

        Raises:
            DeviceError: the disk is full, the connection is lost, or what arrives is not what was sent.
        """
        there = f"{self.folder}/{name}"
        with tempfile.TemporaryDirectory() as here:
            file = source if isinstance(source, Path) else Path(here) / "bytes"
            if isinstance(source, bytes):
                file.write_bytes(source)
            try:
                self._device.sync.push(file, there, mode)
            except (adbutils.AdbError, OSError) as error:
                raise DeviceError(f"{self.name}: {name} can't be pushed ({error})") from error
            if self.checked("sha256sum", there).out.split()[0] != sha256(file):
                raise DeviceError(f"{self.name}: {name} arrives with another digest than it was sent with")
        return there

    def pull(self, there: str) -> bytes:
        """The content of a file there. Raises DeviceError when there is none, or the connection is lost."""
        try:
            content: bytes = self._device.sync.read_bytes(there)
        except (adbutils.AdbError, OSError) as error:
            raise DeviceError(f"{self.name}: {there} can't be pulled ({error})") from error
        return content


@contextmanager
def connect(target: AdbTarget) -> Iterator[Adb]:
    """Find the device among those that this machine's adb server sees, and make a folder there.

    Raises:
        DeviceError: no adb here, no such device, or one that has not been allowed.
    """
    name = str(target)
    try:
        states = {info.serial: info.state for info in adbutils.AdbClient(socket_timeout=CONNECT_S).list()}
    except (adbutils.AdbError, OSError) as error:
        raise DeviceError(
            f"{name}: no adb server answers here ({error})",
            hint="install adb (apt install adb), then `adb start-server`",
        ) from error
    if states.get(target.serial) != "device":
        known = ", ".join(f"{serial} ({state})" for serial, state in states.items()) or "none"
        raise DeviceError(
            f"{name}: no such device, adb sees: {known}",
            hint="switch on USB debugging there and allow this computer; over the network: `adb connect HOST:PORT`",
        )
    device = adbutils.AdbClient().device(serial=target.serial)  # a measurement may be silent for long: no timeout
    shell = Adb(device, name, FOLDER)
    folder = shell.checked("mktemp", "-d", f"{FOLDER}/edgeall.XXXXXX").out.strip()
    try:
        yield Adb(device, name, folder)
    finally:
        with contextlib.suppress(DeviceError):
            shell.run("rm", "-rf", folder)


def bench_over_adb(
    adb: Adb,
    model: Path,
    images: Path | None,
    arguments: Sequence[str],
    progress: Reporter,
    *,
    wheel: Path | None = None,
    python: str = PYTHON,
) -> dict[str, Any]:
    """Run `edgeall bench` by a Python on the device that has numpy, Pillow, click and an interpreter.

    edgeall itself is sent along as a wheel, which Python imports from as it is. Everything sent is removed again.

    Args:
        adb: the device.
        model: here; a packed one is verified there first.
        images: here, folder or file; None times the golden images.
        arguments: further options of `edgeall bench`, as on its command line.
        progress: says what is going on.
        wheel: edgeall's, see `edgeall.deploy.package.wheel`.
        python: the device's, a command or an absolute path.

    Returns:
        What `edgeall bench --json` says there.

    Raises:
        BundleError: the model is damaged, or its golden images come out differently there.
        DeviceError: the device fails at something; in its words.
    """
    bundle = open_bundle(model)
    progress.note(f"{adb.name}: copying edgeall and {model.name}")
    sent = package.wheel(wheel)
    edgeall = ["env", f"PYTHONPATH={adb.push(sent, sent.name)}", python, "-c", EDGEALL]
    there = adb.push(model, model.name)
    if bundle.manifest is not None:
        verify_answer(adb.name, adb.run(*edgeall, "inspect", there, "--json"))
    words = [*edgeall, "bench", there, "--json", *arguments]
    if images is not None:
        words += ["--images", _push_images(adb, images)]
    result = f"{adb.folder}/bench.json"
    done = adb.run(*words, into=result)
    out = adb.pull(result).decode() if not done.status else ""
    return answer(adb.name, done.status, out, done.reason)


def bench_by_benchmark_model(
    adb: Adb, model: Path, program: Path, threads: int, seconds: float, progress: Reporter
) -> dict[str, Any]:
    """Time the network alone with LiteRT's ``benchmark_model``, where the device has no Python.

    A packed model's golden images are preprocessed here and run there first; their outputs must be those of the
    workstation.

    Args:
        adb: the device.
        model: here.
        program: ``benchmark_model``, built for the device.
        threads: of the interpreter.
        seconds: to measure at least.
        progress: says what is going on.

    Returns:
        device, model_sha256, runtime, threads, golden (how many agreed), and the figures of
        `benchmark_model.parse_output`; decoding and preprocessing are not in them.

    Raises:
        UsageError: ``program`` isn't there.
        BundleError: the model is damaged, or a golden image comes out differently there.
        DataError: the program printed no timings.
        DeviceError: the device or the program failed.
    """
    if not program.is_file():
        raise UsageError(f"{program}: no such file", hint="--benchmark-model takes the program built for the device")
    bundle = open_bundle(model)
    main = bundle.graph.main
    if bundle.manifest is None and any(OPEN in sizes_of(main.tensors[index])[1:] for index in main.inputs):
        raise BundleError(
            f"{bundle.path}: its input has no fixed size, benchmark_model would time it on one pixel",
            hint="convert it again for the size it was trained with",
        )
    progress.note(f"{adb.name}: copying {program.name} and {model.name}")
    command = adb.push(program, "benchmark_model", 0o755)
    there = adb.push(model, model.name)
    for golden in bundle.golden:
        _check_golden(adb, command, there, bundle, golden)
    done = adb.checked(command, *benchmark_model.bench_options(there, threads, seconds))
    return {
        "device": _describe(adb),
        "model_sha256": sha256(model),
        "runtime": f"benchmark_model {sha256(program)[:12]}",
        "threads": threads,
        "golden": len(bundle.golden),
        **benchmark_model.parse_output(f"{done.out}\n{done.err}"),
    }


def _check_golden(adb: Adb, command: str, model: str, bundle: Bundle, golden: Golden) -> None:
    assert bundle.manifest is not None  # only packed models have golden images
    tensor = bundle.graph.main.tensors[bundle.graph.main.inputs[0]]
    pixels = preprocess(decode_rgb(golden.image_bytes, golden.name), bundle.manifest.input)
    if golden.units is None or tensor.type not in ("UINT8", "INT8"):
        raise BundleError(
            f"{bundle.path}: benchmark_model can verify full-integer models only",
            hint="quantize with ptq-int8 or qat-int8",
        )
    if pixels_digest(pixels) != golden.pixels_sha256:
        raise BundleError(f"{golden.name}: preprocessing gives other pixels here than where the model was packed")
    fed = pixels if tensor.type == "UINT8" else np.bitwise_xor(pixels, 0x80)  # pixel - 128 in two's complement
    source, target = adb.push(fed.tobytes(), "input.bin"), f"{adb.folder}/output.bin"
    adb.checked(command, *benchmark_model.check_options(model, tensor.name, tensor.shape, source, target))
    output = bundle.graph.main.tensors[bundle.graph.main.outputs[0]]
    kind = np.uint8 if output.type == "UINT8" else np.int8
    units = np.frombuffer(adb.pull(target), kind)[: output.shape[-1]]  # a second output follows in the same file
    difference = np.abs(units.astype(int) - np.array(golden.units)).max()
    if difference > UNITS_TOLERANCE["ai_edge_litert"]:
        raise BundleError(f"{adb.name}: {golden.name} differs there by {difference} units from where it was packed")


def _push_images(adb: Adb, images: Path) -> str:
    with tempfile.TemporaryDirectory() as here:
        archive = Path(here) / "images.tar"
        inside = pack_images(images, archive)
        there = adb.push(archive, "images.tar")
    adb.checked("mkdir", f"{adb.folder}/images")
    adb.checked("tar", "-xf", there, "-C", f"{adb.folder}/images")
    return f"{adb.folder}/images/{inside}"


def _describe(adb: Adb) -> dict[str, Any]:
    def said(*words: str) -> str | None:
        done = adb.run(*words)
        return done.out.strip() or None if done.status == 0 else None

    release = said("getprop", "ro.build.version.release")
    cores = said("nproc")
    return {
        "machine": said("uname", "-m"),
        "board": said("getprop", "ro.product.model"),
        "cores": int(cores) if cores else None,
        "os": f"{f'Android {release}' if release else said('uname', '-s')}, kernel {said('uname', '-r')}",
    }
