"""The app of `edgeall web` in a real browser: the outputs of `edgeall run`, without a network, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_cells import SOME_RED, draw
from fixtures_models import grainy_image
from fixtures_packed import other_units, repack
from fixtures_web import real_litertjs  # noqa: F401 fixtures
from PIL import Image

from edgeall import cli
from edgeall.browser.build import write_app
from edgeall.browser.serve import server
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.edge_runtime.preprocess import load_input
from edgeall.edge_runtime.tools.explain import dense_head, evidence, overlay
from edgeall.edge_runtime.vision import DEFAULT_MODEL
from edgeall.edge_runtime.vision.finder import CellFinder, open_finder
from edgeall.edge_runtime.vision.masks_files import segment_files, segmented_lines
from edgeall.optimize.packaging.sign import make_key, sign
from edgeall.rig.serve import DEMO_MODEL

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
PHONE = {"width": 380, "height": 760}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
WAIT_MS = 60_000
"""Timeout, for a busy machine."""
ASK = """async ([name, base64]) => {
  const { ask } = await import("./client.js");
  const file = new Blob([Uint8Array.from(atob(base64), (unit) => unit.charCodeAt(0))]);
  const { map, ...answer } = await ask("classifyFile", { name, file, explain: true });
  const context = new OffscreenCanvas(map.width, map.height).getContext("2d");
  context.drawImage(map, 0, 0);
  return { ...answer, overlay: Array.from(context.getImageData(0, 0, map.width, map.height).data) };
}"""
"""Asks the page's own worker; with the pixels of the overlay."""
MODEL_DIGEST = """async () => {
  const content = await (await fetch("model.tflite")).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (value) => value.toString(16).padStart(2, "0")).join("");
}"""
"""Of the model that the page uses."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rig's model of simulated cells with a temperature and an out-of-distribution detector, signed."""
    folder = tmp_path_factory.mktemp("model")
    path, rng = folder / "model.tflite", np.random.default_rng(0)
    path.write_bytes(open_bundle(DEMO_MODEL).flatbuffer)
    with zipfile.ZipFile(DEMO_MODEL) as old, zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "edgeall.json":
                facts = json.loads(content)
                facts["calibration"]["temperature"] = 1.3
                facts["novelty"] = {"features": 128, "scales": [0.001] * 9, "threshold": 0.55}
                content = json.dumps(facts).encode()
            new.writestr(name, content)
        new.writestr("novelty.bin", rng.integers(-99, 100, (9, 128), np.int8).tobytes())
    make_key(folder / "key.pem")
    sign(path, folder / "key.pem")
    return path


@pytest.fixture(scope="module")
def site(model: Path, litertjs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the app in ``good/``, which requires the signature."""
    folder = tmp_path_factory.mktemp("site")
    write_app(model, folder / "good", public_key=model.with_name("key.pem.pub"), litertjs=litertjs)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with server(site) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser with a profile: a private window is not asked to install an app."""
    with playwright_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=["--no-sandbox", *FAKE_CAMERA],
            permissions=["camera"],
            viewport=PHONE,
        )
        context.set_default_timeout(WAIT_MS)
        yield context
        context.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address; nothing may be asked of another host, and no script may fail."""
    pages, complaints = [], []

    def make(address: str) -> Any:
        page = browser.new_page()
        pages.append(page)
        host = "/".join(address.split("/")[:3])
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if host not in request.url else None)
        page.goto(address)
        page.locator("body:not([data-state=checking])").wait_for()
        assert RESEARCH_USE in page.locator("header").inner_text().lower()
        return page

    yield make
    for page in pages:
        page.close()
    assert [text for text in complaints if not text.startswith("blob:")] == []


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNG files of many kinds, and one that is empty."""
    folder = tmp_path_factory.mktemp("images")
    alpha = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 4), np.uint8))
    deep = Image.fromarray(np.random.default_rng(2).integers(0, 65536, (60, 60), np.uint16))
    exif = Image.Exif()
    exif[0x112] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "cell": (grainy_image(3, (48, 48)), {}),
        "landscape": (grainy_image(4, (640, 480)), {}),
        "portrait": (grainy_image(5, (300, 401)), {}),
        "small": (grainy_image(6, (20, 31)), {}),
        "grey": (grainy_image(7).convert("L"), {}),
        "palette": (grainy_image(8).convert("P"), {}),
        "alpha": (alpha, {}),
        "16 bits": (deep, {}),
        "turned": (grainy_image(9), {"exif": exif}),
    }
    for name, (image, settings) in kinds.items():
        image.save(folder / f"{name}.png", **settings)
    (folder / "empty.png").touch()
    return sorted(folder.iterdir())


