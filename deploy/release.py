"""Deploys a model over ssh: copies it, verifies it on the device, activates it atomically, keeps the previous one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..console.tables import record
from ..edge_runtime.bundle import open_bundle
from ..edge_runtime.errors import BundleError, EdgeallError
from ..edge_runtime.results import OPTIONAL, Result, from_json
from ..edge_runtime.tools.golden import GoldenResult
from .environment import PYTHON, Environment, Install, prepare
from .health import Health, HealthConfig, check_health
from .remote import Installed, verify
from .shell import Reporter, Shell, ask
from .signals import uninterrupted
from .target import DeviceError
from .upload import sha256, upload

ACTIVATE = "activate it"


class RolledBack(DeviceError):
    """The new release was activated, failed there, and the previous one is active again."""


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
    """What a device serves.

    Attributes:
        model: path on the device, like ``edgeall``.
        golden: the verified images.
        health: None if there was none.
    """

    device: str
    model: str
    edgeall: str
    current: Release
    previous: Release | None
    golden: list[GoldenResult]
    health: Health | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class PackedModel:
    """A packed model on the host that can be deployed.

    Attributes:
        name: of the model, from its manifest.
        sha256: digest of the whole file.
    """

    path: Path
    name: str
    sha256: str

    def release(self, environment: str) -> str:
        """Name of the release with this environment."""
        return f"{self.sha256[:12]}-{environment}"


def open_packed(model: str | os.PathLike[str]) -> PackedModel:
    """Check a model before it is deployed. Raises BundleError if it is damaged, or not packed."""
    bundle = open_bundle(model)
    if bundle.manifest is None:
        raise BundleError(
            f"{model}: not packed by edgeall: without golden images it can't be verified on the device",
            hint="deploy a model that `edgeall quantize` packed",
        )
    return PackedModel(Path(model), bundle.manifest.name, sha256(Path(model)))


def deploy(
    shell: Shell,
    model: str | os.PathLike[str],
    progress: Reporter,
    install: Install | None = None,
    health: HealthConfig | None = None,
) -> Deployed:
    """Copy a packed model to a device and activate it as ``~/.edgeall/current/model.tflite``.

    If a step fails or the connection breaks, the previous release stays active. Calling it again resumes: a complete
    environment is kept, an interrupted copy is continued.

    Args:
        shell: the device.
        model: packed by `edgeall quantize`.
        progress: shows steps and bytes.
        install: how edgeall is installed on the device.
        health: let the model judge images on the device before it is activated, and verify it once more when it is.

    Raises:
        BundleError: the file is damaged or not packed, so it cannot be verified.
        GateError: it failed the health check; otherwise as DeviceError.
        RolledBack: it could not be verified in use; the previous release is active again.
        DeviceError: a step failed; the message names the step and the active release.
    """
    packed, install = open_packed(model), install or Install()
    checked = [f"check its health for {health.seconds:g} s"] if health else []
    after = ["verify it in use"] if health else []
    steps = _Steps(["query the device", "install edgeall", "copy the model", "verify it", *checked, ACTIVATE, *after])
    with steps.next():
        facts = ask(shell, install.python, "facts")
        steps.active = facts["current"]
        if not facts["writable"]:
            raise DeviceError(f"{shell.name}: {facts['root']} can't be written")
    with steps.next():
        environment = prepare(shell, install, facts, progress)
    release = packed.release(environment.name)
    with steps.next():
        remote_path = upload(shell, install.python, packed.path, f"releases/{release}/model.tflite", progress)
    new = Installed(environment.edgeall, remote_path)
    with steps.next(), _removed_if_bad(shell, install.python, release):
        golden = verify(shell, new)
    measured = None
    if health:
        before = Installed.in_folder(f"{facts['root']}/current") if facts["current"] else None
        with steps.next(), _removed_if_bad(shell, install.python, release):
            measured = check_health(shell, health, new, before, progress)
    with steps.next():
        status = _publish(shell, install.python, packed, environment)
    if health:
        with steps.next(), _removed_if_bad(shell, install.python, release):
            golden = _verify_in_use(shell, install.python, status)
    return _result(shell, status, golden, measured)


def rollback(shell: Shell, python: str = PYTHON) -> Deployed:
    """Verify the previous release, model and environment, and activate it.

    Raises:
        DeviceError: there is no previous release, or it fails verification; the active release does not change.
    """
    steps = _Steps(["query the device", "verify the previous release", ACTIVATE])
    with steps.next():
        status = ask(shell, python, "status")
        steps.active = status["current"] and status["current"]["release"]
        if status["previous"] is None:
            raise DeviceError(f"{shell.name}: the device has no earlier release")
    with steps.next():
        golden = verify(shell, Installed.in_folder(f"{status['root']}/releases/{status['previous']['release']}"))
    with steps.next(), uninterrupted():
        status = ask(shell, python, "switch", release=status["previous"]["release"])
    return _result(shell, status, golden)


def release_in_use(shell: Shell, python: str) -> tuple[Release | None, Installed]:
    """The active release of a device, None if there is none, and where it is. Raises DeviceError."""
    status = ask(shell, python, "status")
    return _release(status["current"]), Installed.in_folder(f"{status['root']}/current")


@contextmanager
def _removed_if_bad(shell: Shell, python: str, release: str) -> Iterator[None]:
    """Remove a release that fails a check, unless it is in use."""
    try:
        yield
    except EdgeallError:
        with contextlib.suppress(DeviceError):
            ask(shell, python, "remove", path=f"releases/{release}")
        raise


def _publish(shell: Shell, python: str, packed: PackedModel, environment: Environment) -> dict[str, Any]:
    facts = {"name": packed.name, "sha256": packed.sha256, "edgeall": environment.name}
    release = packed.release(environment.name)
    with uninterrupted():
        return ask(shell, python, "publish", release=release, environment=environment.name, about=facts)


def _verify_in_use(shell: Shell, python: str, status: Mapping[str, Any]) -> list[GoldenResult]:
    """Verify the active release under the paths that programs on the device use; go back if that fails."""
    try:
        return verify(shell, Installed.in_folder(f"{status['root']}/current"))
    except EdgeallError as error:
        previous = status["previous"]
        if previous is None:
            message = f"{error.message} [it stays active: the device has no earlier release]"
            raise type(error)(message, hint=error.hint) from error
        try:
            with uninterrupted():
                ask(shell, python, "switch", release=previous["release"])
        except DeviceError as lost:
            state = f"the new release is active, {previous['release']} could not be activated again"
            raise DeviceError(f"{lost.message} [{state}]", hint=lost.hint) from error
        raise RolledBack(
            f"{error.message} [rolled back: {previous['release']} is active again]", hint=error.hint
        ) from error


def _release(found: Mapping[str, Any] | None) -> Release | None:
    return from_json(Release, found) if found else None


def _result(
    shell: Shell, status: Mapping[str, Any], golden: list[GoldenResult], health: Health | None = None
) -> Deployed:
    current = f"{status['root']}/current"
    return Deployed(
        device=shell.name,
        model=f"{current}/model.tflite",
        edgeall=f"{current}/env/bin/edgeall",
        current=from_json(Release, status["current"]),
        previous=_release(status["previous"]),
        golden=golden,
        health=health,
    )


def deploy_text(result: Deployed) -> str:
    """The deployed release, and how to use it, as text."""
    return record(
        {
            "device": result.device,
            "serves": result.current,
            "golden images": f"{len(result.golden)} as packed",
            **({"health": result.health} if result.health else {}),
            "before": result.previous or "nothing to roll back to",
            "model": result.model,
            "command": f"{result.edgeall} run {result.model} IMAGE",
        }
    )


class _Steps:
    """Adds the failed step and the active release to an error."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._done = names, 0
        self.active: str | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        self._done += 1
        try:
            yield
        except EdgeallError as error:
            step = f"step {self._done} of {len(self._names)}, {self._names[self._done - 1]}"
            activation = self._names.index(ACTIVATE) + 1
            if self._done > activation:  # the error says which release is active
                raise
            if self._done == 1:
                state = "nothing was changed on the device"
            elif self._done < activation:
                state = f"{self.active or 'nothing'} is still active"
            else:  # the device may have switched before the connection was lost
                state = f"either {self.active or 'nothing'} or the new release is active"
            raise type(error)(f"{error.message} [{step}; {state}]", hint=error.hint) from error
