"""The app that runs the rig's model in a visitor's browser: the files of `edgeall web`, made when they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from ...browser import runtime
from ...browser.build import app_files, app_manifest
from ...edge_runtime.bundle import open_bundle
from ...edge_runtime.manifest import Manifest
from ..learning.model import Model, unchanged


class PhoneApp:
    """The app of the model that the rig uses. Thread-safe.

    Nothing is fetched: LiteRT.js is given, or `edgeall web` has fetched it before on this machine. All files come from
    the package and from LiteRT.js, whose digests are known: they run with a visitor's log-in, as the rig's pages do.

    Args:
        litertjs: see `edgeall.browser.runtime.package_files`; None takes it from the cache.
        cell_model: the rig's own model of cells; None takes the default one.

    Raises:
        DataError: ``litertjs`` cannot be used.
    """

    def __init__(self, litertjs: Path | None = None, cell_model: Path | None = None) -> None:
        if litertjs is not None:
            runtime.package_files(litertjs)
        self._given, self._cell_model = litertjs, cell_model
        self._runtime: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._digest = ""
        self._files: Mapping[str, bytes] = {}

    def check(self, model: Model) -> None:
        """Raise EdgeallError for models that no browser can run, or if the runtime is not on this machine."""
        _manifest(model)
        self._cells()
        if not self._runtime and not (self._given or runtime.kept_package()).exists():
            raise runtime.not_here()

    def files(self, model: Model) -> Mapping[str, bytes]:
        """The content of every file of the app by its path in it.

        Raises:
            BundleError: the model's file has changed since the rig opened it.
            EdgeallError: as `check`.
        """
        with self._lock:
            if self._digest != model.file_sha256:
                self._files = self._made(model)
                self._digest = model.file_sha256
            return self._files

    def _made(self, model: Model) -> dict[str, bytes]:
        manifest = _manifest(model)
        content = unchanged(model)
        if not self._runtime:
            self._runtime = runtime.runtime_files(self._given, fetch=False)
        return app_files(content, manifest, self._runtime, cells=self._cells())

    def _cells(self) -> bytes | None:
        if self._cell_model is None:
            return None
        app_manifest(open_bundle(self._cell_model))
        return self._cell_model.read_bytes()


def _manifest(model: Model) -> Manifest:
    bundle = model.classifier.bundle
    assert bundle is not None, "the rig opens its model from a file"
    return app_manifest(bundle)
