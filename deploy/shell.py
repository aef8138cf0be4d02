"""A device as the rest of `edgeall.deploy` sees it: something that runs commands and takes files."""

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
    """Progress: `edgeall.console.progress.Progress` is one."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def task(self, title: str, total: int, start: int = 0) -> AbstractContextManager[Callable[[int, str], None]]:
        """A bar; yields the function that moves it to so many done in all."""


@dataclass(frozen=True)
class Finished:
    """A command that has run on a device: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last lines it printed to stderr, or to stdout: what went wrong, in its own words."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return " / ".join(line.strip() for line in lines[-3:]) or f"status {self.status}, without a word"


class Shell(Protocol):
    """A connection to a device with a POSIX shell."""

    @property
    def name(self) -> str:
        """Of the device, as an error calls it."""

    def run(self, command: str, stdin: Iterable[bytes] = (), on_stderr: Line | None = None) -> Finished:
        """Run a shell command line to its end.

        Args:
            command: for the device's ``sh``.
            stdin: what it reads, in pieces.
            on_stderr: called with each line as it comes; the line is in the result too.

        Raises:
            DeviceError: the connection is lost. A command that fails raises nothing.
        """


def command_line(*words: object) -> str:
    """The words as one shell command line, each quoted."""
    return shlex.join(str(word) for word in words)


def ask(shell: Shell, python: str, action: str, **arguments: Any) -> dict[str, Any]:
    """Do one thing of `edgeall.deploy.on_device` on the device and return what it answers.

    Args:
        shell: the device.
        python: its Python, a command.
        action: a function's name there.
        arguments: its arguments, as JSON.

    Raises:
        DeviceError: there is no such Python, or the action failed; in the device's words.
    """
    program = files("edgeall.deploy").joinpath("on_device.py").read_bytes()
    done = shell.run(command_line(python, "-IS", "-", action, json.dumps(arguments)), stdin=[program])
    if done.status == 127 or (done.status == 126 and not done.out):
        raise DeviceError(
            f"{shell.name}: no {python} there ({done.reason})",
            hint="install Python 3.10 or later on the device, or name it with --python",
        )
    try:
        answer: dict[str, Any] = json.loads(done.out)
    except ValueError:
        raise DeviceError(f"{shell.name}: {python} failed ({done.reason})") from None
    if "error" in answer:
        raise DeviceError(f"{shell.name}: {answer['error']}")
    return answer


def checked(shell: Shell, words: Sequence[object], **options: Any) -> Finished:
    """Run a command that has to succeed. Raises DeviceError with what it printed when it doesn't."""
    done = shell.run(command_line(*words), **options)
    if done.status:
        raise DeviceError(f"{shell.name}: {words[0]} failed ({done.reason})")
    return done
