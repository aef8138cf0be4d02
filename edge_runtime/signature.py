"""Ed25519 signatures of packed models: a digest proves that a file is complete, a signature proves who packed it.

Only signatures need the package `cryptography`.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import BundleError, EdgeallError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

INSTALL = "pip install cryptography"
MEMBER = "signature.json"
"""Archive member with the signature. It covers the flatbuffer and every other member."""


def signed_text(flatbuffer_sha256: str, members_sha256: Mapping[str, str]) -> bytes:
    """The bytes to sign: hex digests of the flatbuffer and of all other members, by name."""
    facts = {"flatbuffer": flatbuffer_sha256, "members": dict(members_sha256)}
    return b"edgeall signature 1\n" + json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def write_signature(key: Ed25519PrivateKey, text: bytes) -> bytes:
    """The content of `MEMBER`: the signature of `signed_text`, and the public key, for a clearer error."""
    facts = {
        "schema": 1,
        "algorithm": "Ed25519",
        "public_key": _raw(key.public_key()),
        "signature": _base64(key.sign(text)),
    }
    return (json.dumps(facts, indent=1) + "\n").encode()


def check_signature(content: bytes, text: bytes, public_key: str | os.PathLike[str], name: str) -> None:
    """Raise BundleError unless ``content`` is the signature of ``text`` by the trusted key.

    Args:
        content: of `MEMBER`. The public key in it is used only for the error message.
        text: the `signed_text` of the file.
        public_key: file of the trusted key, see `load_public_key`.
        name: of the file, for errors.
    """
    key = load_public_key(public_key)
    from cryptography.exceptions import InvalidSignature

    try:
        facts = json.loads(content)
        signature, signer = base64.b64decode(facts["signature"], validate=True), str(facts["public_key"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{name}: {MEMBER} is not what `edgeall sign` writes", hint="sign the file again") from error
    try:
        key.verify(signature, text)
    except InvalidSignature as error:
        if signer != _raw(key):
            raise BundleError(
                f"{name}: signed with another key than the one required", hint="sign it with `edgeall sign`"
            ) from error
        raise BundleError(f"{name}: changed after it was signed", hint="copy the file again from its signer") from error


def public_key_text(path: str | os.PathLike[str]) -> str:
    """The raw bytes of a public key in base64, as in `MEMBER`. Raises EdgeallError as `load_public_key` does."""
    return _raw(load_public_key(path))


def load_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM, written by ``edgeall sign --new-key`` or ``openssl pkey -pubout``.

    Raises:
        EdgeallError: `cryptography` is missing, or the file cannot be read or does not hold such a key.
    """
    key: Ed25519PublicKey = _load(path, private=False)
    return key


def load_private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """Read an unencrypted Ed25519 private key in PEM. Raises EdgeallError as `load_public_key` does."""
    key: Ed25519PrivateKey = _load(path, private=True)
    return key


def _load(path: str | os.PathLike[str], private: bool) -> Any:
    name = os.fspath(path)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise EdgeallError(f"signatures need the package cryptography ({error})", hint=INSTALL) from error
    key: object = None
    try:
        with open(name, "rb") as file:
            pem = file.read(100_000)
        key = serialization.load_pem_private_key(pem, None) if private else serialization.load_pem_public_key(pem)
    except OSError as error:
        raise EdgeallError(f"{name}: the key can't be read ({error.strerror})", hint="check the path") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError for an encrypted key
        pass
    if not isinstance(key, ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey):
        wanted = "an unencrypted private" if private else "a public"
        raise EdgeallError(
            f"{name}: not {wanted} Ed25519 key in PEM", hint="`edgeall sign --new-key` writes KEY and KEY.pub"
        )
    return key


def _raw(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return _base64(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
