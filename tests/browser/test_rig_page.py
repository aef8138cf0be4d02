"""The rig's page in a real browser: by mouse, by keyboard alone and on a phone."""

from __future__ import annotations

import shutil
import signal
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_rig import PASSWORDS, Served
from reviewed_slide import reviewed_slide

from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.rig.language import LANGUAGES
from edgeall.rig.record.record import Record

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe_module = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
WIDE, PHONE = (1400, 900), (380, 760)
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PAGES = ("", "/slides", "/gallery", "/settings", "/objectives", "/learn", "/health", "/phone")
DASH = "\u2013"
"""Shown where there is no value."""
WAIT_MS = 60_000
"""Timeout, for a busy machine."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """On the machine itself, without a log-in."""
    rig = Served(tmp_path_factory.mktemp("rig"))
    yield rig
    rig.stop()


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory, users_file: Path) -> Iterator[Served]:
    """With a users file."""
    rig = Served(tmp_path_factory.mktemp("guarded"), "--users", users_file)
    yield rig
    rig.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """``open_page(address, size, **context)``: a page of a new browser; its console must stay empty."""
    contexts, complaints = [], []

    def make(address: str, size: tuple[int, int] = WIDE, **settings: Any) -> Any:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, **settings)
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("request", lambda request: complaints.append(request.url) if address not in request.url else None)
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def until(page: Any, expression: str, check: Callable[[Any], bool]) -> Any:
    """The value of a JavaScript expression once it passes; the page's security policy blocks Playwright's own wait."""
    ends = time.monotonic() + WAIT_MS / 1000
    while not check(value := page.evaluate(expression)):
        assert time.monotonic() < ends, f"{expression} stays {value}"
        page.wait_for_timeout(50)
    return value


def start_slide(page: Any, sample: str) -> None:
    page.get_by_label("Sample id").fill(sample)
    page.get_by_role("button", name="Start the slide", exact=True).click()
    page.get_by_role("heading", name=sample).wait_for()


def end_slide(page: Any) -> None:
    page.get_by_text("End this slide").click()
    page.get_by_role("button", name="Yes, end it").click()
    page.wait_for_url("**/slides/*")


def wait_for_good_field(page: Any) -> None:
    page.locator("main:has(#light.good):has(#boxes rect.cell) #label").wait_for()


def capture(page: Any, take: Callable[[], None], follow: Callable[[], None]) -> None:
    """Capture a field with cells and open its page. The slide may move on before the click."""
    live = page.url
    for _ in range(10):
        wait_for_good_field(page)
        take()
        page.locator("#capture-result a").wait_for()
        follow()
        page.wait_for_url("**/frames/*")
        if page.locator("#review").count():
            return
        page.goto(live)
    raise AssertionError("ten captures without a cell")


def capture_by_mouse(page: Any) -> None:
    capture(page, page.get_by_role("button", name="Capture").click, page.locator("#capture-result a").click)


def test_the_live_view_moves(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(served.address)
    assert RESEARCH_USE in page.locator("body").inner_text().lower()
    shown = "Number(document.getElementById('view').dataset.picture ?? -1)"
    numbers = [-1]
    for _ in range(3):
        numbers.append(until(page, shown, lambda number: number > numbers[-1]))
    assert page.evaluate("document.getElementById('view').naturalWidth") == 1280
    until(page, "parseFloat(document.getElementById('rate').textContent)", lambda rate: rate > 0)
    wait_for_good_field(page)
    until(page, "document.querySelectorAll('#boxes rect.cell').length", lambda count: count > 0)


def test_capture_review_correct_export(served: Served, open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(served.address)
    start_slide(page, "S-mouse")
    capture_by_mouse(page)
    cells = page.locator("input[name=cell]").count()
    assert cells > 0
    said = page.locator("fieldset.cells span").first.inner_text()
    other = next(label for label in ("Benign", "Early", "Pre", "Pro") if label not in said)
    page.locator("fieldset.cells label").first.click()
    page.get_by_role("button", name=other).click()
    page.locator("fieldset.cells em", has_text="reviewed").first.wait_for()
    assert other in page.locator("fieldset.cells span").first.inner_text()
    page.get_by_role("link", name="S-mouse").click()
    assert page.locator("dl.counts div", has_text="reviewed").locator("dd").inner_text() == "1"
    for name, ending in (("Table (CSV)", ".csv"), ("Training folder", ".zip")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        download.value.save_as(tmp_path / f"export{ending}")
    assert RESEARCH_USE in (tmp_path / "export.csv").read_text()
    names = zipfile.ZipFile(tmp_path / "export.zip").namelist()
    assert any(name.startswith(f"{other}/") and name.endswith(".png") for name in names)
    page.get_by_role("link", name="Printable report").click()
    assert page.locator(".tile img").first.evaluate("image => image.complete || image.loading === 'lazy'")
    page.goto(served.address)
    end_slide(page)


def test_why_this_label(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(served.address)
    start_slide(page, "S-why")
    capture_by_mouse(page)
    page.locator("fieldset.cells label").last.click()
    last = page.locator("fieldset.cells label").count() - 1
    why = page.get_by_role("button", name="Why this label")
    image = "document.getElementById('picture')"
    plain = page.evaluate(f"{image}.src")
    why.click()
    assert until(page, f"{image}.src", lambda source: source != plain).endswith(f"/cells/{last}/map.png")
    until(page, f"{image}.naturalWidth", lambda width: width == 480)  # the model's 48 pixels, enlarged
    assert why.get_attribute("aria-pressed") == "true" and page.locator("#boxes").is_hidden()
    page.locator("fieldset.cells label").first.click()
    until(page, f"{image}.src", lambda source: source.endswith("/cells/0/map.png"))
    why.click()
    until(page, f"{image}.src", lambda source: source == plain)
    assert page.locator("#boxes").is_visible()
    page.goto(served.address)
    end_slide(page)


@pytest.mark.parametrize(
    "language", [code if code == "en" else pytest.param(code, marks=pytest.mark.long) for code in LANGUAGES]
)
def test_by_keyboard_alone(served: Served, open_page: Callable[..., Any], language: str) -> None:
    page = open_page(served.address, locale=language)
    assert page.evaluate("document.documentElement.lang") == language
    keys = page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(60):
            keys.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab never gets to {selector}")

    keys.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to("input[name=sample]")
    keys.type(f"S-{language} c")  # c is the capture key, but not in a text field
    keys.press("Enter")
    page.get_by_role("heading", name=f"S-{language} c").wait_for()

    def follow() -> None:
        tab_to("#capture-result a")
        keys.press("Enter")

    capture(page, lambda: keys.press("c"), follow)
    tab_to("input[name=note]")
    keys.type("4 nuclei")
    keys.press("Enter")  # must not choose the first label
    page.wait_for_timeout(300)
    assert page.locator("ul.log").count() == 0 and page.locator("input[name=note]").input_value() == "4 nuclei"
    cells = page.locator("input[name=cell]").count()
    tab_to("input[name=cell]")
    keys.press("4")
    page.locator("ul.log li", has_text="Pro").first.wait_for()
    if cells > 1:  # the next cell is selected, and arrow keys change it
        assert page.evaluate("document.activeElement.value") == "1"
        keys.press("ArrowUp")
        assert page.locator("input[name=cell]:checked").get_attribute("value") == "0"
    page.goto(served.address)
    tab_to("details.confirm summary")
    keys.press("Enter")
    tab_to("form[action='/slides/end'] button")
    keys.press("Enter")
    page.wait_for_url("**/slides/*")


def test_why_nothing_was_captured_is_said(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(served.address)
    token = page.locator("meta[name=csrf]").get_attribute("content")
    refusal = page.request.post(f"{served.address}/capture", headers={"x-csrf-token": token})  # no slide is open
    assert refusal.status == 409
    start_slide(page, "S-full")
    # Not as 409, which the console would report.
    page.route("**/capture", lambda route: route.fulfill(status=300, content_type="text/html", body=refusal.text()))
    page.get_by_role("button", name="Capture").click()
    page.locator("#capture-result", has_text="Not captured: a capture requires an open session").wait_for()
    page.unroute("**/capture")
    end_slide(page)


def test_log_in_roles_and_log_out(guarded: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(guarded.address)
    page.wait_for_url("**/login")

    def log_in(name: str) -> None:
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORDS[name])
        page.get_by_role("button", name="Log in").click()
        page.locator("#view").wait_for()

    log_in("viktor")
    wait_for_good_field(page)
    assert page.get_by_role("button", name="Start the slide").count() == 0
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    log_in("olga")
    start_slide(page, "S-olga")
    page.locator("button:enabled", has_text="Capture").first.wait_for()
    end_slide(page)


def test_on_a_phone(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(served.address, PHONE, has_touch=True, is_mobile=True)
    start_slide(page, "S-phone")
    capture_by_mouse(page)
    frame = page.url
    for address in (*PAGES, frame.removeprefix(served.address)):
        page.goto(served.address + address)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], address
    page.goto(served.address)
    box = page.get_by_role("button", name="Capture").bounding_box()
    assert box["height"] >= 44 and box["y"] + box["height"] <= PHONE[1]  # visible without scrolling
    end_slide(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_accessible(served: Served, open_page: Callable[..., Any]) -> None:
    axe = axe_module.Axe()
    page = open_page(served.address)
    start_slide(page, "S-axe")
    capture_by_mouse(page)
    addresses = [*PAGES, page.url.removeprefix(served.address)]

    def check(address: str) -> None:
        page.goto(served.address + address)
        if not address:
            page.locator("#view[data-picture]").wait_for()
        for size, scheme in ((WIDE, "light"), (PHONE, "dark")):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # no colour transitions
            found = axe.run(page, options=RULES).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], (address, scheme)

    for address in addresses:
        check(address)
    page.goto(served.address)
    end_slide(page)
    session = page.url.removeprefix(served.address)
    for address in (session, f"{session}/report", ""):  # the last one without a slide
        check(address)


def test_the_rig_learns_from_corrections(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """From the reviews of a record to another model and back, by the page alone; every state of it is accessible."""
    with Record(tmp_path / "record") as record:
        for seed in (1, 2):
            reviewed_slide(record, [0, 1, 2] * 4, sample=f"S-{seed}", seed=seed)
    rig = Served(tmp_path)
    try:
        page = open_page(rig.address)
        page.goto(f"{rig.address}/learn")

        def check() -> None:
            for size, scheme in ((WIDE, "light"), (PHONE, "dark")):
                page.set_viewport_size({"width": size[0], "height": size[1]})
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                found = axe_module.Axe().run(page, options=RULES).response["violations"]
                assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], scheme
                assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        check()
        page.get_by_role("button", name="Learn from my corrections").click()
        page.get_by_role("heading", name="A better model is offered").wait_for()  # the script reloads the page
        check()
        page.get_by_role("button", name="Use this model").click()
        page.get_by_role("heading", name="The model in use").wait_for()
        check()
        rig.stop()
        rig = Served(tmp_path)
        assert any("judging with the model that the rig learned" in line for line in rig.said)
        page = open_page(rig.address)
        page.goto(f"{rig.address}/learn")
        page.get_by_role("button", name="Go back to the given model").click()
        page.get_by_text("The rig judges with the model that it was given.").wait_for()
    finally:
        rig.stop()


def open_counting_slide(page: Any, sample: str) -> list[str]:
    """Start a slide and wait for its first cell; the addresses of its pages, and of others."""
    start_slide(page, sample)
    until(page, "Number(document.getElementById('count').textContent) || 0", lambda count: count > 0)
    slide = page.locator("#slide").get_attribute("data-session")
    names = ("map", "cells", "review?queue=all", "review?queue=audit&blind=true", "report", "")
    return [f"/slides/{slide}/{name}".rstrip("/") for name in names] + ["/phone", "/objectives", "/learn"]


def test_every_page_of_a_slide_is_accessible(served: Served, open_page: Callable[..., Any]) -> None:
    """Map, Cells, Review and the reports, at 1280 and at 390 pixels."""
    axe, page = axe_module.Axe(), open_page(served.address, (1280, 900))
    addresses = open_counting_slide(page, "S-axe-2")
    for width, scheme in ((1280, "dark"), (390, "light")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for address in addresses:
            page.goto(served.address + address)
            found = axe.run(page, options=RULES).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], (address, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address
    page.goto(served.address)
    end_slide(page)


@pytest.mark.parametrize("checked", [False, pytest.param(True, marks=pytest.mark.long)], ids=["fits", "accessible"])
def test_every_page_in_every_language(served: Served, open_page: Callable[..., Any], checked: bool) -> None:
    """On a phone no text is too wide. Otherwise the pages are the English ones, so axe is for `make test-long`."""
    axe, page = axe_module.Axe(), open_page(served.address, (390, 844))
    page.emulate_media(reduced_motion="reduce")
    addresses = open_counting_slide(page, f"S-languages-{checked}")
    for code, name in (item for item in LANGUAGES.items() if item[0] != "en"):
        page.get_by_role("button", name=name).click()
        page.locator(f"html[lang={code}]").wait_for(state="attached")
        for address in ("", "/settings", "/objectives", "/health", *addresses):
            page.goto(served.address + address)
            assert page.evaluate("document.documentElement.lang") == code
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, (address, code)
            if checked:
                found = axe.run(page, options=RULES).response["violations"]
                assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], (address, code)
    page.get_by_role("button", name=LANGUAGES["en"]).click()
    page.goto(served.address)
    end_slide(page)


def test_the_demo_leads_from_a_slide_to_its_report(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    """The tour, in French: its slide has cells that ask for review, and its report is a PDF."""
    rig = Served(tmp_path)
    try:
        page = open_page(rig.address, (1280, 900), locale="fr-FR")
        page.get_by_role("button", name="Commencer la lame DEMO-1").click()
        page.get_by_role("heading", name="DEMO-1").wait_for()
        slide = page.locator("#slide").get_attribute("data-session")
        review, ends = f"{rig.address}/slides/{slide}/review", time.monotonic() + WAIT_MS / 1000
        while not page.goto(review) or not page.locator("#review").count():
            assert time.monotonic() < ends, "no cell of the demo asks for review"
            page.wait_for_timeout(1000)
        page.keyboard.press("3")
        page.wait_for_url("**/review?queue=needed*")  # the next cell, after the review was recorded
        page.goto(f"{rig.address}/slides/{slide}")
        with page.expect_download() as download:
            page.locator(".tour li[aria-current=step] a").click()
        assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
    finally:
        rig.stop()


def test_log_in_page_is_accessible(guarded: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(guarded.address)
    assert axe_module.Axe().run(page, options=RULES).response["violations"] == []


@pytest.fixture
def lonely(chromium: Any) -> Iterator[Any]:
    """A page whose rig stops: its console may tell so."""
    page = chromium.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
    page.set_default_timeout(WAIT_MS)
    yield page
    page.close()


def shows_nothing(page: Any) -> None:
    """Wait until nothing on the live page looks like a result of now."""
    page.get_by_text("No connection to the rig").wait_for()
    assert [page.locator(f"#{name}").inner_text() for name in ("label", "rate", "probability")] == [DASH, DASH, ""]
    assert page.locator("#view").get_attribute("src") == "/static/dark.svg"
    assert page.locator("#boxes *").count() == 0 and page.locator("#light.bad").count() == 1
    assert page.locator("#capture").is_disabled()


def test_an_open_page_survives_a_kill_and_a_restart(tmp_path: Path, lonely: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    rig, page = Served(tmp_path, listen=listen), lonely
    try:
        page.goto(rig.address)
        start_slide(page, "S-kill")
        wait_for_good_field(page)
        rig.process.kill()
        shows_nothing(page)
    finally:
        rig.stop()
    again = Served(tmp_path, listen=listen)
    try:
        page.evaluate("window.unchanged = true")
        wait_for_good_field(page)
        page.get_by_role("button", name="Capture").click()
        page.locator("#capture-result a").wait_for()
        assert page.evaluate("window.unchanged"), "the page was loaded anew"
        end_slide(page)
        assert page.get_by_role("heading", name="S-kill").count() == 1
        page.get_by_role("button", name="Reopen this slide").click()
        page.get_by_text("End this slide").wait_for()
    finally:
        again.stop()


def test_a_rig_that_hangs_looks_dead(tmp_path: Path, lonely: Any) -> None:
    rig, page = Served(tmp_path), lonely
    try:
        page.goto(rig.address)
        start_slide(page, "S-hang")
        wait_for_good_field(page)
        rig.process.send_signal(signal.SIGSTOP)
        shows_nothing(page)
        rig.process.send_signal(signal.SIGCONT)
        wait_for_good_field(page)
    finally:
        rig.process.send_signal(signal.SIGCONT)
        rig.stop()


def test_the_sample_id_is_corrected(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(served.address)
    start_slide(page, "S-worng")
    end_slide(page)
    page.get_by_text("Correct the sample id").click()
    page.get_by_label("Correct sample id").fill("S-right")
    page.get_by_label("Reason").fill("typing error")
    page.get_by_role("button", name="Record the correction").click()
    page.get_by_role("heading", name="S-right").wait_for()
    page.get_by_text("from S-worng to S-right").wait_for()
    assert axe_module.Axe().run(page, options=RULES).response["violations"] == []


def test_stopped_in_order_with_its_slide_intact(tmp_path: Path, chromium: Any) -> None:
    rig = Served(tmp_path)
    try:
        page = chromium.new_page()
        page.goto(rig.address)
        start_slide(page, "S-lasting")
        wait_for_good_field(page)
        began = time.monotonic()
    finally:
        status = rig.stop()  # while its live view is open
    assert status == 0 and time.monotonic() - began < 90, "systemd would have killed it"
    page.get_by_text("No connection to the rig").wait_for()
    again = Served(tmp_path)
    try:
        page.goto(again.address)
        page.get_by_role("heading", name="S-lasting").wait_for()
        end_slide(page)
    finally:
        page.close()
        again.stop()
