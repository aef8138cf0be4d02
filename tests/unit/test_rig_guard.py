"""Access to every route of the rig's page, with and without permission. New routes are included automatically."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures_rig import PASSWORDS, Rig, build_rig
from starlette.testclient import TestClient

from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.rig.record.rows import Program
from edgeall.rig.web.access import Access
from edgeall.rig.web.app import create_app
from edgeall.rig.web.guard import HEADERS, MAX_BODY_BYTES, MAX_FIELDS, known_host
from edgeall.rig.web.page import Page

MakeRig = Callable[..., Rig]
FILLED = {"session": "1", "frame": "1", "cell": "0", "digest": "0" * 64, "number": "0", "name": "rig.css"}
FILLED["file"] = "nothing.js"  # the files of the app have headers of their own: tests/unit/test_rig_phone.py
FORM = {"content-type": "application/x-www-form-urlencoded"}
STREAM = "/events"
"""A stream without an end: its tests are in tests/browser and below."""


def all_routes() -> list[tuple[str, str]]:
    """(method, path with a value for each parameter) of all routes."""
    nothing: Any = SimpleNamespace(wait=None)
    page = Page(nothing, Program("", ""), "field", synthetic=False)
    app, _ = create_app(nothing, page, Access(None), frozenset(), lessons=nothing, secure=False)
    paths = app.openapi()["paths"]
    return sorted((method.upper(), path.format(**FILLED)) for path, methods in paths.items() for method in methods)


ROUTES = all_routes()
PUBLIC = [("GET", "/login"), ("GET", "/static/rig.css"), ("POST", "/login"), ("POST", "/language")]
CLOSED = [route for route in ROUTES if route not in PUBLIC]
CHANGES = [route for route in ROUTES if route[0] != "GET"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, users_file: Path) -> Iterator[Rig]:
    """Shared by all tests; none of them may change it."""
    shared = build_rig(tmp_path_factory.mktemp("rig") / "record", users_file)
    yield shared
    assert shared.record.sessions() == []
    shared.record.close()


def client(rig: Rig, user: str | None = None, **settings: Any) -> TestClient:
    """A browser; logged in as ``user``."""
    visitor = TestClient(rig.app, base_url="http://localhost", follow_redirects=False, **settings)
    if user is not None:
        token = rig.access.log_in(user, PASSWORDS[user], "127.0.0.1")
        visitor.cookies.set("edgeall", token, domain="localhost.local")
    return visitor


def csrf(visitor: TestClient, rig: Rig) -> dict[str, str]:
    return {"x-csrf-token": rig.access.csrf(next(iter(visitor.cookies.values())))}


@pytest.fixture
def anybody(rig: Rig) -> TestClient:
    return client(rig)


def test_the_routes_include_reading_and_changing_ones() -> None:
    assert {method for method, _ in ROUTES} == {"GET", "POST"}
    assert ("POST", "/frames/1/review") in CHANGES
    assert len(CLOSED) > 20


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_nothing_is_open_to_somebody_who_is_not_logged_in(rig: Rig, method: str, path: str) -> None:
    visitor = client(rig)
    visitor.get("/login")
    asked = visitor.request(method, path, headers={"accept": "text/html"} | csrf(visitor, rig))
    if method == "GET":
        assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        assert visitor.get(path, headers={"accept": "image/*"}).status_code == 401
    else:
        assert asked.status_code == 401


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_no_change_without_the_visitors_own_csrf_token(rig: Rig, method: str, path: str, token: str | None) -> None:
    visitor = client(rig, "olga")
    headers = {} if token is None else {"x-csrf-token": token}
    assert visitor.request(method, path, headers=headers).status_code == 403
    field = "" if token is None else f"csrf={token}"
    assert visitor.request(method, path, headers=FORM, content=field).status_code == 403
    assert rig.record.sessions() == []


@pytest.mark.parametrize(
    ("method", "path"), [route for route in CHANGES if route[1] not in ("/login", "/logout", "/language")]
)
def test_who_may_view_can_change_nothing(rig: Rig, method: str, path: str) -> None:
    visitor = client(rig, "viktor")
    asked = visitor.request(method, path, headers=csrf(visitor, rig))
    assert (asked.status_code, "viktor has read-only access" in asked.text) == (403, True)


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route != ("GET", STREAM)])
@pytest.mark.parametrize("user", ["olga", None])
def test_every_answer_has_the_headers(rig: Rig, method: str, path: str, user: str | None) -> None:
    visitor = client(rig, user)
    visitor.get("/login")
    answer = visitor.request(method, path, headers=csrf(visitor, rig))
    assert answer.status_code < 500
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    if not path.startswith(("/static", "/images", "/frames")):
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route != ("GET", STREAM)])
@pytest.mark.parametrize("user", ["olga", None])
def test_every_page_has_the_research_note_and_no_inline_code(
    rig: Rig, method: str, path: str, user: str | None
) -> None:
    visitor = client(rig, user)
    answer = visitor.request(method, path, headers={"accept": "text/html"})
    if answer.headers.get("content-type", "").startswith("text/html") and answer.text:
        assert RESEARCH_USE in answer.text.lower()
        assert "<script>" not in answer.text and "style=" not in answer.text and "onclick" not in answer.text


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/nothing"), ("POST", "/nothing")])
def test_a_foreign_name_is_refused(anybody: TestClient, method: str, path: str) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost:x", "[::1"):
        answer = anybody.request(method, path, headers={"host": host})
        assert answer.status_code == 421, host


@pytest.mark.parametrize(
    ("header", "known"),
    [
        *[(host, True) for host in ("localhost", "LOCALHOST:80", "localhost:", "rig.local", "rig.local.:8000")],
        *[(host, True) for host in ("127.0.0.1", "127.0.0.1:8000", "192.168.1.4:80", "[::1]", "[::1]:8000")],
        *[(host, False) for host in ("", ":80", "evil", "rig.local.evil", "[::1", "[::1]x", "[evil]:1", "127.1")],
        *[(host, False) for host in ("localhost:-1", "localhost:٣", "localhost@evil", "localhost:80:80", "1.2.3.4.5")],
    ],
)
def test_known_host(header: str, known: bool) -> None:
    assert known_host(header, frozenset({"localhost", "rig.local"})) is known


def test_an_unknown_path_reveals_nothing_without_a_log_in(anybody: TestClient) -> None:
    assert anybody.get("/nothing").status_code == 401
    assert anybody.get("/../../etc/passwd").status_code == 401


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc", "/nothing", "/static/../app.py", "/static/x.css"])
def test_what_is_not_there(rig: Rig, path: str) -> None:
    answer = client(rig, "olga").get(path)
    assert answer.status_code in (400, 404)
    assert RESEARCH_USE in answer.text.lower()


@pytest.mark.parametrize("secure", [False, True])
def test_the_cookie(make_rig: MakeRig, users_file: Path, secure: bool) -> None:
    rig = make_rig(users_file, secure=secure)
    visitor = TestClient(rig.app, base_url=f"{'https' if secure else 'http'}://localhost", follow_redirects=False)
    answer = visitor.get("/login")
    cookie = answer.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Lax" in cookie and "Path=/" in cookie and "Domain" not in cookie
    assert ("; Secure" in cookie) is secure
    assert cookie.startswith("__Host-edgeall=" if secure else "edgeall=")
    assert ("strict-transport-security" in answer.headers) is secure
    assert "set-cookie" not in visitor.get("/login").headers


@pytest.mark.parametrize("others", ['prefs={"theme": "dark"}', "a[b]=1", "foo", "x=a b", "x=\u00e9", "edgeallx=1; ="])
def test_what_other_programs_set_at_this_host_does_not_matter(rig: Rig, others: str) -> None:
    token = rig.access.log_in("olga", PASSWORDS["olga"], "127.0.0.1")
    for header in (f"{others}; edgeall={token}", f"edgeall={token}; {others}"):
        visitor = client(rig)
        answer = visitor.get("/settings", headers={"cookie": header.encode("latin-1")})
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, False), header


def form_token(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found
    return found.group(1)


def test_log_in_and_out(anybody: TestClient) -> None:
    before = next(iter(anybody.get("/login").cookies.values()))
    form = {"name": "olga", "password": PASSWORDS["olga"], "csrf": form_token(anybody.get("/login").text)}
    answer = anybody.post("/login", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert next(iter(answer.cookies.values())) != before  # a cookie from before the log-in stays without access
    page = anybody.get("/settings")
    assert page.status_code == 200 and "olga" in page.text
    assert anybody.get("/login").headers["location"] == "/"
    token = form_token(page.text)
    kept = dict(anybody.cookies)
    assert anybody.post("/logout", data={"csrf": token}).headers["location"] == "/login"
    thief = TestClient(anybody.app, base_url="http://localhost", cookies=kept)
    assert thief.get("/settings").status_code == 401


@pytest.mark.parametrize(("name", "password"), [("olga", "wrong password"), ("mallory", "operates the rig")])
def test_a_wrong_log_in_reveals_nothing(make_rig: MakeRig, users_file: Path, name: str, password: str) -> None:
    anybody = client(make_rig(users_file))
    token = form_token(anybody.get("/login").text)
    answer = anybody.post("/login", data={"name": name, "password": password, "csrf": token})
    assert answer.status_code == 403
    assert "Wrong name or password" in answer.text
    assert anybody.get("/settings").status_code == 401


def test_guessing_is_slowed_down(make_rig: MakeRig, users_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeall.rig.web.access.FAILURES", 2)
    anybody = client(make_rig(users_file))
    token = form_token(anybody.get("/login").text)
    statuses = []
    for number in range(3):
        answer = anybody.post("/login", data={"name": f"guess{number}", "password": "x" * 12, "csrf": token})
        statuses.append(answer.status_code)
    assert statuses == [403, 403, 429]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        (FORM, b"x" * (MAX_BODY_BYTES + 1), 413),
        ({"content-type": "application/json"}, b"{}", 415),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({}, b"label=Pre", 415),
        (FORM, b"&".join(b"x=1" for _ in range(MAX_FIELDS + 1)), 403),
    ],
)
def test_bodies_of_an_unknown_form(rig: Rig, headers: dict[str, str], content: bytes, status: int) -> None:
    visitor = client(rig, "olga")
    assert visitor.post("/slides", headers=headers, content=content).status_code == status


def test_who_sits_at_the_machine_needs_no_log_in_but_a_csrf_token(make_rig: MakeRig) -> None:
    rig = make_rig()
    visitor = client(rig)
    page = visitor.get("/settings")
    assert page.status_code == 200 and "this machine" in page.text
    assert visitor.post("/slides", data={"sample": "S-1"}).status_code == 403
    answer = visitor.post("/slides", data={"sample": "S-1", "csrf": form_token(page.text)})
    assert (answer.status_code, [each.notes.sample for each in rig.record.sessions()]) == (303, ["S-1"])


def test_no_websocket_is_answered(anybody: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), anybody.websocket_connect("/events"):
        pass
