"""The rig learns from reviews: what it learns from, what it offers, how it switches, and what a restart finds."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from drawn_sites import LABELS
from fixtures_packed import other_units, repack
from fixtures_rig import Rig
from fixtures_web import litertjs_package  # noqa: F401 fixtures
from reviewed_slide import CELLS, reviewed_slide
from starlette.testclient import TestClient
from venvs import HANG_S

from edgeall.browser.runtime import runtime_files
from edgeall.edge_runtime.errors import DataError
from edgeall.rig.learning.examples import DISAGREE, NO_IMAGE, OTHER_LABEL, read_examples
from edgeall.rig.learning.lessons import FAILED, NOT_BETTER, OFFERED, Lessons
from edgeall.rig.learning.model import ADAPTED, EVENT, GIVEN, InUse, model_in_use, open_model
from edgeall.rig.record.backup import back_up, restore
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Event
from edgeall.rig.serve import DEMO_MODEL
from edgeall.rig.snapshot import StationError


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig(unit="cell")


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    with TestClient(rig.app, base_url="http://localhost") as client:
        client.get("/login")
        client.headers["x-csrf-token"] = rig.access.csrf(next(iter(client.cookies.values())))
        yield client


def switches(rig: Rig) -> list[Event]:
    return rig.record.events(9, kind=EVENT)


def learn(lessons: Lessons, *sessions: int) -> None:
    lessons.start(sessions, "olga").join(HANG_S)


def test_labels_of_people_alone_are_examples(rig: Rig) -> None:
    record = rig.record
    session = reviewed_slide(record, [0, 1, 2, 3, 0, 0])
    frame = record.frames(session)[0].id
    record.add_review(frame, "Pre", "dana", cell=1)  # readers disagree
    record.add_review(frame, "artefact", "olga", cell=2)
    record.add_review(frame, "blast", "olga", cell=3)  # of the laboratory
    withdrawn = record.add_review(frame, "Pro", "olga", cell=4)
    record.withdraw_review(session, withdrawn, "olga")
    unsaved = reviewed_slide(record, [0, 1], saved=False)
    found = read_examples(record, [session, unsaved], "cell", LABELS)
    assert [(each.id, each.label) for each in found.examples] == [(1, "Benign"), (5, "Benign"), (6, "Benign")]
    assert found.left_out == {OTHER_LABEL: 2, DISAGREE: 1, NO_IMAGE: 2}
    adjudicated = record.add_review(frame, "Early", "chief", cell=1, adjudicates=True)
    assert adjudicated and len(read_examples(record, [session], "cell", LABELS).examples) == 4


def test_a_picture_that_two_slides_show_counts_once(rig: Rig) -> None:
    sessions = [reviewed_slide(rig.record, [0, 1], seed=3) for _ in range(2)]
    assert len(read_examples(rig.record, sessions, "cell", LABELS).examples) == 2
    rig.record.add_review(rig.record.frames(sessions[1])[0].id, "Pro", "olga", cell=0)
    found = read_examples(rig.record, sessions, "cell", LABELS)
    assert [each.label for each in found.examples] == ["Early"] and found.left_out == {DISAGREE: 1}


@pytest.mark.usefixtures("package")
def test_a_better_model_is_offered_used_on_request_and_taken_back(rig: Rig, page: TestClient, tmp_path: Path) -> None:
    runtime_files()

    def on_a_phone() -> str:
        return hashlib.sha256(page.get("/phone/app/model.tflite").content).hexdigest()

    sessions = [reviewed_slide(rig.record, [0, 1, 2] * 4 + [3] * 2, sample=f"S-{seed}", seed=seed) for seed in (1, 2)]
    before = rig.record.head()
    assert "S-1" in page.get("/learn").text
    learn(rig.lessons, *sessions)
    lesson = rig.lessons.lesson
    assert lesson.phase == OFFERED and lesson.result is not None and lesson.error is None
    assert rig.record.head() == before and not switches(rig), "nothing changes before somebody says so"
    shown = page.get("/learn").text
    assert "A better model is offered" in shown and "Fewer than 5 examples, so left as they are: Pro" in shown
    assert shown.count("now right") == sum(each.gained for each in lesson.changes) > 10
    open_session = rig.session()
    refused = page.post("/learn/use")
    assert refused.status_code == 409 and "a slide is open" in refused.text and not rig.lessons.in_use.is_adapted
    rig.station.end_session()
    used = page.post("/learn/use")
    assert used.status_code == 200 and "The rig judges with a model that it learned" in used.text
    (event,) = switches(rig)
    adapted = rig.lessons.in_use.model
    assert event.detail["use"] == ADAPTED and event.image == adapted.file_sha256
    assert event.detail["slides"] == sessions and event.detail["images"] == 28
    assert page.get(f"/images/{event.image}.jpg").status_code == 404
    assert on_a_phone() == adapted.file_sha256
    later = rig.session("S-later")
    assert rig.record.session(later).model_sha256 == adapted.program.model_sha256
    assert rig.record.session(open_session).model_sha256 == "0" * 64
    rig.station.end_session()
    assert not check(rig.record.folder).problems
    restored(rig, tmp_path)
    back = page.post("/learn/back")
    assert back.status_code == 200 and "The rig judges with the model that it was given" in back.text
    assert [each.detail["use"] for each in switches(rig)] == [GIVEN, ADAPTED]
    assert on_a_phone() == rig.lessons.in_use.given.file_sha256
    assert rig.record.session(rig.session("S-last")).model_sha256 == "0" * 64


def restored(rig: Rig, folder: Path) -> None:
    """A backup has the learned model, and a rig on the restored record uses it; an altered one is not used."""
    back_up(rig.record.folder, folder / "backup")
    restore(folder / "backup", folder / "restored")
    given = open_model(DEMO_MODEL, {})
    with Record(folder / "restored") as record:
        found = model_in_use(record, given)
        assert found.is_adapted and not found.fault
        assert found.model.program.model_sha256 == rig.lessons.in_use.model.program.model_sha256
        another = open_model(found.model.path, {})
        assert not model_in_use(record, another).is_adapted, "another model was given"
        content = found.model.path.read_bytes()
        os.chmod(found.model.path, 0o600)
        found.model.path.write_bytes(content[:-1] + b"x")
        altered = model_in_use(record, given)
        assert altered.model is given and "removed or altered" in altered.fault
        assert [str(each) for each in check(record.folder).problems]


def test_the_station_judges_with_the_new_model(rig: Rig) -> None:
    session = reviewed_slide(rig.record, [0, 1, 2] * 8)
    learn(rig.lessons, session)
    rig.station.start()
    try:
        live = rig.station.live()
        while live.picture is None:
            live = rig.station.wait(live.number, HANG_S)
        rig.lessons.adopt("olga")
        judge = rig.station._judge  # pyright: ignore[reportPrivateUsage]
        expected = rig.lessons.in_use.model.classifier
        while judge._classifier is not expected:  # pyright: ignore[reportPrivateUsage]
            live = rig.station.wait(live.number, HANG_S)
        after = rig.station.wait(live.number, HANG_S)
        assert after.number > live.number and not after.problems
    finally:
        rig.station.stop()


def test_no_model_is_offered_by_chance(rig: Rig, page: TestClient) -> None:
    """Labels that have nothing to do with the cells."""
    random = np.random.default_rng(0)
    session = reviewed_slide(rig.record, [0] * 24)
    for frame in rig.record.frames(session):
        for index in range(CELLS):
            rig.record.add_review(frame.id, LABELS[random.integers(2)], "olga", cell=index)
    learn(rig.lessons, session)
    assert rig.lessons.lesson.phase == NOT_BETTER
    assert "Not better than chance" in page.get("/learn").text
    with pytest.raises(StationError, match="no learned model"):
        rig.lessons.adopt("olga")
    assert page.post("/learn/discard").status_code == 200 and not switches(rig)


def test_the_page_explains_why_nothing_can_be_learned(
    rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = reviewed_slide(rig.record, [0, 1] * 4)
    with pytest.raises(DataError, match="at least 5"):
        rig.lessons.start([few], "olga")
    shown = page.get("/learn").text
    assert re.search(r"<button class=\"main\" disabled>", shown)
    assert page.post("/learn", data={}).status_code == 400
    enough = reviewed_slide(rig.record, [0, 1] * 6)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr("edgeall.rig.learning.lessons.adapt", fail)
    learn(rig.lessons, enough)
    assert rig.lessons.lesson.phase == FAILED and "no memory" in page.get("/learn").text
    assert not (rig.record.folder / "learning" / "images").exists()
    assert page.get("/learn/state").json()["phase"] == FAILED
    with pytest.raises(StationError, match="given"):
        rig.lessons.go_back("olga")


def test_why_nothing_was_learned_is_said_in_the_language_of_the_page(
    rig: Rig, page: TestClient, tmp_path: Path
) -> None:
    path, session = tmp_path / "model.tflite", reviewed_slide(rig.record, [0, 1] * 6)

    def said(spoil: Callable[[], object]) -> str:
        path.write_bytes(repack(DEMO_MODEL, tmp_path / "other.tflite", other_units).read_bytes())
        model = open_model(path, {})
        rig.lessons.in_use = InUse(model, model)
        spoil()
        learn(rig.lessons, session)
        assert rig.lessons.lesson.phase == FAILED
        shown = page.get("/learn", headers={"accept-language": "de"}).text
        rig.lessons.discard()
        return shown

    shown = said(lambda: None)
    assert "Referenzbild" in shown and "NICHT wie gepackt" in shown and "Einheiten" in shown
    assert "golden image" not in shown and "as packed" not in shown
    assert "hat sich geändert, seit die Station es geöffnet hat" in said(lambda: path.write_bytes(b"another model"))


def test_a_model_without_features_learns_nothing(rig: Rig, page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reviewed_slide(rig.record, [0, 1] * 6)
    monkeypatch.setattr(Lessons, "can_learn", False)
    refused = page.post("/learn", data={"slide": [session]}, headers={"accept-language": "fr"})
    assert refused.status_code == 409 and "caractéristiques dont apprendre" in refused.text


def test_an_interrupted_learning_leaves_nothing(rig: Rig) -> None:
    left = rig.record.folder / "learning" / "images" / "Benign"
    left.mkdir(parents=True)
    (left / "1.png").write_bytes(b"half")
    given = rig.lessons.in_use.given
    Lessons(rig.record, InUse(given, given), rig.station.models)
    assert not left.parent.parent.exists()
