"""The content and actions of the rig's pages. Permissions: test_rig_guard.py; in a browser: tests/browser."""

from __future__ import annotations

import asyncio
import csv
import errno
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from fixtures_rig import TAKEN, Rig
from PIL import Image
from starlette.testclient import TestClient
from venvs import HANG_S

from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.edge_runtime.vision.quality import REASONS
from edgeall.edge_runtime.vision.scale import Scale, given_scale
from edgeall.rig.capture.reconnecting import CameraState
from edgeall.rig.record.chain import RecordError
from edgeall.rig.record.found import Found
from edgeall.rig.record.results import Counts
from edgeall.rig.record.rows import REVIEWS, SPACES, STATUSES, FrameRow
from edgeall.rig.web import display, exports, slides_page
from edgeall.rig.web.broadcast import KEPT, Broadcast
from edgeall.rig.web.live_events import LiveEncoder, quality_light
from edgeall.rig.web.live_page import MAX_VIEWERS

MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    """A browser on the machine itself, with its CSRF token in every request."""
    with TestClient(rig.app, base_url="http://localhost", follow_redirects=False) as client:
        client.get("/login")
        client.headers["x-csrf-token"] = rig.access.csrf(next(iter(client.cookies.values())))
        yield client


@pytest.fixture
def running(rig: Rig, page: TestClient) -> Iterator[TestClient]:
    """The same, with a running station."""
    rig.station.start()
    try:
        live = rig.station.live()
        until = time.monotonic() + HANG_S
        while live.picture is None and time.monotonic() < until:
            live = rig.station.wait(live.number, 1.0)
        yield page
    finally:
        rig.station.stop()


def stamp(rig: Rig, session: int) -> str:
    """The start of a slide in the name of a download."""
    return rig.record.session(session).started[:16].replace("-", "").replace(":", "").replace("T", "-")


