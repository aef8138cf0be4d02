"""The interface of a device for the rest of `edgeall.deploy`: runs commands and receives files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from .target import DeviceError

Line = Callable[[str], None]


class Reporter(Protocol):
    """The interface of `edgeall.console.progress.Progress`."""

    def note(self, text: str) -> None:
        """Print a permanent line."""

    def task(self, title: str, total: int, start: int = 0) -> AbstractContextManager[Callable[[int, str], None]]:
        """Show a progress bar; yields the function that sets the amount done."""


@dataclass(frozen=True)
class Finished:
    """A completed command on a device: its exit status, -1 if a signal killed it, stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last lines of stderr, or of stdout if stderr is empty: usually the error message."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        end = " / ".join(line.strip() for line in lines[-3:])
        if self.status < 0:
            return f"killed by a signal{f': {end}' if end else ''}"
        return end or f"status {self.status}, no output"


class Shell(Protocol):
    """A connection to a device with a POSIX shell."""

    @property
    def name(self) -> str:
        """Name of the device, for errors."""

    def run(self, command: str, stdin: Iterable[bytes] = (), on_stderr: Line | None = None) -> Finished:
        """Run a shell command line until it ends.

        Args:
            command: for the device's ``sh``.
            stdin: its input, in pieces.
            on_stderr: called with each line of stderr as it arrives; the result also includes it.

        Raises:
            DeviceError: the connection is lost. A failing command does not raise.
        """


def command_line(*words: object) -> str:
    """One shell command line of the words, each quoted."""
    return shlex.join(str(word) for word in words)


def ask(shell: Shell, python: str, action: str, **arguments: Any) -> dict[str, Any]:
    """Call a function of `edgeall.deploy.on_device` on the device, and return its result.

    Args:
        shell: the device.
        python: Python executable on the device.
        action: name of the function.
        arguments: its arguments, sent as JSON.

    Raises:
        DeviceError: no such Python, or the function failed; with the device's message.
    """
    program = files("edgeall.deploy").joinpath("on_device.py").read_bytes()
    done = shell.run(command_line(python, "-IS", "-", action, json.dumps(arguments)), stdin=[program])
    if done.status == 127 or (done.status == 126 and not done.out):
        raise DeviceError(
            f"{shell.name}: no {python} on the device ({done.reason})",
            hint="install Python 3.10 or later on the device, or name it with --device-python",
        )
    try:
        result: dict[str, Any] = json.loads(done.out)
    except ValueError:
        raise DeviceError(f"{shell.name}: {python} failed ({done.reason})") from None
    if "error" in result:
        raise DeviceError(f"{shell.name}: {result['error']}")
    return result


def checked(shell: Shell, words: Sequence[object], **options: Any) -> Finished:
    """Run a command. Raises DeviceError with its output if it fails."""
    done = shell.run(command_line(*words), **options)
    if done.status:
        raise DeviceError(f"{shell.name}: {words[0]} failed ({done.reason})")
    return done
