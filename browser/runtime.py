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
from ..edge_runtime.messages import message

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


def runtime_files(given: Path | None = None, *, fetch: bool = True) -> dict[str, bytes]:
    """The files of the app's ``runtime/`` folder by name. Compressing them takes seconds. See `package_files`."""
    return _app_files(package_files(given, fetch=fetch))


def package_files(given: Path | None = None, *, fetch: bool = True) -> dict[str, bytes]:
    """The verified files of `SHA256` by name.

    Args:
        given: the package ``.tgz``, or the folder that it unpacks to. None takes it from the cache, or fetches it.
        fetch: whether it may be fetched.

    Raises:
        DataError: a given file is missing, unreadable, or not that of `VERSION`.
        EdgeallError: the package cannot be fetched, or is not in the cache and may not be fetched.
    """
    if given is None:
        package = _fetched() if fetch else _cached()
        if package is None:
            raise not_here()
        return _unpacked(package, URL)
    if given.is_dir():
        return _read_folder(given)
    try:
        package = given.read_bytes()
    except OSError as error:
        text = message("{path}: can't be read ({reason})", path=given, reason=error.strerror)
        raise DataError(text, hint="check --litertjs") from error
    return _unpacked(package, str(given))


def kept_package() -> Path:
    """Where the fetched package is kept."""
    return cache_dir() / "litertjs" / Path(URL).name


def not_here() -> EdgeallError:
    """The error for a machine that neither was given the package nor has fetched it."""
    hint = message(
        "download {url} on a computer with internet, copy it here, and restart with --litertjs {file}",
        url=URL,
        file=Path(URL).name,
    )
    return EdgeallError("the runtime of the app, LiteRT.js, is not on this machine", hint=hint)


def _cached() -> bytes | None:
    """The package from the cache; None if it is not there, or damaged."""
    try:
        package = kept_package().read_bytes()
    except OSError:
        return None
    return package if _integrity(package) == INTEGRITY else None


def _fetched() -> bytes:
    """The package from the cache. Fetches it if it is not there, or damaged."""
    cached = _cached()
    if cached is not None:
        return cached
    offline = (
        f"without a network: download {URL} elsewhere, and give the file, or the folder that is unpacked from it, with"
        " --litertjs"
    )
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
            package: bytes = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise EdgeallError(f"{URL}: can't be fetched ({getattr(error, 'reason', error)})", hint=offline) from error
    if _integrity(package) != INTEGRITY:
        raise EdgeallError(f"{URL}: what was fetched is not @litertjs/core {VERSION}", hint=offline)
    kept = kept_package()
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"{kept.name}.{os.getpid()}")
    partial.write_bytes(package)
    partial.replace(kept)
    return package


def _integrity(package: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()


def _unpacked(package: bytes, name: str) -> dict[str, bytes]:
    if _integrity(package) != INTEGRITY:
        text = message("{path}: not the npm package @litertjs/core {version}", path=name, version=VERSION)
        raise DataError(text, hint=message("download {url}", url=URL))
    files = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in SHA256:
            member = archive.extractfile(f"package/{name}")
            assert member is not None  # the digest of the package is known
            files[name] = member.read()
    return files


def _read_folder(folder: Path) -> dict[str, bytes]:
    inside = folder / "package" if (folder / "package").is_dir() else folder
    hint = message("unpack {url} there", url=URL)
    files = {}
    for name, digest in SHA256.items():
        path = inside / name
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            text = message("{path}: can't be read ({reason})", path=path, reason=error.strerror)
            raise DataError(text, hint=hint) from error
        if hashlib.sha256(files[name]).hexdigest() != digest:
            text = message("{path}: not the file of @litertjs/core {version}", path=path, version=VERSION)
            raise DataError(text, hint=hint)
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
