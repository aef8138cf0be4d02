"""Deploys a model to several devices, one after the other, until the first failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..console.tables import table
from ..edge_runtime.errors import EdgeallError
from ..edge_runtime.results import Result
from ..edge_runtime.tools.golden import GoldenResult
from . import package
from .environment import Install
from .fleet_list import Listed
from .health import Health, HealthConfig
from .release import PackedModel, Release, RolledBack, deploy, open_packed, release_in_use, rollback
from .remote import Installed, verify
from .shell import Reporter, Shell
from .target import DeviceError

AGAIN = "then run the same command again: devices that are done are left as they are"


@dataclass(frozen=True)
class FleetJob:
    """What to do on each device.

    Attributes:
        model: a packed model on the host.
        install: how edgeall is installed on the devices.
        health: before the model is activated; None is none.
        back: roll back the devices that serve the model, and leave the others alone.
    """

    model: Path
    install: Install = field(default_factory=Install)
    health: HealthConfig | None = None
    back: bool = False


@dataclass(frozen=True)
class DeviceState(Result):
    """What was done on a device.

    Attributes:
        device: as the file names it.
        target: as a URL.
        state: ``updated``: the model is verified and active. ``unchanged``: it was before; in a rollback: the device
            serves another. ``rolled back``: the release before the model is active again. ``failed`` and
            ``interrupted``: `after` is active. ``unknown``: the device did not answer again, so `before` or the model
            is active. ``not tried``.
        before: the release that was active; None if there was none, or the device was not reached.
        after: the release that is active; None as for ``before``, and if it is unknown.
        golden: the verified images.
        health: None if there was none or it was not passed.
        error: what failed; None if nothing did.
    """

    device: str
    target: str
    state: str
    before: Release | None = None
    after: Release | None = None
    golden: list[GoldenResult] = field(default_factory=list)
    health: Health | None = None
    error: str | None = None


@dataclass(frozen=True)
class Fleet(Result):
    """The devices of a file, in its order.

    Attributes:
        schema: 1.
        model: path on the host.
        rollback: whether the model was to be rolled back.
    """

    schema: int
    model: str
    sha256: str
    rollback: bool
    devices: list[DeviceState]


def update_fleet(devices: Sequence[Listed], job: FleetJob, progress: Reporter) -> tuple[Fleet, BaseException | None]:
    """Deploy or roll back a model on devices, one after the other. Stops at the first failure.

    Devices that are done keep the new release. A device that fails keeps or gets back the release before. The same call
    again goes on where this one stopped.

    Args:
        devices: in this order.
        job: what to do on each.
        progress: shows devices, steps and bytes.

    Returns:
        The state of each device; and what stopped the work, an error or KeyboardInterrupt, None if all are done.

    Raises:
        BundleError: the model cannot be deployed.
        EdgeallError: the wheel of edgeall cannot be built. Nothing is sent in these cases.
    """
    packed = open_packed(job.model)
    if not job.back:
        job = replace(job, install=replace(job.install, wheel=package.wheel(job.install.wheel)))
    states: list[DeviceState] = []
    stopped: BaseException | None = None
    for number, listed in enumerate(devices, 1):
        progress.note(f"{number} of {len(devices)}: {listed.text}")
        state, stopped = _handle(listed, packed, job, progress)
        states.append(state)
        if stopped is not None:
            break
        progress.note(f"{listed.text}: {state.state}{f' ({state.health})' if state.health else ''}")
    states += [_blank(listed, "not tried") for listed in devices[len(states) :]]
    return Fleet(1, str(job.model), packed.sha256, job.back, states), _with_hint(stopped)


def fleet_text(result: Fleet) -> str:
    """A table of the devices, and how many there are in each state."""

    def release(found: Release | None, state: str) -> str:
        return f"{found.name} {found.sha256[:12]}" if found else {"not tried": "", "unknown": "?"}.get(state, "-")

    rows = [
        (one.device, release(one.before, one.state), release(one.after, one.state), one.state) for one in result.devices
    ]
    counts = Counter(one.state for one in result.devices)
    return "\n".join(
        [
            table(["device", "before", "after", "state"], rows),
            ", ".join(f"{count} {state}" for state, count in counts.items()),
        ]
    )


def _handle(
    listed: Listed, packed: PackedModel, job: FleetJob, progress: Reporter
) -> tuple[DeviceState, BaseException | None]:
    """One device: its state, and what stopped the work there."""
    from .ssh import connect

    state = None
    try:
        with connect(listed.target) as shell:
            before, in_use = release_in_use(shell, job.install.python)
            state = replace(_blank(listed, "unchanged"), before=before, after=before)
            return (_roll_back if job.back else _update)(shell, state, in_use, packed, job, progress), None
    except BaseException as error:  # also Ctrl-C: the caller prints the states, then raises it
        return _stopped(listed, state, job, error), error


def _update(
    shell: Shell, state: DeviceState, in_use: Installed, packed: PackedModel, job: FleetJob, progress: Reporter
) -> DeviceState:
    assert job.install.wheel is not None
    release = packed.release(package.environment_name(job.install.wheel))
    if state.before is not None and state.before.release == release:
        try:
            return replace(state, golden=verify(shell, in_use))
        except EdgeallError as error:
            progress.note(f"{error.message}; deploying it again")
    done = deploy(shell, packed.path, progress, job.install, job.health)
    return replace(state, state="updated", after=done.current, golden=done.golden, health=done.health)


def _roll_back(
    shell: Shell, state: DeviceState, _in_use: Installed, packed: PackedModel, job: FleetJob, _progress: Reporter
) -> DeviceState:
    if state.before is None or state.before.sha256 != packed.sha256:
        return state
    done = rollback(shell, job.install.python)
    return replace(state, state="rolled back", after=done.current, golden=done.golden)


def _stopped(listed: Listed, state: DeviceState | None, job: FleetJob, error: BaseException) -> DeviceState:
    """The state of a device where the work stopped. Asks the device, if it was reached before, what is active there."""
    kind = "rolled back" if isinstance(error, RolledBack) else "failed"
    kind = kind if isinstance(error, Exception) else "interrupted"
    message = str(error) or type(error).__name__
    if state is None:  # nothing was sent
        return replace(_blank(listed, kind), error=message)
    from .ssh import connect

    try:
        with connect(listed.target) as shell:
            after, _ = release_in_use(shell, job.install.python)
    except (DeviceError, KeyboardInterrupt):
        return replace(state, state="unknown", after=None, error=message)
    return replace(state, state=kind, after=after, error=message)


def _with_hint(stopped: BaseException | None) -> BaseException | None:
    """An error that says how to go on."""
    if isinstance(stopped, EdgeallError):
        stopped.hint = f"{stopped.hint}; {AGAIN}" if stopped.hint else f"correct it, {AGAIN}"
    return stopped


def _blank(listed: Listed, state: str) -> DeviceState:
    return DeviceState(listed.text, str(listed.target), state)
