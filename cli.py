"""The command line: the root group, its exit statuses and error texts. The subcommands are in `commands/`."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from importlib import import_module
from typing import Any

import click

from . import __version__
from .edge_runtime import errors

COMMANDS = {
    "adapt": ("adapt",),
    "cells": ("cells",),
    "data": ("data",),
    "deploy": ("deploy", "devices"),
    "device": ("bench", "compare-bench", "doctor", "inspect", "run"),
    "imports": ("import", "pack"),
    "optimize": ("compare", "demo", "ensemble", "models", "prune", "quantize", "search", "sign"),
    "rig": ("record", "rig", "rig-user"),
    "train": ("evaluate", "train"),
    "web": ("web",),
}
"""The files of `commands/` and the commands that each holds."""
_TRAIN = {
    *("tensorflow", "tf_keras", "tensorflow_model_optimization", "tensorboard"),
    *("sklearn", "scipy", "matplotlib", "imagehash", "jinja2", "kagglehub", "optuna", "sqlalchemy"),
}
EXTRAS = {
    "train": (_TRAIN, "for training (Python 3.10 to 3.12)"),
    "deploy": ({"paramiko", "adbutils", "packaging"}, "where models are deployed from"),
    "rig": ({"fastapi", "starlette", "uvicorn", "argon2"}, "on a microscope rig"),
}
"""Extras of setup.cfg: the modules that each adds to the device install, and where it belongs."""


class LazyGroup(click.Group):
    """Imports the file of a command when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for names in COMMANDS.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for file, names in COMMANDS.items():
            if cmd_name in names:
                found = vars(import_module(f".commands.{file}", __package__)).values()
                return next(one for one in found if isinstance(one, click.Command) and one.name == cmd_name)
        return None


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done, 1 failed with a clear error, 2 wrong usage, 3 a gate was not met, 130 interrupted.
    """
    state = {"debug": False}
    before = _handle_signals()
    try:
        return _main(args, state)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle_signals() -> dict[int, Any]:
    """Make SIGTERM and SIGHUP end the program as Ctrl-C does, so that temporary files are removed.

    Returns:
        The previous handlers. Signals that are ignored (nohup) or handled already are left alone.
    """
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    return {
        number: signal.signal(number, _interrupt) for number in numbers if signal.getsignal(number) is signal.SIG_DFL
    }


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _main(args: list[str] | None, state: dict[str, bool]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    try:
        status = cli.main(args, prog_name="edgeall", standalone_mode=False, auto_envvar_prefix="EDGEALL", obj=state)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return errors.UsageError.exit_status
    except BrokenPipeError:
        # The reader (`head`) has closed the pipe. Python would report that again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # a truncated file, which click mistakes for Ctrl-D
            raise error.__cause__ from None
        click.echo("interrupted", err=True)
        return 130
    except (click.ClickException, errors.EdgeallError, OSError, ModuleNotFoundError) as error:
        failure = _as_failure(error)
        if failure is None:
            raise
        if state["debug"]:
            import traceback

            traceback.print_exc()
        click.echo(f"error: {failure.message}", err=True)
        if failure.hint:
            click.echo(f"  hint: {failure.hint}", err=True)
        return failure.exit_status


def _as_failure(error: Exception) -> errors.EdgeallError | None:
    """The error as the user sees it; None for a bug, whose traceback should be seen."""
    if isinstance(error, errors.EdgeallError):
        return error
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "edgeall"
        return errors.UsageError(" ".join(error.format_message().split()), hint=f"see `{command} --help`")
    if isinstance(error, click.ClickException):
        return errors.EdgeallError(error.format_message())
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        for extra, (modules, where) in EXTRAS.items():
            if package in modules:
                return errors.EdgeallError(
                    f"this command needs {error.name}, which is installed only {where}",
                    hint=f'pip install ".[{extra}]" in a checkout of edgeall',
                )
        return None
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder that may not be written
        return errors.EdgeallError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return None


@click.group(cls=LazyGroup, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """From a folder of labelled microscope images to a small, verified classifier on a Pi or a phone.

    Research use only, not a diagnosis. Every setting can also come from EDGEALL_<COMMAND>_<SETTING>
    or from --config FILE.toml; a flag wins over both.
    """
