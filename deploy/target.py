"""Device targets: ``ssh://pi@host:22``, ``adb:SERIAL``, or a name from `edgeall devices`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..edge_runtime.errors import EdgeallError, UsageError

FORMS = "ssh://user@host, ssh://user@host:port, adb:SERIAL, or a name that `edgeall devices ls` lists"


class DeviceError(EdgeallError):
    """A device that cannot be reached, or on which a command fails."""


@dataclass(frozen=True)
class SshTarget:
    """A device with an ssh server.

    Attributes:
        host: name or address.
        user: None takes the one in ``~/.ssh/config``, else the user on the host.
        port: None takes the one in ``~/.ssh/config``, else 22.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class AdbTarget:
    """A phone: its serial number in ``adb devices``, or ``host:port`` over the network."""

    serial: str

    def __str__(self) -> str:
        return f"adb:{self.serial}"


Target = SshTarget | AdbTarget


def parse_target(text: str) -> Target | None:
    """Parse a target; None if it is not a URL.

    Raises:
        UsageError: an invalid URL, or a URL with a password.
    """
    if text.startswith("adb:"):
        if not re.fullmatch(r"adb:[\w.:\[\]-]+", text):
            raise UsageError(f"{text}: not a serial number", hint="adb:SERIAL, with a serial number from `adb devices`")
        return AdbTarget(text[len("adb:") :])
    if "://" not in text:
        return None
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise UsageError(f"{text}: {error}", hint=FORMS) from None
    if url.scheme != "ssh" or not host or url.path not in ("", "/") or url.query or url.fragment:
        raise UsageError(f"{text}: not a device target", hint=FORMS)
    if url.password is not None:
        raise UsageError(
            f"ssh://{url.username}:...@{host}: a password in a URL would be stored in the shell's history",
            hint=f"edgeall logs in with a key: ssh-copy-id {url.username}@{host}",
        )
    if host.startswith("-") or (url.username or "").startswith("-"):
        raise UsageError(f"{text}: not a device target", hint=FORMS)
    return SshTarget(host, url.username, port)
