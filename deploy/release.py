"""Deploys a model over ssh: copies it, verifies it on the device, activates it atomically, keeps the previous one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console.tables import record
from ..edge_runtime.bundle import open_bundle
from ..edge_runtime.errors import BundleError, EdgeallError
from ..edge_runtime.results import Result, from_json
from ..edge_runtime.tools.golden import GoldenResult
from .environment import prepare
from .shell import Finished, Reporter, Shell, ask, command_line
from .target import DeviceError
from .upload import sha256, upload

PYTHON = "python3"


@dataclass(frozen=True)
class Release(Result):
    """A release on a device.

    Attributes:
        name: of the model.
        edgeall: name of its environment.
        previous: release before it.
        deployed: UTC time.
        release: its folder.
    """

    name: str
    sha256: str
    edgeall: str
    previous: str | None
    deployed: str
    release: str

    def __str__(self) -> str:
        return f"{self.name}, {self.sha256[:12]}, deployed {self.deployed}"


@dataclass(frozen=True)
class Deployed(Result):
    """What a device serves. ``model`` and ``edgeall`` are paths on it; ``golden``: the verified images."""

    device: str
    model: str
    edgeall: str
    current: Release
    previous: Release | None
    golden: list[GoldenResult]


def deploy(
    shell: Shell,
    model: str | os.PathLike[str],
    progress: Reporter,
    *,
    wheel: Path | None = None,
    offline: bool = False,
    python: str = PYTHON,
) -> Deployed:
    """Copy a packed model to a device and activate it as ``~/.edgeall/current/model.tflite``.

    If a step fails or the connection breaks, the previous release stays active. Calling it again resumes: a complete
    environment is kept, an interrupted copy is continued.

    Args:
        shell: the device.
        model: packed by `edgeall quantize`.
        progress: shows steps and bytes.
        wheel: of edgeall, see `edgeall.deploy.package.wheel`.
        offline: see `edgeall.deploy.environment.prepare`.
        python: Python executable on the device.

    Raises:
        BundleError: the file is damaged or not packed, so it cannot be verified.
        DeviceError: a step failed; the message names the step and the active release.
    """
    path = Path(model)
    bundle = open_bundle(path)
    if bundle.manifest is None:
        raise BundleError(
            f"{path}: not packed by edgeall: without golden images it can't be verified on the device",
            hint="deploy a model that `edgeall quantize` packed",
        )
    digest = sha256(path)
    steps = _Steps(shell, ("query the device", "install edgeall", "copy the model", "verify it", "activate it"))
    with steps.next():
        facts = ask(shell, python, "facts")
        steps.active = facts["current"]
        if not facts["writable"]:
            raise DeviceError(f"{shell.name}: {facts['root']} can't be written")
    with steps.next():
        environment = prepare(shell, python, facts, progress, wheel, offline)
    release = f"{digest[:12]}-{environment.name}"
    with steps.next():
        remote_path = upload(shell, python, path, f"releases/{release}/model.tflite", progress)
    with steps.next():
        try:
            golden = verify(shell, environment.edgeall, remote_path)
        except BundleError:
            with contextlib.suppress(DeviceError):
                ask(shell, python, "remove", path=f"releases/{release}")
            raise
    with steps.next():
        about = {"name": bundle.manifest.name, "sha256": digest, "edgeall": environment.name}
        status = ask(shell, python, "publish", release=release, environment=environment.name, about=about)
    return _result(shell, status, golden)


def rollback(shell: Shell, python: str = PYTHON) -> Deployed:
    """Verify the previous release, model and environment, and activate it.

    Raises:
        DeviceError: there is no previous release, or it fails verification; the active release does not change.
    """
    steps = _Steps(shell, ("query the device", "verify the previous release", "activate it"))
    with steps.next():
        status = ask(shell, python, "status")
        steps.active = status["current"] and status["current"]["release"]
        if status["previous"] is None:
            raise DeviceError(f"{shell.name}: the device has no earlier release")
    folder = f"{status['root']}/releases/{status['previous']['release']}"
    with steps.next():
        golden = verify(shell, f"{folder}/env/bin/edgeall", f"{folder}/model.tflite")
    with steps.next():
        status = ask(shell, python, "switch", release=status["previous"]["release"])
    return _result(shell, status, golden)


def verify(shell: Shell, edgeall: str, model: str) -> list[GoldenResult]:
    """Verify digest and golden images on the device, with the edgeall installed there.

    Raises:
        BundleError: the file is damaged on the device, or a golden image gives another output.
        DeviceError: edgeall does not run on the device.
    """
    return verify_output(shell.name, shell.run(command_line(edgeall, "inspect", model, "--json")))


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


def _result(shell: Shell, status: Mapping[str, Any], golden: list[GoldenResult]) -> Deployed:
    current = f"{status['root']}/current"
    return Deployed(
        device=shell.name,
        model=f"{current}/model.tflite",
        edgeall=f"{current}/env/bin/edgeall",
        current=from_json(Release, status["current"]),
        previous=from_json(Release, status["previous"]) if status["previous"] else None,
        golden=golden,
    )


def deploy_text(result: Deployed) -> str:
    """The deployed release, and how to use it, as text."""
    return record(
        {
            "device": result.device,
            "serves": result.current,
            "golden images": f"{len(result.golden)} as packed",
            "before": result.previous or "nothing to roll back to",
            "model": result.model,
            "command": f"{result.edgeall} run {result.model} IMAGE",
        }
    )


class _Steps:
    """Adds the failed step and the active release to an error."""

    def __init__(self, shell: Shell, names: tuple[str, ...]) -> None:
        self._shell, self._names, self._done = shell, names, 0
        self.active: str | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        self._done += 1
        try:
            yield
        except EdgeallError as error:
            step = f"step {self._done} of {len(self._names)}, {self._names[self._done - 1]}"
            if self._done == 1:
                state = "nothing was changed on the device"
            elif self._done < len(self._names):
                state = f"{self.active or 'nothing'} is still active"
            else:  # the device may have switched before the connection was lost
                state = f"either {self.active or 'nothing'} or the new release is active"
            raise type(error)(f"{error.message} [{step}; {state}]", hint=error.hint) from error
