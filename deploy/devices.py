"""The list of known devices: names and targets, without keys or passwords."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..edge_runtime.cache import home
from ..edge_runtime.errors import DataError, UsageError
from ..edge_runtime.tools.atomic import write_text
from .target import FORMS, SshTarget, Target, parse_target

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def list_file() -> Path:
    """``devices.json`` in the user's configuration folder. Raises DataError if there is no such folder."""
    base, own = os.environ.get("XDG_CONFIG_HOME", ""), home()
    if os.path.isabs(base):
        return Path(base, "edgeall", "devices.json")
    if own is None:
        raise DataError("the list of devices needs a home folder", hint="set HOME")
    return own / ".config" / "edgeall" / "devices.json"


def read_devices() -> dict[str, str]:
    """Targets by name, sorted by name. Raises DataError if the file is invalid."""
    if not os.path.isabs(os.environ.get("XDG_CONFIG_HOME", "")) and home() is None:
        return {}
    path = list_file()
    try:
        devices = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path}: not JSON", hint="correct it or remove it") from error
    if not isinstance(devices, dict) or not all(isinstance(value, str) for value in devices.values()):
        raise DataError(f"{path}: not an object of names and targets", hint="correct it or remove it")
    return dict(sorted(devices.items()))


def add_device(name: str, target: str) -> dict[str, str]:
    """Add a device, or replace the device with that name. Returns the list.

    Raises:
        UsageError: a name with other characters than letters, digits and ``._-``, or an invalid target.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r}: a name may have letters, digits, `.`, `_` and `-`")
    parsed = parse_target(target)
    if parsed is None:
        raise UsageError(f"{target}: not a device target", hint="ssh://user@host, ssh://user@host:port or adb:SERIAL")
    return _write(read_devices() | {name: str(parsed)})


def remove_device(name: str) -> dict[str, str]:
    """Remove a device. Returns the list. Raises UsageError if it is not on the list."""
    devices = read_devices()
    if name not in devices:
        raise UsageError(f"{name}: not on the list", hint=f"available: {', '.join(devices) or 'none'}")
    return _write({key: value for key, value in devices.items() if key != name})


def find_target(text: str) -> Target:
    """The target of a URL or of a name on the list. Raises UsageError if it is neither."""
    target = parse_target(text)
    if target is None and (listed := read_devices().get(text)) is not None:
        target = parse_target(listed)
    if target is None:
        raise UsageError(f"{text}: no such device", hint=FORMS)
    return target


def find_ssh_target(text: str) -> SshTarget:
    """`find_target` for a deployment. Raises UsageError for a phone."""
    target = find_target(text)
    if not isinstance(target, SshTarget):
        raise UsageError(
            f"{target}: deploy needs an ssh target",
            hint="on Android the model ships in the app: docs/methods/android.md",
        )
    return target


def _write(devices: dict[str, str]) -> dict[str, str]:
    write_text(list_file(), json.dumps(dict(sorted(devices.items())), indent=1) + "\n")
    return dict(sorted(devices.items()))
