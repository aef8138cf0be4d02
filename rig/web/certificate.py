"""The self-signed certificate of the page for other computers, which users verify by its fingerprint."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ...edge_runtime.errors import EdgeallError

if TYPE_CHECKING:
    from cryptography import x509

FIRST_DAY = datetime(2020, 1, 1, tzinfo=timezone.utc)
"""Start of validity: the clock of a board without a network may be years behind."""
RELEASED = datetime(2026, 11, 1, tzinfo=timezone.utc)
"""Earliest plausible current date. Without it, a board with a wrong clock would create an expired certificate."""
YEARS = 10


def certificate(path: Path, names: Iterable[str]) -> str:
    """Create a self-signed certificate with its key, readable only by the owner, unless the file exists.

    Args:
        path: PEM, key and certificate in one file.
        names: host names and IP addresses of this machine.

    Returns:
        Its SHA-256 fingerprint in the format of browsers.

    Raises:
        EdgeallError: the existing file is not a certificate.
    """
    from cryptography import x509  # not needed by a page on loopback
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgeall rig")])
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(FIRST_DAY)
        builder = builder.not_valid_after(max(_now(), RELEASED) + timedelta(days=365 * YEARS))
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in sorted(set(names))])
        signed = builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + signed.public_bytes(serialization.Encoding.PEM)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.unlink(missing_ok=True)  # left by a killed process with the same id
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise EdgeallError(f"{path}: not a PEM certificate", hint="remove it: the rig creates a new one") from error
    return found.fingerprint(hashes.SHA256()).hex(":").upper()


def _now() -> datetime:
    return datetime.now(timezone.utc)


def names_of(path: Path) -> frozenset[str]:
    """The DNS names in the certificate, also in one that the laboratory supplied; in lower case."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(path.read_bytes())
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


def addresses_of(path: Path) -> frozenset[str]:
    """The IP addresses in the certificate."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(path.read_bytes())
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(address) for address in names.get_values_for_type(x509.IPAddress))


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
