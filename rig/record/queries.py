"""SQL over the record's rows, and their conversion to `Session` and `RecordedFrame`."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from ..language import message
from . import chain
from .chain import NoSuchRowError
from .rows import FRAME_FIELDS, Amendment, FrameRow, RecordedFrame, Session, SessionNotes, SkippedRow, read_review

CELL_LABEL_BY_MODEL = "json_extract(c.value, '$.label')"
_VALID = (
    "r.kind = 'review' AND NOT EXISTS (SELECT 1 FROM entries w WHERE w.kind = 'withdrawal' AND w.session = r.session"
    " AND json_extract(w.row, '$.withdrawn') = r.number)"
)
_LAST_REVIEW = (
    f"(SELECT r.label FROM entries r WHERE r.frame = e.number AND {_VALID} AND r.cell IS NULL"
    " ORDER BY r.number DESC LIMIT 1)"
)
_CURRENT_LABEL = f"coalesce({_LAST_REVIEW}, e.label)"
_ANY_CELL = "EXISTS (SELECT 1 FROM json_each(e.row, '$.cells') c WHERE {})"
_CELL_ASKS = "json_extract(c.value, '$.review')"
_LAST_CELL_REVIEW = (
    f"(SELECT r.label FROM entries r WHERE r.frame = e.number AND {_VALID} AND r.cell = c.key"
    " ORDER BY r.number DESC LIMIT 1)"
)
_CURRENT_CELL_LABEL = f"coalesce({_LAST_CELL_REVIEW}, {CELL_LABEL_BY_MODEL})"
_REVIEWED = f"EXISTS (SELECT 1 FROM entries r WHERE r.frame = e.number AND {_VALID})"
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
    """A session by its id. Raises NoSuchRowError if there is none."""
    found = database.execute("SELECT row FROM entries WHERE number = ? AND kind = 'session'", (number,)).fetchone()
    if found is None:
        ids = [str(i) for (i,) in database.execute("SELECT number FROM entries WHERE kind = 'session' ORDER BY number")]
        raise NoSuchRowError(
            message("no session {number} in this record", number=number),
            hint=message("sessions: {numbers}", numbers=", ".join(ids)) if ids else message("sessions: none yet"),
        )
    row = json.loads(found[0])
    opening = json.loads(database.execute("SELECT row FROM entries WHERE number = ?", (row["opening"],)).fetchone()[0])
    counts = dict(
        database.execute(
            "SELECT kind, count(*) FROM entries WHERE kind IN ('frame', 'skipped', 'reopen') AND session = ?"
            " GROUP BY kind",
            (number,),
        ).fetchall()
    )
    end = last_end(database, number)
    amendments = tuple(
        Amendment(*(each[name] for name in ("at", "before", "sample", "by", "why")))
        for each in _rows(database, "amend", number)
    )
    notes = SessionNotes(**row["notes"])
    return Session(
        id=number,
        notes=dataclasses.replace(notes, sample=amendments[-1].sample) if amendments else notes,
        started=row["at"],
        ended=end["at"] if end else None,
        model=opening["program"].get("model"),
        model_sha256=opening["program"].get("model_sha256"),
        software=opening["software"],
        frames=counts.get("frame", 0),
        started_by=row.get("by") or "",
        ended_by=(end.get("by") or "") if end else "",
        reopened=counts.get("reopen", 0),
        amendments=amendments,
        skipped=counts.get("skipped", 0),
    )


def last_end(database: sqlite3.Connection, session_id: int) -> dict[str, Any] | None:
    """The ``end`` row of a session; None while it is open, also after it was reopened."""
    query = "SELECT row FROM entries WHERE kind IN ('end', 'reopen') AND session = ? ORDER BY number DESC LIMIT 1"
    found = database.execute(query, (session_id,)).fetchone()
    row: dict[str, Any] = json.loads(found[0]) if found else {}
    return row if row.get("kind") == "end" else None


def open_session_ids(database: sqlite3.Connection) -> list[int]:
    """The ids of all open sessions; the one that was started or reopened last comes first."""
    query = (
        "SELECT CASE kind WHEN 'session' THEN number ELSE session END AS id, max(number) FROM entries"
        " WHERE kind IN ('session', 'reopen') GROUP BY id ORDER BY 2 DESC"
    )
    return [number for number, _ in database.execute(query).fetchall() if last_end(database, number) is None]


def read_skipped(database: sqlite3.Connection, session_id: int | None) -> list[SkippedRow]:
    """The files of a session that could not be used, oldest first; None: of no session."""
    return [
        SkippedRow(row["at"], row["session"], row["source"], row["source_sha256"], row["reason"])
        for row in _rows(database, "skipped", session_id)
    ]


def files_of(database: sqlite3.Connection, session_id: int) -> dict[str, set[str]]:
    """The digests of each file name with a frame in a session, or skipped in it.

    A row from before digests were recorded has an empty digest.
    """
    query = (
        "SELECT json_extract(row, '$.source'), coalesce(json_extract(row, '$.source_sha256'), ''), kind FROM entries"
        " WHERE kind IN ('frame', 'skipped') AND session = ? AND json_extract(row, '$.source') <> ''"
    )
    recorded: dict[str, set[str]] = {}
    for source, digest, kind in database.execute(query, (session_id,)):
        if kind == "frame" or digest:  # a file that could not be read at all may be readable now
            recorded.setdefault(source, set()).add(digest)
    return recorded


def _rows(database: sqlite3.Connection, kind: str, session_id: int | None) -> list[dict[str, Any]]:
    query = "SELECT row FROM entries WHERE kind = ? AND session IS ? ORDER BY number"
    return [json.loads(text) for (text,) in database.execute(query, (kind, session_id)).fetchall()]


def read_frame(database: sqlite3.Connection, row: dict[str, Any]) -> RecordedFrame:
    """A frame with its reviews, from the JSON of its row."""
    valid = f"SELECT row FROM entries r WHERE r.frame = ? AND {_VALID} ORDER BY r.number"
    about = database.execute(valid, (row["number"],)).fetchall()
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
        reviews=tuple(map(read_review, reviews)),
    )
