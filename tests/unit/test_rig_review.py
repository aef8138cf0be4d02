"""The differential, its review by keys, the audit, and two readers."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures_rig import TAKEN, Rig
from PIL import Image
from starlette.testclient import TestClient

from edgeall.rig.record.audit import LEAST, audit_sample
from edgeall.rig.record.chain import RecordError
from edgeall.rig.record.count import differential, readings_on, review_found, reviews_on, take_back_last
from edgeall.rig.record.export import export_training
from edgeall.rig.record.found import Found
from edgeall.rig.record.readings import agreement, kappa
from edgeall.rig.record.rows import FrameRow
from edgeall.rig.record.summary import by_laboratory
from edgeall.rig.snapshot import Settings
from edgeall.rig.web.live_events import LiveEncoder, quality_light
from edgeall.rig.web.review_page import ASIDE_KEYS

MakeRig = Callable[..., Rig]
CELLS = 30


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig(unit="cell")


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    """A browser on the machine itself, with its CSRF token in every request."""
    with TestClient(rig.app, base_url="http://localhost", follow_redirects=False) as client:
        client.get("/login")
        client.headers["x-csrf-token"] = rig.access.csrf(next(iter(client.cookies.values())))
        yield client


@pytest.fixture
def session(rig: Rig) -> int:
    """A slide with thirty cells in one frame: 20 Pre and 10 Early, of which the last three ask for review."""
    session, image = rig.session(), io.BytesIO()
    Image.new("RGB", (64, 64), "purple").save(image, "JPEG")
    cells, row = [], []
    for n in range(1, CELLS + 1):
        label, reason = "Pre" if n <= 20 else "Early", "uncertain" if n > 27 else None
        place = ("cell", n, 1, 1, 10 * n, 20, 8, 8, label, round(0.6 + n / 100, 2), {label: 0.9})
        cells.append((Found(*place, review_reason=reason, frames=3, chances=3, index=n - 1), image.getvalue()))
        row.append({"box": [0, 0, 8, 8], "label": label, "probability": 0.9, "review": n > 27, "cell_id": n})
    frame = FrameRow(TAKEN, 1, "judged", cells=row, field_id=1, patch=1, position=(0, 0), review=True)
    rig.record.add_frame(session, frame, news=[(Found("field", 1, 1, 1, 0, 0, 640, 480), None), *cells])
    return session


def counted(rig: Rig, session: int) -> dict[str, int]:
    return {share.label: share.count for share in differential(rig.record, session).shares if share.count}


def texts(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# The differential


def test_the_last_cell_is_taken_back(rig: Rig, page: TestClient, session: int) -> None:
    assert counted(rig, session) == {"Pre": 20, "Early": 10} and differential(rig.record, session).total == CELLS
    for number in (30, 29):
        assert page.post("/slides/take-back").status_code == 303
        assert differential(rig.record, session).total == number - 1
    assert counted(rig, session) == {"Pre": 20, "Early": 8}
    assert rig.record.summary(session).counts.set_aside == {"taken back": 2}  # type: ignore[union-attr]
    assert "2 taken back" in texts(page.get(f"/slides/{session}").text)
    for _ in range(CELLS - 2):
        take_back_last(rig.record, session, "anna")
    with pytest.raises(RecordError, match="nothing is counted"):
        take_back_last(rig.record, session, "anna")


def test_a_pause_is_shown_and_ends_with_the_slide(rig: Rig, page: TestClient, session: int) -> None:
    assert page.post("/slides/pause").headers["location"] == "/"
    assert rig.station.settings.paused and "Go on" in page.get("/").text
    rig.station.end_session()
    rig.session("next")
    assert not rig.station.settings.paused
    assert [event.detail["paused"] for event in rig.record.events(kind="settings")] == [False, True]


def test_the_live_view_counts_towards_the_target(rig: Rig, page: TestClient, session: int) -> None:
    page.post("/settings", data={"save": "on review", "target": "25", "labels": " Blast \r\nSmudge cell\nBlast"})
    assert rig.station.settings == Settings(False, "on review", 25, False, ("Blast", "Smudge cell"), flat_field=False)
    rig.station.change_settings(rig.station.settings)
    rig.station._publish(None)
    said = json.loads(LiveEncoder(rig.app.state.context.page)(rig.station.live()))["count"]
    assert (said["total"], said["target"], said["paused"]) == (CELLS, 25, False)
    assert [(label, count) for label, count, _ in said["shares"]] == [("Pre", 20), ("Early", 10)]
    assert said["text"] == "1 field, 30 different cells"
    assert "Smudge cell" in page.get(f"/slides/{session}/review").text
    assert page.post("/settings", data={"save": "on review", "labels": "a/b"}).status_code == 400


def test_the_count_by_the_laboratorys_labels(rig: Rig, page: TestClient, session: int) -> None:
    names = "Early = blast\r\nPre=blast\r\n"
    assert page.post("/settings", data={"save": "on review", "names": names}).status_code == 303
    assert rig.station.settings.names == {"Early": "blast", "Pre": "blast"}
    rig.station._publish(None)
    said = json.loads(LiveEncoder(rig.app.state.context.page)(rig.station.live()))["count"]
    assert said["shares"] == [["blast", 30, 1.0]]
    for address in (f"/slides/{session}", f"/slides/{session}/report"):
        shown = texts(page.get(address).text)
        assert "By the laboratory's labels" in shown and "blast 30 100.0 %" in shown and "Pre 20 66.7 %" in shown
    shares = by_laboratory(rig.record.summary(session).cells, {"Pre": "blast"})
    assert [(each.label, each.count, each.by_model) for each in shares] == [("blast", 20, 20), ("Early", 10, 10)]
    for wrong in ("Blast = x", "Pre", "Pre = a/b"):
        assert page.post("/settings", data={"save": "on review", "names": wrong}).status_code == 400
    assert "Pre = blast" in page.get("/settings").text


# Review by keys


def test_a_label_leads_to_the_next_cell_that_asks(rig: Rig, page: TestClient, session: int) -> None:
    first = page.get(f"/slides/{session}/review").text
    assert 'name="at" value="28"' in first and "Review: 3 of 3 asking for review" in texts(first)
    assert all(f'data-key="{key}"' in first for key in ("1", "2", *ASIDE_KEYS.values()))
    picture = re.search(r'src="(/images/[^"]+)"', first)
    assert picture is not None and page.get(picture[1]).status_code == 200
    form = {"at": "28", "queue": "needed", "label": "Early"}
    following = page.post(f"/slides/{session}/review", data=form).headers["location"]
    assert following.endswith("queue=needed&at=29")
    page.post(f"/slides/{session}/review", data=form | {"at": "29", "label": "not a cell"})
    last = page.post(f"/slides/{session}/review", data=form | {"at": "30", "label": "can't tell"}).headers["location"]
    assert last.endswith("queue=needed") and "Nothing is left" in page.get(last).text
    assert counted(rig, session) == {"Pre": 20, "Early": 8} and differential(rig.record, session).total == CELLS - 1
    summary = rig.record.summary(session)
    assert (summary.reviewed, summary.corrected, summary.review_needed) == (3, 2, 0)
    assert page.post(f"/slides/{session}/review", data=form | {"label": "Dog"}).status_code == 400
    assert page.post(f"/slides/{session}/review", data=form | {"at": "99"}).status_code == 404


def test_undo_withdraws_the_last_review(rig: Rig, page: TestClient, session: int, tmp_path: Path) -> None:
    for at in ("28", "29"):
        page.post(f"/slides/{session}/review", data={"at": at, "label": "Pre"})
    assert counted(rig, session) == {"Pre": 22, "Early": 8}
    (frame,) = rig.record.frames(session)
    assert len(frame.reviews) == 2 and frame.cell_labels[28] == "Pre"
    back = page.post(f"/slides/{session}/review/undo", data={"queue": "needed"}).headers["location"]
    assert back.endswith("at=29") and counted(rig, session) == {"Pre": 21, "Early": 9}
    (frame,) = rig.record.frames(session, label="Early")
    assert len(frame.reviews) == 1 and frame.cell_labels[28] == "Early"
    page.post(f"/slides/{session}/review/undo", data={"queue": "needed"})
    assert page.post(f"/slides/{session}/review/undo", data={"queue": "needed"}).status_code == 404
    assert rig.record.frames(session, review="done") == [] and rig.record.summary(session).reviewed == 0


def test_blind_readers_see_no_verdict(rig: Rig, page: TestClient, session: int) -> None:
    found = rig.record.found(session).cells[28]
    review_found(rig.record, found, "Pre", "anna")
    seen, blind = (page.get(f"/slides/{session}/review?at=28{option}").text for option in ("", "&blind=true"))
    assert "by anna" in texts(seen) and 'class="verdict"' in seen and 'class="current"' in seen
    assert "anna" not in blind and 'class="verdict"' not in blind and 'class="current"' not in blind
    assert (
        "blind=true"
        in page.post(f"/slides/{session}/review", data={"at": "28", "label": "Pre", "blind": "true"}).headers[
            "location"
        ]
    )


def test_the_gallery_of_cells_is_sorted_by_confidence(page: TestClient, session: int) -> None:
    def ids(address: str) -> list[int]:
        return [int(each) for each in re.findall(r"at=(\d+)\"", page.get(address).text)]

    assert ids(f"/slides/{session}/cells") == list(range(1, CELLS + 1))
    assert ids(f"/slides/{session}/cells?label=Early&order=most") == list(range(CELLS, 20, -1))


def test_what_is_set_aside_is_no_training_image(rig: Rig, session: int, tmp_path: Path) -> None:
    (frame,) = rig.record.frames(session)
    for cell, label in enumerate(("artefact", "can't tell", "not a cell")):
        rig.record.add_review(frame.id, label, "anna", cell=cell)
    assert export_training(rig.record, tmp_path / "out", session) == {}


# Audit and two readers


def test_the_audit_estimates_the_error_of_confident_verdicts(rig: Rig, page: TestClient, session: int) -> None:
    cells = list(rig.record.found(session).cells.values())
    sample = audit_sample(session, cells)
    assert len(sample) == LEAST and sample == audit_sample(session, cells[::-1])
    assert all(each.review_reason is None for each in sample) and [each.id for each in sample] != sorted(
        each.id for each in sample
    )
    assert "is unknown" in texts(page.get(f"/slides/{session}").text)
    for number, each in enumerate(sample[:10]):
        wrong = "Early" if each.label == "Pre" else "Pre"
        review_found(rig.record, each, wrong if number < 2 else each.label or "", "anna")
    audit = rig.record.summary(session).audit
    assert audit is not None and (audit.confident, audit.sample, audit.reviewed, audit.errors) == (27, 20, 10, 2)
    assert audit.rate == 0.2 and audit.low is not None and audit.low < 0.2
    assert "2 of 10 reviewed verdicts" in texts(page.get(f"/slides/{session}/report").text)


def test_readers_who_disagree_are_adjudicated(rig: Rig, page: TestClient, session: int) -> None:
    cells = rig.record.found(session).cells
    for number in range(1, 11):
        review_found(rig.record, cells[number], "Pre", "anna")
        review_found(rig.record, cells[number], "Early" if number > 7 else "Pre", "viktor")
    summary = rig.record.summary(session)
    assert summary.disagreements == 3 and summary.agreement is not None
    assert (summary.agreement.readers, summary.agreement.common, summary.agreement.agreed) == (
        ("anna", "viktor"),
        10,
        7,
    )
    said = texts(page.get(f"/slides/{session}").text)
    assert "Readers disagree on 3 cells" in said and "kappa: 0.00" in said
    assert "Review: 3 of 3 readers disagree" in texts(page.get(f"/slides/{session}/review?queue=disagreements").text)
    for number in (8, 9, 10):
        page.post(f"/slides/{session}/review", data={"at": str(number), "label": "Pre", "queue": "disagreements"})
    review_found(rig.record, cells[8], "Early", "viktor")  # a later reading does not undo the decision
    assert rig.record.summary(session).disagreements == 0
    assert reviews_on(rig.record, session)["cell", 8].label == "Pre"
    assert agreement(readings_on(rig.record, session)) == summary.agreement


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([("a", "a"), ("b", "b")], 1.0),
        ([("a", "b"), ("b", "a")], -1.0),
        ([("a", "a")] * 3, None),
        ([("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15, 0.4),
    ],
)
def test_kappa(pairs: list[tuple[str, str]], value: float | None) -> None:
    assert kappa(pairs) == (None if value is None else pytest.approx(value))


def test_a_paused_light(rig: Rig, session: int) -> None:
    rig.station.change_settings(Settings(paused=True))
    rig.station._publish(None)
    live = rig.station.live()
    assert live.settings.paused and live.session_id == session and quality_light(live)[0] == "bad"  # no picture yet