def texts(html: str) -> str:
    """The text of a page, without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# A slide


def test_a_slide_begins_and_ends(rig: Rig, page: TestClient) -> None:
    form = {"sample": " S-17 ", "operator": "olga", "stain": "Wright", "magnification": "100x", "notes": "a\nb"}
    assert page.post("/slides", data=form).headers["location"] == "/"
    (session,) = rig.record.sessions()
    assert (session.notes.sample, session.notes.notes, session.ended) == ("S-17", "a\nb", None)
    assert "S-17" in texts(page.get("/").text)
    again = page.post("/slides", data={"sample": "S-18"})
    assert (again.status_code, "a slide is open" in again.text) == (409, True)
    assert page.post("/slides/end").headers["location"] == f"/slides/{session.id}"
    assert rig.record.session(session.id).ended is not None
    assert page.post("/slides/end").status_code == 409


@pytest.mark.parametrize("form", [{}, {"sample": ""}, {"sample": "  "}, {"sample": "x", "notes": "x" * 2001}])
def test_a_slide_needs_a_sample_and_takes_no_novel(rig: Rig, page: TestClient, form: dict[str, str]) -> None:
    answer = page.post("/slides", data=form)
    assert answer.status_code == 400
    assert rig.record.sessions() == []


def test_no_page_asks_for_a_patient(rig: Rig, page: TestClient) -> None:
    live = page.get("/").text
    assert not re.search(r'name="[^"]*(patient|birth|sex)', live)
    assert "Do not enter a patient" in live


# Capture and live view


def test_a_capture_needs_a_slide_and_a_picture(rig: Rig, page: TestClient) -> None:
    assert "requires an open session" in page.post("/capture").text
    rig.session()
    answer = page.post("/capture")
    assert (answer.status_code, "no picture of this slide" in answer.text) == (409, True)


def test_live_picture_and_capture(rig: Rig, running: TestClient) -> None:
    session = rig.session()
    until_s = time.monotonic() + HANG_S
    while rig.station.live().picture is None or rig.station.live().session_id != session:  # none of before the slide
        assert time.monotonic() < until_s
        rig.station.wait(rig.station.live().number, 0.5)
    answer = running.get("/live/0.jpg")
    assert Image.open(io.BytesIO(answer.content)).size == rig.station.live().size
    captured = running.post("/capture").json()["frame"]
    frame = rig.record.frame(captured)
    assert (frame.session, frame.row.trigger, frame.row.by) == (session, "capture", "local")
    assert frame.image is not None
    picture = running.get(f"/images/{frame.image}.jpg")
    assert Image.open(io.BytesIO(picture.content)).size == rig.station.live().size
    assert "immutable" in picture.headers["cache-control"]


def test_before_the_first_picture(rig: Rig, page: TestClient) -> None:
    assert page.get("/live/0.jpg").status_code == 404
    assert quality_light(rig.station.live())[0] == "bad"


def live(rig: Rig, **changes: Any) -> Any:
    now = rig.station.live()
    camera = CameraState("live", "", "", "camera", 0, 0, 0, 0)
    quality = SimpleNamespace(focus=0.5, reasons=(), ok=True)
    values = {
        **vars(now),
        "review": now.review,
        "camera": camera,
        "quality": quality,
        "status": "judged",
        "size": (64, 48),
        **changes,
    }
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("changes", "level", "title"),
    [
        ({}, "good", "Good field"),
        ({"status": "refused"}, "warn", "Out of focus, Moving"),
        ({"status": "unjudged"}, "warn", "Not judged"),
        ({"status": "waiting"}, "bad", "No picture yet"),
        ({"status": "waiting", "session_id": 2}, "bad", "No picture yet"),
        ({"camera": CameraState("stalled", "hangs", "hangs", "x", 0, 0, 0, 0)}, "bad", "No picture"),
        ({"camera": CameraState("ended", "ended", "", "x", 0, 0, 0, 0), "picture": None}, "warn", "Replay ended"),
        ({"camera": CameraState("ended", "ended", "", "x", 0, 0, 0, 0), "waits": True}, "warn", "Replay waiting"),
        ({"asked_session_id": 2}, "warn", "Continue or new slide?"),
    ],
)
def test_the_quality_light(rig: Rig, changes: dict[str, Any], level: str, title: str) -> None:
    quality = SimpleNamespace(focus=0.2, reasons=("blurred", "moving"), ok=False)
    said = quality_light(live(rig, **({"quality": quality} if changes.get("status") == "refused" else {}), **changes))
    assert said[:2] == (level, title)
    if title.startswith("Out"):
        assert said[2] == "turn the fine focus; let the stage rest"


def test_what_is_told_of_a_frame_that_was_not_judged_names_no_label(rig: Rig) -> None:
    page: Any = SimpleNamespace(labels=("Benign", "Pre"), record=rig.record, unit="field")
    judged = {"label": "Pre", "probability": 0.9, "probabilities": {"Benign": 0.1, "Pre": 0.9}}
    judged |= {"review": True, "review_reason": "unfamiliar"}
    said = json.loads(LiveEncoder(page)(live(rig, **judged)))
    assert (said["label"], said["probability"]) == ("Pre", "90.0 %")
    assert said["review"] == "needs review: out of distribution"
    assert said["bars"] == {"Benign": [0.1, "10.0 %"], "Pre": [0.9, "90.0 %"]}
    said = json.loads(LiveEncoder(page)(live(rig, **judged, status="refused")))
    assert (said["label"], said["probability"], said["review"], said["cells"]) == ("", "", "", [])


def test_one_blast_among_benign_cells_is_not_hidden_by_them(rig: Rig) -> None:
    page: Any = SimpleNamespace(labels=("Benign", "Early", "Pre"), record=rig.record, unit="cell")
    cells = [
        SimpleNamespace(box=(n, 2, n + 3, 4), label=label, probability=0.9, review=label == "Pre")
        for n, label in enumerate(("Benign", "Pre", "Benign"))
    ]
    said = json.loads(LiveEncoder(page)(live(rig, cells=cells)))
    assert (said["label"], said["probability"]) == ("2 Benign, 1 Pre", "")
    assert said["bars"] == {"Benign": [2 / 3, "2 of 3"], "Early": [0, ""], "Pre": [1 / 3, "1 of 3"]}
    assert said["cells"][1] == {"box": [1, 2, 4, 4], "label": "Pre", "review": True}
    assert json.loads(LiveEncoder(page)(live(rig, cells=())))["label"] == "no cells"
    said = json.loads(LiveEncoder(page)(live(rig, cells=cells, status="refused")))
    assert (said["label"], said["cells"]) == ("", [])


def test_a_measured_scale_has_its_confidence(rig: Rig) -> None:
    encode = LiveEncoder(SimpleNamespace(labels=("Pre",), record=rig.record, unit="field"))  # type: ignore[arg-type]
    measured = live(rig, scale=Scale(73.2, "image", 0.82, (70.0, 75.0)))
    assert "red cell 73 px (measured, confidence 82 %)" in json.loads(encode(measured))["camera"]
    remembered = live(rig, scale=given_scale(73.2, "remembered"))
    assert "red cell 73 px (as before)" in json.loads(encode(remembered))["camera"]


def test_the_slide_in_the_live_view_is_counted(rig: Rig) -> None:
    session = rig.session("S-9")
    rig.frame(session)
    encode = LiveEncoder(SimpleNamespace(labels=("Pre",), record=rig.record, unit="field"))  # type: ignore[arg-type]
    said = json.loads(encode(live(rig, session_id=session)))
    assert said["session"] == {"id": session, "sample": "S-9", "frames": 1}
    assert json.loads(encode(live(rig, session_id=None)))["session"] is None


def test_the_live_view_outlives_a_record_that_can_not_be_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise RecordError("the disk is gone")

    monkeypatch.setattr(rig.record, "session", fail)
    encode = LiveEncoder(SimpleNamespace(labels=("Pre",), record=rig.record, unit="field"))  # type: ignore[arg-type]
    said = json.loads(encode(live(rig, session_id=1, problems=("the disk is gone",))))
    assert (said["session"], said["problems"]) == (None, ["the disk is gone"])


def test_too_many_viewers_are_sent_away(rig: Rig, page: TestClient) -> None:
    rig.broadcast.viewers = MAX_VIEWERS
    try:
        assert page.get("/events").status_code == 429
    finally:
        rig.broadcast.viewers = 0


# Broadcast


def test_all_viewers_hear_of_one_snapshot_that_was_made_once() -> None:
    made: list[int] = []
    numbers = iter(range(1, 1000))

    def wait(after: int, timeout_s: float) -> Any:
        time.sleep(0.01)
        return SimpleNamespace(number=next(numbers))

    async def watch() -> list[list[str]]:
        broadcast: Broadcast[Any] = Broadcast(wait, lambda live, _: made.append(live.number) or str(live.number))
        broadcast.start()

        async def viewer() -> list[str]:
            seen, heard = broadcast.enter(), []
            while len(heard) < 3:
                seen, message = await broadcast.newer(seen, 5.0)
                heard.append(message)
            broadcast.leave()
            return heard

        heard = await asyncio.gather(*(viewer() for _ in range(5)))
        assert len(broadcast._kept) <= KEPT
        assert broadcast.snapshot(3).number == 3
        assert broadcast.snapshot(-5).number == made[-1]
        assert broadcast.enter() >= 3  # a later viewer does not get earlier messages again
        broadcast.close()
        await asyncio.to_thread(broadcast.join)
        assert await asyncio.wait_for(broadcast.newer(99, 60), 1) is not None
        return heard

    heard = asyncio.run(watch())
    assert all(each == ["1", "2", "3"] for each in heard)
    assert len(made) < 8


def test_nothing_is_made_while_nobody_looks() -> None:
    asked, resting = threading.Event(), threading.Event()

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            resting.set()
            return super().wait(timeout)

    async def idle() -> None:
        broadcast: Broadcast[Any] = Broadcast(lambda after, timeout_s: asked.set(), str)
        broadcast._watched = Watched()
        broadcast.start()
        assert await asyncio.to_thread(resting.wait, HANG_S), "its thread waits for a viewer"
        broadcast.close()
        await asyncio.to_thread(broadcast.join)

    asyncio.run(idle())
    assert not asked.is_set()


# Gallery, frames, review


def test_the_gallery_filters(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    pre = rig.frame(session, 1)
    early = rig.frame(session, 2, label="Early", review=True)
    refused = rig.frame(session, 3, status="refused", label=None, reasons=("blurred",))

    def shown(query: str) -> set[int]:
        return {int(found) for found in re.findall(r'href="/frames/(\d+)"', page.get(f"/gallery{query}").text)}

    assert shown("") == {pre, early, refused}
    assert shown(f"?session={session}&label=Early") == {early}
    assert shown("?status=refused&label=&review=") == {refused}
    assert shown("?review=needed") == {early}
    bare = rig.record.add_frame(session, FrameRow(taken=TAKEN, number=4, status="refused", reasons=("dark",)))
    assert bare not in shown("") and bare in shown("?images=all")
    assert shown(f"?before={refused}") == {pre, early}
    assert "Out of focus" in page.get("/gallery").text
    assert page.get("/gallery?session=999").status_code == 404
    for wrong in ("?status=x", "?session=0", "?session=x", f"?session={2**70}", "?before=-1", "?label=" + "x" * 101):
        assert page.get(f"/gallery{wrong}").status_code == 400, wrong


def test_the_gallery_in_pages(rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slides_page, "PER_PAGE", 2)
    session = rig.session()
    frames = [rig.frame(session, seed) for seed in range(5)]
    address, seen = "/gallery?label=Pre", []
    while address:
        html = page.get(address).text
        seen.append([int(found) for found in re.findall(r'href="/frames/(\d+)"', html)])
        more = re.search(r'rel="next" href="([^"]+)"', html)
        address = more.group(1).replace("&amp;", "&") if more else ""
    assert seen == [frames[:2:-1], frames[2:0:-1], frames[:1]]


def test_a_review_confirms_or_corrects(rig: Rig, page: TestClient) -> None:
    frame = rig.frame(rig.session(), review=True)
    html = page.get(f"/frames/{frame}").text
    assert re.findall(r'value="(\w+)" data-key="(\d)"', html) == [
        ("Benign", "1"),
        ("Early", "2"),
        ("Pre", "3"),
        ("Pro", "4"),
    ]
    assert "needs review" in texts(html)
    answer = page.post(f"/frames/{frame}/review", data={"label": "Early", "note": " lobed "})
    assert answer.headers["location"] == f"/frames/{frame}"
    (review,) = rig.record.frame(frame).reviews
    assert (review.label, review.by, review.note, review.cell) == ("Early", "local", "lobed", None)
    assert "corrected" in texts(page.get(f"/frames/{frame}").text)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"label": ""},
        {"label": "Nonsense"},
        {"label": "../x"},
        {"label": "Pre", "cell": "-1"},
        {"label": "Pre", "cell": "7"},
    ],
)
def test_an_invalid_review_is_refused(rig: Rig, page: TestClient, form: dict[str, str]) -> None:
    frame = rig.frame(rig.session())
    assert page.post(f"/frames/{frame}/review", data=form).status_code == 400
    assert page.post("/frames/9999/review", data={"label": "Pre"}).status_code in (404, 409)
    assert rig.record.frame(frame).reviews == ()


def test_cells_are_reviewed_one_by_one(rig: Rig, page: TestClient) -> None:
    cells = [
        {"box": [10, 10, 90, 90], "label": "Pre", "probability": 0.9, "review": False},
        {"box": [100, 100, 200, 180], "label": "Pre", "probability": 0.5, "review": True},
        {"box": [560, 400, 640, 480], "label": "Pre", "probability": 0.4, "review": True},
    ]
    frame = rig.frame(rig.session(), cells=cells)

    def chosen(address: str) -> list[str]:
        return re.findall(r'name="cell" value="(\d)"[^>]* checked', page.get(address).text)

    assert chosen(f"/frames/{frame}") == ["1"]
    assert page.post(f"/frames/{frame}/review", data={"label": "Pro"}).status_code == 400
    answer = page.post(f"/frames/{frame}/review", data={"label": "Pro", "cell": "1"})
    assert answer.headers["location"] == f"/frames/{frame}?cell=2"
    assert chosen(answer.headers["location"]) == ["2"]
    assert [(each.cell, each.label) for each in rig.record.frame(frame).reviews] == [(1, "Pro")]
    last = page.post(f"/frames/{frame}/review", data={"label": "Pro", "cell": "2"})
    assert last.headers["location"] == f"/frames/{frame}"
    for index in range(3):
        picture = page.get(f"/frames/{frame}/cells/{index}.jpg")
        assert max(Image.open(io.BytesIO(picture.content)).size) <= 160
    assert page.get(f"/frames/{frame}/cells/3.jpg").status_code == 404


def test_a_field_without_cells_can_not_be_one_of_a_model_of_cells(make_rig: MakeRig) -> None:
    for unit, offered, status in (("cell", False, 400), ("field", True, 303)):
        rig = make_rig(unit=unit)
        page = TestClient(rig.app, base_url="http://localhost", follow_redirects=False)
        frame = rig.frame(rig.session(), status="refused", label=None, reasons=("blurred",))
        assert ('id="review"' in page.get(f"/frames/{frame}").text) is offered
        headers = {"x-csrf-token": rig.access.csrf(page.cookies["edgeall"])}
        assert page.post(f"/frames/{frame}/review", data={"label": "Pre"}, headers=headers).status_code == status


def test_a_frame_leads_on(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    first, second = rig.frame(session, 1, review=True), rig.frame(session, 2)
    html = page.get(f"/frames/{second}").text
    assert f'id="older" href="/frames/{first}"' in html and f'id="needed" href="/frames/{first}"' in html
    assert 'id="older"' not in page.get(f"/frames/{first}").text
    assert 'id="needed"' not in page.get(f"/frames/{first}").text


def test_the_link_to_the_next_review_cycles_through_the_frames_with_an_image(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    asking = [rig.frame(session, number, review=True) for number in range(4)]
    rig.record.add_frame(session, FrameRow(taken=TAKEN, number=9, status="judged", label="Pre", review=True))

    def following(frame: int) -> int:
        found = re.search(r'id="needed" href="/frames/(\d+)"', page.get(f"/frames/{frame}").text)
        assert found
        return int(found.group(1))

    assert [following(frame) for frame in asking] == [asking[3], asking[0], asking[1], asking[2]]


def test_enter_in_the_note_presses_no_label(rig: Rig, page: TestClient) -> None:
    html = page.get(f"/frames/{rig.frame(rig.session())}").text
    form = html[html.index('id="review"') :]
    assert form.index('<button type="submit" disabled hidden>') < form.index('name="label"')


def test_what_is_named_by_a_number_is_asked_for_again(rig: Rig, page: TestClient) -> None:
    """Another record at the same address uses the same frame numbers."""
    cells = [{"box": (10, 20, 60, 50), "label": "Pre", "probability": 0.9}]
    frame = rig.frame(rig.session(), cells=cells)
    digest = rig.record.frame(frame).image
    for address, lasts in ((f"/images/{digest}.jpg", True), (f"/frames/{frame}/cells/0.jpg", False)):
        assert ("immutable" in page.get(address).headers["cache-control"]) is lasts


def test_images_that_are_removed_or_damaged(rig: Rig, page: TestClient) -> None:
    cells = [{"box": (10, 20, 60, 50), "label": "Pre", "probability": 0.9}]
    session = rig.session()
    frames = [rig.frame(session, seed, cells=cells) for seed in range(3)]
    paths = [rig.record.image_path(str(rig.record.frame(frame).image)) for frame in frames]
    for frame in frames:
        rig.record.add_review(frame, "Early", "olga", cell=0)
    assert paths[0] and paths[1]
    paths[0].unlink()
    paths[1].write_bytes(b"no image")
    shown = page.get(f"/frames/{frames[0]}").text
    assert "The image was removed." in shown and 'id="picture"' not in shown
    assert page.get("/gallery").text.count('<span class="none">no image') == 1
    assert page.get(f"/frames/{frames[1]}/cells/0.jpg").status_code == 404
    names = zipfile.ZipFile(io.BytesIO(page.get("/training.zip").content)).namelist()
    assert [name for name in names if name.endswith(".png")] == [f"Early/{rig.record.frame(frames[2]).image}-0.png"]


def test_lines_of_notes_count_as_browsers_count_them(rig: Rig, page: TestClient) -> None:
    notes = "\r\n".join(["x" * 99] * 20)  # 1999 characters if a line break counts as one
    assert page.post("/slides", data={"sample": "S", "notes": notes}).status_code == 303
    assert rig.record.sessions()[0].notes.notes == notes.replace("\r\n", "\n")


def test_what_people_typed_is_shown_as_text(rig: Rig, page: TestClient) -> None:
    session = rig.session("<script>alert(1)</script>")
    frame = rig.frame(session)
    rig.record.add_review(frame, "Pre", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}")
    for address in ("/", "/slides", f"/slides/{session}", f"/slides/{session}/report", "/gallery", f"/frames/{frame}"):
        html = page.get(address).text
        assert "<script>alert" not in html and "<img src=x" not in html, address
    assert "{{ 7 * 7 }}" in page.get(f"/frames/{frame}").text


def test_pictures_are_made_once_and_named_by_digest_alone(rig: Rig, page: TestClient) -> None:
    frame = rig.record.frame(rig.frame(rig.session()))
    first, second = (page.get(f"/images/{frame.image}/thumbnail.jpg") for _ in range(2))
    assert Image.open(io.BytesIO(first.content)).size == (320, 240)
    assert first.content == second.content
    assert page.get(f"/images/{'0' * 64}.jpg").status_code == 404
    for wrong in ("x", "..%2f..%2fpage.pem", "A" * 64, "0" * 63, "%00" * 64):
        assert page.get(f"/images/{wrong}.jpg").status_code in (400, 404), wrong


# The map of what a label stands on


def test_without_a_map_nothing_offers_one(rig: Rig, page: TestClient) -> None:
    frame = rig.frame(rig.session())
    assert 'id="explain"' not in page.get(f"/frames/{frame}").text
    assert page.get(f"/frames/{frame}/map.png").status_code == 404


def test_a_model_with_a_map_is_asked_for_it(make_rig: MakeRig) -> None:
    asked: list[Any] = []
    rig = make_rig(explain=lambda image, box: asked.append((image.size, box)) or b"a png")
    session = rig.session()
    frame = rig.frame(session)
    page = TestClient(rig.app, base_url="http://localhost")
    assert f'data-map="/frames/{frame}/map.png"' in page.get(f"/frames/{frame}").text
    assert page.get(f"/frames/{frame}/map.png").content == b"a png"
    assert asked == [((640, 480), None)]
    assert page.get(f"/frames/{frame}/cells/0/map.png").status_code == 404
    refused = rig.frame(session, status="refused", label=None, probability=None)
    assert 'id="explain"' not in page.get(f"/frames/{refused}").text
    assert page.get(f"/frames/{refused}/map.png").status_code == 404


def test_a_model_of_cells_is_asked_for_the_cell(make_rig: MakeRig) -> None:
    asked: list[Any] = []
    rig = make_rig(explain=lambda image, box: asked.append((image.size, box)) or b"a png", unit="cell")
    cells = [{"box": box, "label": "Pre", "probability": 0.9} for box in ((10, 20, 60, 50), (0, 0, 30, 44))]
    frame = rig.frame(rig.session(), cells=cells)
    page = TestClient(rig.app, base_url="http://localhost")
    assert f'checked data-map="/frames/{frame}/cells/1/map.png"' in page.get(f"/frames/{frame}?cell=1").text
    assert page.get(f"/frames/{frame}/cells/1/map.png").content == b"a png"
    assert page.get(f"/frames/{frame}/cells/0/map.png").content == b"a png"
    assert asked == [((640, 480), [0, 0, 30, 44]), ((640, 480), [10, 20, 60, 50])]
    for missing in ("map.png", "cells/2/map.png"):
        assert page.get(f"/frames/{frame}/{missing}").status_code == 404


def test_another_models_label_is_not_explained(make_rig: MakeRig) -> None:
    rig = make_rig(explain=lambda image, box: b"a png", model_sha256="1" * 64)
    frame = rig.frame(rig.session())
    page = TestClient(rig.app, base_url="http://localhost")
    assert 'id="explain"' not in page.get(f"/frames/{frame}").text


# Summary, report, exports


def test_the_summary_and_the_report(rig: Rig, page: TestClient) -> None:
    session = rig.session("S-5")
    for seed in range(8):
        rig.frame(session, seed)
    for seed in range(2):
        rig.frame(session, 10 + seed, label="Early", review=True)
    rig.frame(session, 20, status="refused", label=None, reasons=("blurred", "dark"))
    for address in (f"/slides/{session}", f"/slides/{session}/report"):
        said = texts(page.get(address).text)
        assert "80.0 %" in said and "49.0 % to 94.3 %" in said  # Wilson's interval of 8 in 10
        assert "1 Out of focus" in said and "1 Too dark" in said
        assert "S-5" in said and "Wright" in said
    report = page.get(f"/slides/{session}/report").text
    assert len(re.findall('class="tile"', report)) == 10
    assert rig.record.head() in report
    assert texts(report).count("Research use only, not a diagnosis") >= 2


def test_an_empty_slide_has_a_summary_too(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    for address in (f"/slides/{session}", f"/slides/{session}/report"):
        assert "Nothing was judged yet." in page.get(address).text
    assert page.get("/slides/999").status_code == 404
    assert page.get(f"/slides/{2**65}").status_code == 400


def test_the_table(rig: Rig, page: TestClient) -> None:
    session = rig.session("../../S-5")
    frame = rig.frame(session)
    answer = page.get(f"/slides/{session}/frames.csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="S-5-{stamp(rig, session)}.csv"'
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["frame"], row["label"], row["use"]) == (str(frame), "Pre", RESEARCH_USE)


def test_the_table_of_cells(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    assert "cells.csv" not in page.get(f"/slides/{session}").text
    rig.frame(session, label=None, cells=[{"box": (10, 20, 60, 50), "label": "Pre", "probability": 0.9}])
    assert f'href="/slides/{session}/cells.csv"' in page.get(f"/slides/{session}").text
    answer = page.get(f"/slides/{session}/cells.csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="S-1-{stamp(rig, session)}-cells.csv"'
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["cell"], row["label"], row["probability"], row["right"]) == ("1", "Pre", "0.9", "60")


def test_an_export_leaves_nothing_behind_whatever_part_is_asked_for(
    rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    session = rig.session()
    rig.frame(session)
    (tmp_path / "own").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "own"))
    for part in ("bytes=99999999-", "bytes=0-9", "nonsense"):
        assert page.get(f"/slides/{session}/frames.csv", headers={"range": part}).status_code == 200
    assert list((tmp_path / "own").iterdir()) == []


def test_the_training_folder(rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    session = rig.session()
    assert page.get(f"/slides/{session}/training.zip").status_code == 404
    frame = rig.frame(session)
    rig.record.add_review(frame, "Early", "olga")
    for address in (f"/slides/{session}/training.zip", "/training.zip"):
        archive = zipfile.ZipFile(io.BytesIO(page.get(address).content))
        assert sorted(archive.namelist()) == ["Early/", f"Early/{rig.record.frame(frame).image}.jpg", "README.txt"]
        assert RESEARCH_USE in archive.read("README.txt").decode()
    assert set(tmp_path.iterdir()) == before  # the exports leave no files


def test_a_full_temporary_folder_is_named(rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    session = rig.session()
    rig.frame(session)

    def full(**_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/edgeall-export-x")

    monkeypatch.setattr(exports.tempfile, "mkdtemp", full)
    answer = page.get(f"/slides/{session}/frames.csv")
    assert answer.status_code == 500 and "/tmp/edgeall-export-x: No space left on device" in answer.text
    monkeypatch.undo()
    assert page.get(f"/slides/{session}/frames.csv").status_code == 200  # the next export works


def test_one_export_at_a_time(rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    session = rig.session()
    rig.frame(session)
    going, go = threading.Event(), threading.Event()
    export = exports.export_csv

    def slow(*arguments: Any) -> int:
        going.set()
        assert go.wait(10)
        return export(*arguments)

    monkeypatch.setattr(exports, "export_csv", slow)
    other = TestClient(rig.app, base_url="http://localhost")
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(other.get(f"/slides/{session}/frames.csv").status_code))
    thread.start()
    assert going.wait(10)
    assert page.get(f"/slides/{session}/frames.csv").status_code == 429
    go.set()
    thread.join(10)
    assert statuses == [200]


# Settings, health, words


def test_settings(rig: Rig, page: TestClient) -> None:
    assert page.post("/settings", data={"save": "on capture"}).headers["location"] == "/settings?saved=true"
    assert (rig.station.settings.judge, rig.station.settings.save) == (False, "on capture")
    page.post("/settings", data={"save": "every frame", "judge": "true"})
    assert (rig.station.settings.judge, rig.station.settings.save) == (True, "every frame")
    assert [event.kind for event in rig.record.events()] == ["settings", "settings"]
    assert page.post("/settings", data={"save": "never"}).status_code == 400
    assert "Saved and recorded" in page.get("/settings?saved=true").text


def test_health(rig: Rig, page: TestClient) -> None:
    rig.record.add_event("camera", {"reopened": 3})
    said = texts(page.get("/health").text)
    for what in ("Free disk", "Temperature", "Throttled", "Dropped", "camera", "reopened: 3", "0" * 64):
        assert what in said, what


def test_an_error_of_ours_is_a_page(rig: Rig, page: TestClient) -> None:
    answer = page.get("/frames/77")
    assert answer.status_code == 404
    assert "no frame 77" in answer.text and "Go back" in answer.text


def test_there_are_words_for_everything_that_is_reported() -> None:
    assert set(display.REASONS) == set(REASONS)
    assert set(display.STATUSES) == set(STATUSES)
    assert set(display.REVIEWS) == set(REVIEWS)
    assert set(display.SPACE) == set(SPACES)
    assert (display.reason("new one"), display.advice("new one")) == ("New one", "")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345_678, "12 MB"),
        (1e9, "1.0 GB"),
        (3e13, "30.0 TB"),
    ],
)
def test_sizes(count: float | None, said: str) -> None:
    assert display.size(count) == said


def test_missing_values_are_shown_as_a_dash() -> None:
    assert (display.percent(None), display.moment(None)) == ("-", "-")
    assert display.moment("2026-11-21T10:00:00.123456Z") == "2026-11-21 10:00:00"


# What is counted once


def counted(rig: Rig) -> int:
    """A slide with two fields in two patches and three cells, in ten frames."""
    session, image = rig.session("S-map"), io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(image, "JPEG")
    picture = image.getvalue()
    said = {"label": "Pre", "probability": 0.9, "probabilities": {"Pre": 0.9, "Early": 0.1}}
    cells = [Found("cell", n, 1, 1, 100 * n, 200, 50, 60, **{**said, "index": n - 1}) for n in (1, 2)]
    cells.append(Found("cell", 3, 2, 2, 300, 200, 50, 60, **{**said, "label": "Early", "review_reason": "uncertain"}))
    fields = [Found("field", n, n, n, 0, 0, 640, 480) for n in (1, 2)]
    row = [{"box": [0, 0, 50, 60], "label": "Pre", "probability": 0.9, "review": False, "cell_id": n} for n in (1, 2)]
    for number in range(10):
        news = [(each, picture) for each in (*fields, *cells)] if number == 0 else []
        frame = FrameRow(TAKEN, number, "judged", cells=row, field_id=1, patch=1, position=(0, 0))
        rig.record.add_frame(session, frame, news=news)
    return session


def test_the_map_shows_fields_and_cells(make_rig: MakeRig) -> None:
    rig = make_rig(unit="cell")
    session, page = counted(rig), TestClient(rig.app, base_url="http://localhost")
    answer = page.get(f"/slides/{session}/map")
    said = texts(answer.text)
    assert "Patch 1: 1 field, 2 cells" in said and "Patch 2: 1 field, 1 cell" in said and "2 Pre" in said
    pictures = re.findall(r'href="(/images/[^"]+)"', answer.text)
    assert len(pictures) == 2 and page.get(pictures[0]).status_code == 200
    links = re.findall(r'href="(/frames/[^"]+)" aria-label="Cell', answer.text)
    assert len(links) == 3 and links[0].endswith("?cell=0") and page.get(links[0]).status_code == 200
    rig.record.prune_images(datetime.now(timezone.utc) + timedelta(days=1))
    assert "/images/" not in page.get(f"/slides/{session}/map").text


def test_the_summary_is_over_different_cells(make_rig: MakeRig) -> None:
    rig = make_rig(unit="cell")
    session, page = counted(rig), TestClient(rig.app, base_url="http://localhost")
    for address in (f"/slides/{session}", f"/slides/{session}/report"):
        said = texts(page.get(address).text)
        assert "2 fields, 3 different cells, 2 patches" in said and "66.7 %" in said and "1 need review" not in said
    assert "counts once" in said and "older version" not in said
    assert f"/slides/{session}/map" in page.get(f"/slides/{session}").text
    lines = page.get(f"/slides/{session}/counted.csv").text.splitlines()
    assert len(lines) == 6


def test_a_slide_of_an_older_version_says_how_it_was_counted(rig: Rig, page: TestClient) -> None:
    session = rig.session()
    rig.frame(session)
    assert "shares of time" in texts(page.get(f"/slides/{session}").text)
    assert "kept no map" in texts(page.get(f"/slides/{session}/map").text)


@pytest.mark.parametrize(
    ("counts", "unit", "said"),
    [
        (Counts(12, 37, 2), "cell", "12 fields, 37 different cells, 2 patches"),
        (Counts(1, 1, 1), "cell", "1 field, 1 different cell"),
        (Counts(3, 0, 1), "field", "3 different fields"),
    ],
)
def test_words_of_a_tally(counts: Counts, unit: str, said: str) -> None:
    assert display.tally(counts, unit) == said
