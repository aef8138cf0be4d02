"""Writes the app: the page, the packed model, the runtime, and the list of digests that the service worker keeps."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..edge_runtime.bundle import Bundle, open_bundle
from ..edge_runtime.errors import DataError, UsageError
from ..edge_runtime.files import output_lock
from ..edge_runtime.manifest import SCORES, Manifest
from ..edge_runtime.masks import CLASSES
from ..edge_runtime.messages import message
from ..edge_runtime.signature import public_key_text
from ..edge_runtime.vision import DEFAULT_MODEL
from . import runtime
from .icons import icon

STATIC = Path(__file__).with_name("static")
TYPES = ("UINT8", "FLOAT32")
"""Types of inputs and outputs that LiteRT.js takes, of those that edgeall packs."""
MODEL = "model.tflite"
CELLS = "cells.tflite"
FACTS = "app.json"
"""What the page reads first: the model's file name and the key that must have signed it; the model of cells."""
_MARK = "edgeall_web"
"""Key in `FACTS`: the folder was written by this module, and may be replaced."""
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self';"
    " style-src 'self'; img-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The page can load nothing from, and send nothing to, another host."""
HEADERS = {
    "Content-Security-Policy": f"{CONTENT_SECURITY}; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""Headers that the page needs: the last two allow threads."""


@dataclass(frozen=True)
class WebApp:
    """A written app.

    Attributes:
        folder: of its files.
        model: name of the model.
        flatbuffer_sha256: of the model.
        signature_required: whether the page requires a signature.
        litertjs: version of the runtime.
        files: number of files.
        bytes: of all files.
    """

    folder: str
    model: str
    flatbuffer_sha256: str
    signature_required: bool
    litertjs: str
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """The object of ``edgeall web --json``."""
        return dataclasses.asdict(self)


def write_app(model: Path, out: Path, *, public_key: Path | None = None, litertjs: Path | None = None) -> WebApp:
    """Write an app into a folder, which is replaced as a whole if it holds an earlier one.

    Args:
        model: a packed classifier, or a packed segmentation model of cells.
        out: a new or empty folder, or one that this function wrote.
        public_key: the page requires that the model is signed with this key's private half.
        litertjs: see `runtime.runtime_files`.

    Raises:
        BundleError: the model is damaged or not signed as required.
        UsageError: it is not such a model with inputs and outputs in `TYPES`, or ``out`` holds something else.
        DataError: ``litertjs`` cannot be used.
        EdgeallError: the runtime cannot be fetched, or the key cannot be used.
    """
    manifest = app_manifest(open_bundle(model, public_key))
    with output_lock(out, "web"):
        _check_replaceable(out)
        files = app_files(model.read_bytes(), manifest, runtime.runtime_files(litertjs), public_key)
        _replace(out, files)
    return WebApp(
        folder=str(out),
        model=manifest.name,
        flatbuffer_sha256=manifest.flatbuffer_sha256,
        signature_required=public_key is not None,
        litertjs=runtime.VERSION,
        files=len(files),
        bytes=sum(map(len, files.values())),
    )


def app_manifest(bundle: Bundle) -> Manifest:
    """The manifest of a model that the page can run. Raises UsageError for any other model."""
    name, manifest = bundle.path, bundle.manifest
    if manifest is None:
        text = message("{model}: not packed by edgeall, so the page could not verify it", model=name)
        raise UsageError(text, hint="give a packed model")
    _check_types(bundle)
    spec = manifest.input
    if bundle.task == "segmentation":
        if manifest.labels != CLASSES or spec.width != spec.height:
            text = message(
                "{model}: finding cells needs the classes {classes} in a square input",
                model=name,
                classes=", ".join(CLASSES),
            )
            raise UsageError(text, hint="run it with `edgeall run`")
        return manifest
    plain = isinstance(spec.mean, float) and isinstance(spec.std, float)
    if manifest.scores != SCORES[0] or spec.color != "RGB" or not plain:
        text = message(
            "{model}: takes {color} images, {normalization}, and gives {scores}: the page takes RGB images with one"
            " normalization, and a softmax",
            model=name,
            color=spec.color,
            normalization=spec.normalization,
            scores=manifest.scores,
        )
        raise UsageError(text, hint="run it with `edgeall run`")
    return manifest


def is_app(folder: Path) -> bool:
    """Whether `write_app` wrote a folder."""
    try:
        return _MARK in json.loads((folder / FACTS).read_bytes())
    except (OSError, ValueError):
        return False


def app_files(
    model: bytes,
    manifest: Manifest,
    litert: dict[str, bytes],
    public_key: Path | None = None,
    cells: bytes | None = None,
) -> dict[str, bytes]:
    """The content of every file by its path in the app.

    Args:
        model: the packed file.
        manifest: of the model, see `app_manifest`.
        litert: see `runtime.runtime_files`.
        public_key: see `write_app`.
        cells: the packed model that finds cells beside a classifier; None takes the default one.
    """
    key = None if public_key is None else public_key_text(public_key)
    files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.is_file()}
    worker = files.pop("sw.js")
    files |= {f"runtime/{name}": content for name, content in litert.items()}
    finder = None
    if manifest.task != "segmentation":  # which finds cells itself
        files[CELLS] = cells or DEFAULT_MODEL.read_bytes()
        finder = {"model": CELLS, "sha256": hashlib.sha256(files[CELLS]).hexdigest()}
    files |= {
        MODEL: model,
        FACTS: _json({_MARK: __version__, "model": MODEL, "public_key": key, "cells": finder}),
        "app.webmanifest": _json(_install_manifest(manifest.name)),
        "icon-192.png": icon(192),
        "icon-512.png": icon(512),
        "icon-maskable-512.png": icon(512, maskable=True),
    }
    digests = {name: "sha256-" + _base64(hashlib.sha256(content)) for name, content in sorted(files.items())}
    kept = {"digests": digests, "headers": HEADERS}
    version = hashlib.sha256(_json(kept) + worker).hexdigest()[:16]
    listed = b"self.FILES = " + _json({"version": version, **kept}).rstrip() + b";\n"
    return files | {"sw.js": worker, "files.js": listed}


