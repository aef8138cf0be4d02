"""The rig's slides and files when things go wrong: mix-ups, restarts, unreadable files, a record that is gone."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from fixtures_rig import Rig
from fixtures_station import NOTES, Stills, make_station, station_record, station_slide, until  # noqa: F401 fixtures
from PIL import Image

from edgeall.rig import open_slide
from edgeall.rig.capture import files
from edgeall.rig.capture.camera import open_camera
from edgeall.rig.capture.interface import CameraError, SkippedFileError
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.seen import SeenImages
from edgeall.rig.capture.slide import Slide
from edgeall.rig.record import chain
from edgeall.rig.record.check import check
from edgeall.rig.record.export import export_csv
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits, Program, SessionNotes
from edgeall.rig.snapshot import StationError
from edgeall.rig.station import Station
from edgeall.rig.web.live_events import quality_light

MakeRig = Callable[..., Rig]


@pytest.fixture(autouse=True)
def frequent_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_POLL_S", 0.02)
    monkeypatch.setattr(files, "_WRITING_S", 0.1)


@pytest.fixture
def page(make_rig: MakeRig) -> tuple[Rig, TestClient]:
    rig = make_rig()
    browser = TestClient(rig.app, base_url="http://localhost", follow_redirects=False)
    browser.get("/")
    browser.headers["x-csrf-token"] = rig.access.csrf(next(iter(browser.cookies.values())))
    return rig, browser


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def lines_of(table: Path) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def put(folder: Path, name: str, slide: Slide, number: int = 0) -> None:
    Image.fromarray(Stills(slide).fields[number % 3]).save(folder / ".new", "png", compress_level=1)
    (folder / ".new").rename(folder / name)


# Which picture belongs to which slide


def test_the_image_of_one_slide_is_not_captured_for_the_next(
    make: Callable[..., Station],
    record: Record,
    slide: Slide,
    tmp_path: Path,
) -> None:
    folder, seen = tmp_path / "in", SeenImages()
    folder.mkdir()
    station = make(lambda: open_camera(str(folder), seen=seen), seen=seen, stall_s=30.0)
    until(station, lambda live: live.camera.state == "live")
    first = station.start_session(SessionNotes("A"))
    put(folder, "a.png", slide)
    until(station, lambda live: live.picture is not None and record.session(first).frames == 1)
    station.end_session()
    second = station.start_session(SessionNotes("B"))
    live = until(station, lambda live: live.session_id == second)
    assert (live.picture, live.label, quality_light(live)[:2]) == (None, "", ("bad", "No picture yet"))
    with pytest.raises(StationError, match="no picture of this slide"):
        station.capture()
    put(folder, "b.png", slide, 1)
    until(station, lambda live: live.picture is not None)
    assert record.frame(station.capture()).row.source == "b.png"
    assert {frame.row.source for frame in record.frames(second)} == {"b.png"}


def test_files_that_wait_when_a_slide_is_started_do_not_belong_to_it(
    slide: Slide,
    tmp_path: Path,
) -> None:
    seen = SeenImages(None, tmp_path / "folder.json")
    camera = open_camera(str(tmp_path), seen=seen)
    for number in range(3):
        put(tmp_path, f"{number}.png", slide, number)
    assert camera.read(1.0).source == "0.png" and camera.waiting == 2  # type: ignore[attr-defined]
    assert seen.begin_slide() == 3  # 0.png counts as seen with the next reading only
    put(tmp_path, "3.png", slide)
    assert camera.read(1.0).source == "3.png"
    again = open_camera(str(tmp_path), seen=SeenImages({}, tmp_path / "folder.json"))
    assert again.read(1.0).source == "3.png"  # after a restart in that slide


def test_an_ended_replay_shows_nothing(
    make: Callable[..., Station],
    slide: Slide,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder, "a.png", slide)
    put(folder, "b.png", slide, 1)
    station = make(lambda: open_camera(f"replay:{folder}", rate=50.0), stall_s=30.0)
    until(station, lambda live: live.waits)
    assert not station.replay_is_done
    station.start_session(NOTES)
    live = until(station, lambda live: live.camera.state == "ended" and station.replay_is_done)
    live = until(station, lambda later: later.number > live.number)
    assert (live.picture, live.label, quality_light(live)[1]) == (None, "", "Replay ended")
    with pytest.raises(StationError, match="no picture of this slide"):
        station.capture()


# After a restart


@pytest.mark.parametrize("age_s", [0.0, 1.0])
def test_after_a_long_time_it_asks_before_it_goes_on(
    make: Callable[..., Station],
    record: Record,
    slide: Slide,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    age_s: float,
) -> None:
    folder, first = tmp_path / "in", record.start_session(NOTES)
    folder.mkdir()
    monkeypatch.setattr(open_slide, "_age_s", lambda text: -1.0 if age_s else open_slide.RESUME_S + 1)
    (tmp_path / "folder.json").write_text(json.dumps({"folder": str(folder), "files": []}))
    seen = SeenImages(record.recorded_files(), tmp_path / "folder.json")
    station = make(lambda: open_camera(str(folder), seen=seen), seen=seen, stall_s=30.0)
    put(folder, "a.png", slide)
    live = until(station, lambda live: live.camera.frames == 1)
    assert (live.session_id, live.asked_session_id, quality_light(live)[1]) == (None, first, "Continue or new slide?")
    with pytest.raises(StationError, match="a slide is open"):
        station.start_session(NOTES)
    assert record.session(first).frames == 0
    assert station.continue_session("olga") == first
    until(station, lambda live: record.session(first).frames == 1)  # the file waited for the answer
    assert record.events(1, kind="continued")[0].detail == {"session": first, "by": "olga"}
    with pytest.raises(StationError, match="no slide waits"):
        station.continue_session()
    assert station.end_session() == first


def test_the_asked_slide_can_be_ended(
    make: Callable[..., Station],
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = record.start_session(NOTES)
    monkeypatch.setattr(open_slide, "_age_s", lambda text: open_slide.RESUME_S + 1)
    station = make()
    until(station, lambda live: live.status == "judged")
    assert station.end_session("olga") == first and record.session(first).ended_by == "olga"
    second = station.start_session(NOTES)
    until(station, lambda live: record.session(second).frames > 0)
    assert record.session(first).frames == 0


def test_the_page_asks_and_continues(page: tuple[Rig, TestClient]) -> None:
    rig, browser = page
    session = rig.session("S-7")
    rig.station._slide.session_id, rig.station._slide.asked = None, session
    rig.station._publish(None)
    shown = text_of(browser.get("/").text)
    assert "Continue S-7 ?" in shown and "Nothing is recorded until you choose" in shown
    assert browser.post("/slides/continue").headers["location"] == "/"
    assert rig.station.session_id == session
    assert browser.post("/slides/continue").status_code == 409


# Forgiveness


def test_an_ended_slide_is_reopened_and_counts_on(record: Record) -> None:
    session = record.start_session(NOTES, "olga")
    with pytest.raises(chain.RecordError, match="is open"):
        record.reopen_session(session)
    record.end_session(session, "olga")
    assert (record.open_sessions(), record.recorded_files()) == ([], None)
    other = record.start_session(NOTES)
    record.end_session(other)
    record.reopen_session(session, "viktor")
    found = record.session(session)
    assert (found.ended, found.reopened, found.started_by, found.ended_by) == (None, 1, "olga", "")
    assert [each.id for each in record.open_sessions()] == [session] and record.recorded_files() == {}
    record.end_session(session, "viktor")
    assert record.session(session).ended_by == "viktor"
    with pytest.raises(chain.RecordError, match="has ended"):
        record.end_session(session)
    assert check(record.folder).problems == []


def test_reopening_on_the_page(page: tuple[Rig, TestClient]) -> None:
    rig, browser = page
    session = rig.session("S-1")
    wrong = browser.post("/slides/end", data={"session": session + 1})
    assert (wrong.status_code, "not the open one" in wrong.text) == (409, True)
    assert browser.post("/slides/end", data={"session": session}).status_code == 303
    assert "Reopen this slide" in browser.get(f"/slides/{session}").text
    assert browser.post(f"/slides/{session}/reopen").headers["location"] == "/"
    assert rig.station.session_id == session
    assert "Reopened" in browser.get(f"/slides/{session}").text
    browser.post("/slides/end")
    other = rig.session("S-2")
    assert browser.post(f"/slides/{session}/reopen").status_code == 409
    assert rig.station.session_id == other


def test_a_slide_of_another_model_is_not_reopened(
    make: Callable[..., Station],
    tmp_path: Path,
) -> None:
    with Record(tmp_path / "r", program=Program("old", "1" * 64), limits=Limits(0, 0)) as before:
        session = before.start_session(NOTES)
        before.end_session(session)
    with Record(tmp_path / "r", program=Program("new", "2" * 64), limits=Limits(0, 0)) as now:
        station = make(to=now)
        with pytest.raises(StationError, match="judged by another model"):
            station.reopen_session(session)
        station.stop()


def test_a_sample_id_is_corrected_by_a_row(page: tuple[Rig, TestClient], tmp_path: Path) -> None:
    rig, browser = page
    session = rig.session("S-1")
    rig.frame(session)
    for sample in ("", " ", "S-1"):
        assert browser.post(f"/slides/{session}/amend", data={"sample": sample}).status_code == 400
    given = {"sample": "S-10", "why": "misread"}
    assert browser.post(f"/slides/{session}/amend", data=given).status_code == 303
    shown = text_of(browser.get(f"/slides/{session}").text)
    assert "from S-1 to S-10" in shown and "by local : misread" in shown
    assert browser.post("/slides/999/amend", data=given).status_code == 404
    export_csv(rig.record, session, tmp_path / "t.csv")
    assert [line["sample"] for line in lines_of(tmp_path / "t.csv")] == ["S-10"]
    with chain.reading(rig.record.folder) as database:
        kept = database.execute("SELECT row FROM entries WHERE number = ?", (session,)).fetchone()[0]
    assert '"sample":"S-1"' in kept and check(rig.record.folder).problems == []


def test_a_slide_that_another_rig_left_open_is_ended_on_its_page(page: tuple[Rig, TestClient]) -> None:
    rig, browser = page
    left = rig.record.start_session(SessionNotes("left"))
    current = rig.session("current")
    assert "was left open" in browser.get(f"/slides/{left}").text
    assert browser.post(f"/slides/{left}/end").status_code == 303
    assert rig.record.session(left).ended and rig.station.session_id == current


def test_the_page_reports_a_clock_that_was_set_back(
    page: tuple[Rig, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, browser = page
    session = rig.session("S-1")
    monkeypatch.setattr(chain, "now", lambda: "2020-01-01T00:00:00.000000Z")
    rig.station.end_session()
    assert rig.record.session(session).clock_was_set_back
    assert "the clock was set back" in browser.get(f"/slides/{session}").text


# Nothing vanishes


def test_unreadable_files_are_listed_everywhere(
    make: Callable[..., Station],
    record: Record,
    slide: Slide,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def replayed() -> Station:
        seen = SeenImages(record.recorded_files(), tmp_path / "folder.json")
        return make(lambda: open_camera(f"replay:{folder}", rate=50.0, seen=seen), seen=seen, stall_s=30.0)

    (folder / "0.png").write_bytes(b"no image")  # before the slide: it waits for it, as images do
    put(folder, "1.png", slide)
    (folder / "2.png").write_bytes(b"no image either")
    station = replayed()
    live = until(station, lambda live: live.waits and live.camera.skipped == 2)
    assert any("2 files could not be used" in note and "2.png" in note for note in live.notes)
    session = station.start_session(NOTES)
    until(station, lambda live: station.replay_is_done)
    assert station.live().camera.skipped == 2
    station.stop()
    assert [(each.source, each.session) for each in record.skipped(session)] == [("0.png", session), ("2.png", session)]
    assert all(each.source_sha256 and "not an image" in each.reason for each in record.skipped(session))
    again = replayed()
    until(again, lambda live: again.replay_is_done)
    assert record.session(session).skipped == 2  # not twice
    assert export_csv(record, session, tmp_path / "t.csv") == 1
    lines = lines_of(tmp_path / "t.csv")
    assert [(line["status"], line["source"]) for line in lines][1:] == [("skipped", "0.png"), ("skipped", "2.png")]


def test_skipped_files_are_on_the_pages(page: tuple[Rig, TestClient]) -> None:
    rig, browser = page
    session = rig.session()
    rig.record.add_skipped(session, "broken.tif", "0" * 64, "broken.tif: truncated")
    rig.station._publish(None)
    for address in (f"/slides/{session}", f"/slides/{session}/report", "/health"):
        shown = text_of(browser.get(address).text)
        assert "broken.tif: truncated" in shown, address


def test_no_fault_of_a_camera_is_merged_away() -> None:
    acts = [CameraError("first fault"), CameraError("second fault")]

    class Failing:
        name = "camera"

        def read(self, timeout_s: float) -> Any:
            raise acts.pop(0) if acts else CameraError("second fault")

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReconnectingCamera, "FIRST_WAIT_S", 0.01)
        patch.setattr(ReconnectingCamera, "LONGEST_WAIT_S", 0.02)
        camera = ReconnectingCamera(Failing)  # type: ignore[arg-type]
        camera.start()
        while camera.state().reopened < 6:
            camera.wait(0, 0.01)
        camera.stop()
    assert [change.fault for change in camera.take_changes()] == ["first fault", "second fault"]
    assert camera.take_changes() == []


def test_a_link_that_leads_nowhere_does_not_stop_a_watched_folder(slide: Slide, tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "away.png").symlink_to(tmp_path / "missing.png")
    camera = open_camera(str(tmp_path))
    reasons = []
    for _ in range(2):
        with pytest.raises(SkippedFileError) as caught:
            camera.read(1.0)
        reasons.append(caught.value.skipped.source)
    assert sorted(reasons) == ["away.png", "loop.png"]
    put(tmp_path, "good.png", slide)
    assert camera.read(1.0).source == "good.png"


def test_twelve_bits_in_sixteen_are_not_a_dim_lamp(
    make: Callable[..., Station],
    slide: Slide,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    grey = Stills(slide).fields[0][..., 1].astype(np.uint16) * 16
    Image.fromarray(grey).save(folder / "12.tif")
    live = until(make(lambda: open_camera(str(folder)), stall_s=30.0), lambda live: live.status == "refused")
    level, title, advice = quality_light(live)
    assert (level, "dark" in title.lower()) == ("warn", True)
    assert "12 of its 16 bits" in advice and "lamp up" not in advice


# A record that is gone


def test_a_record_that_was_removed_is_told_on_every_page(page: tuple[Rig, TestClient]) -> None:
    rig, browser = page
    session = rig.session()
    rig.frame(session)
    kept = rig.record.folder.with_name("kept")
    rig.record.folder.rename(kept)
    assert browser.post("/slides/end").status_code == 503 and rig.station.session_id == session
    assert browser.get("/slides").status_code == 503
    for address in ("/", "/health"):
        answer = browser.get(address)
        assert (answer.status_code, "no record here" in answer.text) == (200, True), address
    kept.rename(rig.record.folder)
    assert browser.post("/slides/end").status_code == 303
    shutil.copytree(rig.record.folder, kept)
    shutil.rmtree(rig.record.folder)
    kept.rename(rig.record.folder)  # another file of the same name
    with pytest.raises(chain.RecordGoneError, match="removed or replaced"):
        rig.record.add_event("x", {})
    assert browser.get("/frames/999").status_code == 404


def test_a_capture_without_room_for_its_image_says_so(
    page: tuple[Rig, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, browser = page
    session = rig.session()
    frame = rig.frame(session)
    monkeypatch.setattr(rig.station, "capture", lambda by: frame)
    assert browser.post("/capture").json() == {"frame": frame, "image_lost": ""}
    monkeypatch.setattr(type(rig.record), "limits", Limits(2**62, 0), raising=False)
    rig.record.limits = Limits(2**62, 0)
    lost = rig.frame(session, 1)
    monkeypatch.setattr(rig.station, "capture", lambda by: lost)
    assert browser.post("/capture").json() == {"frame": lost, "image_lost": "the disk is nearly full"}


def test_a_name_does_not_turn_the_page_round(page: tuple[Rig, TestClient]) -> None:
    rig, browser = page
    session = rig.session("S-\u202e1")
    shown = browser.get(f"/slides/{session}").text
    assert "<bdi>S-\u202e1</bdi>" in shown
    title = re.search("<title>(.*?) ·", shown)
    assert title and title[1] == "\u2068S-1\u2069"
