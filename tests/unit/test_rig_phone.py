"""The rig and a phone: the address as a QR code, and the app that runs the rig's own model in the phone's browser."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures_packed import repack
from fixtures_rig import PASSWORDS, Rig, build_rig
from fixtures_web import litertjs_package  # noqa: F401 fixtures
from starlette.testclient import TestClient

from edgeall.browser import build, runtime
from edgeall.browser.runtime import runtime_files
from edgeall.edge_runtime.errors import BundleError, DataError, EdgeallError
from edgeall.edge_runtime.vision import DEFAULT_MODEL
from edgeall.rig.language import LANGUAGES
from edgeall.rig.learning.model import InUse, open_model
from edgeall.rig.record.image_store import file_digest
from edgeall.rig.serve import DEMO_MODEL
from edgeall.rig.web import guard, phone_page
from edgeall.rig.web.address import Reach
from edgeall.rig.web.phone_app import PhoneApp

APP = "/phone/app/"
MISSING = {"en": "not on this machine", "de": "nicht auf", "fr": "pas sur", "es": "no est\u00e1"}
"""Words of the text for a rig without the runtime."""


@pytest.fixture
def rig(package: Path, make_rig: Callable[..., Rig]) -> Rig:
    """With the runtime in the cache."""
    runtime_files()
    return make_rig()


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    with TestClient(rig.app, base_url="http://localhost", follow_redirects=False) as client:
        yield client


def listed(page: TestClient) -> dict[str, str]:
    """The files that the service worker keeps, with their digests."""
    text = page.get(f"{APP}files.js").text
    found: dict[str, str] = json.loads(text.removeprefix("self.FILES = ").removesuffix(";\n"))["digests"]
    return found


# The app


def test_the_app_runs_the_model_that_the_rig_uses(rig: Rig, page: TestClient) -> None:
    shown = page.get("/phone").text
    assert f'href="{APP}"' in shown and rig.app.state.context.page.model_sha256 in shown
    served = page.get(f"{APP}model.tflite").content
    assert hashlib.sha256(served).hexdigest() == rig.lessons.in_use.model.file_sha256 == file_digest(DEMO_MODEL)
    digests = listed(page)
    assert len(digests) > 30 and "runtime/litert.js" in digests
    for name, digest in digests.items():
        content = page.get(APP + name).content
        assert digest == "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode(), name
    assert page.get(APP).text == page.get(f"{APP}index.html").text
    assert page.get(APP.rstrip("/")).headers["location"].endswith(APP)


def test_another_model_of_the_rig_is_another_model_of_the_app(rig: Rig, page: TestClient, tmp_path: Path) -> None:
    before = listed(page)
    learned = open_model(repack(DEMO_MODEL, tmp_path / "learned.tflite", pad=100), {})
    given = rig.lessons.in_use.given
    rig.lessons.in_use = InUse(learned, given)
    assert hashlib.sha256(page.get(f"{APP}model.tflite").content).hexdigest() == learned.file_sha256
    changed = {name for name, digest in listed(page).items() if before[name] != digest}
    assert changed == {"model.tflite"}
    rig.lessons.in_use = InUse(given, given)
    assert listed(page) == before


def test_the_app_has_its_own_rights_and_no_other_page_has(page: TestClient) -> None:
    for name, kind in (("", "text/html"), ("worker.js", "text/javascript"), ("runtime/litert.js", "text/javascript")):
        answer = page.get(APP + name)
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"] == build.HEADERS["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp"  # with the opener policy: threads
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=(self)" in answer.headers["permissions-policy"]
        assert answer.headers["cache-control"] == "no-store"
    for other in ("/phone", f"{APP}nothing.js", f"{APP}../app.js"):
        headers = page.get(other).headers
        assert guard.HEADERS.items() <= dict(headers).items() and "cross-origin-embedder-policy" not in headers


def test_the_app_is_for_those_who_are_logged_in(package: Path, make_rig: Callable[..., Rig], users_file: Path) -> None:
    runtime_files()
    rig = make_rig(users_file)
    visitor = TestClient(rig.app, base_url="http://localhost", follow_redirects=False)
    assert visitor.get(APP, headers={"accept": "text/html"}).headers["location"] == "/login"
    assert visitor.get(f"{APP}model.tflite").status_code == 401
    token = rig.access.log_in("viktor", PASSWORDS["viktor"], "127.0.0.1")
    visitor.cookies.set("edgeall", token, domain="localhost.local")
    assert visitor.get(f"{APP}model.tflite").content == DEMO_MODEL.read_bytes()


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_rig_without_the_runtime_says_what_to_do(package: Path, make_rig: Callable[..., Rig], code: str) -> None:
    page = TestClient(make_rig().app, base_url="http://localhost", headers={"accept-language": code})
    for answer, status in ((page.get("/phone"), 200), (page.get(APP), 404), (page.get(f"{APP}model.tflite"), 404)):
        assert answer.status_code == status
        assert MISSING[code] in answer.text and "--litertjs core.tgz" in answer.text and runtime.URL in answer.text
        assert f'href="{APP}"' not in answer.text
    runtime_files()  # as `edgeall web` does, while the rig runs
    assert f'href="{APP}"' in page.get("/phone").text and page.get(APP).status_code == 200


def test_a_given_package_is_verified_when_the_rig_starts(package: Path, tmp_path: Path) -> None:
    model = open_model(DEMO_MODEL, {})
    app = PhoneApp(package)
    app.check(model)
    assert app.files(model)["model.tflite"] == DEMO_MODEL.read_bytes()
    later = PhoneApp(package)
    package.unlink()
    with pytest.raises(EdgeallError, match="not on this machine"):
        later.check(model)
    with pytest.raises(DataError, match=r"core\.tgz: can't be read"):
        later.files(model)
    (tmp_path / "other.tgz").write_bytes(b"another package")
    with pytest.raises(DataError, match=r"other\.tgz: not the npm package"):
        PhoneApp(tmp_path / "other.tgz")


def test_the_app_finds_cells_as_the_rig_does(package: Path, tmp_path: Path) -> None:
    model, own = open_model(DEMO_MODEL, {}), repack(DEFAULT_MODEL, tmp_path / "own.tflite", pad=100)
    runtime_files()
    assert PhoneApp().files(model)["cells.tflite"] == DEFAULT_MODEL.read_bytes()
    app = PhoneApp(cell_model=own)
    app.check(model)
    assert app.files(model)["cells.tflite"] == own.read_bytes()
    with pytest.raises(BundleError, match="other"):
        PhoneApp(cell_model=tmp_path / "other.tflite").check(model)


def test_a_file_that_was_exchanged_is_not_the_model_of_the_rig(rig: Rig, page: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(DEMO_MODEL.read_bytes())
    model = open_model(path, {})
    rig.lessons.in_use = InUse(model, model)
    repack(DEMO_MODEL, path, pad=10)
    refused = page.get(f"{APP}model.tflite")
    assert refused.status_code == 404 and "has changed since the rig opened it" in refused.text
    path.unlink()
    assert "No such file" in page.get(f"{APP}model.tflite").text


def test_the_page_says_why_no_browser_runs_a_model(rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TYPES", ("FLOAT32",))
    answer = page.get("/phone", headers={"accept-language": "de"})
    assert answer.status_code == 200 and "LiteRT.js" in answer.text and "UINT8" in answer.text
    assert f'href="{APP}"' not in answer.text and "which LiteRT.js does not take" not in answer.text
    assert page.get(APP).status_code == 404


# The address


def test_the_code_for_a_phone_names_an_address_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_page, "own_addresses", lambda: {"8.8.4.4", "2001:db8::5", "192.168.1.20"})
    assert phone_page.reachable("0.0.0.0", phone_page.own_addresses()) == ["192.168.1.20", "8.8.4.4"]
    assert phone_page.reachable("::", phone_page.own_addresses()) == ["192.168.1.20", "8.8.4.4", "2001:db8::5"]
    assert phone_page.reachable("rig.lab", set()) == ["rig.lab"]
    assert phone_page.reachable("0.0.0.0", set()) == []
    rig = build_rig(tmp_path / "reach")
    with TestClient(rig.app, base_url="http://localhost:8000") as client:
        assert "Only this machine" in client.get("/phone").text and client.get("/phone.svg").status_code == 404
        context = rig.app.state.context
        rig.app.state.context = replace(context, reach=Reach("0.0.0.0", "AB:CD"))
        page = client.get("/phone").text
        assert "https://192.168.1.20:8000/" in page and "AB:CD" in page
        assert client.get("/phone.svg").content == phone_page.qr_code("https://192.168.1.20:8000/")
    rig.record.close()


def test_a_qr_code_can_be_read_back() -> None:
    cv2, segno = pytest.importorskip("cv2"), pytest.importorskip("segno")
    address = "https://192.168.1.20:8000/"
    matrix = np.array([list(row) for row in segno.make(address, error="m", micro=False).matrix], np.uint8)
    picture = np.kron(np.pad(1 - matrix, 4, constant_values=1), np.ones((8, 8), np.uint8)) * 255
    assert cv2.QRCodeDetector().detectAndDecode(picture)[0] == address
    assert b"<svg" in phone_page.qr_code(address) and b"script" not in phone_page.qr_code(address)
