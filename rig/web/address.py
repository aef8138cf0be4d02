"""Where the page listens: its address, the addresses of this machine, and the certificate for other computers."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...edge_runtime.errors import EdgeallError, UsageError
from .certificate import addresses_of, certificate, names_of
from .connections import Listener
from .guard import local_names

CERTIFICATE = "page.pem"
"""In the record's folder."""
BACKLOG = 64
"""Connections that the system keeps until they are accepted, and that are accepted in one go."""
_SIOCGIFADDR = 0x8915
"""Source: netdevice(7)."""


@dataclass(frozen=True)
class Address:
    """The address where the page listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Only this machine can connect to it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """``HOST:PORT``, an IPv6 address in brackets. Raises UsageError for anything else."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit()):
        raise UsageError(
            f"--listen {text}: not HOST:PORT", hint="for example 127.0.0.1:8000, or 0.0.0.0:8000 for all addresses"
        )
    if int(port) > 65535:
        raise UsageError(f"--listen {text}: the port must be at most 65535")
    return Address(bare, int(port))


@dataclass(frozen=True)
class Tls:
    """How the page is served: accepted host names, and the certificate with its fingerprint; None without TLS."""

    names: frozenset[str]
    certificate: Path | None = None
    fingerprint: str | None = None

    def notes(self, port: int) -> list[str]:
        """Lines for the operator about access from other computers."""
        if self.fingerprint is None or self.certificate is None:
            return []
        own = sorted(own_addresses())
        shown = [f"https://{f'[{text}]' if ':' in text else text}:{port}/" for text in (socket.gethostname(), *own)]
        lines = [
            f"from other computers: {' or '.join(shown)}",
            f"SHA-256 of its certificate, to compare with the browser's warning: {self.fingerprint}",
        ]
        missing = sorted(set(own) - addresses_of(self.certificate))
        if missing:
            lines.append(
                f"the certificate does not name {', '.join(missing)}; to have a new one made, with another fingerprint,"
                f" remove {self.certificate} and restart"
            )
        return lines


@dataclass(frozen=True)
class Reach:
    """Where the page listens beyond this machine, and the fingerprint of its certificate."""

    host: str
    fingerprint: str


def prepare_tls(address: Address, record: Path) -> Tls:
    """The certificate of an address beyond loopback, which is made in the record's folder if it is missing."""
    names = local_names() | {address.host.lower()}
    if address.loopback:
        return Tls(names)
    path = record / CERTIFICATE
    fingerprint = certificate(path, names | own_addresses())
    return Tls(names | names_of(path), path, fingerprint)


def listening(address: Address) -> Listener:
    """Listen with the limits of `Listener`. Raises EdgeallError."""
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return Listener(socket.create_server((address.host, address.port), family=family, backlog=BACKLOG))
    except OSError as error:
        raise EdgeallError(
            f"--listen {address.host}:{address.port}: {error.strerror}", hint="choose another port or address"
        ) from error


def page_address(address: Address, listener: socket.socket, tls: Tls) -> str:
    shown = f"[{address.host}]" if ":" in address.host else address.host
    return f"{'https' if tls.certificate else 'http'}://{shown}:{listener.getsockname()[1]}/"


def own_addresses() -> set[str]:
    """The IP addresses of this machine, without loopback and link-local ones.

    The host name alone does not give them: on Debian it is an address of loopback.
    """
    found = set()
    with suppress(OSError):
        found |= {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.add(socket.inet_ntoa(answer[20:24]))
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.connect(("2001:db8::1", 9))  # only chooses the address to send from; nothing is sent
        found.add(probe.getsockname()[0])
    return {
        text
        for text in found
        if not (ipaddress.ip_address(text).is_loopback or ipaddress.ip_address(text).is_link_local)
    }
