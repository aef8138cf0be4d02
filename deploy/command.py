"""The commands `edgeall deploy` and `edgeall bench --on`: selects the transport, and formats the results as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..edge_runtime.errors import UsageError
from ..edge_runtime.tools.bench_result import BenchResult
from .benchmark_model import ModelTimes
from .devices import find_target
from .release import PYTHON, Deployed, deploy, rollback
from .shell import Reporter
from .target import SshTarget


def deploy_to(
    arguments: Sequence[str], back: bool, progress: Reporter, *, python: str = PYTHON, **settings: Any
) -> Deployed:
    """`edgeall deploy MODEL TARGET`, or ``--rollback TARGET``.

    Args:
        arguments: MODEL and TARGET, or only TARGET with ``back``.
        back: ``--rollback``.
        progress: shows steps and bytes.
        python: Python executable on the device.
        settings: of `edgeall.deploy.release.deploy`.

    Raises:
        UsageError: wrong number of arguments, or a target without ssh; otherwise as `deploy` and `rollback`.
    """
    if len(arguments) != (1 if back else 2):
        raise UsageError("give MODEL and TARGET; with --rollback only TARGET")
    from .ssh import connect

    target = find_target(arguments[-1])
    if not isinstance(target, SshTarget):
        raise UsageError(
            f"{target}: deploy needs an ssh target",
            hint="on Android the model ships in the app: docs/methods/android.md",
        )
    with connect(target) as shell:
        if back:
            return rollback(shell, python)
        return deploy(shell, arguments[0], progress, python=python, **settings)


def bench_on(
    on: str,
    model: Path,
    images: Path | None,
    arguments: Sequence[str],
    progress: Reporter,
    *,
    wheel: Path | None = None,
    python: str = PYTHON,
) -> BenchResult:
    """`edgeall bench --on TARGET`: the result on the device. See `edgeall.deploy.bench` and `edgeall.deploy.adb`."""
    target = find_target(on)
    settings: dict[str, Any] = {"wheel": wheel, "python": python}
    if isinstance(target, SshTarget):
        from .bench import bench_over_ssh
        from .ssh import connect

        with connect(target) as shell:
            return bench_over_ssh(shell, model, images, arguments, progress, **settings)
    from . import adb

    with adb.connect(target) as phone:
        return adb.bench_over_adb(phone, model, images, arguments, progress, **settings)


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
