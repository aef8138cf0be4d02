"""SQL over the record's rows, and their conversion to `Session` and `RecordedFrame`."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from . import chain
from .chain import RecordError
from .rows import FRAME_FIELDS, FrameRow, RecordedFrame, Review, Session, SessionNotes

CELL_LABEL_BY_MODEL = "json_extract(c.value, '$.label')"
_LAST_REVIEW = (
    "(SELECT r.label FROM entries r WHERE r.frame = e.number AND r.kind = 'review' AND r.cell IS NULL"
    " ORDER BY r.number DESC LIMIT 1)"
)
_CURRENT_LABEL = f"coalesce({_LAST_REVIEW}, e.label)"
_ANY_CELL = "EXISTS (SELECT 1 FROM json_each(e.row, '$.cells') c WHERE {})"
_CELL_ASKS = "json_extract(c.value, '$.review')"
_LAST_CELL_REVIEW = (
    "(SELECT r.label FROM entries r WHERE r.frame = e.number AND r.kind = 'review' AND r.cell = c.key"
    " ORDER BY r.number DESC LIMIT 1)"
)
_CURRENT_CELL_LABEL = f"coalesce({_LAST_CELL_REVIEW}, {CELL_LABEL_BY_MODEL})"
_REVIEWED = "EXISTS (SELECT 1 FROM entries r WHERE r.frame = e.number AND r.kind = 'review')"
_CELL_WAITS = _ANY_CELL.format(f"{_CELL_ASKS} AND {_LAST_CELL_REVIEW} IS NULL")
_CELL_CHANGED = _ANY_CELL.format(f"{_CURRENT_CELL_LABEL} IS NOT {CELL_LABEL_BY_MODEL}")
_REVIEW = {
    "needed": f"e.review AND (NOT {_REVIEWED} OR {_CELL_WAITS})",
    "done": _REVIEWED,
    "corrected": f"({_CURRENT_LABEL} IS NOT e.label OR {_CELL_CHANGED})",
}


@dataclass(frozen=True)
class FrameFilter:
    """Which frames `find_frames` returns; see `Record.frames`."""

    label: str | None = None
    status: str | None = None
    review: str | None = None
    with_image: bool = False
    before: int | None = None


def find_frames(
    database: sqlite3.Connection, session_id: int, chosen: FrameFilter, limit: int | None
) -> list[RecordedFrame]:
    """Frames of a session, newest first; ``limit`` None for all."""
    conditions, values = ["e.kind = 'frame'", "e.session = ?"], [session_id]  # type: tuple[list[str], list[object]]
    if chosen.status is not None:
        conditions.append("e.status = ?")
        values.append(chosen.status)
    if chosen.label is not None:
        conditions.append(f"({_CURRENT_LABEL} = ? OR {_ANY_CELL.format(f'{_CURRENT_CELL_LABEL} = ?')})")
        values += [chosen.label, chosen.label]
    if chosen.review is not None:
        conditions.append(_REVIEW[chosen.review])
    if chosen.with_image:
        conditions.append("e.image IS NOT NULL")
    if chosen.before is not None:
        conditions.append("e.number < ?")
        values.append(chosen.before)
    query = f"SELECT row FROM entries e WHERE {' AND '.join(conditions)} ORDER BY e.number DESC LIMIT ?"
    rows = database.execute(query, (*values, -1 if limit is None else limit)).fetchall()
    return [read_frame(database, json.loads(row)) for (row,) in rows]


def read_session(database: sqlite3.Connection, number: int) -> Session:
    """A session by its id. Raises RecordError if there is none."""
    found = database.execute("SELECT row FROM entries WHERE number = ? AND kind = 'session'", (number,)).fetchone()
    if found is None:
        ids = [str(i) for (i,) in database.execute("SELECT number FROM entries WHERE kind = 'session' ORDER BY number")]
        raise RecordError(f"no session {number} in this record", hint=f"sessions: {', '.join(ids) or 'none yet'}")
    row = json.loads(found[0])
    opening = json.loads(database.execute("SELECT row FROM entries WHERE number = ?", (row["opening"],)).fetchone()[0])
    ended = database.execute("SELECT at FROM entries WHERE kind = 'end' AND session = ?", (number,)).fetchone()
    frames = database.execute("SELECT count(*) FROM entries WHERE kind = 'frame' AND session = ?", (number,)).fetchone()
    return Session(
        id=number,
        notes=SessionNotes(**row["notes"]),
        started=row["at"],
        ended=ended[0] if ended else None,
        model=opening["program"].get("model"),
        model_sha256=opening["program"].get("model_sha256"),
        software=opening["software"],
        frames=frames[0],
    )


def read_frame(database: sqlite3.Connection, row: dict[str, Any]) -> RecordedFrame:
    """A frame with its reviews, from the JSON of its row."""
    about = database.execute("SELECT row FROM entries WHERE frame = ? ORDER BY number", (row["number"],)).fetchall()
    reviews = [json.loads(text) for (text,) in about]
    facts = {key: value for key, value in row.items() if key in FRAME_FIELDS}
    facts |= {"taken": chain.moment(row["taken"]), "number": row["camera_frame"]}
    return RecordedFrame(
        id=row["number"],
        session=row["session"],
        at=row["at"],
        row=FrameRow(**facts),
        image=row["image"],
        image_lost=row.get("image_lost"),
        reviews=tuple(
            Review(r["number"], r["at"], r["frame"], r["cell"], r["label"], r["by"], r["note"]) for r in reviews
        ),
    )
