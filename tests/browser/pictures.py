"""Takes the screenshots of the rig's page for the documentation: ``python tests/browser/pictures.py docs/images``."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fixtures_rig import Served
from venvs import HANG_S

LARGEST_BYTES = 150_000
WATCHED_S = 25
"""Time on the slide before its summary is taken: includes an empty and a thick place."""


def take(out: Path) -> None:
    """Write ``rig-live.jpg``, ``rig-summary.jpg`` and ``rig-why.jpg``."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        rig = Served(Path(folder))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 880}, color_scheme="light")
            page.set_default_timeout(1000 * HANG_S)
            page.goto(rig.address)
            page.get_by_label("Sample id").fill("DEMO-1")
            page.get_by_role("button", name="Start the slide", exact=True).click()
            page.get_by_role("heading", name="DEMO-1").wait_for()
            page.wait_for_timeout(1000 * WATCHED_S)
            page.locator("main:has(#light.good):has(#boxes rect.cell) #label").wait_for()
            save(page, out / "rig-live.jpg")
            captured = capture_with_cells(page, rig.address)
            page.get_by_text("End this slide").click()
            page.get_by_role("button", name="Yes, end it").click()
            page.wait_for_url("**/slides/*")
            save(page, out / "rig-summary.jpg")
            page.goto(f"{rig.address}{captured}")
            page.get_by_role("button", name="Why this label").click()
            page.wait_for_timeout(2000)
            save(page, out / "rig-why.jpg")
        finally:
            browser.close()
            rig.stop()


def capture_with_cells(page: Any, address: str) -> str:
    """Capture until a frame has cells, for the stage moves on; returns the address of its page."""
    while True:
        page.locator("main:has(#light.good):has(#boxes rect.cell) #capture").click()
        page.locator("#capture-result a").wait_for()
        captured: str = page.locator("#capture-result a").get_attribute("href")
        if 'name="cell"' in page.request.get(f"{address}{captured}").text():
            return captured


def save(page: Any, file: Path) -> None:
    """Save a screenshot at the best quality within `LARGEST_BYTES`."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for quality in range(92, 40, -4):
        picture.save(file, quality=quality, optimize=True)
        if file.stat().st_size <= LARGEST_BYTES:
            print(f"{file}: {file.stat().st_size} bytes")
            return
    raise SystemExit(f"{file}: more than {LARGEST_BYTES} bytes")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    take(target)
