"""Every kind of camera, and every way it fails: it is reopened, the fault is reported, and nothing else is affected."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures_models import grainy_image
from PIL import Image
from venvs import HANG_S

from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.rig.capture import files
from edgeall.rig.capture.camera import _simulated_slide, open_camera
from edgeall.rig.capture.files import WatchedFolder
from edgeall.rig.capture.interface import (
    Camera,
    CameraError,
    NoFrameError,
    ReplayEndedError,
    SkippedFileError,
    check_frame,
)
from edgeall.rig.capture.reconnecting import CameraState, ReconnectingCamera
from edgeall.rig.capture.seen import SeenImages
from edgeall.rig.capture.slide import SimulatedCamera, Slide, draw_slide

GOOD = np.full((48, 64, 3), 200, np.uint8)
PAUSE_FACTOR = files._LISTING_PAUSE_FACTOR


@pytest.fixture(autouse=True)
def frequent_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched folders are listed often, so that the short timeouts below suffice on a busy machine."""
    monkeypatch.setattr(files, "_POLL_S", 0.02)
    monkeypatch.setattr(files, "_LISTING_PAUSE_FACTOR", 0.0)


def frame(pixels: Any = GOOD, number: int = 0) -> Frame:
    return Frame(pixels, datetime.now(timezone.utc), number)


