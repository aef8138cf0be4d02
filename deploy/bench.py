"""`edgeall bench` on another device: send the model and the images, verify, run there, bring the figures home."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..edge_runtime.bundle import open_bundle
from ..edge_runtime.pipeline import expand
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
) -> dict[str, Any]:
    """Run `edgeall bench` on a device, with the same edgeall as here.

    What is deployed there is left alone; the model and the images are removed again, the environment stays.

    Args:
        shell: the device.
        model: here; a packed one is verified there first.
        images: here, folder or file; None times the golden images.
        arguments: further options of `edgeall bench`, as on its command line.
        progress: shows steps and bytes, and what bench says on the device.
        wheel: edgeall's, see `edgeall.deploy.package.wheel`.
        python: the device's.

    Returns:
        What `edgeall bench --json` says there.

    Raises:
        BundleError: the model is damaged, or its golden images come out differently there.
        DeviceError: the device fails at something; in its words.
    """
    bundle = open_bundle(model)
    path = Path(model)
    facts = ask(shell, python, "facts")
    environment = prepare(shell, python, facts, progress, wheel)
    folder = f"bench/{sha256(path)[:16]}"
    try:
        there = upload(shell, python, path, f"{folder}/{path.name}", progress)
        if bundle.manifest is not None:
            verify(shell, environment.edgeall, there)
        words: list[object] = [environment.edgeall, "bench", there, "--json", *arguments]
        if images is not None:
            words += ["--images", _send_images(shell, python, images, folder, progress)]
        done = shell.run(command_line(*words), on_stderr=progress.note)
    finally:
        _forget(shell, python, folder)
    return answer(shell.name, done.status, done.out, done.reason)


def answer(device: str, status: int, out: str, reason: str) -> dict[str, Any]:
    """The JSON object that a bench has printed on a device. Raises DeviceError when it failed or printed none."""
    if status:
        raise DeviceError(f"{device}: bench failed there with status {status} ({reason})")
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError:
        raise DeviceError(f"{device}: bench printed no JSON there ({reason})") from None
    return result


def pack_images(images: Path, archive: Path) -> str:
    """Archive the images of a folder; their folders' names, the images' own too, may be labels.

    Returns:
        What stands for ``images`` in the archive.

    Raises:
        DataError: ``images`` doesn't exist or holds none.
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


def _forget(shell: Shell, python: str, folder: str) -> None:
    with contextlib.suppress(DeviceError):  # the connection is lost, and the error that is on its way says so
        ask(shell, python, "remove", path=folder)
