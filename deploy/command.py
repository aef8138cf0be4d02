"""The commands `edgeall deploy` and `edgeall bench --on`: selects the transport, and formats the results as text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import click
from click.core import ParameterSource

from ..edge_runtime.errors import UsageError
from ..edge_runtime.tools.bench_result import BenchResult
from ..edge_runtime.tools.compare_bench import percentage
from .bench import RemoteBench, bench_over_ssh
from .benchmark_model import ModelTimes
from .devices import find_ssh_target, find_target
from .environment import Install
from .fleet import Fleet, FleetJob, update_fleet
from .fleet_list import read_fleet
from .health import HealthConfig
from .release import Deployed, deploy, rollback
from .shell import Reporter
from .target import SshTarget

FORMS = "give MODEL and TARGET, or MODEL and --to FILE; with --rollback TARGET, or MODEL and --to FILE"


@dataclass(frozen=True)
class DeployRequest:
    """The command line of `edgeall deploy`.

    Attributes:
        arguments: MODEL and TARGET; with ``to`` MODEL alone, with ``back`` TARGET alone.
        to: file of targets.
        back: ``--rollback``.
        health_seconds: duration of the health check; 0 leaves it out. None: 60 with ``to``, else 0.
        max_regression: as ``100%``; None takes the default.
        install: how edgeall is installed on a device.
    """

    arguments: tuple[str, ...]
    to: Path | None = None
    back: bool = False
    health_seconds: float | None = None
    max_regression: str | None = None
    install: Install = field(default_factory=Install)

    def health(self) -> HealthConfig | None:
        """The check before a model is activated. Raises UsageError for settings of a check that does not take place."""
        default = HealthConfig()
        seconds = self.health_seconds
        if seconds is None:
            seconds = default.seconds if self.to is not None and not self.back else 0.0
        elif seconds and self.back:
            raise UsageError("--health-seconds does not apply to --rollback", hint="leave it out")
        if self.max_regression is None:
            limit = default.max_regression_percent
        elif seconds:
            limit = percentage(self.max_regression)
        else:
            raise UsageError("--max-regression is a limit of the health check", hint="add --health-seconds 60")
        return HealthConfig(seconds, limit) if seconds else None


def deploy_to(request: DeployRequest, progress: Reporter) -> Deployed:
    """`edgeall deploy MODEL TARGET`, or ``--rollback TARGET``.

    Args:
        request: the command line, without ``to``.
        progress: shows steps and bytes.

    Raises:
        UsageError: wrong number of arguments, or a target without ssh; otherwise as `deploy` and `rollback`.
    """
    health = request.health()
    if len(request.arguments) != (1 if request.back else 2):
        raise UsageError(FORMS)
    from .ssh import connect

    with connect(find_ssh_target(request.arguments[-1])) as shell:
        if request.back:
            return rollback(shell, request.install.python)
        return deploy(shell, request.arguments[0], progress, request.install, health)


def deploy_to_all(request: DeployRequest, progress: Reporter) -> tuple[Fleet, BaseException | None]:
    """`edgeall deploy MODEL --to FILE`, with or without ``--rollback``.

    Args:
        request: the command line.
        progress: shows devices, steps and bytes.

    Returns:
        The state of each device; and what stopped the work, None if all devices are done.

    Raises:
        UsageError: wrong number of arguments, or a file with wrong lines.
        BundleError: the model cannot be deployed. Nothing is sent in these cases.
    """
    health = request.health()
    if request.to is None or len(request.arguments) != 1:
        raise UsageError(FORMS)
    job = FleetJob(Path(request.arguments[0]), request.install, health, request.back)
    return update_fleet(read_fleet(request.to), job, progress)


def bench_on(on: str, job: RemoteBench, progress: Reporter) -> BenchResult:
    """`edgeall bench --on TARGET`: the result on the device. See `edgeall.deploy.bench` and `edgeall.deploy.adb`."""
    target = find_target(on)
    if isinstance(target, SshTarget):
        from .ssh import connect

        with connect(target) as shell:
            return bench_over_ssh(shell, job, progress)
    from . import adb

    with adb.connect(target) as phone:
        return adb.bench_over_adb(phone, job, progress)


def benchmark_model_on(
    on: str | None, model: Path, program: Path, threads: int, seconds: float, progress: Reporter
) -> ModelTimes:
    """`edgeall bench --on adb:SERIAL --benchmark-model PROGRAM`. Raises UsageError for another target."""
    target = find_target(on) if on is not None else None
    if target is None or isinstance(target, SshTarget):
        raise UsageError("--benchmark-model requires an adb target", hint="add --on adb:SERIAL")
    from . import adb

    with adb.connect(target) as phone:
        return adb.bench_by_benchmark_model(phone, model, program, threads, seconds, progress)


def given_options(ctx: click.Context, leave_out: Collection[str]) -> list[str]:
    """The given options of this command (from any source) as arguments, to run the same command on another device.

    Args:
        ctx: of the command.
        leave_out: names of parameters that apply to the host only.

    Raises:
        UsageError: one of the other options names a file on the host.
    """
    arguments = []
    for option in ctx.command.params:
        name = option.name or ""
        if not isinstance(option, click.Option) or name in leave_out or not option.expose_value:
            continue
        value = ctx.params.get(name)
        if ctx.get_parameter_source(name) is ParameterSource.DEFAULT or value is None:
            continue
        if isinstance(option.type, click.Path):
            raise UsageError(f"{option.opts[0]} names a file on this host, which is not copied to the device")
        if option.is_flag:
            arguments += [option.opts[0]] if value else option.secondary_opts[:1]
        else:
            for item in value if option.multiple else (value,):
                arguments += [option.opts[0], str(item)]
    return arguments