def overlays(classifier: Classifier, path: Path) -> Iterator[np.ndarray]:
    """The class-activation map of each label over the model's input, in its size."""
    assert classifier.bundle is not None
    pixels = load_input(path, classifier.input)
    units = classifier.infer(pixels).units
    assert units is not None
    weights = dense_head(classifier.bundle.graph, classifier.bundle.flatbuffer, path.name)[0]
    for activation in np.moveaxis(evidence(classifier.features(units), weights), 2, 0):
        yield np.asarray(overlay(pixels, activation).resize((48, 48), Image.Resampling.BOX)).astype(int)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(page: Any) -> list[dict[str, Any]]:
    """The saved predictions."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON lines").click()
    return [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]


def test_outputs_are_those_of_edgeall_run(
    address: str, open_page: Callable[..., Any], images: list[Path], model: Path
) -> None:
    page, classifier = open_page(f"{address}/good/"), Classifier.open(model)
    page.locator("#files").set_input_files(images)
    page.locator(f"#list li:nth-child({len(images)})").wait_for()
    for path, found in zip(images, results(page), strict=True):
        expected = classify_one(classifier, str(path)).as_json()
        if expected.get("error"):
            assert found == {"image": path.name, "error": expected["error"].replace(str(path), path.name)}
            continue
        numbers = ("probability", "probabilities", "novelty")
        for key in numbers:
            assert found.pop(key) == pytest.approx(expected.pop(key), abs=2e-6), (path, key)
        assert found == expected | {"image": path.name}
        answer = page.evaluate(ASK, [path.name, base64.b64encode(path.read_bytes()).decode()])
        assert answer["scores"] == classifier.predict_units(load_input(path, classifier.input)).tolist(), path
        shown = np.array(answer["overlay"]).reshape(48, 48, 4)[..., :3]
        apart = [np.abs(shown - wanted).mean() for wanted in overlays(classifier, path)]
        own = apart.pop(classifier.labels.index(expected["label"]))
        assert 2 * own < min(apart), path  # not equal: smoothed otherwise
    reasons = {classify_one(classifier, str(path)).reason for path in images}
    assert "unfamiliar" in reasons and len(reasons) > 1  # the images ask for both
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert RESEARCH_USE in download.value.suggested_filename
    assert len(Path(download.value.path()).read_text().splitlines()) == len(images) + 1
    assert page.locator("#list canvas[aria-label^='Evidence for']").count() == len(images) - 1


def smears(folder: Path) -> list[Path]:
    """Drawn fields at several scales, one without cells; and real ones, if there are some."""
    several = [((120, 100), 0.9), ((330, 240), 0.8), ((430, 250), 0.9), ((630, 400), 0.9)]
    fields = {
        "drawn": draw(several, SOME_RED),
        "large": draw([((500, 400), 0.9), ((900, 500), 0.7)], [(200, 300), (700, 800)], (1301, 960), 1.6),
        "none": draw((), SOME_RED),
        "small": draw([((60, 50), 0.9)], [(20, 90), (100, 30)], (120, 110), 0.25),
    }
    for name, pixels in fields.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    data = Path(os.environ.get("EDGEALL_TEST_DATA", "absent"))
    for path in (*sorted(data.glob("bccd/JPEGImages/*.jpg"))[::150], *sorted(data.glob("all4/Early/*"))[::500]):
        shutil.copy(path, folder / f"real {path.name}")
    return sorted(folder.iterdir())


def test_cells_are_those_of_edgeall_cells(
    address: str,
    open_page: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The network runs, and all after it: every number of the table and of the JSON is the same."""
    monkeypatch.chdir(tmp_path)
    Path("smears").mkdir()
    files = smears(Path("smears"))
    assert cli.main(["cells", *map(str, files), "--out", "found", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    page = open_page(f"{address}/good/")
    page.get_by_role("button", name="Find cells").click()
    page.locator("#files").set_input_files(files)
    page.locator(f"#list li:nth-child({len(files)})").wait_for()
    for wanted, found in zip(expected["images"], results(page), strict=True):
        assert f"smears/{found['image']}" == wanted["image"] and found["label"]
        assert {key: found[key] for key in ("cells", "scale", "warnings")}.items() <= wanted.items()
    assert expected["cells"] > 3
    with page.expect_download() as download:
        page.get_by_role("button", name="Save cells as CSV").click()
    assert RESEARCH_USE in download.value.suggested_filename
    table = Path(download.value.path()).read_bytes().decode()
    assert table == Path("found/cells.csv").read_bytes().decode().replace("smears/", "")
    assert page.locator("#list canvas.boxes").count() == len(files)
    assert page.get_by_text("no nucleated cell found").first.is_visible()
    page.get_by_text("The model", exact=True).click()
    assert page.locator("dd", has_text=re.compile("matches; [0-9]+ golden images as packed")).is_visible()


def test_a_segmentation_model_is_an_app_too(
    site: Path, litertjs: Path, address: str, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    """The pixels and the table are those of `edgeall run`; the cells those of `edgeall cells`."""
    app = write_app(DEFAULT_MODEL, site / "segments", litertjs=litertjs)
    assert app.files == sum(path.is_file() for path in (site / "segments").rglob("*"))
    finder = open_finder(DEFAULT_MODEL)
    assert isinstance(finder, CellFinder)
    files = smears(tmp_path)
    page = open_page(f"{address}/segments/")
    assert page.get_by_role("heading", level=1).inner_text() == "Find cells"
    page.locator("#files").set_input_files([*files, Path(__file__)])
    page.locator(f"#list li:nth-child({len(files) + 1})").wait_for()
    *found, wrong = results(page)
    assert wrong["error"].startswith(f"{Path(__file__).name}: not an image")
    expected = list(segment_files(finder, files))
    for one, other in zip(found, expected, strict=True):
        values = other.to_json()
        assert len(one["cells"]) == values["cells"]
        assert (one["pixels"], one["scale"]) == (values["pixels"], values["scale"])
        assert set(values["warnings"]) <= set(one["warnings"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    *rows, last = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    lines = [line.replace(f"{tmp_path}/", "") for line in segmented_lines(expected, "csv")]
    assert rows == lines and wrong["error"] in last
    assert page.locator("#list canvas.boxes").count() == len(files)
    page.get_by_role("button", name="Camera").click()
    page.locator("#live-result .count").wait_for()
    page.get_by_role("button", name="Keep this picture").click()
    page.locator(f"#list li:nth-child({len(files) + 2})").wait_for()
    page.get_by_role("button", name="Camera").click()
    page.locator("#live").wait_for(state="hidden")


def test_a_given_scale(address: str, open_page: Callable[..., Any], tmp_path: Path) -> None:
    smear = tmp_path / "drawn.png"
    Image.fromarray(draw([((330, 240), 0.8)], SOME_RED)).save(smear)
    page = open_page(f"{address}/good/")
    page.get_by_role("button", name="Find cells").click()
    page.get_by_label("Red cell, pixels").fill("2")
    page.locator("#files").set_input_files(smear)
    page.get_by_text("the size of a red cell must be 4 to 900 px").wait_for()
    page.get_by_label("Red cell, pixels").fill("700")
    page.locator("#files").set_input_files(smear)
    page.get_by_text("not one whole red cell would fit into an image of 640x480 pixels; give the size").wait_for()
    (found,) = results(page)
    assert (found["scale"]["source"], found["scale"]["red_cell_px"]) == ("given", 700)


def test_the_page_installs_and_works_without_a_network(
    site: Path, browser: Any, open_page: Callable[..., Any], images: list[Path]
) -> None:
    with server(site / "good") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{running.server_port}/")
        page.get_by_text("works offline").wait_for()
        faults = browser.new_cdp_session(page).send("Page.getInstallabilityErrors")
        assert faults["installabilityErrors"] == []
        running.shutdown()
    page.reload()
    page.locator("body[data-state=ready]").wait_for()
    assert page.evaluate("crossOriginIsolated")
    page.locator("#files").set_input_files(images[0])
    page.locator("#list .label").wait_for()


def test_another_model_comes_when_all_windows_were_closed(
    litertjs: Path, tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    def digest(page: Any) -> str:
        return str(page.evaluate(MODEL_DIGEST))

    write_app(DEMO_MODEL, tmp_path / "app", litertjs=litertjs)
    with server(tmp_path / "app") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}/"
        page = open_page(address)
        page.get_by_text("works offline").wait_for()
        other = repack(DEMO_MODEL, tmp_path / "other.tflite", pad=100)
        write_app(other, tmp_path / "app", litertjs=litertjs)
        page.reload()
        page.get_by_text("new version: close all windows of this page").wait_for()
        assert digest(page) == sha256(DEMO_MODEL)
        # A page that opens before the browser has let go of the closed one is still served by the old version.
        ends = time.monotonic() + WAIT_MS / 1000
        while digest(page) != sha256(other):
            assert time.monotonic() < ends, "the old version is still served"
            page.close()
            page = open_page(address)
            page.locator("#offline:not(:empty)").wait_for()
        page.get_by_text("works offline").wait_for()
        running.shutdown()


def test_the_camera(address: str, open_page: Callable[..., Any]) -> None:
    page = open_page(f"{address}/good/")
    page.get_by_role("button", name="Camera").click()
    page.locator("#live-result .label").wait_for()
    page.get_by_role("button", name="Keep this picture").click()
    page.locator("#list li").wait_for()
    page.get_by_role("button", name="Camera").click()
    page.locator("#live").wait_for(state="hidden")
    (kept,) = results(page)
    assert kept["image"].startswith("camera 20") and kept["label"]


def damaged(model: Path, out: Path) -> None:
    content = bytearray(model.read_bytes())
    content[50_000] ^= 1
    out.write_bytes(content)


def cut(model: Path, out: Path) -> None:
    out.write_bytes(model.read_bytes()[:-3000])


def by_another_key(model: Path, out: Path) -> None:
    out.write_bytes(model.read_bytes())
    make_key(out.with_name("other.pem"))
    sign(out, out.with_name("other.pem"))


def changed_after_it_was_signed(model: Path, out: Path) -> None:
    repack(model, out, other_units)


def not_signed(model: Path, out: Path) -> None:
    out.write_bytes(DEMO_MODEL.read_bytes())


def golden_image_comes_out_otherwise(model: Path, out: Path) -> None:
    repack(DEMO_MODEL, out, other_units)


@pytest.mark.parametrize(
    ("spoil", "signed", "text"),
    [
        (damaged, False, "flatbuffer does not match its digest"),
        (cut, False, "its archive (edgeall.json, labels) is missing"),
        (damaged, True, "changed after it was signed"),
        (by_another_key, True, "signed with another key than the one required"),
        (changed_after_it_was_signed, True, "changed after it was signed"),
        (not_signed, True, "not signed"),
        (golden_image_comes_out_otherwise, False, "NOT as packed, differs by"),
    ],
)
def test_a_model_is_refused(
    spoil: Callable[[Path, Path], None],
    signed: bool,
    text: str,
    site: Path,
    address: str,
    model: Path,
    open_page: Callable[..., Any],
) -> None:
    folder = site / f"{spoil.__name__}-{signed}"
    shutil.copytree(site / "good", folder, copy_function=os.link)
    (folder / "model.tflite").unlink()
    spoil(model, folder / "model.tflite")
    if not signed:
        facts = json.loads((folder / "app.json").read_bytes())
        (folder / "app.json").unlink()
        (folder / "app.json").write_text(json.dumps(facts | {"public_key": None}))
    page = open_page(f"{address}/{folder.name}/")
    assert page.locator("body").get_attribute("data-state") == "refused"
    alert = page.get_by_role("alert").inner_text()
    assert alert.startswith("model.tflite: ") and text in alert
    assert page.locator("#ready").is_hidden()


def test_another_model_of_cells_is_refused(
    site: Path, address: str, open_page: Callable[..., Any], images: list[Path]
) -> None:
    """It is not signed: the page knows its digest. And its golden images are checked before its first answer."""

    def other_size(golden: dict[str, Any]) -> None:
        golden["images"][0]["red_cell"] += 0.1

    folder = site / "other cells"
    shutil.copytree(site / "good", folder, copy_function=os.link)
    (folder / "cells.tflite").unlink()
    repack(DEFAULT_MODEL, folder / "cells.tflite", other_size)
    page = open_page(f"{address}/other cells/")
    assert page.get_by_role("alert").inner_text().startswith("cells.tflite: not the model of cells of this page")
    facts = json.loads((folder / "app.json").read_bytes())
    facts["cells"]["sha256"] = sha256(folder / "cells.tflite")
    (folder / "app.json").unlink()
    (folder / "app.json").write_text(json.dumps(facts))
    page = open_page(f"{address}/other cells/")
    button = page.get_by_role("button", name="Find cells")
    button.click()
    alert = page.get_by_role("alert").inner_text()
    assert alert.startswith("cells.tflite: 0.png: NOT as packed, differs by ") and "units" in alert
    assert button.is_disabled() and button.get_attribute("aria-pressed") == "false"
    page.locator("details summary").click()
    assert page.locator("dd", has_text="refused: cells.tflite: 0.png: NOT as packed").is_visible()
    page.locator("#files").set_input_files(images[0])  # the classifier came out as packed
    page.locator("#list .label").wait_for()
    assert "cells" not in results(page)[0]


def test_accessible(address: str, open_page: Callable[..., Any], images: list[Path], tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(f"{address}/good/")
    page.get_by_role("button", name="Find cells").click()
    Image.fromarray(draw([((330, 240), 0.8), ((630, 400), 0.9)], SOME_RED)).save(tmp_path / "cells.png")
    page.locator("#files").set_input_files([*images[:2], tmp_path / "cells.png"])
    page.locator("#list li:nth-child(3)").wait_for()
    for summary in page.locator("details summary").all():
        summary.click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        # Its script is run as the test's, not as the page's, whose policy allows none from elsewhere.
        found = axe.Axe().run(page, options=RULES).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