def _install_manifest(name: str) -> dict[str, Any]:
    """The web app manifest, by which a browser installs the page."""
    icons = [("icon-192.png", 192, "any"), ("icon-512.png", 512, "any"), ("icon-maskable-512.png", 512, "maskable")]
    return {
        "id": "./",
        "name": f"edgeall {name}",
        "short_name": "edgeall",
        "description": "Analyses microscope images on this device. Research use only, not a diagnosis.",
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#ffffff",
        "theme_color": "#161b22",
        "icons": [
            {"src": src, "sizes": f"{px}x{px}", "type": "image/png", "purpose": purpose} for src, px, purpose in icons
        ],
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _base64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode()


def _check_types(bundle: Bundle) -> None:
    main = bundle.graph.main
    for index in (*main.inputs, *main.outputs):
        if main.tensors[index].type not in TYPES:
            kind = main.tensors[index].type
            text = message(
                "{model}: an input or output of type {type}, which LiteRT.js does not take",
                model=bundle.path,
                type=kind,
            )
            raise UsageError(text, hint="pack the model again with `edgeall quantize`")


def _check_replaceable(out: Path) -> None:
    if out.exists() and not is_app(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: exists, and is not an app of edgeall", hint="choose a new folder")


def _replace(out: Path, files: dict[str, bytes]) -> None:
    """Write next to ``out``, then rename, so that a server never serves half an app."""
    new, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if out.exists():
            out.rename(old)
        new.rename(out)
    except OSError as error:
        raise DataError(
            f"{out}: can't be written ({error.strerror})", hint="check the disk, or another --out"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