def until(true: Callable[[], object], timeout_s: float = HANG_S) -> None:
    """Wait until ``true()`` holds; fail after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


class Scripted:
    """A camera with a script: a frame's pixels, an exception to raise, or an event to hang on; then good frames."""

    name = "scripted"

    def __init__(self, acts: list[Any], period_s: float = 0.005) -> None:
        self.acts, self.period_s, self.number, self.closed = acts, period_s, 0, False

    def read(self, timeout_s: float) -> Frame:
        time.sleep(self.period_s)
        act = self.acts.pop(0) if self.acts else GOOD
        if isinstance(act, threading.Event):
            act.wait(HANG_S)
        if isinstance(act, Exception):
            raise act
        self.number += 1
        return frame(act, self.number - 1)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ReconnectingCamera]]:
    """``keep(factory)`` starts a ReconnectingCamera with short timeouts."""
    monkeypatch.setattr(ReconnectingCamera, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(ReconnectingCamera, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(ReconnectingCamera, "OPEN_S", 0.5)
    started: list[ReconnectingCamera] = []

    def start(factory: Callable[[], Camera], stall_s: float = 0.3) -> ReconnectingCamera:
        camera = ReconnectingCamera(factory, stall_s=stall_s)
        started.append(camera)
        camera.start()
        return camera

    yield start
    for camera in started:
        camera.stop()


# Reconnecting


def test_the_newest_frame_wins_and_the_others_are_counted(keep: Callable[..., ReconnectingCamera]) -> None:
    camera = keep(lambda: Scripted([]))
    first = camera.wait(0, HANG_S)
    assert first is not None
    until(lambda: camera.state().frames >= first[0] + 20)
    taken = camera.wait(first[0], HANG_S)
    assert taken is not None and taken[0] >= first[0] + 20 and taken[1].number == taken[0] - 1
    state = camera.state()
    assert (state.state, state.detail, state.name, state.reopened) == ("live", "", "scripted", 0)
    assert 19 <= state.dropped_frames < state.frames


def test_nothing_new_is_none() -> None:
    camera = ReconnectingCamera(lambda: Scripted([]))
    assert camera.wait(0, 0.01) is None
    assert camera.state() == CameraState("reopening", "not opened yet", "", "camera", 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (CameraError("camera: its cable is off"), "camera: its cable is off"),
        (OSError("no such device"), "scripted: OSError: no such device"),
        (GOOD.astype(np.float32), "returned float32 (48, 64, 3), not an 8-bit RGB image"),
        (GOOD[..., 0], "returned uint8 (48, 64), not"),
        (GOOD[..., [0, 1, 2, 0]], "returned uint8 (48, 64, 4), not"),
        (GOOD[:8], "returned an image of 64x8 pixels"),
        (np.zeros((48, 64, 3), np.uint8), "every pixel is black"),
        (None, "returned NoneType, not"),
    ],
)
def test_a_camera_that_fails_is_said_to_and_opened_anew(
    keep: Callable[..., ReconnectingCamera], act: Any, said: str
) -> None:
    opened: list[Scripted] = []
    details = []

    def factory() -> Scripted:
        details.append(camera.state())
        opened.append(Scripted([GOOD, act] if len(opened) < 3 else []))
        return opened[-1]

    camera = ReconnectingCamera(factory, stall_s=0.3)
    camera = keep(factory)
    until(lambda: len(opened) == 4 and camera.state().state == "live")
    assert [state.state for state in details[1:]] == ["reopening"] * 3
    assert all(said in state.detail for state in details[1:]), details
    assert [each.closed for each in opened] == [True, True, True, False]
    assert camera.state().reopened == 3 and camera.state().hung == 0 and said in camera.state().fault
    before = camera.state().frames
    until(lambda: camera.state().frames > before + 5)


def test_a_camera_that_cant_be_opened_is_tried_again_at_longer_and_longer_intervals(
    keep: Callable[..., ReconnectingCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReconnectingCamera, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(ReconnectingCamera, "LONGEST_WAIT_S", 0.2)
    times: list[float] = []

    def factory() -> Camera:
        times.append(time.monotonic())
        raise CameraError("camera: not there", hint="plug it in")

    camera = keep(factory)
    until(lambda: len(times) == 9)
    waits = np.diff(times)
    assert all(wait >= least for wait, least in zip(waits, (0.05, 0.1, *[0.2] * 6), strict=True)), waits
    assert waits[7] < 0.05 * 2**7, "not twice as long each time"
    assert camera.state().detail == "camera: not there (plug it in)"


def test_a_hanging_read_is_abandoned_and_its_late_frame_is_not_shown(keep: Callable[..., ReconnectingCamera]) -> None:
    release = threading.Event()
    late = np.full((48, 64, 3), 77, np.uint8)
    opened: list[Scripted] = []

    def factory() -> Scripted:
        opened.append(Scripted([GOOD, release, late] if not opened else []))
        return opened[-1]

    camera = keep(factory)
    until(lambda: camera.state().state == "stalled")
    assert "hangs, no frame after 0.3 s" in camera.state().detail
    until(lambda: camera.state().state == "live")
    assert camera.state().hung == 1
    opened[0].acts.insert(0, late)
    release.set()
    until(lambda: camera.state().hung == 0)
    assert opened[0].closed
    sequence = 0
    for _ in range(20):
        taken = camera.wait(sequence, HANG_S)
        assert taken is not None and taken[1].pixels[0, 0, 0] == 200
        sequence = taken[0]


def test_a_hanging_opening_is_abandoned(keep: Callable[..., ReconnectingCamera]) -> None:
    release = threading.Event()
    calls: list[int] = []

    def factory() -> Scripted:
        calls.append(1)
        if len(calls) == 1:
            release.wait(HANG_S)
        return Scripted([])

    camera = keep(factory)
    until(lambda: "hangs, not open after 0.5 s" in camera.state().detail)
    until(lambda: camera.state().state == "live")
    release.set()


def test_a_camera_that_opens_slowly_opens_in_the_end(keep: Callable[..., ReconnectingCamera]) -> None:
    """On a busy machine; each of its openings takes longer than the first limit."""

    def factory() -> Scripted:
        time.sleep(1.2)
        return Scripted([])

    camera = keep(factory)
    until(lambda: "hangs, not open after 0.5 s" in camera.state().detail)
    until(lambda: camera.state().state == "live")


def test_threads_do_not_pile_up_and_it_recovers_when_one_returns(keep: Callable[..., ReconnectingCamera]) -> None:
    release = threading.Event()
    opened: list[Scripted] = []

    def factory() -> Scripted:
        opened.append(Scripted([] if release.is_set() else [release]))
        return opened[-1]

    before = threading.active_count()
    camera = keep(factory)
    until(lambda: camera.state().hung == ReconnectingCamera.MAX_HUNG)
    until(lambda: "unplug it" in camera.state().detail)
    assert len(opened) == ReconnectingCamera.MAX_HUNG
    assert threading.active_count() <= before + 1 + ReconnectingCamera.MAX_HUNG
    assert camera.state().state == "stalled"
    release.set()
    until(lambda: camera.state().state == "live" and camera.state().hung == 0)
    assert len(opened) == ReconnectingCamera.MAX_HUNG + 1, "none was opened before one had come back"
    assert all(each.closed for each in opened[:-1])


def test_stopping_ends_the_threads_and_closes_the_camera(keep: Callable[..., ReconnectingCamera]) -> None:
    before = threading.active_count()
    opened: list[Scripted] = []

    def factory() -> Scripted:
        opened.append(Scripted([]))
        return opened[-1]

    camera = keep(factory)
    until(lambda: camera.state().frames > 3)
    camera.stop()
    assert threading.active_count() == before and [each.closed for each in opened] == [True]


def test_a_hanging_camera_does_not_hold_up_the_end(keep: Callable[..., ReconnectingCamera]) -> None:
    release = threading.Event()
    camera = keep(lambda: Scripted([release]))
    until(lambda: camera.state().state == "stalled")
    camera.stop(timeout_s=0.5)
    assert camera.state().hung == 1, "it still hangs: nobody waited for it"
    release.set()


def test_a_source_without_new_images_stays_live(
    keep: Callable[..., ReconnectingCamera], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, images = [], WatchedFolder._images
    monkeypatch.setattr(WatchedFolder, "_images", lambda self: (listed.append(time.monotonic()), images(self))[1])
    grainy_image(0).save(tmp_path / "a.png")
    camera = keep(lambda: open_camera(str(tmp_path)), stall_s=0.3)
    assert camera.wait(0, HANG_S) is not None
    until(lambda: "no new image" in camera.state().detail)
    first = len(listed)
    until(lambda: len(listed) > first and listed[-1] > listed[first] + 0.5)  # longer than a camera may be silent
    assert camera.state().state == "live" and camera.state().reopened == 0


def test_frames_are_shared_and_so_can_not_be_written_to() -> None:
    checked = check_frame(frame(GOOD[:, ::-1]), "camera")
    assert checked.pixels.flags.c_contiguous and not checked.pixels.flags.writeable
    assert GOOD.flags.writeable


# Sources


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    for source in ("nonsense", "replay:nowhere", str(tmp_path / "missing")):
        with pytest.raises(UsageError, match="no camera, folder or video") as caught:
            open_camera(source)
        assert "simulated" in caught.value.hint


def test_the_simulated_slide_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening that takes too long is abandoned: the next one must find what it has drawn."""
    slide = draw_slide(seed=0, size=(1400, 1000))
    drawn: list[int] = []

    def draw(seed: int) -> Slide:
        drawn.append(seed)
        return slide

    monkeypatch.setattr("edgeall.rig.capture.camera.draw_slide", draw)
    _simulated_slide.cache_clear()
    try:
        cameras = [open_camera("simulated") for _ in range(2)]
        assert drawn == [0] and all(isinstance(each, SimulatedCamera) and each.slide is slide for each in cameras)
    finally:
        _simulated_slide.cache_clear()


def test_the_simulated_slide_is_a_camera() -> None:
    camera = open_camera("simulated")
    assert camera.read(1.0).pixels.shape == (960, 1280, 3)
    camera.close()


def put(folder: Path, name: str, seed: int, at: float, content: bytes | None = None) -> None:
    """Write an image, or ``content``, with a modification time, atomically."""
    if content is None:
        grainy_image(seed).save(folder / ".new", "png")
    else:
        (folder / ".new").write_bytes(content)
    os.utime(folder / ".new", (at, at))
    (folder / ".new").rename(folder / name)


def test_a_watched_folder_gives_the_newest_and_then_each_new_one(tmp_path: Path) -> None:
    now = time.time() - 100
    put(tmp_path, "b.png", 1, now)
    put(tmp_path, "a.png", 2, now + 1)
    (tmp_path / "notes.txt").write_text("no image")
    camera = open_camera(str(tmp_path))
    assert np.array_equal(camera.read(0.1).pixels, np.asarray(grainy_image(2)))
    with pytest.raises(NoFrameError, match="no new image"):
        camera.read(0.05)
    put(tmp_path, "d.png", 4, now + 3)
    put(tmp_path, "c.png", 3, now + 2)
    frames = [camera.read(0.1) for _ in range(2)]
    assert [each.number for each in frames] == [1, 2]
    assert all(np.array_equal(f.pixels, np.asarray(grainy_image(s))) for f, s in zip(frames, (3, 4), strict=True))
    put(tmp_path, "d.png", 5, now + 4)  # overwritten
    assert np.array_equal(camera.read(0.1).pixels, np.asarray(grainy_image(5)))
    put(tmp_path, "e.png", 6, now - 1000)  # copied with its time
    assert camera.read(0.1).source == "e.png"
    with pytest.raises(NoFrameError, match="no new image"):
        camera.read(0.05)


def test_a_file_whose_time_is_set_after_it_was_seen_is_not_new(tmp_path: Path) -> None:
    camera = open_camera(str(tmp_path))
    put(tmp_path, "copy.png", 1, time.time())
    assert camera.read(0.1).source == "copy.png"
    os.utime(tmp_path / "copy.png", (1e9, 1e9))  # as `cp -p` and rsync end
    with pytest.raises(NoFrameError, match="no new image"):
        camera.read(0.05)
    put(tmp_path, "copy.png", 2, 1e9 + 1)
    put(tmp_path, "next.png", 3, 1e9 + 2)
    assert [camera.read(0.1).source for _ in range(2)] == ["copy.png", "next.png"]


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    grainy_image(7).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    camera = open_camera(str(tmp_path))
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NoFrameError):
        camera.read(0.1)
    (tmp_path / "x.png").write_bytes(whole)
    assert np.array_equal(camera.read(1.0).pixels, np.asarray(grainy_image(7)))


def test_a_damaged_file_is_reported_and_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_WRITING_S", 0.2)
    camera = open_camera(str(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    old = time.time() - 60
    os.utime(tmp_path / "bad.png", (old, old))
    with pytest.raises(SkippedFileError, match=r"skipped: .*bad\.png: "):
        camera.read(1.0)
    put(tmp_path, "good.png", 1, old + 1)
    assert camera.read(1.0).pixels.shape == (60, 75, 3)


def test_each_file_waits_until_it_is_taken(
    tmp_path: Path, keep: Callable[..., ReconnectingCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_WRITING_S", 0.2)
    now = time.time() - 100
    put(tmp_path, "first.png", 0, now)
    camera = keep(lambda: open_camera(str(tmp_path)), 1.5)  # a busy machine may delay the reader
    until(lambda: camera.state().frames == 1)
    for number in range(1, 6):
        put(tmp_path, f"{number}.png", number, now + number, b"no image" if number == 3 else None)
    seen, after = [], 0
    while len(seen) < 5:
        after, frame = camera.wait(after, HANG_S) or pytest.fail(f"no more than {seen}")
        time.sleep(0.1 if seen else 1.7)  # once for longer than a camera may be silent
        seen.append(frame.source)
    assert seen == ["first.png", "1.png", "2.png", "4.png", "5.png"]
    state = camera.state()
    assert (state.state, state.frames, state.dropped_frames, state.reopened) == ("live", 5, 0, 0)
    assert "skipped" in state.fault and "3.png" in state.fault


def test_a_folder_that_hangs_gives_each_file_once(
    tmp_path: Path, keep: Callable[..., ReconnectingCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, decode, hung, seen = threading.Event(), files.open_rgb, [], SeenImages()

    def open_rgb(path: Path) -> Any:
        if path.name == "2.png" and not hung:
            hung.append(path)
            release.wait(HANG_S)
        return decode(path)

    monkeypatch.setattr(files, "open_rgb", open_rgb)
    now = time.time() - 100
    put(tmp_path, "0.png", 0, now)
    camera = keep(lambda: open_camera(str(tmp_path), seen=seen))
    until(lambda: camera.state().frames == 1)
    for number in range(1, 5):
        put(tmp_path, f"{number}.png", number, now + number)
    sources, after = [], 0
    while len(sources) < 5:
        after, taken = camera.wait(after, HANG_S) or pytest.fail(f"no more than {sources}")
        sources.append(taken.source)
        if taken.source == "1.png":
            until(lambda: camera.state().state == "stalled")
            release.set()  # the abandoned attempt returns: its frame was never taken
    assert sources == [f"{number}.png" for number in range(5)]
    until(lambda: camera.state().hung == 0)
    assert camera.wait(after, 0.5) is None and camera.state().reopened == 1


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources(camera: Camera) -> list[str]:
    """The names of all files that the camera returns now."""
    found = []
    with suppress(NoFrameError):
        while True:
            found.append(camera.read(0.15).source)
    return found


def kept_of(folder: Path, list_file: Path) -> None:
    """Write the state file of a rig that has read a whole folder when a slide is started."""
    before = SeenImages(None, list_file)
    camera = open_camera(str(folder), seen=before)
    sources(camera)
    before.save()


def test_a_watched_folder_resumes_with_files_that_are_not_in_the_record(tmp_path: Path) -> None:
    """Independent of the clock: a board without a battery starts with an earlier time."""
    folder, list_file, now = tmp_path / "in", tmp_path / "folder.json", int(time.time()) - 100
    folder.mkdir()
    for number in range(2):
        put(folder, f"old{number}.png", number, now + number)
    kept_of(folder, list_file)
    for number in range(4):
        put(folder, f"{number}.png", 10 + number, now + 10 + number)
    held = {f"{number}.png": {digest_of(folder / f"{number}.png")} for number in range(3)}
    put(folder, "back.png", 20, now - 3600)  # written after the power cut
    put(folder, "1.png", 21, (folder / "1.png").stat().st_mtime)  # another one of the same name and time
    (folder / "0.png").unlink()  # moved away after it was read
    seen = SeenImages(held, list_file)
    camera = open_camera(str(folder), seen=seen)
    assert sources(camera) == ["back.png", "1.png", "3.png"]
    assert (seen.before, seen.unknown) == (2, 0)
    assert sources(open_camera(str(folder), seen=seen)) == []  # reopened
    put(folder, "later.png", 22, now - 3000)
    assert sources(camera) == ["later.png"]


def test_files_from_before_the_slide_stay_left_out_after_a_change_of_their_time(tmp_path: Path) -> None:
    folder, list_file = tmp_path / "in", tmp_path / "folder.json"
    folder.mkdir()
    put(folder, "looked-at.png", 1, time.time())
    kept_of(folder, list_file)
    os.utime(folder / "looked-at.png", (1e9, 1e9))  # a share with another clock or time zone
    assert sources(open_camera(str(folder), seen=SeenImages({}, list_file))) == []


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"folder": "/another", "files": []}', b'{"folder": 1'])
def test_without_a_state_file_the_number_of_files_left_out_is_reported(tmp_path: Path, content: bytes | None) -> None:
    folder, list_file = tmp_path / "in", tmp_path / "folder.json"
    folder.mkdir()
    for number in range(3):
        put(folder, f"{number}.png", number, time.time() - 100)
    if content is not None:
        list_file.write_bytes(content)
    seen = SeenImages({"1.png": {digest_of(folder / "1.png")}}, list_file)
    camera = open_camera(str(folder), seen=seen)
    assert sources(camera) == [] and seen.unknown == 2
    put(folder, "3.png", 3, time.time() - 200)
    assert sources(camera) == ["3.png"]


def test_rows_without_a_digest_are_matched_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a.png", 1, time.time())
    put(tmp_path, "b.png", 2, time.time())
    assert sources(open_camera(f"replay:{tmp_path}", rate=100.0, seen=SeenImages({"a.png": {""}}))) == ["b.png"]


def test_files_with_strange_names_and_times_are_seen_once(tmp_path: Path) -> None:
    strange = os.fsdecode(b"\xff.png")
    put(tmp_path, strange, 4, time.time())
    taken = open_camera(str(tmp_path)).read(0.1)
    assert taken.source.encode("utf-8") == b"\\udcff.png"
    kept_of(tmp_path, tmp_path / "folder.json")
    assert sources(open_camera(str(tmp_path), seen=SeenImages({}, tmp_path / "folder.json"))) == []
    held = {taken.source: {taken.digest}}
    assert sources(open_camera(f"replay:{tmp_path}", seen=SeenImages(held))) == []
    os.utime(tmp_path / strange, ns=(0, 2**62))
    assert abs(open_camera(str(tmp_path)).read(0.1).taken.year) > 2000  # whatever the file system says


def test_a_share_that_is_away_for_a_moment_brings_nothing_new(tmp_path: Path) -> None:
    share, away = tmp_path / "share", tmp_path / "away"
    share.mkdir()
    put(share, "0.png", 0, time.time() - 100)
    kept_of(share, tmp_path / "folder.json")
    for number in (1, 2):
        put(share, f"{number}.png", number, time.time() - 100 + number)
    seen = SeenImages({"1.png": {digest_of(share / "1.png")}}, tmp_path / "folder.json")
    share.rename(away)
    share.mkdir()  # where it will be mounted
    camera = open_camera(str(share), seen=seen)
    assert sources(camera) == []
    for expected in (["2.png"], []):
        share.rmdir()
        away.rename(share)
        assert sources(camera) == expected
        share.rename(away)
        share.mkdir()
        assert sources(camera) == []


def test_a_picture_of_nothing_is_passed_over_and_the_next_comes(
    tmp_path: Path, keep: Callable[..., ReconnectingCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReconnectingCamera, "FIRST_WAIT_S", 0.01)
    now = time.time() - 100
    for number in range(4):
        put(tmp_path, f"{number}.png", number, now + number)
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "2.png")
    for number in (1, 2):
        os.utime(tmp_path / f"{number}.png", (now + number, now + number))
    (tmp_path / "folder.json").write_text(json.dumps({"folder": str(tmp_path), "files": []}))
    for source in (str(tmp_path), f"replay:{tmp_path}"):
        beginning = SeenImages({}, tmp_path / "folder.json")
        frames, after = [], 0
        camera = keep(lambda source=source, seen=beginning: open_camera(source, rate=20.0, seen=seen))
        until_s = time.monotonic() + HANG_S
        while len(frames) < 2 and time.monotonic() < until_s:
            taken = camera.wait(after, 0.02)
            if taken:
                after = taken[0]
                frames.append(taken[1].pixels)
        assert [np.array_equal(f, grainy_image(n)) for f, n in zip(frames, (0, 3), strict=True)] == [True, True]
        assert camera.wait(after, 0.4) is None and camera.state().reopened == 0
        assert "skipped" in camera.state().fault and "2.png: returned an image of 20x20" in camera.state().fault
        camera.stop()


def test_thousands_of_files_are_not_listed_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", 1, time.time())
    camera = open_camera(str(tmp_path))
    listings, images = [], WatchedFolder._images

    def slow(self: WatchedFolder) -> Any:
        listings.append(time.monotonic())
        time.sleep(0.02)
        return images(self)

    monkeypatch.setattr(WatchedFolder, "_images", slow)
    monkeypatch.setattr(files, "_LISTING_PAUSE_FACTOR", PAUSE_FACTOR)
    assert sources(camera) == ["a.png"]
    begin = time.monotonic()
    while len(listings) < 4:
        assert time.monotonic() < begin + HANG_S
        sources(camera)
    waits = np.diff(listings)
    assert waits.min() > 0.02 * PAUSE_FACTOR


def test_a_folder_that_disappears_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    camera = open_camera(str(tmp_path / "in"))
    (tmp_path / "in").rmdir()
    with pytest.raises(CameraError, match="cannot be listed"):
        camera.read(0.1)


def test_an_image_sequence_is_replayed_in_order_at_its_rate(tmp_path: Path) -> None:
    for number in range(5):
        grainy_image(number).save(tmp_path / f"{number}.png")
    begin = time.monotonic()
    camera = open_camera(f"replay:{tmp_path}", rate=20.0)
    frames = [camera.read(1.0) for _ in range(5)]
    assert time.monotonic() - begin >= 4 / 20
    assert all(np.array_equal(f.pixels, np.asarray(grainy_image(n))) for n, f in enumerate(frames))
    with pytest.raises(ReplayEndedError, match="ended after 5 images"):
        camera.read(0.01)
    assert [each.source for each in frames] == [f"{number}.png" for number in range(5)]
    assert all(each.waits and each.digest == digest_of(tmp_path / each.source) for each in frames)


def test_a_damaged_image_of_a_sequence_is_passed_over(tmp_path: Path) -> None:
    for number in range(3):
        grainy_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    camera = open_camera(f"replay:{tmp_path}", rate=100.0)
    camera.read(1.0)
    with pytest.raises(NoFrameError, match=r"skipped: .*1\.png"):
        camera.read(1.0)
    assert np.array_equal(camera.read(1.0).pixels, np.asarray(grainy_image(2)))


def video(path: Path, levels: Sequence[int], codec: str = "MJPG") -> Path:
    """One frame for each level of red, 25 a second."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25.0, (64, 48))
    for level in levels:
        writer.write(np.full((48, 64, 3), (level, 90, 30), np.uint8))  # B, G, R
    writer.release()
    return path


def test_a_video_is_replayed_at_its_own_rate(tmp_path: Path) -> None:
    levels = (40, 120, 200) * 5
    source = f"replay:{video(tmp_path / 'v.avi', levels)}"
    begin = time.monotonic()
    camera = open_camera(source)
    frames = [camera.read(1.0) for _ in levels]
    assert time.monotonic() - begin >= 0.4  # 14 periods are 0.56 s
    assert [int(f.pixels[20, 20, 2]) for f in frames] == pytest.approx(levels, abs=8)
    assert all(abs(int(f.pixels[20, 20, 0]) - 30) < 8 for f in frames)
    assert [f.source for f in frames] == [f"v.avi frame {n + 1}" for n in range(15)] and all(f.waits for f in frames)
    assert np.diff([f.clock_s for f in frames]) == pytest.approx(1 / 25)  # however late they were read
    with pytest.raises(ReplayEndedError, match=r"ended after 15 frames$"):
        camera.read(0.01)
    camera.close()


def test_a_video_resumes_where_the_record_ends(tmp_path: Path) -> None:
    levels = tuple(range(30, 230, 20))
    path = video(tmp_path / "v.avi", levels)
    frames = [*map(open_camera(f"replay:{path}", rate=500.0).read, [1.0] * 6)]
    held = {frame.source: {frame.digest} for frame in frames}
    again = open_camera(f"replay:{path}", rate=500.0, seen=SeenImages(held))
    assert again.read(5.0).source == "v.avi frame 7" and len(sources(again)) == 3
    with pytest.raises(ReplayEndedError, match="ended after 4 frames, and 6 that were seen before"):
        again.read(0.01)
    other = open_camera(f"replay:{video(path, levels[::-1])}", rate=500.0, seen=SeenImages(held))
    assert other.read(5.0).source == "v.avi frame 1"  # another video of that name


def test_each_frame_of_a_video_waits_until_it_is_taken(tmp_path: Path, keep: Callable[..., ReconnectingCamera]) -> None:
    path = video(tmp_path / "v.avi", range(30, 230, 20))
    camera = keep(lambda: open_camera(f"replay:{path}", rate=500.0))
    seen, after = [], 0
    while len(seen) < 10:
        after, frame = camera.wait(after, 20.0) or pytest.fail(f"no more than {seen}")
        time.sleep(0.05)
        seen.append(frame.source)
    assert seen == [f"v.avi frame {n + 1}" for n in range(10)] and camera.state().dropped_frames == 0
    until(lambda: camera.state().state == "ended", 20.0)
    assert camera.state().detail.endswith("ended after 10 frames") and camera.state().fault == ""


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_an_invalid_or_incomplete_video_has_a_fitting_hint(tmp_path: Path, kept: float) -> None:
    path = video(tmp_path / "v.mp4", range(30, 230, 4), "mp4v")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))] if kept else b"no video" * 100)
    with pytest.raises(CameraError, match="cannot be opened") as caught:
        open_camera(f"replay:{path}")
    assert "complete" in caught.value.hint and "plugged" not in caught.value.hint


