"""The page on which the rig learns from reviews: what there is to learn from, the offered model, and the way back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from ...edge_runtime.adaptation.learn import LEAST_PER_CLASS
from ...edge_runtime.errors import UsageError
from ..learning.model import last_switch
from .context import Rig

MOST_SLIDES, MOST_CHANGES = 20, 60
"""Slides and changed cells that the page shows; the newest, and those that are gained first."""

routes = APIRouter()


@routes.get("/learn", response_class=HTMLResponse)
def learn(request: Request, rig: Rig) -> HTMLResponse:
    """What the rig could learn from, what it has learned, and the model that it uses."""
    lessons, record = rig.lessons, rig.page.record
    lesson, in_use = lessons.lesson, lessons.in_use
    slides = [(record.session(each), lessons.examples([each])) for each in lessons.slides()[:MOST_SLIDES]]
    counts = {label: sum(found.counts([label])[label] for _, found in slides) for label in lessons.labels}
    left_out: dict[str, int] = {}
    for _, found in slides:
        for reason, count in found.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    bundle = in_use.model.classifier.bundle
    manifest = bundle.manifest if bundle else None
    return rig.page.html(
        request,
        "learn.html",
        lesson=lesson,
        labelled=lesson.result.learned.labelled if lesson.result else None,
        signed=bundle is not None and bundle.is_signed,
        in_use=in_use,
        lineage=manifest.lineage[-1] if in_use.is_adapted and manifest else None,
        switch=last_switch(record),
        slides=slides,
        counts=counts,
        left_out=left_out,
        enough=sum(count >= LEAST_PER_CLASS for count in counts.values()) > 1,
        least=LEAST_PER_CLASS,
        most_changes=MOST_CHANGES,
        can_learn=lessons.can_learn,
        unit=lessons.unit,
        open_slide=rig.station.session_id is not None or rig.station.live().asked_session_id is not None,
    )


@routes.get("/learn/state")
def state(rig: Rig) -> JSONResponse:
    """How far the learning is."""
    lesson = rig.lessons.lesson
    return JSONResponse({"phase": lesson.phase, "done": lesson.done, "total": lesson.total})


@routes.post("/learn")
def start(request: Request, rig: Rig, slide: Annotated[list[int] | None, Form()] = None) -> RedirectResponse:
    """Learn from the reviews of the chosen slides."""
    if not slide:
        raise UsageError("no slide is chosen", hint="choose at least one slide with reviews")
    rig.lessons.start(slide, rig.page.user(request).name)
    return RedirectResponse("/learn", 303)


@routes.post("/learn/use")
def use(request: Request, rig: Rig) -> RedirectResponse:
    """Judge with the offered model from now on."""
    rig.lessons.adopt(rig.page.user(request).name)
    return RedirectResponse("/learn", 303)


@routes.post("/learn/discard")
def discard(rig: Rig) -> RedirectResponse:
    """Forget what was learned."""
    rig.lessons.discard()
    return RedirectResponse("/learn", 303)


@routes.post("/learn/back")
def back(request: Request, rig: Rig) -> RedirectResponse:
    """Judge with the given model again."""
    rig.lessons.go_back(rig.page.user(request).name)
    return RedirectResponse("/learn", 303)
