"""Counting each cell once: the map of the slide, the cells in it, their pooled verdicts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from stage import Point, Stage, draw_field, move, stand, tour

from edgeall.rig.capture.slide import Slide
from edgeall.rig.counting import slide_map
from edgeall.rig.counting.pool import Opinion, Pool
from edgeall.rig.counting.registration import register, scan
from edgeall.rig.counting.tracker import Tally, Tracker
from edgeall.rig.record.found import CELL, Found, FoundOnSlide

VIEW = (320, 240)
SURE = Opinion(0.3, {"Benign": 0.1, "Pre": 0.9}, None)


@pytest.fixture(scope="module")
def slide() -> Slide:
    """Six views wide and four high."""
    return draw_field(7, (6 * VIEW[0], 4 * VIEW[1]), cells=110)


def count(stage: Stage, tracker: Tracker | None = None) -> Tally:
    """Follow a stage with a perfect finder of cells; frames in motion are not judged."""
    tracker = tracker or Tracker(lambda probability: None)
    for number in range(len(stage.path)):
        if stage.moving(number):
            tracker.pass_by(stage.pixels(number))
        else:
            boxes = stage.boxes(number)
            tracker.follow(stage.pixels(number), boxes, [SURE] * len(boxes))
    return tracker.tally


STOPS: list[Point] = [(100, 50), (250, 50), (450, 75), (450, 250), (250, 350), (100, 250), (110, 60)]


def test_standing_still_adds_no_cell(slide: Slide) -> None:
    stage = Stage(slide, stand((500, 150), 60), VIEW)
    assert stage.truth() > 2
    tally = count(stage)
    assert (tally.fields, tally.cells, tally.patches) == (1, stage.truth(), 1)
    assert tally.labels == {"Pre": stage.truth()}


@pytest.mark.parametrize("speed", [8, 40, 150])
def test_a_stage_that_moves_and_comes_back_shows_each_cell_once(slide: Slide, speed: int) -> None:
    stage = Stage(slide, tour(STOPS, speed, 4), VIEW)
    tally = count(stage)
    assert tally.patches == 1 and tally.cells == pytest.approx(stage.truth(), rel=0.1)
    assert 4 <= tally.fields <= 8


def test_a_jump_begins_a_patch_and_coming_back_counts_nothing_twice(slide: Slide) -> None:
    here, there = (100, 50), (900, 500)
    away = Stage(slide, stand(here, 3) + stand(there, 3), VIEW)
    tally = count(away)
    assert (tally.fields, tally.patches, tally.cells) == (2, 2, away.truth())
    back = Stage(slide, [*away.path, *stand((115, 60), 3), *stand(there, 2)], VIEW)
    tally = count(back)
    assert (tally.patches, tally.fields) == (2, 2) and tally.cells == pytest.approx(back.truth(), rel=0.1)


def test_patches_that_meet_are_joined(slide: Slide) -> None:
    here, there = (100, 50), (500, 250)
    stage = Stage(slide, stand(here, 3) + stand(there, 3) + tour([there, (300, 150), here], 50, 2), VIEW)
    tracker = Tracker(lambda probability: None)
    tally = count(stage, tracker)
    assert tally.patches == 1 and tally.cells == pytest.approx(stage.truth(), rel=0.1)


def test_a_continued_slide_knows_its_cells(slide: Slide) -> None:
    stage = Stage(slide, tour(STOPS[:4], 40, 3), VIEW)
    fields, cells, pictures = {}, {}, {}
    tracker = Tracker(lambda probability: None)
    for number in range(len(stage.path)):
        if stage.moving(number):
            tracker.pass_by(stage.pixels(number))
            continue
        boxes = stage.boxes(number)
        for news in tracker.follow(stage.pixels(number), boxes, [SURE] * len(boxes)).news:
            known, key = (cells if news.found.kind == CELL else fields), f"{news.found.kind} {news.found.id}"
            if news.pixels is not None:
                pictures[key] = news.pixels
            known[news.found.id] = Found(**{**vars(news.found), "image": key if key in pictures else None})
    before = tracker.tally
    assert len(pictures) == before.fields + before.cells  # each has its picture
    again = Tracker(lambda probability: None, FoundOnSlide(fields, cells), lambda digest: pictures.get(digest))
    assert again.tally == before
    assert count(Stage(slide, stage.path[::-1], VIEW), again) == before


def test_a_cell_that_is_hardly_ever_found_does_not_count(slide: Slide) -> None:
    stage, tracker = Stage(slide, stand((500, 150), 20), VIEW), Tracker(lambda probability: None)
    for number in range(20):
        boxes = [*stage.boxes(number), *([(150, 100, 190, 140)] if number in (4, 12) else [])]
        tracker.follow(stage.pixels(number), boxes, [SURE] * len(boxes))
    assert tracker.tally.cells in (stage.truth(), stage.truth() + 1)
    first = tracker.tally.cells
    count(stage, tracker)
    assert tracker.tally.cells == stage.truth() <= first


def test_lost_news_are_given_again(slide: Slide) -> None:
    stage, tracker = Stage(slide, stand((500, 150), 4), VIEW), Tracker(lambda probability: None)
    boxes = stage.boxes(0)

    def news(number: int) -> set[tuple[str, int]]:
        located = tracker.follow(stage.pixels(number), boxes, [SURE] * len(boxes))
        return {(each.found.kind, each.found.id) for each in located.news}

    first = news(0)
    assert len(first) == 1 + len(boxes) and news(1) == set()
    tracker.resend()
    assert news(2) == first and news(3) == set()


def test_memory_is_bounded(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_map, "MAX_FIELDS", 3)
    stage, tracker = Stage(slide, tour(STOPS[:6], 75, 2), VIEW), Tracker(lambda probability: None)
    tally = count(stage, tracker)
    assert tally.fields > 3 and len(tracker._map._fields) == len(tracker._fields) == 3
    assert tally.cells >= 0.9 * stage.truth() and len(tracker._cells.tracks) < tally.cells


def test_frames_that_do_not_overlap_are_not_registered(slide: Slide) -> None:
    def seen(x: int, y: int) -> np.ndarray:
        return np.ascontiguousarray(slide.pixels[y : y + VIEW[1], x : x + VIEW[0]])

    assert register(scan(seen(100, 50)), scan(seen(900, 600))) is None
    shift = register(scan(seen(100, 50)), scan(seen(200, 125)))
    assert shift is not None and (shift.x, shift.y) == (pytest.approx(100, abs=2), pytest.approx(75, abs=2))
    assert register(scan(seen(100, 50)), scan(seen(100, 50)[:150])) is None  # another size
    empty = np.full((VIEW[1], VIEW[0], 3), 230, np.uint8)
    assert register(scan(empty), scan(empty)) is None


@pytest.mark.parametrize(
    ("opinions", "said"),
    [
        ([(0.3, 0.9, None), (0.3, 0.7, None)], ("Pre", 0.8, None)),
        ([(0.4, 0.9, None), (0.1, 0.1, None)], ("Pre", 0.9, None)),  # the second is not sharp
        ([(0.3, 0.55, None)], ("Pre", 0.55, "uncertain")),
        ([(0.3, 0.9, "unfamiliar"), (0.3, 0.9, "unfamiliar"), (0.3, 0.9, None)], ("Pre", 0.9, "unfamiliar")),
    ],
)
def test_a_verdict_is_pooled_over_sharp_frames(opinions: list[tuple[float, float, str | None]], said: object) -> None:
    pool = Pool()
    rule: Callable[[float], str | None] = lambda probability: "uncertain" if probability < 0.6 else None  # noqa: E731
    assert pool.verdict(rule) is None
    for sharpness, pre, reason in opinions:
        pool.add(Opinion(sharpness, {"Benign": 1 - pre, "Pre": pre}, reason))
    pooled = pool.verdict(rule)
    assert pooled is not None and (pooled.label, round(pooled.probability, 6), pooled.review_reason) == said
    assert move((0, 0), (10, 0), 20) == [(10, 0)]
