"""`edgeall bench` on an Android device over adb: with Python on the device, or with LiteRT's ``benchmark_model``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import adbutils
import numpy as np

from ..edge_runtime.bundle import Bundle, Golden, open_bundle
from ..edge_runtime.errors import BundleError, UsageError
from ..edge_runtime.foreign import OPEN, sizes_of
from ..edge_runtime.images import decode_rgb
from ..edge_runtime.preprocess import preprocess
from ..edge_runtime.tools.bench_result import BenchResult
from ..edge_runtime.tools.golden import UNITS_TOLERANCE, pixels_digest
from . import benchmark_model, package
from .bench import RemoteBench, pack_images
from .benchmark_model import AndroidDevice, ModelTimes
from .remote import bench_output, verify_output
from .shell import Finished, Reporter, command_line
from .target import AdbTarget, DeviceError
from .upload import sha256

FOLDER = "/data/local/tmp"
"""The only folder where adb's user may store and run programs."""
CONNECT_S = 20
EDGEALL = "import sys; from edgeall.cli import main; sys.exit(main())"


class Adb:
    """One connected device, with a temporary folder on it."""

    def __init__(self, device: adbutils.AdbDevice, name: str, folder: str) -> None:
        self._device = device
        self.name = name
        self.folder = folder

    def run(self, *words: object, into: str = "") -> Finished:
        """Run a program in the device's shell.

        Args:
            words: the program and its arguments.
            into: a file on the device for its stdout.

        Raises:
            DeviceError: the connection is lost.
        """
        line = command_line(*words) + (f" > {command_line(into)}" if into else "")
        try:
            done = self._device.shell2(line, timeout=None, v2=True)
        except (adbutils.AdbError, OSError) as error:
            raise DeviceError(f"{self.name}: the connection is lost ({error})") from error
        # Before Android 7 there is one stream for stdout and stderr.
        return Finished(done.returncode, done.stdout or done.output, done.stderr)

    def checked(self, *words: object) -> Finished:
        """`run`, but raises DeviceError with the program's output if it fails."""
        done = self.run(*words)
        if done.status:
            raise DeviceError(f"{self.name}: {words[0]} failed with status {done.status} ({done.reason})")
        return done

    def push(self, source: Path | bytes, name: str, mode: int = 0o644) -> str:
        """Copy a file, or bytes, into the folder on the device, and compare digests. Returns the path on the device.

        Raises:
            DeviceError: the disk is full, the connection is lost, or the digests differ.
        """
        remote_path = f"{self.folder}/{name}"
        with tempfile.TemporaryDirectory() as here:
            file = source if isinstance(source, Path) else Path(here) / "bytes"
            if isinstance(source, bytes):
                file.write_bytes(source)
            try:
                self._device.sync.push(file, remote_path, mode)
            except (adbutils.AdbError, OSError) as error:
                raise DeviceError(f"{self.name}: {name} can't be pushed ({error})") from error
            if self.checked("sha256sum", remote_path).out.split()[0] != sha256(file):
                raise DeviceError(f"{self.name}: the digest of {name} differs after the copy")
        return remote_path

    def pull(self, remote_path: str) -> bytes:
        """The content of a file on the device. Raises DeviceError if it is missing, or the connection is lost."""
        try:
            content: bytes = self._device.sync.read_bytes(remote_path)
        except (adbutils.AdbError, OSError) as error:
            raise DeviceError(f"{self.name}: {remote_path} can't be pulled ({error})") from error
        return content


@contextmanager
def connect(target: AdbTarget) -> Iterator[Adb]:
    """Connect to a device of this host's adb server, and create a folder on it. Removes the folder at the end.

    Raises:
        DeviceError: no adb server, no such device, or a device that has not allowed this host.
    """
    name = str(target)
    try:
        states = {info.serial: info.state for info in adbutils.AdbClient(socket_timeout=CONNECT_S).list()}
    except (adbutils.AdbError, OSError) as error:
        raise DeviceError(
            f"{name}: no adb server answers on this host ({error})",
            hint="install adb (apt install adb), then `adb start-server`",
        ) from error
    if states.get(target.serial) != "device":
        known = ", ".join(f"{serial} ({state})" for serial, state in states.items()) or "none"
        raise DeviceError(
            f"{name}: no such device, adb sees: {known}",
            hint="enable USB debugging and allow this computer on the device; by network: `adb connect HOST:PORT`",
        )
    device = adbutils.AdbClient().device(serial=target.serial)  # no timeout: a measurement may be silent for long
    shell = Adb(device, name, FOLDER)
    folder = shell.checked("mktemp", "-d", f"{FOLDER}/edgeall.XXXXXX").out.strip()
    try:
        yield Adb(device, name, folder)
    finally:
        with contextlib.suppress(DeviceError):
            shell.run("rm", "-rf", folder)


