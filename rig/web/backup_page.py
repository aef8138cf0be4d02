"""Backup of the record from the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from ..record.backup_zip import Snapshot, snapshot, zipped
from ..record.record import Record
from .context import Rig
from .errors import ExportBusyError

EVENT = "backup"
"""Kind of the record's event of a backup that was sent whole."""

routes = APIRouter()


@routes.post("/backup")
def backup(request: Request, rig: Rig) -> StreamingResponse:
    """A verified backup of the whole record as a ZIP file, also while a slide is recorded."""
    if not rig.backing_up.acquire(blocking=False):
        raise ExportBusyError("another backup is being made", hint="try again when it is done")
    kept = ExitStack()
    kept.callback(rig.backing_up.release)
    try:
        state = kept.enter_context(snapshot(rig.page.record.folder))
    except BaseException:
        kept.close()
        raise
    name = f"edgeall-record-{datetime.now(timezone.utc):%Y%m%d-%H%M}.zip"
    blocks = _blocks(rig.page.record, state, kept, rig.page.user(request).name)
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(blocks, media_type="application/zip", headers=headers)


def _blocks(record: Record, state: Snapshot, kept: ExitStack, by: str) -> Iterator[bytes]:
    """The file; afterwards an event says that it was sent, and the scratch copy is removed."""
    with kept:
        yield from zipped(record.folder, state)
        record.add_event(EVENT, {"by": by, "rows": state.rows, "images": state.images, "head": state.head})
