"""The page of one frame with its review, and the recorded images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ...edge_runtime.errors import UsageError
from ..record.image_store import ImageStore
from ..record.rows import MAX_TEXT, RecordedFrame
from .context import Rig
from .errors import NotFoundError
from .review_page import ASIDE_KEYS, labels_of, unknown_label
from .slides_page import Id

CellIndex = Annotated[int, InPath(ge=0, le=9999)]
Digest = Annotated[str, InPath(pattern="^[0-9a-f]{64}$")]
LONG = {"Cache-Control": "private, max-age=86400, immutable"}
"""For files named by their digest. A frame number is not unique: another record may be served at the same address."""

routes = APIRouter()


@routes.get("/frames/{frame}", response_class=HTMLResponse)
def one(
    request: Request, rig: Rig, frame: Id, cell: Annotated[int | None, Query(ge=0, le=9999)] = None
) -> HTMLResponse:
    """A frame, the model's prediction, and the review form."""
    page, record = rig.page, rig.page.record
    found = page.pictures.with_current_image(record.frame(frame))
    session = record.session(found.session)
    needing_review = [
        record.frames(found.session, review="needed", with_image=True, before=before, limit=1)
        for before in (frame, None)  # the next older one, otherwise the newest
    ]
    reviews = {review.cell: review for review in found.reviews}
    return page.html(
        request,
        "frame.html",
        frame=found,
        session=session,
        last_reviews=reviews,
        chosen=_form_cell(found, cell, set(reviews)),
        focus_cell=cell is not None,
        labels=labels_of(rig),
        aside=ASIDE_KEYS,
        unit=page.unit,
        older=next((each.id for each in record.frames(found.session, before=frame, limit=1)), None),
        needed=next((each.id for frames in needing_review for each in frames if each.id != frame), None),
        explains=page.pictures.explains(found) and session.model_sha256 == page.model_sha256,
    )


@routes.post("/frames/{frame}/review")
def review(
    request: Request,
    rig: Rig,
    frame: Id,
    label: Annotated[str, Form(min_length=1, max_length=100)],
    note: Annotated[str, Form(max_length=MAX_TEXT)] = "",
    cell: Annotated[str, Form(pattern="^[0-9]{0,4}$")] = "",
) -> RedirectResponse:
    """Record a reviewer's label for a frame or for one of its cells."""
    page = rig.page
    allowed = (*labels_of(rig), *ASIDE_KEYS)
    if label not in allowed:
        raise unknown_label(label, allowed)
    found = page.record.frame(frame)
    index = int(cell) if cell else None
    if index is None and (found.row.cells or page.unit == "cell"):
        raise UsageError("this model judges cells, not whole fields", hint="choose a cell")
    page.record.add_review(frame, label, page.user(request).name, note.strip(), index)
    after = f"?cell={index + 1}" if index is not None and index + 1 < len(found.row.cells) else ""
    return RedirectResponse(f"/frames/{frame}{after}", 303)


@routes.get("/frames/{frame}/cells/{cell}.jpg")
def cell_picture(rig: Rig, frame: Id, cell: CellIndex) -> Response:
    """The cut-out of one cell."""
    return _picture(rig.page.pictures.cell(rig.page.record.frame(frame), cell))


@routes.get("/frames/{frame}/map.png")
def map_of_field(rig: Rig, frame: Id) -> Response:
    """The class-activation map of a frame, for models that have one."""
    return _picture(rig.page.pictures.explained(rig.page.record.frame(frame)), "image/png")


@routes.get("/frames/{frame}/cells/{cell}/map.png")
def map_of_cell(rig: Rig, frame: Id, cell: CellIndex) -> Response:
    """The class-activation map of one cell."""
    return _picture(rig.page.pictures.explained(rig.page.record.frame(frame), cell), "image/png")


@routes.get("/images/{digest}.jpg")
def image(rig: Rig, digest: Digest) -> Response:
    """A recorded image."""
    content = rig.page.pictures.original(digest)
    kind = "image/png" if content and ImageStore.suffix(content) == ".png" else "image/jpeg"
    return _picture(content, kind, LONG)


@routes.get("/images/{digest}/thumbnail.jpg")
def thumbnail(rig: Rig, digest: Digest) -> Response:
    """A thumbnail of a recorded image."""
    return _picture(rig.page.pictures.thumbnail(digest), headers=LONG)


def _picture(content: bytes | None, kind: str = "image/jpeg", headers: Mapping[str, str] | None = None) -> Response:
    if content is None:
        raise NotFoundError("there is no such image")
    return Response(content, media_type=kind, headers=headers)


def _form_cell(frame: RecordedFrame, requested: int | None, reviewed: set[int | None]) -> int | None:
    """The cell that the form selects: the requested one, otherwise the first that needs a review, otherwise 0."""
    cells = frame.row.cells
    if not cells:
        return None
    if requested is not None and requested < len(cells):
        return requested
    waiting = [i for i, cell in enumerate(cells) if cell.get("review") and i not in reviewed]
    return waiting[0] if waiting else 0
