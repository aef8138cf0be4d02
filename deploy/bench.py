"""`edgeall bench` on another device over ssh: copies model and images, verifies, runs, and returns the result."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..edge_runtime.bundle import open_bundle
from ..edge_runtime.pipeline import expand
from ..edge_runtime.tools.bench_result import BenchResult
from .environment import Install, pack, prepare
from .remote import Installed, bench, verify
from .shell import Reporter, Shell, ask
from .target import DeviceError
from .upload import sha256, upload


@dataclass(frozen=True)
class RemoteBench:
    """A run of `edgeall bench` on a device.

    Attributes:
        model: on the host; a packed model is verified on the device first.
        images: on the host, folder or file; None times the golden images.
        arguments: further options of `edgeall bench`, as on its command line.
        install: wheel of edgeall and Python on the device.
    """

    model: Path
    images: Path | None = None
    arguments: Sequence[str] = ()
    install: Install = field(default_factory=Install)


def bench_over_ssh(shell: Shell, job: RemoteBench, progress: Reporter) -> BenchResult:
    """Run `edgeall bench` on a device, with the same version of edgeall as on the host.

    Does not change the deployed model. Removes the copied model and images; keeps the environment.

    Args:
        shell: the device.
        job: model, images and options.
        progress: shows steps, bytes, and the progress of bench on the device.

    Raises:
        BundleError: the model is damaged, or a golden image gives another output on the device.
        DeviceError: a step failed on the device; with the device's message.
    """
    bundle = open_bundle(job.model)
    python = job.install.python
    facts = ask(shell, python, "facts")
    environment = prepare(shell, job.install, facts, progress)
    folder = f"bench/{sha256(job.model)[:16]}"
    try:
        remote_path = upload(shell, python, job.model, f"{folder}/{job.model.name}", progress)
        installed = Installed(environment.edgeall, remote_path)
        if bundle.manifest is not None:
            verify(shell, installed)
        options = list(job.arguments)
        if job.images is not None:
            options += ["--images", _send_images(shell, python, job.images, folder, progress)]
        return bench(shell, installed, *options, on_line=progress.note)
    finally:
        _remove(shell, python, folder)


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