def test_a_video_that_ends_too_early_is_reported(tmp_path: Path) -> None:
    path = video(tmp_path / "v.avi", range(30, 230, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    camera = open_camera(f"replay:{path}", rate=1000.0)
    count = len(sources(camera))
    with pytest.raises(
        ReplayEndedError, match=rf"ended after {count} frames; {50 - count} more .* is the file complete"
    ) as caught:
        camera.read(0.01)
    assert 0 < count < 50, caught.value


def test_a_usb_camera_that_is_not_there_is_an_error() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(CameraError, match="camera 63: cannot be opened") as caught:
        open_camera("63")
    assert "plugged in" in caught.value.hint


@pytest.mark.parametrize(("source", "opened"), [("0", 0), ("/dev/video2", "/dev/video2")])
def test_a_usb_camera_is_asked_for_its_size_and_its_newest_frame(
    monkeypatch: pytest.MonkeyPatch, source: str, opened: object
) -> None:
    """A stand-in with OpenCV's interface: there is no camera on the machine that runs this."""
    settings: dict[str, float] = {}
    pictures = [np.full((48, 64, 3), (1, 2, 3), np.uint8)]

    class VideoCapture:
        def __init__(self, given: object, interface: int) -> None:
            assert (given, interface) == (opened, 200)

        def isOpened(self) -> bool:
            return True

        def set(self, name: str, value: float) -> bool:
            settings[name] = value
            return True

        def read(self) -> tuple[bool, Any]:
            return (True, pictures.pop()) if pictures else (False, None)

        def release(self) -> None:
            settings["released"] = 1

    fake: Any = ModuleType("cv2")
    fake.__dict__.update(VideoCapture=VideoCapture, CAP_V4L2=200, COLOR_BGR2RGB=4, VideoWriter_fourcc=lambda *c: 1)
    fake.__dict__.update({name: name for name in ("CAP_PROP_FOURCC", "CAP_PROP_FRAME_WIDTH", "CAP_PROP_BUFFERSIZE")})
    fake.CAP_PROP_FRAME_HEIGHT = "CAP_PROP_FRAME_HEIGHT"
    fake.cvtColor = lambda pixels, code: pixels[..., ::-1]
    monkeypatch.setitem(sys.modules, "cv2", fake)
    camera = open_camera(source)
    assert settings["CAP_PROP_FRAME_WIDTH"] == 1280 and settings["CAP_PROP_BUFFERSIZE"] == 1
    assert camera.read(1.0).pixels[0, 0].tolist() == [3, 2, 1]
    with pytest.raises(CameraError, match="returns no frame"):
        camera.read(1.0)
    camera.close()
    assert settings["released"] == 1


@pytest.mark.parametrize(
    ("source", "module", "hint"),
    [("0", "cv2", "pip install opencv-python-headless"), ("picamera2", "picamera2", "apt install python3-picamera2")],
)
def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, source: str, module: str, hint: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CameraError) as caught:
        open_camera(source)
    assert hint in caught.value.hint


def fake_picamera2(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Any]:
    """A stand-in with the interface that the Picamera2 manual documents; returns what was called."""
    calls: list[Any] = []

    class Picamera2:
        def create_video_configuration(self, main: dict[str, Any]) -> SimpleNamespace:
            return SimpleNamespace(main=main)

        def configure(self, configuration: SimpleNamespace) -> None:
            calls.append(configuration.main)

        def start(self) -> None:
            calls.append("start")

        def capture_array(self, name: str, wait: bool) -> Any:
            assert name == "main" and not wait
            return "job"

        def wait(self, job: str, timeout: float) -> Any:
            assert job == "job" and timeout > 0
            return GOOD

        def stop(self) -> None:
            calls.append("stop")

        def close(self) -> None:
            calls.append("close")

    for name, value in changes.items():
        setattr(Picamera2, name, value)
    module: Any = ModuleType("picamera2")
    module.Picamera2 = Picamera2
    monkeypatch.setitem(sys.modules, "picamera2", module)
    return calls


def test_a_pi_camera_is_asked_for_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_picamera2(monkeypatch)
    camera = open_camera("picamera2")
    assert camera.read(1.0).number == 0 and camera.read(1.0).number == 1
    camera.close()
    assert calls == [{"size": (1280, 960), "format": "BGR888"}, "start", "stop", "close"]


def fails(error: Exception) -> Callable[..., Any]:
    def method(*arguments: Any, **named: Any) -> Any:
        raise error

    return method


def test_a_pi_camera_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_picamera2(monkeypatch, __init__=fails(IndexError("list index out of range")))
    with pytest.raises(CameraError, match="list index out of range"):
        open_camera("picamera2")
    calls = fake_picamera2(monkeypatch, start=fails(RuntimeError("device is busy")))
    with pytest.raises(CameraError, match="device is busy"):
        open_camera("picamera2")
    assert calls[-1] == "close"
    fake_picamera2(monkeypatch, wait=fails(FutureTimeoutError()))
    with pytest.raises(CameraError, match="returns no frame"):
        open_camera("picamera2").read(0.1)


def test_large_and_small_images_of_a_folder_are_frames(tmp_path: Path) -> None:
    Image.new("L", (3000, 2000), 128).save(tmp_path / "grey.tif")
    assert open_camera(f"replay:{tmp_path}", rate=100.0).read(1.0).pixels.shape == (2000, 3000, 3)
