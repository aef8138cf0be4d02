"""The rig's model on a phone, in a real browser: behind the log-in, with the camera, and without the rig."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures_models import grainy_image
from fixtures_rig import PASSWORDS, Served
from fixtures_web import real_litertjs  # noqa: F401 fixtures

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.rig.serve import DEMO_MODEL

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
MODEL_BYTES = "async () => Array.from(new Uint8Array(await (await fetch('model.tflite')).arrayBuffer()))"
WAIT_MS = 60_000
"""Timeout, for a busy machine."""


def wait_until_ready(page: Any) -> None:
    page.locator("body:not([data-state=checking])").wait_for()
    assert page.locator("body").get_attribute("data-state") == "ready", page.get_by_role("alert").inner_text()


def log_in(page: Any, address: str) -> None:
    page.goto(f"{address}/login")
    page.get_by_label("Name").fill("viktor")
    page.get_by_label("Password").fill(PASSWORDS["viktor"])
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{address}/")


def test_the_rigs_model_runs_on_a_phone(tmp_path: Path, users_file: Path, litertjs: Path) -> None:
    rig, image = Served(tmp_path, "--users", users_file, "--litertjs", litertjs), tmp_path / "cell.png"
    grainy_image(3, (48, 48)).save(image)
    with playwright_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=["--no-sandbox", *FAKE_CAMERA], permissions=["camera"]
        )
        try:
            context.set_default_timeout(WAIT_MS)
            page, complaints = context.new_page(), []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            log_in(page, rig.address)
            page.get_by_role("link", name="Run on this phone").click()
            page.locator("main").get_by_role("link", name="Run on this phone").click()
            wait_until_ready(page)
            assert RESEARCH_USE in page.locator("header").inner_text().lower()
            assert page.evaluate("crossOriginIsolated")
            served = page.evaluate(MODEL_BYTES)
            assert hashlib.sha256(bytes(served)).digest() == hashlib.sha256(DEMO_MODEL.read_bytes()).digest()
            manifest = open_bundle(DEMO_MODEL).manifest
            assert manifest is not None
            assert manifest.flatbuffer_sha256 in page.locator("#facts").text_content()
            page.get_by_role("button", name="Camera").click()
            page.locator("#live-result .label").wait_for()
            page.get_by_role("button", name="Camera").click()
            page.get_by_text("works offline").wait_for()
            faults = context.new_cdp_session(page).send("Page.getInstallabilityErrors")
            assert faults["installabilityErrors"] == []
            rig.stop()
            page.reload()
            wait_until_ready(page)
            page.locator("#files").set_input_files(image)
            page.locator("#list .label").wait_for()
            found = classify_one(Classifier.open(DEMO_MODEL), str(image))
            assert found.label in page.locator("#list .label").inner_text()
            assert complaints == []
        finally:
            context.close()
            rig.stop()
