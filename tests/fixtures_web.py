"""LiteRT.js for the tests of apps: the real package, and one of the same names that needs no network."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from edgeall.browser import runtime
from edgeall.edge_runtime.errors import EdgeallError

IMPORT = b'import { createWasmLib } from "@litertjs/wasm-utils";'
CONTENT = {name: b"// " + name.encode() for name in runtime.SHA256}
CONTENT[runtime.MODULE] = IMPORT + b"\n//# sourceMappingURL=x"


@pytest.fixture(name="package")
def litertjs_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the names of the real one; the network has it too, and the cache is empty."""
    path = tmp_path / "core.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in CONTENT.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(runtime, "INTEGRITY", runtime._integrity(path.read_bytes()))
    monkeypatch.setattr(runtime, "SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()})
    monkeypatch.setattr(runtime, "URL", path.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


@pytest.fixture(scope="session", name="litertjs")
def real_litertjs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real package; EDGEALL_TEST_LITERTJS names one that is there already."""
    if given := os.environ.get("EDGEALL_TEST_LITERTJS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("npm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))  # tests of a rig without it follow
        try:
            runtime._fetched()
        except EdgeallError as error:
            pytest.skip(f"no LiteRT.js: {error.message}")
        return runtime.kept_package()
