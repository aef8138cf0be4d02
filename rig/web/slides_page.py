"""Pages of what was recorded: slides, their summaries and reports, the gallery, one frame with its review, exports."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from ...edge_runtime.errors import EdgeallError, UsageError
from ..record.record import MAX_TEXT, RecordedFrame
from .page import Page

PER_PAGE = 48
REPORT_FRAMES = 24
Id = Annotated[int, InPath(ge=1, le=2**62)]
Digest = Annotated[str, InPath(pattern="^[0-9a-f]{64}$")]
LONG = {"Cache-Control": "private, max-age=86400, immutable"}
"""For what is named by its digest. A frame's number is another frame's in another record at the same address."""
_BLOCK_BYTES = 1 << 16


class Busy(EdgeallError):
    """An export is being made already: one at a time, so that they can't fill the disk together."""


class Missing(EdgeallError):
    """No such slide, frame or image."""


def slides_routes(page: Page) -> APIRouter:
    """The routes; `page` holds the record and renders."""
    routes, record, pictures = APIRouter(), page.record, page.pictures
    exporting = threading.Lock()

    @contextmanager
    def _scratch() -> Iterator[Path]:
        """A folder to export into; whoever sends the result removes it, failing ones are removed here."""
        if not exporting.acquire(blocking=False):
            raise Busy("another export is being made", hint="wait until it is done")
        try:
            folder = Path(tempfile.mkdtemp(prefix="edgeall-export-"))
            try:
                yield folder
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        finally:
            exporting.release()

    def _send(file: Path, name: str, kind: str) -> StreamingResponse:
        opened = open(file, "rb")  # noqa: SIM115 closed by `_blocks`
        shutil.rmtree(file.parent, ignore_errors=True)  # gone from the disk when it is closed, however that comes about
        size = os.fstat(opened.fileno()).st_size
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(size)}
        return StreamingResponse(_blocks(opened), media_type=kind, headers=headers)

    def _shown(frame: RecordedFrame) -> RecordedFrame:
        """Without an image that has been removed since."""
        gone = frame.image is not None and record.image_path(frame.image) is None
        return dataclasses.replace(frame, image=None, image_lost="removed") if gone else frame

    @routes.get("/slides", response_class=HTMLResponse)
    def slides(request: Request) -> HTMLResponse:
        """All slides, newest first."""
        return page.html(request, "slides.html", sessions=record.sessions())

    @routes.get("/slides/{session}", response_class=HTMLResponse)
    def summary(request: Request, session: Id) -> HTMLResponse:
        """What a slide comes to so far."""
        return page.html(
            request, "summary.html", session=record.session(session), summary=record.summary(session), unit=page.unit
        )

    @routes.get("/slides/{session}/report", response_class=HTMLResponse)
    def report(request: Request, session: Id) -> HTMLResponse:
        """The same to be printed, with thumbnails: what was reviewed first, then what asks for it, then the newest."""
        chosen: dict[int, RecordedFrame] = {}
        for review, status in (("done", None), ("needed", None), (None, "judged")):
            found = record.frames(session, review=review, status=status, with_image=True, limit=REPORT_FRAMES)
            for frame in found[: REPORT_FRAMES - len(chosen)]:
                chosen.setdefault(frame.id, frame)
        return page.html(
            request,
            "report.html",
            session=record.session(session),
            summary=record.summary(session),
            frames=[_shown(frame) for frame in chosen.values()],
            head=record.head(),
            unit=page.unit,
        )

    @routes.get("/slides/{session}/frames.csv")
    def table(session: Id) -> StreamingResponse:
        """Every frame of a slide, a line each."""
        return _table(session, f"slide-{session}.csv", record.export_csv)

    @routes.get("/slides/{session}/cells.csv")
    def table_of_cells(session: Id) -> StreamingResponse:
        """Every cell of a slide, a line each."""
        return _table(session, f"slide-{session}-cells.csv", record.export_cells)

    def _table(session: int, name: str, export: Callable[[int, Path], int]) -> StreamingResponse:
        record.session(session)
        with _scratch() as folder:
            file = folder / name
            export(session, file)
        return _send(file, name, "text/csv; charset=utf-8")

    @routes.get("/slides/{session}/training.zip")
    def training(session: Id) -> StreamingResponse:
        """The reviewed images of a slide, a folder for each label."""
        return _training(session, f"slide-{session}-training.zip")

    @routes.get("/training.zip")
    def all_training() -> StreamingResponse:
        """The reviewed images of all slides."""
        return _training(None, "training.zip")

    def _training(session: int | None, name: str) -> StreamingResponse:
        if session is not None:
            record.session(session)
        with _scratch() as folder:
            if not record.export_training(folder / "training", session):
                raise Missing("no reviewed image to export", hint="review some frames first")
            (folder / "training" / "README.txt").write_text(page.research_use_note(), encoding="utf-8")
            file = Path(shutil.make_archive(str(folder / "packed"), "zip", folder / "training"))
        return _send(file, name, "application/zip")

    @routes.get("/gallery", response_class=HTMLResponse)
    def gallery(
        request: Request,
        session: Annotated[int | None, Query(ge=1, le=2**62)] = None,
        label: Annotated[str, Query(max_length=100)] = "",
        status: Literal["", "judged", "refused", "unjudged"] = "",
        review: Literal["", "needed", "done", "corrected"] = "",
        images: Literal["kept", "all"] = "kept",
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ) -> HTMLResponse:
        """Recorded frames of one slide, the newest where none is chosen: those with an image, or all."""
        sessions = record.sessions()
        chosen = record.session(session) if session else (sessions[0] if sessions else None)
        frames: list[RecordedFrame] = []
        if chosen is not None:
            frames = record.frames(
                chosen.id,
                label=label or None,
                status=status or None,
                review=review or None,
                with_image=images == "kept",
                limit=PER_PAGE + 1,
                before=before,
            )
        return page.html(
            request,
            "gallery.html",
            sessions=sessions,
            chosen=chosen,
            frames=[_shown(frame) for frame in frames[:PER_PAGE]],
            more=frames[PER_PAGE - 1].id if len(frames) > PER_PAGE else None,
            filters={
                "session": chosen.id if chosen else "",
                "label": label,
                "status": status,
                "review": review,
                "images": images,
            },
            labels=page.labels,
        )

    @routes.get("/frames/{frame}", response_class=HTMLResponse)
    def one(request: Request, frame: Id, cell: Annotated[int | None, Query(ge=0, le=9999)] = None) -> HTMLResponse:
        """A frame, what the model said of it, and the review form."""
        found = _shown(record.frame(frame))
        session = record.session(found.session)
        asking = [
            record.frames(found.session, review="needed", with_image=True, before=before, limit=1)
            for before in (frame, None)  # on to the older ones, and round
        ]
        standing = {review.cell: review for review in found.reviews}
        return page.html(
            request,
            "frame.html",
            frame=found,
            session=session,
            standing=standing,
            chosen=_cell(found, cell, set(standing)),
            goes_on=cell is not None,
            labels=page.labels,
            unit=page.unit,
            older=next((each.id for each in record.frames(found.session, before=frame, limit=1)), None),
            needed=next((each.id for frames in asking for each in frames if each.id != frame), None),
            explains=pictures.explains(found) and session.model_sha256 == page.model_sha256,
        )

    @routes.post("/frames/{frame}/review")
    def review(
        request: Request,
        frame: Id,
        label: Annotated[str, Form(min_length=1, max_length=100)],
        note: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        cell: Annotated[str, Form(pattern="^[0-9]{0,4}$")] = "",
    ) -> RedirectResponse:
        """A person's word on a frame, or on one of its cells: one of the model's labels."""
        if label not in page.labels:
            raise UsageError(f"{label!r} is no label of this model", hint=f"there are: {', '.join(page.labels)}")
        found = record.frame(frame)
        index = int(cell) if cell else None
        if index is None and (found.row.cells or page.unit == "cell"):
            raise UsageError("this model judges cells, not whole fields", hint="choose a cell")
        record.add_review(frame, label, page.user(request).name, note.strip(), index)
        after = f"?cell={index + 1}" if index is not None and index + 1 < len(found.row.cells) else ""
        return RedirectResponse(f"/frames/{frame}{after}", 303)

    @routes.get("/frames/{frame}/cells/{cell}.jpg")
    def cell_picture(frame: Id, cell: Annotated[int, InPath(ge=0, le=9999)]) -> Response:
        """One cell, cut out."""
        return _picture(pictures.cell(record.frame(frame), cell))

    @routes.get("/frames/{frame}/map.png")
    def map_of_field(frame: Id) -> Response:
        """Where in the image the model found what it says; of models that can tell."""
        return _picture(pictures.explained(record.frame(frame)), "image/png")

    @routes.get("/frames/{frame}/cells/{cell}/map.png")
    def map_of_cell(frame: Id, cell: Annotated[int, InPath(ge=0, le=9999)]) -> Response:
        """The same of one cell."""
        return _picture(pictures.explained(record.frame(frame), cell), "image/png")

    @routes.get("/images/{digest}.jpg")
    def image(digest: Digest) -> Response:
        """A recorded image."""
        return _picture(pictures.whole(digest), headers=LONG)

    @routes.get("/images/{digest}/thumbnail.jpg")
    def thumbnail(digest: Digest) -> Response:
        """The same, small."""
        return _picture(pictures.thumbnail(digest), headers=LONG)

    def _picture(content: bytes | None, kind: str = "image/jpeg", headers: Mapping[str, str] | None = None) -> Response:
        if content is None:
            raise Missing("there is no such image")
        return Response(content, media_type=kind, headers=headers)

    return routes


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _cell(frame: RecordedFrame, asked: int | None, reviewed: set[int | None]) -> int | None:
    """Which cell the form is about: the one asked for, else the first that asks for review, else the first."""
    cells = frame.row.cells
    if not cells:
        return None
    if asked is not None and asked < len(cells):
        return asked
    waiting = [i for i, cell in enumerate(cells) if cell.get("review") and i not in reviewed]
    return waiting[0] if waiting else 0
