"""Backup from the page: a verified ZIP file while a slide is recorded, and its restoration."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures_rig import Rig
from starlette.testclient import TestClient

from edgeall import cli
from edgeall.edge_runtime.errors import UsageError
from edgeall.rig.record.backup_zip import restore_zip, snapshot, zipped
from edgeall.rig.record.chain import RecordError
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    made = make_rig()
    session = made.session()
    for number in range(3):
        made.frame(session, number)
    return made


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    with TestClient(rig.app, base_url="http://localhost", follow_redirects=False) as client:
        client.get("/login")
        client.headers["x-csrf-token"] = rig.access.csrf(next(iter(client.cookies.values())))
        yield client


def test_a_backup_from_the_page_restores_whole(rig: Rig, page: TestClient, tmp_path: Path) -> None:
    session, stop = rig.station.session_id or 0, threading.Event()

    def write() -> None:
        number = 10
        while not stop.is_set():
            rig.frame(session, number)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sent = page.post("/backup")
    finally:
        stop.set()
        writer.join()
    assert sent.status_code == 200 and "edgeall-record-" in sent.headers["content-disposition"]
    file = tmp_path / "backup.zip"
    file.write_bytes(sent.content)
    assert cli.main(["record", "restore", str(file), "--record", str(tmp_path / "new")]) == 0
    (event,) = rig.record.events(kind="backup")
    assert check(tmp_path / "new").head == event.detail["head"] and check(tmp_path / "new").problems == []
    assert check(rig.record.folder, event.detail["head"]).problems == []
    with Record(tmp_path / "new", create=False) as again:
        assert len(again.frames(session)) >= 3
    assert "Last backup from this page" in page.get("/health").text
    assert not list(rig.record.folder.glob("edgeall-backup-*"))


def test_an_altered_record_is_not_backed_up(rig: Rig, page: TestClient) -> None:
    (image, *_) = (rig.record.folder / "images").rglob("*.jpg")
    image.write_bytes(b"altered")
    refused = page.post("/backup")
    assert refused.status_code >= 400 and "was altered" in refused.text
    assert not list(rig.record.folder.glob("edgeall-backup-*")) and not rig.record.events(kind="backup")
    assert page.post("/backup").status_code == refused.status_code  # the lock was released


def test_an_image_that_changes_meanwhile_ends_the_backup(rig: Rig) -> None:
    with snapshot(rig.record.folder) as state:
        (image, *_) = (rig.record.folder / "images").rglob("*.jpg")
        image.write_bytes(b"altered")
        with pytest.raises(RecordError, match="was altered while"):
            list(zipped(rig.record.folder, state))


def test_what_is_not_restored(rig: Rig, tmp_path: Path) -> None:
    with snapshot(rig.record.folder) as state:
        whole = b"".join(zipped(rig.record.folder, state))
    cut, other, evil, new = (tmp_path / name for name in ("cut.zip", "other.zip", "evil.zip", "new"))
    cut.write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("letter.txt", "mine")
    with zipfile.ZipFile(evil, "w") as file:
        file.writestr("../outside.txt", "x")
        file.writestr("record.sqlite", "no database")
    for each in (cut, other, evil):
        with pytest.raises(RecordError):
            restore_zip(each, new)
        assert not new.exists() and not (tmp_path / "outside.txt").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("mine")
    (tmp_path / "whole.zip").write_bytes(whole)
    with pytest.raises(UsageError, match="is not empty"):
        restore_zip(tmp_path / "whole.zip", tmp_path / "used")
    assert restore_zip(tmp_path / "whole.zip", new).head == state.head
