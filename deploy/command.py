"""The commands `edgeall deploy` and `edgeall bench --on`: selects the transport, and formats the results as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..console.tables import record
from ..edge_runtime.errors import UsageError
from .devices import find_target
from .release import PYTHON, deploy, rollback
from .shell import Reporter
from .target import SshTarget


def deploy_to(
    arguments: Sequence[str], back: bool, progress: Reporter, *, python: str = PYTHON, **settings: Any
) -> dict[str, Any]:
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
) -> dict[str, Any]:
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
) -> dict[str, Any]:
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


def deploy_text(result: Mapping[str, Any]) -> str:
    """The deployed release, and how to use it, as text."""

    def described(release: Mapping[str, Any]) -> str:
        return f"{release['name']}, {release['sha256'][:12]}, deployed {release['deployed']}"

    return record(
        {
            "device": result["device"],
            "serves": described(result["current"]),
            "golden images": f"{len(result['golden'])} as packed",
            "before": described(result["previous"]) if result["previous"] else "nothing to roll back to",
            "model": result["model"],
            "command": f"{result['edgeall']} run {result['model']} IMAGE",
        }
    )


def benchmark_model_text(result: Mapping[str, Any]) -> str:
    """The figures of `bench_by_benchmark_model` as text."""
    device, invoke = result["device"], result["invoke"]
    return record(
        {
            "device": ", ".join(str(device[key]) for key in ("board", "machine", "os") if device[key]),
            "runtime": f"{result['runtime']}, {result['threads']} threads",
            "golden images": f"{result['golden']} as packed" if result["golden"] else "none in the file",
            "load": f"{result['load_ms']:.2f} ms",
            "first inference": f"{result['first_ms']:.2f} ms",
            **{f"inference {name.removesuffix('_ms')}": f"{value:.2f} ms" for name, value in invoke.items()},
            "runs": result["queries"],
            "memory added": f"{result['overall_mb']:.1f} MB" if result["overall_mb"] is not None else None,
        }
    )
