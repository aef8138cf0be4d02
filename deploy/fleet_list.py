"""The file of `edgeall deploy --to`: one target a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..edge_runtime.errors import EdgeallError, UsageError
from .devices import find_ssh_target
from .target import SshTarget

FORM = "one ssh://user@host, or name that `edgeall devices ls` lists, a line; # begins a comment"


@dataclass(frozen=True)
class Listed:
    """A device of the file: the text there, and the target."""

    text: str
    target: SshTarget


def read_fleet(path: Path) -> list[Listed]:
    """The devices of a file, in its order. Connects to none of them.

    Raises:
        UsageError: the file cannot be read or names no device; or lines that name no device, a phone, or a device of an
            earlier line. The message has the number of each such line.
    """
    devices: list[Listed] = []
    wrong: list[str] = []
    hints: list[str] = []
    lines_by_address: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            listed = Listed(text, find_ssh_target(text))
            address = _address(listed.target)
        except EdgeallError as error:
            wrong.append(f"line {number}: {error.message}")
            hints.append(error.hint)
            continue
        if address in lines_by_address:
            wrong.append(f"line {number}: {text} is the device of line {lines_by_address[address]}")
        else:
            lines_by_address[address] = number
            devices.append(listed)
    if wrong:
        raise UsageError(f"{path}: {'; '.join(wrong)}", hint=next(filter(None, hints), "keep one line for each device"))
    if not devices:
        raise UsageError(f"{path}: names no device", hint=FORM)
    return devices


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint=f"--to takes a file: {FORM}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text in UTF-8", hint=f"--to takes a file: {FORM}") from error


def _address(target: SshTarget) -> str:
    from .ssh import resolve

    return str(resolve(target))