def bench_over_adb(adb: Adb, job: RemoteBench, progress: Reporter) -> BenchResult:
    """Run `edgeall bench` with a Python on the device that has numpy, Pillow, click and an interpreter.

    Copies edgeall as a wheel, which Python imports directly. Removes everything it copied.

    Args:
        adb: the device.
        job: model, images and options; the Python on the device is a command or an absolute path.
        progress: shows the steps.

    Raises:
        BundleError: the model is damaged, or a golden image gives another output on the device.
        DeviceError: a step failed on the device; with the device's message.
    """
    bundle = open_bundle(job.model)
    progress.note(f"{adb.name}: copying edgeall and {job.model.name}")
    sent = package.wheel(job.install.wheel)
    edgeall = ["env", f"PYTHONPATH={adb.push(sent, sent.name)}", job.install.python, "-c", EDGEALL]
    remote_path = adb.push(job.model, job.model.name)
    if bundle.manifest is not None:
        verify_output(adb.name, adb.run(*edgeall, "inspect", remote_path, "--json"))
    words = [*edgeall, "bench", remote_path, "--json", *job.arguments]
    if job.images is not None:
        words += ["--images", _push_images(adb, job.images)]
    result = f"{adb.folder}/bench.json"
    done = adb.run(*words, into=result)
    out = adb.pull(result).decode() if not done.status else ""
    return bench_output(adb.name, done.status, out, done.reason)


def bench_by_benchmark_model(
    adb: Adb, model: Path, program: Path, threads: int, seconds: float, progress: Reporter
) -> ModelTimes:
    """Time the network with LiteRT's ``benchmark_model``, for a device without Python.

    First verifies the golden images of a packed model: preprocesses them on the host and runs them on the device.

    Args:
        adb: the device.
        model: on the host.
        program: ``benchmark_model``, built for the device.
        threads: of the interpreter.
        seconds: minimum duration of the measurement.
        progress: shows the steps.

    Raises:
        UsageError: ``program`` does not exist.
        BundleError: the model is damaged, or a golden image gives another output on the device.
        DataError: the program printed no timings.
        DeviceError: the device or the program failed.
    """
    if not program.is_file():
        raise UsageError(f"{program}: no such file", hint="--benchmark-model takes the program built for the device")
    bundle = open_bundle(model)
    if bundle.task != "classification":
        raise UsageError(
            f"{bundle.path}: --benchmark-model does not take a {bundle.task} model yet",
            hint="measure it with `edgeall bench --on ssh://...`",
        )
    main = bundle.graph.main
    if bundle.manifest is None and any(OPEN in sizes_of(main.tensors[index])[1:] for index in main.inputs):
        raise BundleError(
            f"{bundle.path}: its input has no fixed size, which benchmark_model does not support",
            hint="convert it again with the size it was trained with",
        )
    progress.note(f"{adb.name}: copying {program.name} and {model.name}")
    command = adb.push(program, "benchmark_model", 0o755)
    remote_path = adb.push(model, model.name)
    for golden in bundle.golden:
        _check_golden(adb, command, remote_path, bundle, golden)
    done = adb.checked(command, *benchmark_model.bench_options(remote_path, threads, seconds))
    return ModelTimes(
        device=_describe(adb),
        model_sha256=sha256(model),
        runtime=f"benchmark_model {sha256(program)[:12]}",
        threads=threads,
        golden=len(bundle.golden),
        timings=benchmark_model.parse_output(f"{done.out}\n{done.err}"),
    )


def _check_golden(adb: Adb, command: str, model: str, bundle: Bundle, golden: Golden) -> None:
    assert bundle.manifest is not None  # only packed models have golden images
    tensor = bundle.graph.main.tensors[bundle.graph.main.inputs[0]]
    pixels = preprocess(decode_rgb(golden.image_bytes, golden.name), bundle.manifest.input)
    if golden.units is None or tensor.type not in ("UINT8", "INT8"):
        raise BundleError(
            f"{bundle.path}: benchmark_model can only verify full-integer models",
            hint="quantize with ptq-int8 or qat-int8",
        )
    if pixels_digest(pixels) != golden.pixels_sha256:
        raise BundleError(f"{golden.name}: preprocessing gives other pixels here than where the model was packed")
    fed = pixels if tensor.type == "UINT8" else np.bitwise_xor(pixels, 0x80)  # pixel - 128 in two's complement
    source, target = adb.push(fed.tobytes(), "input.bin"), f"{adb.folder}/output.bin"
    adb.checked(command, *benchmark_model.check_options(model, tensor.name, tensor.shape, source, target))
    output = bundle.graph.main.tensors[bundle.graph.main.outputs[0]]
    kind = np.uint8 if output.type == "UINT8" else np.int8
    units = np.frombuffer(adb.pull(target), kind)[: output.shape[-1]]  # the same file may have a second output
    difference = np.abs(units.astype(int) - np.array(golden.units)).max()
    if difference > UNITS_TOLERANCE["ai_edge_litert"]:
        raise BundleError(f"{adb.name}: the output of {golden.name} differs by {difference} units from the packed one")


def _push_images(adb: Adb, images: Path) -> str:
    with tempfile.TemporaryDirectory() as here:
        archive = Path(here) / "images.tar"
        inside = pack_images(images, archive)
        remote_path = adb.push(archive, "images.tar")
    adb.checked("mkdir", f"{adb.folder}/images")
    adb.checked("tar", "-xf", remote_path, "-C", f"{adb.folder}/images")
    return f"{adb.folder}/images/{inside}"


def _describe(adb: Adb) -> AndroidDevice:
    def output(*words: str) -> str | None:
        done = adb.run(*words)
        return done.out.strip() or None if done.status == 0 else None

    release = output("getprop", "ro.build.version.release")
    cores = output("nproc")
    return AndroidDevice(
        machine=output("uname", "-m"),
        board=output("getprop", "ro.product.model"),
        cores=int(cores) if cores else None,
        os=f"{f'Android {release}' if release else output('uname', '-s')}, kernel {output('uname', '-r')}",
    )
