"""A device over ssh, with paramiko: verifies host keys; logs in by key or agent, never by password."""

from __future__ import annotations

import base64
import getpass
import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from ..edge_runtime.cache import home
from .shell import Finished, Line
from .target import DeviceError, SshTarget

CONNECT_S = 20
SILENT_S = 30
"""Seconds without any response, including keep-alives, after which the connection counts as lost."""
PIECE_BYTES = 1 << 16
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")

# Paramiko logs tracebacks of a lost connection; the error message is enough.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class Ssh:
    """One connection. See `edgeall.deploy.shell.Shell`."""

    def __init__(self, client: paramiko.SSHClient, name: str) -> None:
        self._client = client
        self._name = name

    @property
    def name(self) -> str:
        """``user@host``, with the port if it is not 22."""
        return self._name

    def run(self, command: str, stdin: Iterable[bytes] = (), on_stderr: Line | None = None) -> Finished:
        """See `edgeall.deploy.shell.Shell.run`."""
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise self._lost(None)
        try:
            channel = transport.open_session(timeout=CONNECT_S)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._lost(error) from error
        with channel:
            # Reads both outputs while writing stdin: a full pipe would block the command.
            out, err = _Reader(channel.recv), _Reader(channel.recv_stderr, on_stderr)
            _feed(channel, stdin)
            out.join()
            err.join()
            status = channel.recv_exit_status()
        # A program that a signal killed has an end, but no exit status. A lost connection has neither.
        if status < 0 and not channel.eof_received:
            raise self._lost(None)
        return Finished(status, out.text, err.text)

    def _lost(self, error: Exception | None) -> DeviceError:
        return DeviceError(f"{self.name}: the connection is lost{f' ({error})' if error and str(error) else ''}")


class _Reader(threading.Thread):
    """Reads one output to its end."""

    def __init__(self, receive: Callable[[int], bytes], on_line: Line | None = None) -> None:
        super().__init__(daemon=True)
        self._receive, self._on_line = receive, on_line
        self._pieces: list[bytes] = []
        self.start()

    def run(self) -> None:
        """Read until the end of the output or a lost connection; the exit status distinguishes them."""
        rest = b""
        while piece := self._receive(PIECE_BYTES):
            self._pieces.append(piece)
            if self._on_line:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._on_line(line.decode(errors="replace").rstrip())

    @property
    def text(self) -> str:
        """The output; complete after `join`."""
        return b"".join(self._pieces).decode(errors="replace")


def _feed(channel: paramiko.Channel, stdin: Iterable[bytes]) -> None:
    try:
        for piece in stdin:
            channel.sendall(piece)
        channel.shutdown_write()
    except (OSError, EOFError):
        pass  # the command ended without reading all: its status and output tell why


@dataclass(frozen=True)
class Address:
    """Where a target is, and how to log in there.

    Attributes:
        keys: existing key files that ``~/.ssh/config`` names.
    """

    host: str
    port: int
    user: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.user}@{self.host}{f':{self.port}' if self.port != 22 else ''}"


def resolve(target: SshTarget) -> Address:
    """Complete a target by ``~/.ssh/config``. Connects to nothing. Raises DeviceError if no user is known."""
    options = _config(target.host)
    return Address(
        host=str(options.get("hostname", target.host)),
        port=target.port or int(options.get("port", 22)),
        user=target.user or options.get("user") or _own_name(),
        keys=tuple(file for file in options.get("identityfile", ()) if Path(file).exists()),
    )


@contextmanager
def connect(target: SshTarget) -> Iterator[Ssh]:
    """Log in; closes the connection at the end.

    Reads host name, user, port and key files from ``~/.ssh/config``. Keys come from the agent and from ``~/.ssh``.

    Raises:
        DeviceError: the device does not respond; its host key is unknown or has changed; or it accepts no key. The hint
            names the command that resolves it.
    """
    address = resolve(target)
    host, port, user, name = address.host, address.port, address.user, str(address)
    keys: Any = list(address.keys)
    with paramiko.SSHClient() as client:
        if SYSTEM_KNOWN_HOSTS.exists():
            client.load_system_host_keys(str(SYSTEM_KNOWN_HOSTS))
        client.load_system_host_keys()
        client.set_missing_host_key_policy(_Refuse())
        connection = _open_socket(host, port, name)
        try:
            client.connect(
                host,
                port,
                username=user,
                key_filename=keys,
                sock=connection,
                timeout=CONNECT_S,
                banner_timeout=CONNECT_S,
                auth_timeout=CONNECT_S,
            )
        except (paramiko.SSHException, EOFError, OSError) as error:
            connection.close()
            raise _explain(error, host, port, name, user) from error
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(SILENT_S // 3)
        yield Ssh(client, name)


class _UnknownHost(paramiko.SSHException):
    def __init__(self, key: paramiko.PKey) -> None:
        super().__init__("unknown host key")
        self.key = key


class _Refuse(paramiko.MissingHostKeyPolicy):
    """Refuses unknown host keys."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise _UnknownHost(key)


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # no entry for the user, e.g. in a container
        raise DeviceError("the user name for the login is unknown", hint="give ssh://user@host") from error


def _config(host: str) -> dict[str, Any]:
    own = home()
    path = own / ".ssh" / "config" if own else None
    return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host)) if path and path.exists() else {}


def _open_socket(host: str, port: int, name: str) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT_S)
    except OSError as error:
        raise DeviceError(
            f"{name}: can't be reached ({error.strerror or error})",
            hint=f"try `ssh -p {port} {name.partition(':')[0]}`",
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
    return connection


def _explain(error: Exception, host: str, port: int, name: str, user: str) -> DeviceError:
    entry = host if port == 22 else f"[{host}]:{port}"
    if isinstance(error, _UnknownHost):
        return DeviceError(
            f"{name}: its host key, {_fingerprint(error.key)}, is not in ~/.ssh/known_hosts",
            hint=f"compare it with the device's key (on it: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), "
            f"then `ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts`",
        )
    if isinstance(error, paramiko.BadHostKeyException):
        return DeviceError(
            f"{name}: its host key is {_fingerprint(error.key)}, known_hosts says "
            f"{_fingerprint(error.expected_key)}: another machine responds, or the device was reinstalled",
            hint=f"if it was: `ssh-keygen -R '{entry}'`, then `ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts`",
        )
    if isinstance(error, paramiko.PasswordRequiredException):
        return DeviceError(f"{name}: the key has a passphrase", hint="unlock it with `ssh-add` first")
    if isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error):
        return DeviceError(
            f"{name}: no key is accepted ({error})", hint=f"copy your key: `ssh-copy-id -p {port} {user}@{host}`"
        )
    return DeviceError(f"{name}: ssh failed ({error or type(error).__name__})")


def _fingerprint(key: paramiko.PKey) -> str:
    """The fingerprint in OpenSSH's format."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"
