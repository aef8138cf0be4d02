"""Writes the archive behind the flatbuffer of a packed model, and its signature."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from .. import signature
from ..errors import BundleError


def write_archive(file: IO[bytes], members: Mapping[str, bytes], created: str) -> None:
    """Append the archive to a file that holds the flatbuffer. The same arguments give the same bytes.

    Args:
        file: open for writing, at its end.
        members: content by name, in order.
        created: time of all members, UTC, ISO 8601.

    Raises:
        BundleError: ``created`` has another form.
    """
    match = re.match(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)", created)
    if match is None:
        raise BundleError(f"manifest: created {created!r} is not like 2026-11-21T10:00:00Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups())
    # Written at the file's end: its offsets count from the file's start, as `unzip` expects.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            info = zipfile.ZipInfo(member, (year, month, day, hour, minute, second))
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def signature_of(flatbuffer: bytes, members: Mapping[str, bytes], key: Path) -> bytes:
    """The content of `signature.MEMBER` for a flatbuffer and all other members of its archive.

    Args:
        key: Ed25519 private key in PEM.

    Raises:
        EdgeallError: the key is unusable, see `signature.load_private_key`.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    text = signature.signed_text(hashlib.sha256(flatbuffer).hexdigest(), digests)
    return signature.write_signature(signature.load_private_key(key), text)
