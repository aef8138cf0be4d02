"""`edgeall web`: the runtime's package is verified, the app is complete, and the server is for this machine."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tarfile
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_web import CONTENT, litertjs_package  # noqa: F401 fixtures

from edgeall import cli
from edgeall.browser import build, runtime
from edgeall.browser.build import HEADERS, write_app
from edgeall.browser.runtime import MODULE, runtime_files
from edgeall.browser.serve import server
from edgeall.edge_runtime.errors import DataError, EdgeallError, UsageError
from edgeall.edge_runtime.vision import DEFAULT_MODEL
from edgeall.optimize.packaging.sign import make_key, sign
from edgeall.rig.serve import DEMO_MODEL


def test_the_package_is_fetched_once(package: Path) -> None:
    files = runtime_files()
    package.unlink()
    assert runtime_files() == files
    assert files["litert.js"] == b'import { createWasmLib } from "../load-wasm.js";'
    assert gzip.decompress(files["litert_wasm_internal.wasmz"]) == CONTENT["wasm/litert_wasm_internal.wasm"]
    assert len(files) == len(CONTENT)


def test_a_damaged_cache_is_fetched_again(package: Path, tmp_path: Path) -> None:
    files = runtime_files()
    (kept,) = (tmp_path / "cache").rglob("*.tgz")
    kept.write_bytes(b"half")
    assert runtime_files() == files


def test_a_given_package(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "URL", "http://127.0.0.1:9/core.tgz")
    files = runtime_files(package)
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert runtime_files(tmp_path / "unpacked") == runtime_files(tmp_path / "unpacked" / "package") == files
    (tmp_path / "unpacked" / "package" / MODULE).write_bytes(b"another version")
    with pytest.raises(DataError, match=r"index\.js: not the file of @litertjs/core"):
        runtime_files(tmp_path / "unpacked")
    with pytest.raises(DataError, match=r"index\.js: can't be read"):
        runtime_files(tmp_path)
    (tmp_path / "other.tgz").write_bytes(b"another package")
    with pytest.raises(DataError, match=r"other\.tgz: not the npm package"):
        runtime_files(tmp_path / "other.tgz")
    with pytest.raises(DataError, match=r"absent\.tgz: can't be read"):
        runtime_files(tmp_path / "absent.tgz")


def test_without_a_network(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "URL", "http://127.0.0.1:9/core.tgz")
    with pytest.raises(EdgeallError, match="can't be fetched") as caught:
        runtime_files()
    assert "--litertjs" in caught.value.hint


def test_what_is_fetched_is_verified(package: Path) -> None:
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(EdgeallError, match="is not @litertjs/core"):
        runtime_files()


def test_an_app(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "app"
    app = write_app(DEMO_MODEL, out)
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert (app.files, app.bytes) == (len(files), sum(map(len, files.values())))
    assert files["model.tflite"] == DEMO_MODEL.read_bytes()
    listed = files.pop("files.js").decode().removeprefix("self.FILES = ").removesuffix(";\n")
    del files["sw.js"]
    kept = json.loads(listed)
    digests = {n: "sha256-" + base64.b64encode(hashlib.sha256(c).digest()).decode() for n, c in files.items()}
    assert kept["digests"] == digests and kept["headers"] == HEADERS
    for icon in json.loads(files["app.webmanifest"])["icons"]:
        assert icon["src"] in files
    facts = json.loads(files["app.json"])
    assert facts["public_key"] is None
    assert files["cells.tflite"] == DEFAULT_MODEL.read_bytes()
    assert facts["cells"] == {"model": "cells.tflite", "sha256": hashlib.sha256(files["cells.tflite"]).hexdigest()}
    assert f'content="{build.CONTENT_SECURITY}"' in files["index.html"].decode()
    write_app(DEMO_MODEL, out)  # the same again
    assert (out / "files.js").read_text().removeprefix("self.FILES = ").removesuffix(";\n") == listed
    assert not list(tmp_path.glob(".app*"))


def test_the_page_requires_the_signature_of_the_key(package: Path, tmp_path: Path) -> None:
    public, model = make_key(tmp_path / "key.pem"), tmp_path / "model.tflite"
    model.write_bytes(DEMO_MODEL.read_bytes())
    with pytest.raises(EdgeallError, match="not signed"):
        write_app(model, tmp_path / "app", public_key=public)
    sign(model, tmp_path / "key.pem")
    assert write_app(model, tmp_path / "app", public_key=public).signature_required
    key = base64.b64decode(json.loads((tmp_path / "app" / "app.json").read_bytes())["public_key"])
    assert len(key) == 32


def test_what_cannot_become_an_app(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(UsageError, match="is not an app of edgeall"):
        write_app(DEMO_MODEL, tmp_path / "mine")
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(build.open_bundle(DEMO_MODEL).flatbuffer.replace(b"edgeall", b"nowhere"))
    with pytest.raises(UsageError, match="not packed by edgeall"):
        write_app(foreign, tmp_path / "app")
    bundle, cells = build.open_bundle(DEMO_MODEL), build.open_bundle(DEFAULT_MODEL)
    assert bundle.manifest is not None and cells.manifest is not None
    other = replace(cells, manifest=replace(cells.manifest, labels=("background", "yeast", "nucleus")))
    with monkeypatch.context() as patch:
        patch.setattr(build, "open_bundle", lambda *_: other)
        with pytest.raises(UsageError, match="needs the classes background, cytoplasm, nucleus in a square"):
            write_app(DEFAULT_MODEL, tmp_path / "app")
    packed = replace(bundle, manifest=replace(bundle.manifest, output={"scores": "logits"}))  # as `edgeall pack` does
    with monkeypatch.context() as patch:
        patch.setattr(build, "open_bundle", lambda *_: packed)
        with pytest.raises(UsageError, match="gives logits"):
            write_app(DEMO_MODEL, tmp_path / "app")
    monkeypatch.setattr(build, "TYPES", ("FLOAT32",))
    with pytest.raises(UsageError, match="of type UINT8"):
        write_app(DEMO_MODEL, tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["web", str(DEMO_MODEL)]) == 2
    assert "needs --out DIR" in capsys.readouterr().err
    assert cli.main(["web", "--serve", "--out", str(tmp_path)]) == 2
    assert "no app of edgeall" in capsys.readouterr().err


def test_the_server_is_for_this_machine(package: Path, tmp_path: Path) -> None:
    write_app(DEMO_MODEL, tmp_path / "app")
    with server(tmp_path / "app") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        assert running.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{running.server_port}/"
        with urllib.request.urlopen(address) as response:
            assert HEADERS.items() <= dict(response.headers).items()
        for path, kind in (("app.webmanifest", "application/manifest+json"), ("app.js", "text/javascript")):
            with urllib.request.urlopen(address + path) as response:
                assert response.headers["Content-Type"].startswith(kind)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "runtime/")
        with pytest.raises(EdgeallError, match="can't listen"):
            server(tmp_path / "app", running.server_port)
        running.shutdown()
