"""The certificate that the page is served with beyond this machine: made by the rig itself, kept, and told apart by its
fingerprint."""

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
"""A board without a network may take today for a day long past."""
RELEASED = datetime(2026, 11, 1, tzinfo=timezone.utc)
"""No earlier day can be today: a certificate made by a board that thinks so would be over before it begins."""
YEARS = 10


def certificate(path: Path, names: Iterable[str]) -> str:
    """Make a self-signed certificate with its key, for the owner's eyes alone, unless one is there.

    Args:
        path: PEM, key and certificate in one file.
        names: host names and addresses that a browser may ask for.

    Returns:
        Its SHA-256 fingerprint as browsers show it, for people to compare.

    Raises:
        EdgeallError: the file that is there is no certificate.
    """
    from cryptography import x509  # a page on loopback needs none of it
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
        part.unlink(missing_ok=True)  # of a process of that number which was killed
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise EdgeallError(f"{path}: no certificate in PEM", hint="remove it: the rig makes another") from error
    return found.fingerprint(hashes.SHA256()).hex(":").upper()


def _now() -> datetime:
    return datetime.now(timezone.utc)


def names_of(path: Path) -> frozenset[str]:
    """The host names that the certificate was made out for, a laboratory's own one too; in lower case."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(path.read_bytes())
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
