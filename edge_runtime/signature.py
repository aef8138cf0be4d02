"""Ed25519 signatures: a digest says that a model is whole, a signature says who packed it.

The package `cryptography` is needed where a signature is asked for, and nowhere else.
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
"""In the archive beside the others; it covers the flatbuffer and every other member, whatever they are called."""


def signed_text(flatbuffer_sha256: str, members_sha256: Mapping[str, str]) -> bytes:
    """The bytes that are signed: hex digests of the flatbuffer and, by name, of all other members."""
    facts = {"flatbuffer": flatbuffer_sha256, "members": dict(members_sha256)}
    return b"edgeall signature 1\n" + json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def write_signature(key: Ed25519PrivateKey, text: bytes) -> bytes:
    """The content of `MEMBER`: the signature of `signed_text` and, for a clearer error, the key that it is of."""
    facts = {
        "schema": 1,
        "algorithm": "Ed25519",
        "public_key": _raw(key.public_key()),
        "signature": _base64(key.sign(text)),
    }
    return (json.dumps(facts, indent=1) + "\n").encode()


def check_signature(content: bytes, text: bytes, public_key: str | os.PathLike[str], name: str) -> None:
    """Raise BundleError unless ``content``, a `MEMBER`, holds the signature of ``text`` by the key that is trusted.

    Args:
        content: as in the file; what it says of its own key is believed for the error's wording alone.
        text: the `signed_text` of what the file holds.
        public_key: the file of the trusted one, see `load_public_key`.
        name: how an error calls the file.
    """
    key = load_public_key(public_key)
    from cryptography.exceptions import InvalidSignature

    try:
        facts = json.loads(content)
        signature, signer = base64.b64decode(facts["signature"], validate=True), str(facts["public_key"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{name}: {MEMBER} is not what `edgeall sign` writes", hint="sign it again") from error
    try:
        key.verify(signature, text)
    except InvalidSignature as error:
        if signer != _raw(key):
            raise BundleError(
                f"{name}: signed with another key than the one required", hint="have it signed with `edgeall sign`"
            ) from error
        raise BundleError(
            f"{name}: changed after it was signed", hint="get the file again from who signed it"
        ) from error


def load_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM, as ``edgeall sign --new-key`` or ``openssl pkey -pubout`` write it.

    Raises:
        EdgeallError: `cryptography` is missing, the file can't be read or holds something else.
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
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError for one that is encrypted
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
