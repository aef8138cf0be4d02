"""LiteRT.js, the runtime in the browser: fetched once from the npm registry, or given; verified by its digests."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from ..edge_runtime.cache import cache_dir
from ..edge_runtime.errors import DataError, EdgeallError

VERSION = "2.5.3"
URL = f"https://registry.npmjs.org/@litertjs/core/-/core-{VERSION}.tgz"
INTEGRITY = "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ=="
"""SHA-512 of the package, as the registry gives it."""
MODULE = "dist/index.js"
VARIANTS = ("", "_compat", "_threaded")
"""Builds of the WebAssembly: with relaxed SIMD, without, and with threads. The browser loads one of them."""
SHA256 = {
    MODULE: "e7daccc3a31eef890848a737ccb863ded5f046a6b40c3fdc0556495adeb5d9b3",
    "wasm/litert_wasm_internal.js": "68efb69f770e3f76aff36a377de629ca496c131b86ac0f0f4b592a1543a898eb",
    "wasm/litert_wasm_internal.wasm": "7280cf4471774867e385e6c3cd53e2b45e2975b80fea338fff4ef359b0865614",
    "wasm/litert_wasm_compat_internal.js": "4d8f894b7883654fd6e8439730aa41e79ceaab7d19184fc4f1f0b0f1a2a2c8a5",
    "wasm/litert_wasm_compat_internal.wasm": "5255c8ad06eabdbd2522cdebf6b22fc10faf74625c23a49b9e072570cd1fa41c",
    "wasm/litert_wasm_threaded_internal.js": "92fe7a720c6deedaa1194c011c79a005ea4f6fc98f533b661cf7900760ab4849",
    "wasm/litert_wasm_threaded_internal.wasm": "b5e54eca10f043497edf9a02186332707cae260c550d7ea22b2cae55669596cf",
}
"""The files of the package that the page needs, with their digests."""
TIMEOUT_S = 60
_IMPORT = '"@litertjs/wasm-utils"'
_OFFLINE = (
    f"without a network: download {URL} elsewhere, and give the file, or the folder that is unpacked from it, with"
    " --litertjs"
)


def runtime_files(given: Path | None = None) -> dict[str, bytes]:
    """The files of the app's ``runtime/`` folder by name.

    Args:
        given: the package ``.tgz``, or the folder that it unpacks to. None takes it from the cache, or fetches it.

    Raises:
        DataError: a given file is missing, unreadable, or not that of `VERSION`.
        EdgeallError: the package cannot be fetched.
    """
    if given is None:
        return _app_files(_unpacked(_fetched(), URL))
    if given.is_dir():
        return _app_files(_read_folder(given))
    try:
        package = given.read_bytes()
    except OSError as error:
        raise DataError(f"{given}: can't be read ({error.strerror})", hint="check --litertjs") from error
    return _app_files(_unpacked(package, str(given)))


def _fetched() -> bytes:
    """The package from the cache. Fetches it if it is not there, or damaged."""
    kept = cache_dir() / "litertjs" / Path(URL).name
    try:
        cached = kept.read_bytes()
        if _integrity(cached) == INTEGRITY:
            return cached
    except OSError:
        pass
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
            package: bytes = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise EdgeallError(f"{URL}: can't be fetched ({getattr(error, 'reason', error)})", hint=_OFFLINE) from error
    if _integrity(package) != INTEGRITY:
        raise EdgeallError(f"{URL}: what was fetched is not @litertjs/core {VERSION}", hint=_OFFLINE)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"{kept.name}.{os.getpid()}")
    partial.write_bytes(package)
    partial.replace(kept)
    return package


def _integrity(package: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()


def _unpacked(package: bytes, name: str) -> dict[str, bytes]:
    if _integrity(package) != INTEGRITY:
        raise DataError(f"{name}: not the npm package @litertjs/core {VERSION}", hint=f"download {URL}")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in SHA256:
            member = archive.extractfile(f"package/{name}")
            assert member is not None  # the digest of the package is known
            files[name] = member.read()
    return files


def _read_folder(folder: Path) -> dict[str, bytes]:
    inside = folder / "package" if (folder / "package").is_dir() else folder
    files = {}
    for name, digest in SHA256.items():
        path = inside / name
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror})", hint=f"unpack {URL} there") from error
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise DataError(f"{path}: not the file of @litertjs/core {VERSION}", hint=f"unpack {URL} there")
    return files


def _app_files(package: dict[str, bytes]) -> dict[str, bytes]:
    """The WebAssembly compressed, without a suffix that servers decompress; the module with our loader of it."""
    module = package[MODULE].decode()
    assert module.count(_IMPORT) == 1  # the digest of the module is known
    module = re.sub(r"\n//# sourceMappingURL=.*", "", module.replace(_IMPORT, '"../load-wasm.js"'))
    files = {"litert.js": module.encode()}
    for variant in VARIANTS:
        name = f"litert_wasm{variant}_internal"
        files[f"{name}.js"] = package[f"wasm/{name}.js"]
        files[f"{name}.wasmz"] = gzip.compress(package[f"wasm/{name}.wasm"], compresslevel=6, mtime=0)
    return files
