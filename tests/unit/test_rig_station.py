"""The station: what it judges, records and shows, and that no fault around it ends it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_station import NOTES, Stills, make_station, station_record, station_slide, until  # noqa: F401 fixtures
from PIL import Image
from venvs import HANG_S

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, UsageError
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.pipeline import prediction
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.edge_runtime.tools.device import rss_bytes
from edgeall.edge_runtime.vision.cells import crop
from edgeall.edge_runtime.vision.finder import open_finder
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.rig import recorder, snapshot
from edgeall.rig.capture.camera import open_camera
from edgeall.rig.capture.interface import Camera, CameraError
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.seen import SeenImages
from edgeall.rig.capture.slide import Slide
from edgeall.rig.record.chain import RecordError, RecordFullError, reading
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits
from edgeall.rig.serve import ALIVE_S
from edgeall.rig.snapshot import Live, Settings, StationError
from edgeall.rig.station import Station
from edgeall.rig.web.live_events import quality_light


def said_by_hand(live: Live, bundle: Path) -> tuple[str, float, bool]:
    """The prediction of `edgeall run` for the frame that is shown."""
    assert live.picture is not None
    classifier = Classifier.open(bundle, threads=1)
    image = Image.fromarray(live.picture.frame.pixels)
    said = prediction(classifier, "", classifier.infer(preprocess(image, classifier.input)))
    return said.label, said.probability, said.review


# What is judged and shown


def test_frames_are_judged_as_the_command_line_would(make: Callable[..., Station], tiny_bundle: Path) -> None:
    station = make()
    live = until(station, lambda live: live.status == "judged" and live.frames_per_s > 0)
    assert (live.label, live.probability, live.review) == said_by_hand(live, tiny_bundle)
    assert list(live.probabilities) == list(Classifier.open(tiny_bundle, threads=1).labels) and live.size == (1280, 960)
    assert live.quality is not None and live.quality.ok and live.problems == ()
    assert live.camera.state == "live" and live.session_id is None
    later = until(station, lambda later: later.number > live.number + 3)
    assert later.picture is not None and live.picture is not None
    assert later.picture.frame.taken > live.picture.frame.taken


def test_a_refused_frame_is_not_judged(make: Callable[..., Station]) -> None:
    live = until(make(), lambda live: live.status == "refused")
    assert live.quality is not None and live.quality.reasons == ("empty",)
    assert (live.label, live.probability, dict(live.probabilities), live.review) == ("", 0.0, {}, False)


def test_the_review_threshold_of_the_model_decides_what_needs_review(
    make: Callable[..., Station], pack_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for limit in (0.0, 1.0):
        bundle = pack_tiny("uint8", tmp_path / f"{limit}.tflite", decision={"review_below": limit})
        live = until(make(bundle=bundle), lambda live: live.status == "judged")
        assert live.review is (live.probability < limit) and live.review is said_by_hand(live, bundle)[2]


def test_a_model_of_cells_judges_each_whole_cell(
    make: Callable[..., Station], pack_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = pack_tiny("uint8", tmp_path / "cells.tflite", unit="cell", decision={"review_below": 0.5})
    live = until(make(bundle=bundle), lambda live: len(live.cells) > 1)
    assert live.picture is not None
    pixels, classifier = live.picture.frame.pixels, Classifier.open(bundle, threads=1)
    whole = [cell for cell in open_finder().find(pixels).cells if not cell.touches_border]
    by_hand = [
        prediction(classifier, "", classifier.infer(crop(Image.fromarray(pixels), cell.box, classifier.input)))
        for cell in whole
    ]
    assert [cell.box for cell in live.cells] == [cell.box for cell in whole]
    assert [cell.label for cell in live.cells] == [said.label for said in by_hand]
    assert (live.label, live.probability, dict(live.probabilities)) == (
        "",
        0.0,
        {},
    )  # no label for the frame
    assert live.review is any(said.review for said in by_hand)


def test_a_folders_images_are_judged_once_each_also_through_a_restart(
    make: Callable[..., Station], record: Record, slide: Slide, pack_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder, bundle = tmp_path / "in", pack_tiny("uint8", tmp_path / "asks.tflite", decision={"review_below": 1.0})
    folder.mkdir()
    fields = Stills(slide).fields

    def put(number: int, back_s: float = 0.0) -> None:
        Image.fromarray(fields[number % 3]).save(folder / ".new", "png", compress_level=1)
        os.utime(folder / ".new", (1_800_000_000 + 0.1 * number - back_s,) * 2)
        (folder / ".new").rename(folder / f"{number}.png")  # atomically with its time, by which files are sorted

    def recorded(session: int) -> list[tuple[str, str]]:
        return [(f.row.source, f.row.status) for f in reversed(record.frames(session, limit=None))]

    put(0)

    def watched() -> Station:
        seen = SeenImages(record.recorded_files(), tmp_path / "folder.json")
        return make(lambda: open_camera(str(folder), seen=seen), bundle=bundle, seen=seen, stall_s=30.0)

    station = watched()
    until(station, lambda live: live.picture is not None)
    session = station.start_session(NOTES)  # the earlier field belongs to no slide
    for number in (1, 2, 3):
        put(number)
    until(station, lambda live: len(recorded(session)) == 3)
    station.stop()
    put(5, back_s=86400)  # the board restarted with another time
    put(4, back_s=86400)
    again = watched()
    until(again, lambda live: len(recorded(session)) == 5)
    assert recorded(session) == [(f"{n}.png", "judged") for n in range(1, 6)]  # none counts as moving
    assert again.live().left_out == (1, 0) and again.live().notes == ()
    assert all(frame.row.review and frame.image for frame in record.frames(session))  # at any rate
    again.end_session()
    assert record.recorded_files() is None
    put(6)
    until(again, lambda live: live.left_out == (1, 1))  # shown, but it belongs to no slide


def test_a_replay_waits_for_a_slide_and_gives_it_every_frame(
    make: Callable[..., Station], record: Record, slide: Slide, tmp_path: Path
) -> None:
    folder, fields = tmp_path / "in", Stills(slide).fields
    (folder / "a").mkdir(parents=True)
    names = [f"{number}.png" for number in range(4)] + [f"a/{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        Image.fromarray(np.roll(fields[number % 3], number, axis=1)).save(folder / name, compress_level=1)
    names = sorted(names[:4]) + sorted(names[4:])

    def replayed() -> Station:
        seen = SeenImages(record.recorded_files(), tmp_path / "folder.json")
        return make(lambda: open_camera(f"replay:{folder}", rate=50.0, seen=seen), seen=seen, stall_s=30.0)

    def recorded() -> list[str]:
        return [f.row.source for s in reversed(record.sessions()) for f in reversed(record.frames(s.id, limit=None))]

    station = replayed()
    live = until(station, lambda live: quality_light(live)[1] == "Replay waiting")
    assert live.status == "judged" and live.picture is not None  # its first frame is shown
    assert live.notes == (f"replay of {folder} waits for the start of a slide",)
    until(station, lambda later: later.number > live.number + 5)  # none of its other frames is used up meanwhile
    first = station.start_session(NOTES)
    until(station, lambda live: record.session(first).frames >= 2)
    station.end_session()
    until(station, lambda live: live.waits or live.camera.state == "ended")
    second = station.start_session(NOTES)
    until(station, lambda live: record.session(second).frames >= 1 or live.camera.state == "ended")
    station.stop()  # as after a power cut, the slide stays open
    again = replayed()
    live = until(again, lambda live: live.camera.state == "ended" and len(recorded()) == len(names))
    assert sorted(recorded()) == sorted(names)  # each once, over two slides and two runs
    assert "ended after" in live.notes[0] and live.problems == () and quality_light(live)[1] == "Replay ended"
    again.end_session()
    assert set(names) == set(recorded())


def test_a_folders_image_is_not_lost_when_recording_fails_at_that_moment(
    make: Callable[..., Station], record: Record, slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "in", SeenImages()
    folder.mkdir()
    station = make(lambda: open_camera(str(folder), seen=seen), stall_s=30.0)
    session, waited = station.start_session(NOTES), station._wait_until_recordable

    def wait(frame: Frame) -> None:
        waited(frame)
        station._recorder.report(RecordError("the disk is away"))

    monkeypatch.setattr(station, "_wait_until_recordable", wait)
    Image.fromarray(slide.pixels[:960, 1400:2680]).save(folder / ".new", "png", compress_level=1)
    (folder / ".new").rename(folder / "1.png")
    until(station, lambda live: len(record.frames(session)) == 1)
    assert record.frames(session)[0].row.status != "unjudged"


def test_a_folders_images_wait_while_nothing_can_be_recorded(
    make: Callable[..., Station], record: Record, slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, add_frame, failing = tmp_path / "in", Record.add_frame, threading.Event()
    folder.mkdir()
    refused: list[Any] = []

    def add(self: Record, *given: Any) -> int:
        if failing.is_set():
            refused.append(given)
            raise RecordError("the disk is away")
        return add_frame(self, *given)

    def put(number: int) -> None:
        Image.fromarray(Stills(slide).fields[number % 3]).save(folder / ".new", "png", compress_level=1)
        (folder / ".new").rename(folder / f"{number}.png")

    monkeypatch.setattr(Record, "add_frame", add)
    put(0)
    seen = SeenImages()
    station = make(lambda: open_camera(str(folder), seen=seen), stall_s=30.0)
    until(station, lambda live: live.picture is not None)
    session = station.start_session(NOTES)
    failing.set()
    for number in range(1, 15):  # more than the queue holds
        put(number)
    until(station, lambda live: "nothing is recorded: the disk is away" in live.problems)
    tries = len(refused)
    until(station, lambda live: len(refused) > tries + 3)
    failing.clear()
    until(station, lambda live: len(record.frames(session, limit=None)) == 14)
    found = [frame.row for frame in reversed(record.frames(session, limit=None))]
    assert [(row.source, row.status) for row in found] == [(f"{n}.png", "judged") for n in range(1, 15)]
    failing.set()
    put(15)
    until(station, lambda live: "nothing is recorded: the disk is away" in live.problems)
    assert station.end_session() == session  # does not wait for the missing disk


def test_a_slide_whose_end_can_not_be_recorded_stays_open(
    make: Callable[..., Station], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make()
    session = station.start_session(NOTES)
    with monkeypatch.context() as patch:
        patch.setattr(Record, "end_session", lambda *given: (_ for _ in ()).throw(RecordFullError("full")))
        with pytest.raises(RecordFullError):
            station.end_session()
    assert station.session_id == session
    until(station, lambda live: len(record.frames(session)) > 3)
    assert station.end_session() == session and record.session(session).ended


def test_settings_outlast_a_restart(make: Callable[..., Station]) -> None:
    chosen = Settings(judge=False, save="every frame")
    station = make()
    assert station.settings == Settings()
    station.change_settings(Settings(save="on capture"))
    station.change_settings(chosen)
    station.stop()
    assert make().settings == chosen


def test_a_capture_that_nobody_waits_for_any_more_is_not_recorded(
    make: Callable[..., Station], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    station, write, slow = make(), recorder.Recorder._write, threading.Event()
    until(station, lambda live: live.picture is not None)
    session = station.start_session(NOTES)
    monkeypatch.setattr(recorder.Recorder, "_write", lambda self, job: (slow.wait(20), write(self, job))[1])
    until(station, lambda live: station._recorder._jobs.qsize() > 0)
    with pytest.raises(StationError, match="takes too long"):
        station.capture("olga", timeout_s=0.3)
    slow.set()
    station.end_session()
    assert {frame.row.trigger for frame in record.frames(session, limit=None)} == {"auto"}


def test_a_frame_is_encoded_once_for_any_number_of_viewers(
    make: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = snapshot.encode_jpeg
    monkeypatch.setattr(
        snapshot, "encode_jpeg", lambda *given: (encoded.append(1), time.sleep(0.05), encode(*given))[2]
    )
    station = make()
    live = until(station, lambda live: live.picture is not None)
    with ThreadPoolExecutor(5) as viewers:
        picture = live.picture
        assert picture is not None
        files = list(viewers.map(lambda _: picture.jpeg(), range(20)))
    assert len(encoded) == 1 and len({id(file) for file in files}) == 1
    assert files[0][:2] == b"\xff\xd8"
    until(station, lambda later: later.number > live.number + 5)
    assert len(encoded) == 1  # there was no viewer


def test_a_viewer_waits_for_something_newer(make: Callable[..., Station], slide: Slide) -> None:
    station = make(lambda: Stills(slide, period_s=0.3))
    live = until(station, lambda live: live.picture is not None)
    begin = time.monotonic()
    assert station.wait(live.number, HANG_S).number > live.number
    assert time.monotonic() - begin < HANG_S, "not once its patience is at an end"
    assert station.wait(10**9, 0.05).number < 10**9


def test_a_slow_model_judges_the_newest_frame(
    make: Callable[..., Station], slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Classifier.predict
    monkeypatch.setattr(Classifier, "predict", lambda self, pixels: (time.sleep(0.2), predict(self, pixels))[1])
    station = make(lambda: Stills(slide, period_s=0.005))
    live = until(station, lambda live: live.camera.frames > 60 and live.status == "judged")
    assert live.camera.dropped_frames > 30 and live.picture is not None
    assert station.live().camera.frames - live.picture.frame.number < 80


# What is recorded


def rows(station: Station, record: Record, at_least: int = 12) -> Any:
    """The rows of a session with this many frames."""
    session = station.start_session(NOTES)
    count = len(station._times)
    until(station, lambda live: len(station._times) > count + at_least)
    assert station.end_session() == session
    return record.frames(session, limit=None)


def test_every_judged_and_refused_frame_is_recorded(make: Callable[..., Station], record: Record) -> None:
    station = make()
    until(station, lambda live: live.picture is not None)
    frames = rows(station, record)
    assert len(frames) >= 12
    assert Counter(frame.row.status for frame in frames).keys() == {"judged", "refused"}
    for frame in frames:
        assert (frame.row.label is None) == (frame.row.status == "refused") == bool(frame.row.reasons)
        assert frame.row.quality["covered"] >= 0 and frame.row.trigger == "auto"
    numbers = [frame.row.number for frame in sorted(frames, key=lambda frame: frame.id)]
    assert numbers == sorted(set(numbers))
    assert not check(record.folder).problems


@pytest.mark.parametrize(
    ("save", "limit", "kept"),
    [("every frame", 0.0, True), ("on review", 0.0, False), ("on review", 1.0, True), ("on capture", 1.0, False)],
)
def test_images_are_saved_as_the_settings_say(
    make: Callable[..., Station],
    record: Record,
    pack_tiny: Callable[..., Path],
    tmp_path: Path,
    save: str,
    limit: float,
    kept: bool,
) -> None:
    station = make(bundle=pack_tiny("uint8", tmp_path / "m.tflite", decision={"review_below": limit}))
    station.change_settings(Settings(save=save))
    frames = rows(station, record)
    images = [frame.image is not None for frame in frames if frame.row.status == "judged"]
    if save == "every frame":
        assert all(images)
    else:  # at most one image per half second is saved
        assert any(images) == kept and not all(images)
    assert {frame.image for frame in frames if frame.row.status == "refused"} <= {None}
    asked = {(frame.row.review, frame.row.review_reason) for frame in frames if frame.row.status == "judged"}
    assert asked == {(True, "uncertain") if limit else (False, None)}


def test_the_record_names_the_user_of_each_action(make: Callable[..., Station], record: Record) -> None:
    station = make()
    station.start_session(NOTES, "olga")
    station.change_settings(Settings(judge=False), "viktor")
    station.end_session("anna")
    with reading(record.folder) as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT row FROM entries")]
    said = {row.get("event", row["kind"]): row.get("by", row.get("detail", {}).get("by")) for row in rows}
    assert (said["session"], said["settings"], said["end"]) == ("olga", "viktor", "anna")


def test_a_capture_keeps_what_is_shown(make: Callable[..., Station], record: Record, tiny_bundle: Path) -> None:
    station = make()
    with pytest.raises(StationError, match="requires an open session"):
        station.capture()
    station.start_session(NOTES)
    until(station, lambda live: live.status == "judged")
    frame = record.frame(station.capture("olga"))
    assert frame.row.by == "olga"
    assert (frame.row.trigger, frame.row.status in ("judged", "refused")) == ("capture", True)
    assert frame.image is not None
    path = record.image_path(frame.image)
    assert path is not None and open_rgb(path).size == (1280, 960)


def test_without_judging_a_capture_is_kept_all_the_same(make: Callable[..., Station], record: Record) -> None:
    station = make()
    station.change_settings(Settings(judge=False))
    session = station.start_session(NOTES)
    until(station, lambda live: live.status == "unjudged" and live.session_id == session)
    while record.frame(station.capture()).row.status == "refused":
        until(station, lambda live: live.status == "unjudged")
    station.end_session()
    frames = record.frames(session, limit=None)
    assert {frame.row.trigger for frame in frames if frame.row.status == "unjudged"} == {"capture"}


def test_one_slide_at_a_time(make: Callable[..., Station]) -> None:
    station = make()
    with pytest.raises(StationError, match="no slide is open"):
        station.end_session()
    station.start_session(NOTES)
    with pytest.raises(StationError, match="a slide is open"):
        station.start_session(NOTES)
    with pytest.raises(UsageError, match="sometimes"):
        station.change_settings(Settings(save="sometimes"))


def test_slides_may_follow_one_another_at_any_moment(
    make: Callable[..., Station], slide: Slide, record: Record
) -> None:
    """No row is too late for its session, and no fault loses one."""
    station = make(lambda: Stills(slide, period_s=0.001))
    until(station, lambda live: live.picture is not None)
    sessions = []
    for _ in range(15):
        sessions.append(station.start_session(NOTES))
        until(station, lambda live: live.session_id == sessions[-1] and live.picture is not None)
        station.capture()
        assert station.end_session() == sessions[-1]
        assert station.live().problems == ()
    for session in sessions:
        assert any(frame.row.trigger == "capture" for frame in record.frames(session, limit=None))
    with ThreadPoolExecutor(8) as people:  # at the same moment
        tried = list(people.map(lambda _: attempt(lambda: station.start_session(NOTES)), range(8)))
        assert sum(isinstance(each, int) for each in tried) == 1
        assert sum(isinstance(each, int) for each in people.map(lambda _: attempt(station.end_session), range(8))) == 1


def attempt(do: Callable[[], int]) -> int | StationError:
    """The result, or the StationError."""
    try:
        return do()
    except StationError as error:
        return error


def test_a_disk_that_is_gone_is_reported(
    make: Callable[..., Station], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make()
    until(station, lambda live: live.status == "judged")
    with monkeypatch.context() as patch:
        patch.setattr(record, "space", lambda: (_ for _ in ()).throw(OSError("Input/output error")))
        until(station, lambda live: "nothing is recorded: OSError: Input/output error" in live.problems)
    until(station, lambda live: live.status == "judged" and live.problems == ())


def test_a_session_continues_after_a_restart(make: Callable[..., Station], record: Record) -> None:
    station = make()
    session = station.start_session(NOTES)
    until(station, lambda live: live.status == "judged" and live.session_id == session)
    station.stop()
    before = record.session(session).frames
    again = make()
    assert again.session_id == session
    until(again, lambda live: record.session(session).frames > before)
    again.end_session()
    assert make().session_id is None


def test_no_capture_before_the_first_frame(make: Callable[..., Station]) -> None:
    def none() -> Camera:
        raise CameraError("camera: not there")

    station = make(none)
    station.start_session(NOTES)
    live = until(station, lambda live: "camera: not there" in live.problems)
    assert (live.status, live.picture, live.size) == ("waiting", None, None)
    with pytest.raises(StationError, match="no picture of this slide"):
        station.capture()


# What fails around it


def test_a_full_disk_stops_the_images_and_then_the_judging(make: Callable[..., Station], record: Record) -> None:
    station = make()
    station.change_settings(Settings(save="every frame"))
    session = station.start_session(NOTES)
    until(station, lambda live: live.status == "judged")
    record.limits = Limits(images_bytes=10**18, judging_bytes=0)
    until(station, lambda live: live.health.space == "no images")
    assert any("images are not saved" in problem for problem in station.live().problems)
    frame = record.frame(station.capture())
    assert (frame.image, frame.image_lost) == (None, "disk")
    record.limits = Limits(images_bytes=10**18, judging_bytes=10**18)
    live = until(station, lambda live: live.health.space == "full" and live.status == "unjudged")
    assert any("nothing is judged" in problem for problem in live.problems)
    with pytest.raises(RecordError):
        station.capture()
    record.limits = Limits(0, 0)
    until(station, lambda live: live.status == "judged" and live.problems == ())
    station.end_session()
    assert record.session(session).frames > 0 and not check(record.folder).problems


def test_a_record_that_fails_stops_the_judging_until_it_works_again(
    make: Callable[..., Station], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make()
    station.start_session(NOTES)
    until(station, lambda live: live.status == "judged")
    with monkeypatch.context() as patch:
        patch.setattr(record, "add_frame", lambda *given: (_ for _ in ()).throw(RecordError("the disk is gone")))
        live = until(station, lambda live: live.status == "unjudged")
        assert "nothing is recorded: the disk is gone" in live.problems
        with pytest.raises(RecordError, match="the disk is gone"):
            station.capture()
    until(station, lambda live: live.status == "judged" and live.problems == ())


def test_a_model_that_fails_is_reported_and_the_watch_continues(
    make: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[float] = []
    station = make(on_beat=lambda: beats.append(time.monotonic()))
    until(station, lambda live: live.status == "judged")
    for error, words in (
        (BundleError("the interpreter fails"), "the interpreter fails"),
        (ValueError("x"), "ValueError: x"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Classifier, "predict", lambda *given, error=error: (_ for _ in ()).throw(error))
            until(station, lambda live, words=words: f"judging fails: {words}" in live.problems)
            failing = len(beats)
            until(station, lambda live, failing=failing: len(beats) > failing + 2)
        until(station, lambda live: live.status == "judged" and live.problems == ())


def test_outputs_that_are_not_numbers_are_a_fault_not_a_label(
    make: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "predict", lambda *given: np.full(4, np.nan, np.float32))
    live = until(make(), lambda live: any("not finite" in problem for problem in live.problems))
    assert live.label == ""


def test_a_camera_that_fails_leaves_no_picture_to_capture_and_is_recorded(
    make: Callable[..., Station], slide: Slide, record: Record
) -> None:
    broken, tries = threading.Event(), []

    class Breaking(Stills):
        def read(self, timeout_s: float) -> Frame:
            if broken.is_set():
                tries.append(self)
                raise CameraError("camera: unplugged")
            return super().read(timeout_s)

    station = make(lambda: Breaking(slide))
    until(station, lambda live: live.status == "judged")
    station.start_session(NOTES)
    broken.set()
    live = until(station, lambda live: "camera: unplugged" in live.problems)
    assert live.camera.state == "reopening" and live.picture is None and live.label == ""
    with pytest.raises(StationError, match="no picture of this slide"):
        station.capture()
    until(station, lambda later: later.number > live.number + 2)  # viewers still get snapshots
    until(station, lambda later: len(tries) > 6)
    broken.clear()
    until(station, lambda live: live.camera.state == "live" and live.problems == ())

    def events() -> list[Any]:
        return [event.detail for event in reversed(record.events()) if event.kind == "camera"]

    until(station, lambda live: [event["state"] for event in events()][-1:] == ["live"])
    assert {event["state"] for event in events()} == {"live", "reopening"}
    assert all(event["fault"] == "camera: unplugged" for event in events()[2:])
    assert len(events()) < 6  # not one for each attempt


def test_a_slow_disk_makes_judging_wait_but_not_the_watchdog(
    make: Callable[..., Station], slide: Slide, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[float] = []
    add, written = record.add_frame, threading.Event()
    monkeypatch.setattr(record, "add_frame", lambda *given: (written.wait(HANG_S), add(*given))[1])
    station = make(lambda: Stills(slide, period_s=0.005), on_beat=lambda: beats.append(time.monotonic()))
    session = station.start_session(NOTES)
    until(station, lambda live: any("the disk is slow" in problem for problem in live.problems))
    waiting = len(beats)
    until(station, lambda live: len(beats) > waiting + 2)
    written.set()
    station.end_session()
    assert record.session(session).frames >= 8


def test_stopping_records_what_was_judged_and_ends_the_threads(make: Callable[..., Station], record: Record) -> None:
    before = threading.active_count()
    station = make()
    session = station.start_session(NOTES)
    until(station, lambda live: live.status == "judged" and live.session_id == session)
    station.stop()
    assert threading.active_count() == before
    assert record.session(session).frames > 0


# For minutes


class Faulty:
    """A camera that randomly hangs, disappears or returns invalid images. Seeded."""

    name = "faulty"

    def __init__(self, slide: Slide, rng: np.random.Generator, often: float) -> None:
        if rng.random() < 0.3:
            raise CameraError("faulty: not there")
        self._stills, self._rng, self._often = Stills(slide, period_s=0.01), rng, often

    def read(self, timeout_s: float) -> Frame:
        frame = self._stills.read(timeout_s)
        if self._rng.random() > self._often:
            return frame
        kind = int(self._rng.integers(6))
        if kind == 0:
            time.sleep(float(self._rng.uniform(0.6, 2.0)))  # longer than `stall_s`
        if kind == 1:
            raise OSError("no such device")
        if kind == 2:
            raise CameraError("faulty: truncated")
        garbage: list[Any] = [np.zeros_like(frame.pixels), frame.pixels[..., 0], frame.pixels.astype(np.float64)]
        return replace(frame, pixels=garbage[kind - 3]) if kind >= 3 else frame

    def close(self) -> None:
        self._stills.close()


@pytest.mark.parametrize("seconds", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_soak_with_camera_faults(make: Callable[..., Station], slide: Slide, record: Record, seconds: int) -> None:
    """No crash, no leak of memory or threads, no beat of the watchdog missed."""
    beats: list[float] = []
    rng, before = np.random.default_rng(7), threading.active_count()
    station = make(lambda: Faulty(slide, rng, 0.05), on_beat=lambda: beats.append(time.monotonic()))
    memory: list[int] = []
    begin = time.monotonic()

    def seen_enough() -> bool:
        state = station.live().camera
        return state.reopened >= seconds / 10 and state.frames > 5 * seconds

    while (lasted := time.monotonic() - begin) < seconds or not seen_enough():
        assert lasted < seconds + HANG_S, station.live().camera
        session = station.start_session(NOTES)
        part_end = time.monotonic() + seconds / 10
        while time.monotonic() < part_end:
            live = station.wait(station.live().number, 0.5)
            assert live.picture is None or live.picture.jpeg()
        station.end_session()
        memory.append(rss_bytes() or 0)
        # supervisor, judge, recorder, health, one reader, and those that hang
        assert threading.active_count() <= before + 5 + ReconnectingCamera.MAX_HUNG
    assert max(np.diff(beats)) < ALIVE_S  # otherwise the watchdog would not notify systemd
    assert memory[-1] <= 1.05 * max(memory[: len(memory) // 2]), memory
    station.stop()
    assert threading.active_count() <= before + ReconnectingCamera.MAX_HUNG
    end = time.monotonic() + HANG_S
    while threading.active_count() > before:
        assert time.monotonic() < end, "a reader that hung doesn't end"
        time.sleep(0.05)
    assert record.session(session).ended and not check(record.folder).problems
