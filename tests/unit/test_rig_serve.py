"""Starting the rig: its address, users, certificate and command line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from commandline import leaves
from fixtures_rig import Served
from PIL import Image
from venvs import HANG_S

from edgeall import cli
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.errors import EdgeallError, UsageError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.edge_runtime.tasks import ForeignFacts
from edgeall.rig import serve as rig_serve
from edgeall.rig import service
from edgeall.rig.capture.slide import draw_slide
from edgeall.rig.learning.model import Model
from edgeall.rig.record import chain
from edgeall.rig.record.chain import RecordError
from edgeall.rig.record.lock import LOCK, lock_record
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Program, SessionNotes
from edgeall.rig.serve import RigOptions
from edgeall.rig.web import address
from edgeall.rig.web.access import read_users
from edgeall.rig.web.address import parse_address
from edgeall.rig.web.certificate import addresses_of, certificate, names_of


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000, True),
        ("localhost:0", "localhost", 0, True),
        ("[::1]:80", "::1", 80, True),
        ("127.9.9.9:80", "127.9.9.9", 80, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("192.168.1.4:80", "192.168.1.4", 80, False),
        ("rig.local:80", "rig.local", 80, False),
        ("localhost.evil:80", "localhost.evil", 80, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    found = parse_address(text)
    assert (found.host, found.port, found.loopback) == (host, port, loopback)


@pytest.mark.parametrize(
    "text", ["", "8000", ":8000", "localhost", "localhost:", "localhost:x", "localhost:65536", "::1:80"]
)
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(UsageError, match="--listen"):
        parse_address(text)


def options(tmp_path: Path, listen: str, users: Path | None, **others: Any) -> RigOptions:
    return RigOptions(rig_serve.DEMO_MODEL, "simulated", tmp_path / "record", listen, users, **others)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.168.1.4:0", "rig.local:0"])
def test_beyond_this_machine_it_needs_users(tmp_path: Path, listen: str) -> None:
    for start in (
        lambda: rig_serve.serve(options(tmp_path, listen, None), note=print),
        lambda: rig_serve.install(options(tmp_path, listen, None)),
    ):
        with pytest.raises(UsageError, match="requires --users"):
            start()
    assert not (tmp_path / "record").exists()


def test_a_users_file_without_users_admits_nobody_and_this_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no users"):
        rig_serve.serve(options(tmp_path, "127.0.0.1:0", tmp_path / "users.json"), note=print)


def test_a_path_that_is_not_a_camera_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no camera, folder or video"):
        rig_serve.serve(replace(options(tmp_path, "127.0.0.1:0", None), camera="/no/such"), note=print)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EdgeallError, match=r"--listen 127.0.0.1:\d+: .*in use"):
            rig_serve.serve(options(tmp_path, listen, None), note=print)


def test_the_certificate_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.pem"
    fingerprint = certificate(path, ["rig.local", "192.168.1.4", "::1"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert certificate(path, ["other"]) == fingerprint
    assert path.read_text() == text
    der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERT") :])
    assert fingerprint.replace(":", "").lower() == hashlib.sha256(der).hexdigest()
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(path)
    assert names_of(path) == {"rig.local"}  # the host names of the page
    path.write_text("nonsense")
    with pytest.raises(EdgeallError, match="not a PEM certificate"):
        certificate(path, [])


def test_a_certificate_of_a_board_without_a_clock_holds_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography import x509

    monkeypatch.setattr("edgeall.rig.web.certificate._now", lambda: datetime(1970, 1, 1, tzinfo=timezone.utc))
    (tmp_path / f".page.pem.{os.getpid()}").touch()  # left by a process that was killed
    certificate(tmp_path / "page.pem", {"rig"})
    made = x509.load_pem_x509_certificate((tmp_path / "page.pem").read_bytes())
    assert made.not_valid_before_utc.year == 2020 and made.not_valid_after_utc.year >= 2036


def test_the_demos_model_is_small_and_says_what_it_is() -> None:
    bundle = open_bundle(rig_serve.DEMO_MODEL)
    assert bundle.manifest is not None
    assert rig_serve.DEMO_MODEL.stat().st_size < 150_000
    assert (bundle.manifest.unit, bundle.manifest.training["synthetic"]) == ("cell", True)
    assert bundle.manifest.metrics["accuracy"] > 0.9


def test_a_cell_is_explained_as_its_model_saw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Image.Image] = []
    monkeypatch.setattr(rig_serve, "overlay_renderer", lambda model: lambda image: asked.append(image) or b"a png")
    monkeypatch.setattr(rig_serve, "explains", lambda classifier: True)
    classifier: Any = SimpleNamespace(input=InputSpec(50, 100))
    model = Model(rig_serve.DEMO_MODEL, "", classifier, Program("demo", "", ("A", "B")))
    explain, field = rig_serve._explain(model), Image.new("RGB", (640, 480))
    assert explain is not None
    assert explain(field, None) == explain(field, (100, 100, 140, 140)) == b"a png"
    assert [image.size for image in asked] == [(640, 480), (80, 40)]


def test_install_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users_file: Path) -> None:
    called: list[Any] = []
    monkeypatch.setattr(service, "install", lambda *given: called.append(given) or ["systemctl start it"])
    given = options(tmp_path, "0.0.0.0:8000", users_file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(service, "STATE", tmp_path)
    assert rig_serve.install(replace(given, record=Path("record"))) == ["systemctl start it"]
    ((words, files),) = called
    expected = ["rig", str(given.model), "--camera", "simulated", "--record", str(given.record)]
    assert words == [*expected, "--listen", given.listen, "--users", str(users_file)]
    assert files == [given.model, users_file]
    made = leaves()["rig",].make_context("rig", words[1:], obj={})
    assert made.params["record"] == given.record
    own_users = tmp_path / "users.json"
    own_users.write_bytes(users_file.read_bytes())
    given = replace(given, users=own_users)
    rig_serve.install(given)
    assert called[-1][1] == [given.model]
    (tmp_path / "in").mkdir()
    for camera, meant in (("in/", "{}"), ("replay:in", "replay:{}")):  # the service has another working directory
        rig_serve.install(replace(given, camera=camera))
        words, files = called[-1]
        assert words[words.index("--camera") + 1] == meant.format(tmp_path / "in")
        assert files == [given.model, tmp_path / "in"]
    with pytest.raises(UsageError, match="no camera, folder or video"):
        rig_serve.install(replace(given, camera="nowhere"))
    with pytest.raises(UsageError, match="the service may only write below") as caught:
        rig_serve.install(replace(given, record=Path("../elsewhere")))
    assert str(tmp_path / "record") in caught.value.hint
    (tmp_path / "core.tgz").touch()
    rig_serve.install(replace(given, litertjs=Path("core.tgz")))
    words, files = called[-1]
    assert words[words.index("--litertjs") + 1] == str(tmp_path / "core.tgz") and Path("core.tgz") in files
    for scripted in ({"slide": "S-1"}, {"exit_at_end": True}):
        with pytest.raises(UsageError, match="--install-service takes neither"):
            rig_serve.install(replace(given, **scripted))


def test_beyond_loopback_it_is_served_over_tls_and_asks_for_a_log_in(tmp_path: Path, users_file: Path) -> None:
    rig = Served(tmp_path, "--users", users_file, listen="0.0.0.0:0")
    try:
        assert rig.address.startswith("https://0.0.0.0:")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "record" / "page.pem"))
        with httpx2.Client(
            verify=trusted, base_url=rig.address.replace("0.0.0.0", "localhost"), timeout=HANG_S
        ) as browser:
            assert "Secure" in browser.get("/login").headers["set-cookie"]
            assert browser.get("/settings").status_code == 401
    finally:
        assert rig.stop() == 0


def test_the_certificate_names_the_addresses_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_loopback(host: str, *_: Any, **__: Any) -> list[Any]:  # as on Debian
        return [(2, 1, 6, "", ("127.0.1.1", 0))]

    monkeypatch.setattr(address.socket, "getaddrinfo", of_loopback)
    own = address.own_addresses()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no network")
        lan = probe.getsockname()[0]
    assert lan in own and "127.0.1.1" not in own
    tls = address.prepare_tls(address.Address("0.0.0.0", 8000), tmp_path)
    assert tls.certificate is not None and own <= addresses_of(tls.certificate)
    told = tls.notes(8000)
    assert f"https://{lan}:8000/" in told[0] and len(told) == 2
    monkeypatch.setattr(address, "own_addresses", lambda: {"192.0.2.77"})  # another network since then
    assert "does not name 192.0.2.77" in tls.notes(8000)[2]


def test_a_replay_for_a_script_begins_a_slide_and_ends_the_rig(tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for number in range(2):
        Image.fromarray(draw_slide(seed=number, size=(1400, 1000)).pixels[:960, :1280]).save(images / f"{number}.png")

    def replay(sample: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeall", "rig", "--demo", "--camera", f"replay:{images}", "--exit-at-end"]
        command += ["--record", str(tmp_path / "r"), "--listen", "127.0.0.1:0", "--slide", sample]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)

    done = replay("S-1")
    assert done.returncode == 0, done.stderr
    assert "S-1: ended with 2 frames; 0 files were skipped" in done.stderr
    with Record(tmp_path / "r", create=False) as record:
        (session,) = record.sessions()
        assert (session.notes.sample, session.frames, session.started_by) == ("S-1", 2, "command line")
        assert session.ended is not None
        record.reopen_session(session.id)
    refused = replay("S-2")
    assert refused.returncode == 2 and "the slide S-1 is open" in refused.stderr
    assert replay("S-1").returncode == 0  # continues, and has all images already
    with Record(tmp_path / "r", create=False) as record:
        assert record.session(session.id).frames == 2 and record.session(session.id).ended is not None


def test_only_a_replay_ends(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--exit-at-end requires --camera replay:PATH"):
        rig_serve.serve(options(tmp_path, "127.0.0.1:0", None, exit_at_end=True), note=print)


# The command line


@pytest.mark.parametrize("given", [[], ["m.tflite"], ["m.tflite", "--camera", "0"], ["--camera", "0", "--record", "r"]])
def test_a_rig_needs_three_things(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rig", *given]) == 2
    assert "a rig needs MODEL, --camera and --record" in capsys.readouterr().err


def test_the_demo_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(rig_serve, "serve", lambda *given, **named: called.append((given, named)))
    assert cli.main(["rig", "--demo"]) == 0
    assert cli.main(["rig", "own.tflite", "--demo", "--record", "r", "--listen", "localhost:1"]) == 0
    ((first,), named), ((second,), _) = called
    assert first == RigOptions(rig_serve.DEMO_MODEL, "simulated", Path("build/rig-demo"), "127.0.0.1:8000")
    assert named["opened"] is rig_serve.show
    assert second == RigOptions(Path("own.tflite"), "simulated", Path("r"), "localhost:1")


def test_how_cells_are_found_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[RigOptions] = []
    monkeypatch.setattr(rig_serve, "serve", lambda options, **named: called.append(options))
    assert cli.main(["rig", "--demo", "--um-per-px", "0.071", "--cell-model", "cells.tflite"]) == 0
    assert (called[0].cell_model, called[0].red_cell_px) == (Path("cells.tflite"), pytest.approx(100))
    assert cli.main(["rig", "--demo", "--um-per-px", "0.071", "--red-cell-px", "100"]) == 2


def test_a_foreign_model_is_told_about_as_in_other_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[RigOptions] = []
    with monkeypatch.context() as patch:
        patch.setattr(rig_serve, "serve", lambda options, **named: called.append(options))
        told = ["--labels", "a.txt", "--mean", "1,2,3", "--std", "127.5", "--input-size", "96"]
        assert cli.main(["rig", "--demo", *told]) == 0
    assert called[0].facts == ForeignFacts(Path("a.txt"), (1.0, 2.0, 3.0), 127.5, 96)
    asked: list[tuple[list[str], list[Path]]] = []
    monkeypatch.setattr(service, "install", lambda *given: asked.append(given) or [])
    rig_serve.install(replace(called[0], record=service.STATE / "record"))
    ((arguments, files),) = asked
    assert arguments[-8:] == ["--labels", os.path.abspath("a.txt"), *told[2:]] and files[-1] == Path("a.txt").absolute()
    assert cli.main(["rig", "--demo", "--record", str(tmp_path / "r"), "--input-size", "96"]) == 2
    assert "packed" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_users_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.json"

    def add(password: str, *options: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(password))
        return cli.main(["rig-user", "add", "anna", "--role", "view", "--users", str(users), *options])

    assert add("a long password\nsecond line") == 0
    assert "added anna with role view" in capsys.readouterr().err
    assert add("short\n", "--force") == 2
    assert add("another password\n") == 2
    before = json.loads(users.read_text())
    assert add("another password\n", "--force") == 0
    assert json.loads(users.read_text()) != before
    assert "another password" not in users.read_text()
    assert cli.main(["rig-user", "rm", "anna", "--users", str(users)]) == 0
    assert read_users(users) == {}
    assert cli.main(["rig-user", "rm", "anna", "--users", str(users)]) == 2


def test_a_typed_password_is_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.json"
    typed: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: typed.pop(0))
    given = ["rig-user", "add", "anna", "--role", "view", "--users", str(users)]
    typed[:] = ["a long password", "a long passwort"]
    assert cli.main(given) == 2 and not users.exists()
    assert "the two passwords differ" in capsys.readouterr().err
    typed[:] = ["a long password"] * 2
    assert cli.main(given) == 0 and list(read_users(users)) == ["anna"]


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")

    monkeypatch.setattr(rig_serve, "serve", missing)
    assert cli.main(["rig", "--demo"]) == 1
    assert 'pip install ".[rig]"' in capsys.readouterr().err


def test_a_second_rig_on_one_record_is_refused_and_a_dead_ones_lock_is_none(tmp_path: Path) -> None:
    first = Served(tmp_path)
    try:
        with pytest.raises(
            RecordError, match=rf"another rig uses this record \(process {first.process.pid} on "
        ) as caught:
            rig_serve.serve(options(tmp_path, "127.0.0.1:0", None), note=print)
        assert "--record" in caught.value.hint
        assert cli.main(["record", "verify", str(tmp_path / "record")]) == 0  # tools may run
        first.process.kill()
    finally:
        first.stop()
    assert (tmp_path / "record" / LOCK).read_text().startswith(f"process {first.process.pid} on ")
    with lock_record(tmp_path / "record"):
        pass


def test_a_second_rig_of_a_newer_version_leaves_a_record_in_use_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "record"
    newer = (*chain.MIGRATIONS, ("CREATE INDEX entries_of_digest ON entries (digest)",))
    with Record(folder) as record:
        record.start_session(SessionNotes("S-1"))

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    with lock_record(folder):
        before = content()
        monkeypatch.setattr(chain, "MIGRATIONS", newer)
        with pytest.raises(RecordError, match="another rig uses this record"):
            rig_serve.serve(options(tmp_path, "127.0.0.1:0", None), note=print)
        assert content() == before
        with Record(folder):
            assert content() != before  # it would have been migrated


def test_a_record_folder_inside_the_image_folder_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "record" / "images" / "ab").mkdir(parents=True)
    (tmp_path / "link").symlink_to(images)
    own = images / "record"
    for camera, record in (
        (f"replay:{images}", own),
        (f"replay:{tmp_path / 'link'}", own),
        (f"replay:{images}", images),
        (str(images), images),
        (str(own / "images" / "ab"), own),
    ):
        for start in (rig_serve.serve, rig_serve.install):
            told: dict[str, Any] = {"note": print} if start is rig_serve.serve else {}
            with pytest.raises(UsageError, match=r"the rig would judge the images that it saves itself|may only write"):
                start(RigOptions(rig_serve.DEMO_MODEL, camera, record, "127.0.0.1:0"), **told)
    rig_serve._check_camera(str(images), own)  # a watched folder's subfolders are left alone
    rig_serve._check_camera("simulated", own)
