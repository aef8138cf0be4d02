"""Deploys a model over ssh: copied, verified on the device, switched to in one step, the one before it kept."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..edge_runtime.bundle import open_bundle
from ..edge_runtime.errors import BundleError, EdgeallError
from .environment import prepare
from .shell import Finished, Reporter, Shell, ask, command_line
from .target import DeviceError
from .upload import sha256, upload

PYTHON = "python3"


def deploy(
    shell: Shell,
    model: str | os.PathLike[str],
    progress: Reporter,
    *,
    wheel: Path | None = None,
    offline: bool = False,
    python: str = PYTHON,
) -> dict[str, Any]:
    """Put a packed model on a device and make it the one that serves: ``~/.edgeall/current/model.tflite``.

    Whatever fails, and wherever the connection breaks, what served before serves on. The same call again goes on
    where it can: an environment that is complete is kept, a copy is resumed.

    Args:
        shell: the device.
        model: packed by `edgeall quantize`.
        progress: shows steps and bytes.
        wheel: edgeall's, see `edgeall.deploy.package.wheel`.
        offline: see `edgeall.deploy.environment.prepare`.
        python: the device's.

    Returns:
        device; model and edgeall, their paths there; current and previous, see `on_device.status`; golden, of
        `edgeall inspect` there.

    Raises:
        BundleError: the file is damaged or not packed, so that nothing could be verified.
        DeviceError: a step failed; says which, and what serves.
    """
    path = Path(model)
    bundle = open_bundle(path)
    if bundle.manifest is None:
        raise BundleError(
            f"{path}: not packed by edgeall: without golden images it can't be verified on the device",
            hint="deploy what `edgeall quantize` writes",
        )
    digest = sha256(path)
    steps = _Steps(shell, ("ask the device", "install edgeall", "copy the model", "verify it there", "switch to it"))
    with steps.next():
        facts = ask(shell, python, "facts")
        steps.serving = facts["current"]
        if not facts["writable"]:
            raise DeviceError(f"{shell.name}: {facts['root']} can't be written")
    with steps.next():
        environment = prepare(shell, python, facts, progress, wheel, offline)
    release = f"{digest[:12]}-{environment.name}"
    with steps.next():
        there = upload(shell, python, path, f"releases/{release}/model.tflite", progress)
    with steps.next():
        try:
            golden = verify(shell, environment.edgeall, there)
        except BundleError:
            with contextlib.suppress(DeviceError):
                ask(shell, python, "remove", path=f"releases/{release}")
            raise
    with steps.next():
        about = {"name": bundle.manifest.name, "sha256": digest, "edgeall": environment.name}
        status = ask(shell, python, "publish", release=release, environment=environment.name, about=about)
    return _result(shell, status, golden)


def rollback(shell: Shell, python: str = PYTHON) -> dict[str, Any]:
    """Go back to the release before, model and environment, once it has been verified again.

    Returns:
        As `deploy`.

    Raises:
        DeviceError: there is none to go back to, or it fails its check; what serves, serves on.
    """
    steps = _Steps(shell, ("ask the device", "verify the release before", "switch to it"))
    with steps.next():
        status = ask(shell, python, "status")
        steps.serving = status["current"] and status["current"]["release"]
        if status["previous"] is None:
            raise DeviceError(f"{shell.name}: no earlier release is kept there")
    folder = f"{status['root']}/releases/{status['previous']['release']}"
    with steps.next():
        golden = verify(shell, f"{folder}/env/bin/edgeall", f"{folder}/model.tflite")
    with steps.next():
        status = ask(shell, python, "switch", release=status["previous"]["release"])
    return _result(shell, status, golden)


def verify(shell: Shell, edgeall: str, model: str) -> list[dict[str, Any]]:
    """Digest and golden images, checked on the device by its own edgeall.

    Returns:
        ``golden`` of `edgeall.edge_runtime.tools.inspect.inspect_model`.

    Raises:
        BundleError: the device finds the file damaged, or makes something else of a golden image.
        DeviceError: edgeall doesn't run there.
    """
    return verify_answer(shell.name, shell.run(command_line(edgeall, "inspect", model, "--json")))


def verify_answer(device: str, done: Finished) -> list[dict[str, Any]]:
    """`verify` from what `edgeall inspect --json` has answered on a device."""
    try:
        facts = json.loads(done.out)
    except ValueError:
        raise DeviceError(f"{device}: edgeall fails there ({done.reason})") from None
    wrong = [
        f"{result['name']} differs by {result['difference']:g} {result['unit']} (allowed {result['tolerance']:g})"
        if result["pixels_ok"]
        else f"{result['name']} is preprocessed to other pixels"
        for result in facts["golden"]
        if not result["ok"]
    ]
    if wrong or not facts["golden_ok"]:
        raise BundleError(f"{device}: the golden images don't come out there as packed: {'; '.join(wrong)}")
    golden: list[dict[str, Any]] = facts["golden"]
    return golden


def _result(shell: Shell, status: dict[str, Any], golden: list[dict[str, Any]]) -> dict[str, Any]:
    current = f"{status['root']}/current"
    return {
        "device": shell.name,
        "model": f"{current}/model.tflite",
        "edgeall": f"{current}/env/bin/edgeall",
        "current": status["current"],
        "previous": status["previous"],
        "golden": golden,
    }


class _Steps:
    """Names the step that failed, and what still serves."""

    def __init__(self, shell: Shell, names: tuple[str, ...]) -> None:
        self._shell, self._names, self._done = shell, names, 0
        self.serving: str | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        self._done += 1
        try:
            yield
        except EdgeallError as error:
            step = f"step {self._done} of {len(self._names)}, {self._names[self._done - 1]}"
            if self._done == 1:
                serves = "nothing was changed there"
            elif self._done < len(self._names):
                serves = f"{self.serving or 'nothing'} still serves there"
            else:  # the device may have switched before the connection was lost
                serves = f"{self.serving or 'nothing'} or the new one serves there, whole"
            raise type(error)(f"{error.message} [{step}; {serves}]", hint=error.hint) from error
