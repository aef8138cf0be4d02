"""Connections of the page: slow, silent and too many clients are ended, and others are served meanwhile."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures_rig import Served
from venvs import HANG_S

from edgeall.rig.web import connections
from edgeall.rig.web.certificate import certificate
from edgeall.rig.web.connections import LimitedProtocol, Listener
from edgeall.rig.web.server import RigServer

uvicorn = pytest.importorskip("uvicorn")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers every request; ``/big`` with more than any buffer holds."""
    if scope["type"] != "http":
        return
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000 if scope["path"] == "/big" else 1):
        await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"whole"})


@contextmanager
def served(tls: Path | None = None) -> Iterator[tuple[str, int]]:
    """A server in a thread, as the rig starts it."""
    import threading

    listener = Listener(socket.create_server(("127.0.0.1", 0), backlog=16))
    place = listener.getsockname()
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        backlog=16,
        log_level="critical",
        ssl_certfile=str(tls) if tls else None,
        timeout_graceful_shutdown=1,
    )
    server = RigServer(config, SimpleNamespace(close=lambda: None), listener, lambda: None, lambda: False)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield place
    finally:
        server.should_exit = True
        thread.join(HANG_S)


def get(place: tuple[str, int], path: str = "/") -> bytes:
    with socket.create_connection(place, timeout=HANG_S) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while block := client.recv(65536):
            answer += block
        return answer


def is_ended(client: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    client.settimeout(HANG_S)
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_PER_ADDRESS", 8)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 12)
    monkeypatch.setattr(connections, "SWEEP_S", 0.05)


HALF = (b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")


@pytest.mark.parametrize("sent", HALF)
def test_half_a_request_is_ended(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    with served() as place, socket.create_connection(place) as client:
        client.sendall(sent)
        began = time.monotonic()
        assert is_ended(client) and time.monotonic() - began > 0.2
        assert get(place).endswith(b"0\r\n\r\n")


def test_an_unfinished_handshake_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    certificate(tmp_path / "page.pem", ["localhost", "127.0.0.1"])
    with served(tmp_path / "page.pem") as place, socket.create_connection(place) as client:
        client.sendall(b"\x16\x03\x01")
        assert is_ended(client)
        trusted = ssl.create_default_context(cafile=str(tmp_path / "page.pem"))
        with trusted.wrap_socket(socket.create_connection(place), server_hostname="127.0.0.1") as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert secure.recv(15) == b"HTTP/1.1 200 OK"


def test_a_client_that_does_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    with served() as place, socket.create_connection(place) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)  # reads nothing for longer than the limit
        received = 0
        client.settimeout(HANG_S)
        with pytest.MonkeyPatch.context():
            try:
                while block := client.recv(65536):
                    received += len(block)
            except ConnectionError:
                pass
        assert received < 2000 * 10_000
        assert len(get(place, "/big")) > 2000 * 10_000  # one that reads gets all of it


@pytest.mark.parametrize(("of_address", "in_all"), [(8, 1000), (1000, 12)])
def test_many_silent_connections_do_not_keep_others_out(
    monkeypatch: pytest.MonkeyPatch, of_address: int, in_all: int
) -> None:
    monkeypatch.setattr(connections, "MAX_PER_ADDRESS", of_address)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", in_all)
    with served() as place, ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(place)) for _ in range(40)]
        for _ in range(5):
            assert b"200 OK" in get(place)
        assert all(is_ended(client) for client in silent[:20])  # the oldest made room


def test_many_connections_of_few_addresses_do_not_end_the_only_one_of_another() -> None:
    with served() as place, ExitStack() as stack:
        lone = stack.enter_context(socket.create_connection(place, timeout=HANG_S, source_address=("127.0.0.9", 0)))
        lone.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")  # half of a request
        for number in range(40):
            source = f"127.0.0.{2 + number % 3}", 0
            stack.enter_context(socket.create_connection(place, source_address=source))
        assert b"200 OK" in get(place)  # all others were accepted
        lone.sendall(b"Connection: close\r\n\r\n")
        assert b"200 OK" in lone.recv(65536)


def test_the_rig_serves_and_records_beside_half_sent_requests(tmp_path: Path) -> None:
    rig = Served(tmp_path, "--slide", "S-1")
    try:
        host, _, port = rig.address.removeprefix("http://").rpartition(":")
        with ExitStack() as stack:
            for _ in range(1100):  # more than the files that a process may open
                client = stack.enter_context(socket.create_connection((host, int(port)), timeout=HANG_S))
                client.sendall(b"GET / HTTP/1.1\r\nHost: ")
            answer = get((host, int(port)), "/health")
            assert b"200 OK" in answer and b"Too many open files" not in answer
    finally:
        assert rig.stop() == 0
