"""Runs the edgeall that is installed on a device, and reads what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from ..edge_runtime.errors import BundleError
from ..edge_runtime.results import from_json
from ..edge_runtime.tools.bench_result import BenchResult
from ..edge_runtime.tools.golden import GoldenResult
from .shell import Finished, Shell, command_line
from .target import DeviceError


@dataclass(frozen=True)
class Installed:
    """A model on a device and the command that runs it: absolute paths on the device."""

    edgeall: str
    model: str

    @classmethod
    def in_folder(cls, folder: str) -> Installed:
        """Those of a release, or of ``~/.edgeall/current``."""
        return cls(f"{folder}/env/bin/edgeall", f"{folder}/model.tflite")


def verify(shell: Shell, installed: Installed) -> list[GoldenResult]:
    """Verify digest and golden images on the device, with the edgeall installed there.

    Raises:
        BundleError: the file is damaged on the device, or a golden image gives another output.
        DeviceError: edgeall does not run on the device.
    """
    words = (installed.edgeall, "inspect", installed.model, "--json")
    return verify_output(shell.name, shell.run(command_line(*words)))


def verify_output(device: str, done: Finished) -> list[GoldenResult]:
    """`verify` for the output of `edgeall inspect --json` on a device."""
    try:
        facts = json.loads(done.out)
        golden = [from_json(GoldenResult, result) for result in facts["golden"]]
    except ValueError:
        raise DeviceError(f"{device}: edgeall fails on the device ({done.reason})") from None
    wrong = [
        f"{result.name} differs by {result.difference:g} {result.unit} (allowed {result.tolerance:g})"
        if result.pixels_ok
        else f"{result.name} has different pixels after preprocessing"
        for result in golden
        if not result.ok
    ]
    if wrong or not facts["golden_ok"]:
        raise BundleError(
            f"{device}: the golden images give other outputs than where the model was packed: {'; '.join(wrong)}"
        )
    return golden


def bench(shell: Shell, installed: Installed, *options: object, on_line: Callable[[str], None]) -> BenchResult:
    """Run `edgeall bench` on the device. ``on_line`` gets each line of its stderr.

    Raises:
        DeviceError: bench failed or printed no result; with the device's message.
    """
    words = (installed.edgeall, "bench", installed.model, "--json", *options)
    done = shell.run(command_line(*words), on_stderr=on_line)
    return bench_output(shell.name, done.status, done.out, done.reason)


def bench_output(device: str, status: int, out: str, reason: str) -> BenchResult:
    """The result that bench printed on a device. Raises DeviceError if it failed or printed none."""
    if status:
        raise DeviceError(f"{device}: bench failed{f' with status {status}' if status > 0 else ''} ({reason})")
    try:
        return from_json(BenchResult, json.loads(out))
    except ValueError:
        raise DeviceError(f"{device}: bench printed no JSON ({reason})") from None
