"""Downloads of a slide: tables (CSV), its report (PDF), its fields (OME-TIFF), and a training folder (ZIP)."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from ..record.export import export_cells, export_counted, export_csv, export_training
from ..record.ome import export_fields
from ..record.record import Record
from ..record.rows import Session
from ..report.facts import report_facts
from ..report.pdf import report_pdf
from .context import Context, Rig
from .errors import ExportBusyError, NotFoundError
from .slides_page import Id

_BLOCK_BYTES = 1 << 16

routes = APIRouter()


@routes.get("/slides/{session}/frames.csv")
def table(rig: Rig, session: Id) -> StreamingResponse:
    """All frames of a slide, one line each."""
    return _table(rig, session, "", export_csv)


@routes.get("/slides/{session}/cells.csv")
def table_of_cells(rig: Rig, session: Id) -> StreamingResponse:
    """All cells of a slide, one line each."""
    return _table(rig, session, "-cells", export_cells)


@routes.get("/slides/{session}/counted.csv")
def table_of_counted(rig: Rig, session: Id) -> StreamingResponse:
    """All different fields and cells of a slide, one line each."""
    return _table(rig, session, "-counted", export_counted)


@routes.get("/slides/{session}/training.zip")
def training(rig: Rig, session: Id) -> StreamingResponse:
    """The reviewed images of a slide, one folder per label."""
    return _training(rig, session, f"{slide_name(rig.page.record.session(session))}-training.zip")


@routes.get("/slides/{session}/report.pdf")
def report(rig: Rig, session: Id) -> StreamingResponse:
    """The report of a slide."""
    name = f"{slide_name(rig.page.record.session(session))}-report.pdf"
    with _scratch(rig) as folder:
        file = folder / name
        file.write_bytes(report_pdf(report_facts(rig.page.record, session)))
    return _send(file, name, "application/pdf")


@routes.get("/slides/{session}/fields.zip")
def fields(rig: Rig, session: Id) -> StreamingResponse:
    """The fields of a slide whose images were saved, as OME-TIFF."""
    with _scratch(rig) as folder:
        (folder / "fields").mkdir()
        if not export_fields(rig.page.record, session, folder / "fields"):
            raise NotFoundError("no image of a counted field was saved", hint="see the settings")
        file = Path(shutil.make_archive(str(folder / "packed"), "zip", folder / "fields"))
    return _send(file, f"{slide_name(rig.page.record.session(session))}-fields.zip", "application/zip")


@routes.get("/training.zip")
def all_training(rig: Rig) -> StreamingResponse:
    """The reviewed images of all slides."""
    return _training(rig, None, "training.zip")


def slide_name(session: Session) -> str:
    """A file name for a slide: its sample id and its start, ``S-1-20261121-1000``."""
    sample = re.sub(r"[^\w.-]+", "_", session.notes.sample, flags=re.ASCII).strip("._")[:60] or "slide"
    return f"{sample}-{session.started[:16].replace('-', '').replace('T', '-').replace(':', '')}"


def _table(rig: Context, session: int, kind: str, export: Callable[[Record, int, Path], int]) -> StreamingResponse:
    name = f"{slide_name(rig.page.record.session(session))}{kind}.csv"
    with _scratch(rig) as folder:
        file = folder / name
        export(rig.page.record, session, file)
    return _send(file, name, "text/csv; charset=utf-8")


def _training(rig: Context, session: int | None, name: str) -> StreamingResponse:
    with _scratch(rig) as folder:
        if not export_training(rig.page.record, folder / "training", session):
            raise NotFoundError("there is no reviewed image to export", hint="review some frames first")
        (folder / "training" / "README.txt").write_text(rig.page.research_use_note(), encoding="utf-8")
        file = Path(shutil.make_archive(str(folder / "packed"), "zip", folder / "training"))
    return _send(file, name, "application/zip")


@contextmanager
def _scratch(rig: Context) -> Iterator[Path]:
    """A temporary folder for an export. `_send` removes it; after an error it is removed here."""
    if not rig.exporting.acquire(blocking=False):
        raise ExportBusyError("another export is being made", hint="try again when it is done")
    try:
        folder = Path(tempfile.mkdtemp(prefix="edgeall-export-"))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        rig.exporting.release()


def _send(file: Path, name: str, kind: str) -> StreamingResponse:
    opened = open(file, "rb")  # noqa: SIM115 closed by `_blocks`
    shutil.rmtree(file.parent, ignore_errors=True)  # the disk space is freed when the open file is closed
    size = os.fstat(opened.fileno()).st_size
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(size)}
    return StreamingResponse(_blocks(opened), media_type=kind, headers=headers)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK_BYTES):
            yield block
