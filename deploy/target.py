"""Where a device is: ``ssh://pi@host:22``, ``adb:SERIAL``, or a name from `edgeall devices`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..edge_runtime.errors import EdgeallError, UsageError

FORMS = "ssh://user@host, ssh://user@host:port, adb:SERIAL, or a name that `edgeall devices ls` lists"


class DeviceError(EdgeallError):
    """A device that can't be reached, refuses, or fails at what it is asked."""


@dataclass(frozen=True)
class SshTarget:
    """A machine that takes ssh.

    Attributes:
        host: name or address.
        user: None takes ``~/.ssh/config``'s, else this machine's user.
        port: None takes ``~/.ssh/config``'s, else 22.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class AdbTarget:
    """A phone, by the serial number that ``adb devices`` lists; ``host:port`` over the network."""

    serial: str

    def __str__(self) -> str:
        return f"adb:{self.serial}"


Target = SshTarget | AdbTarget


def parse_target(text: str) -> Target | None:
    """What a URL names; None for what is no URL.

    Raises:
        UsageError: a URL that names no device, or one with a password in it.
    """
    if text.startswith("adb:"):
        if not re.fullmatch(r"adb:[\w.:\[\]-]+", text):
            raise UsageError(f"{text}: no serial number", hint="adb:SERIAL, as `adb devices` lists them")
        return AdbTarget(text[len("adb:") :])
    if "://" not in text:
        return None
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise UsageError(f"{text}: {error}", hint=FORMS) from None
    if url.scheme != "ssh" or not host or url.path not in ("", "/") or url.query or url.fragment:
        raise UsageError(f"{text}: no device", hint=FORMS)
    if url.password is not None:
        raise UsageError(
            f"ssh://{url.username}:...@{host}: a password in a URL ends up in the shell's history",
            hint=f"edgeall logs in by key: ssh-copy-id {url.username}@{host}",
        )
    if host.startswith("-") or (url.username or "").startswith("-"):
        raise UsageError(f"{text}: no device", hint=FORMS)
    return SshTarget(host, url.username, port)
