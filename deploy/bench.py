"""`edgeall bench` on another device over ssh: copies model and images, verifies, runs, and returns the result."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..edge_runtime.bundle import open_bundle
from ..edge_runtime.pipeline import expand
from ..edge_runtime.results import from_json
from ..edge_runtime.tools.bench_result import BenchResult
from .environment import pack, prepare
from .release import PYTHON, verify
from .shell import Reporter, Shell, ask, command_line
from .target import DeviceError
from .upload import sha256, upload


def bench_over_ssh(
    shell: Shell,
    model: str | os.PathLike[str],
    images: Path | None,
    arguments: Sequence[str],
    progress: Reporter,
    *,
    wheel: Path | None = None,
    python: str = PYTHON,
) -> BenchResult:
    """Run `edgeall bench` on a device, with the same version of edgeall as on the host.

    Does not change the deployed model. Removes the copied model and images; keeps the environment.

    Args:
        shell: the device.
        model: on the host; a packed model is verified on the device first.
        images: on the host, folder or file; None times the golden images.
        arguments: further options of `edgeall bench`, as on its command line.
        progress: shows steps, bytes, and the progress of bench on the device.
        wheel: of edgeall, see `edgeall.deploy.package.wheel`.
        python: Python executable on the device.

    Raises:
        BundleError: the model is damaged, or a golden image gives another output on the device.
        DeviceError: a step failed on the device; with the device's message.
    """
    bundle = open_bundle(model)
    path = Path(model)
    facts = ask(shell, python, "facts")
    environment = prepare(shell, python, facts, progress, wheel)
    folder = f"bench/{sha256(path)[:16]}"
    try:
        remote_path = upload(shell, python, path, f"{folder}/{path.name}", progress)
        if bundle.manifest is not None:
            verify(shell, environment.edgeall, remote_path)
        words: list[object] = [environment.edgeall, "bench", remote_path, "--json", *arguments]
        if images is not None:
            words += ["--images", _send_images(shell, python, images, folder, progress)]
        done = shell.run(command_line(*words), on_stderr=progress.note)
    finally:
        _remove(shell, python, folder)
    return parse_result(shell.name, done.status, done.out, done.reason)


def parse_result(device: str, status: int, out: str, reason: str) -> BenchResult:
    """The result that bench printed on a device. Raises DeviceError if it failed or printed none."""
    if status:
        raise DeviceError(f"{device}: bench failed with status {status} ({reason})")
    try:
        return from_json(BenchResult, json.loads(out))
    except ValueError:
        raise DeviceError(f"{device}: bench printed no JSON ({reason})") from None


def pack_images(images: Path, archive: Path) -> str:
    """Archive the images of a folder, with the names of their folders, which may be labels.

    Returns:
        The path of ``images`` in the archive.

    Raises:
        DataError: ``images`` does not exist or has no image.
    """
    top = images.absolute()
    pack([Path(os.path.abspath(file)) for file in expand([images])], top.parent.parent, archive)
    return top.relative_to(top.parent.parent).as_posix()


def _send_images(shell: Shell, python: str, images: Path, folder: str, progress: Reporter) -> str:
    with tempfile.TemporaryDirectory() as here:
        archive = Path(here) / "images.tar"
        inside = pack_images(images, archive)
        upload(shell, python, archive, f"{folder}/images.tar", progress)
    unpacked = ask(shell, python, "unpack", path=f"{folder}/images.tar")["path"]
    return f"{unpacked}/{inside}"


def _remove(shell: Shell, python: str, folder: str) -> None:
    with contextlib.suppress(DeviceError):  # the connection is lost; another error reports it
        ask(shell, python, "remove", path=folder)
