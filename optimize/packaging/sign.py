"""Signs a packed model. A device that pins the public key refuses other models."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from ...edge_runtime import signature
from ...edge_runtime.bundle import open_bundle
from ...edge_runtime.errors import BundleError, DataError, EdgeallError
from ...edge_runtime.tools.archive import signature_of
from ...edge_runtime.tools.atomic import atomic_write


def make_key(key: Path) -> Path:
    """Write a new private key to ``key``, readable by its owner alone, and the public key beside it.

    Returns:
        Path of the public key: ``<key>.pub``.

    Raises:
        DataError: one of the two files exists, or cannot be written.
        EdgeallError: `cryptography` is missing.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    except ImportError as error:
        raise EdgeallError(f"signatures need the package cryptography ({error})", signature.INSTALL) from error
    public = key.with_name(key.name + ".pub")
    new = Ed25519PrivateKey.generate()
    private_pem = new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = new.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        for path, mode, pem in ((public, 0o644, public_pem), (key, 0o600, private_pem)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(pem)
    except OSError as error:
        raise DataError(
            f"{error.filename}: can't be written ({error.strerror})",
            hint="a key is never overwritten; give another name",
        ) from error
    return public


def sign(model: Path, key: Path) -> dict[str, Any]:
    """Write a signature into a packed model and replace an older one. The file is replaced in one step.

    Args:
        model: packed model.
        key: Ed25519 private key in PEM.

    Returns:
        ``model``: its path; ``members``: names of the signed archive members.

    Raises:
        BundleError: the model is damaged or foreign.
        EdgeallError: the key is unusable, see `signature.load_private_key`.
        DataError: the file cannot be written.
    """
    signature.load_private_key(key)  # refused before the model is read
    bundle = open_bundle(model)
    if bundle.manifest is None:
        raise BundleError(f"{model}: a foreign model, which cannot hold a signature", hint="sign a packed model")
    try:
        with atomic_write(model) as temporary, zipfile.ZipFile(model) as archive, open(temporary, "wb") as file:
            infos = [info for info in archive.infolist() if info.filename != signature.MEMBER]
            members = {info.filename: archive.read(info) for info in infos}
            last = zipfile.ZipInfo(signature.MEMBER, infos[0].date_time)
            last.external_attr = infos[0].external_attr
            file.write(bundle.flatbuffer)
            with zipfile.ZipFile(file, "w") as signed:
                for info in infos:
                    signed.writestr(info, members[info.filename])
                signed.writestr(last, signature_of(bundle.flatbuffer, members, key))
            file.close()
            os.chmod(temporary, model.stat().st_mode)
            open_bundle(temporary)
    except OSError as error:
        raise DataError(
            f"{model}: can't be written ({error.strerror})", hint="check the folder and the disk"
        ) from error
    return {"model": str(model), "members": sorted(members)}
