"""Exports of a record: tables of frames and cells, images, and reviewed images as a folder for `edgeall train`."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...console.progress import QUIET, Progress
from ...console.tables import as_text
from ...edge_runtime.errors import ImageError, UsageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.manifest import RESEARCH_USE
from ...edge_runtime.vision.cells import cut_out
from ..language import message
from .chain import RecordError
from .count import reviews_on
from .ome import export_fields
from .record import Record
from .rows import SET_ASIDE, UNCLEAR, RecordedFrame, Session, SkippedRow

COLUMNS = (
    *("frame", "session", "sample", "recorded", "taken", "camera_frame", "source", "source_sha256"),
    *("trigger", "status", "reasons"),
    *("captured_by", "label", "model_label", "probability", "review_asked", "review_reason", "reviewed_by"),
    *("review_note", "cells", "model_cell_labels", "cell_labels", "image", "probabilities"),
    *("model", "model_sha256", "software", "use"),
    *("field_id", "patch", "position", "um_per_px", "scale_source", "flat_field"),
)
_OF_FRAME = (
    *("frame", "session", "sample", "taken", "source", "trigger", "image"),
    *("model", "model_sha256", "software", "use"),
)
CELL_COLUMNS = (
    *("frame", "cell", "left", "top", "right", "bottom", "label", "model_label", "probability", "review_asked"),
    *("review_reason", "reviewed_by", "review_note", *_OF_FRAME[1:], "cell_id", "field_id"),
)
COUNTED_COLUMNS = (
    *("kind", "id", "field_id", "patch", "x", "y", "width", "height", "label", "model_label", "probability"),
    *("review_reason", "reviewed_by", "review_note", "frames", "image", "frame", "session", "sample"),
    *("model", "model_sha256", "software", "use"),
)


def export_session(
    record: Record, session_id: int, out: Path, *, ome_tiff: bool = False, progress: Progress = QUIET
) -> dict[str, Any]:
    """Write everything that a record has on a session into a new folder.

    ``counted.csv`` and ``pictures/`` (different fields and cells), ``frames.csv``, ``cells.csv``, ``images/``,
    ``training/<label>/`` (the reviewed images) and ``session.json`` (notes, summary, and the head of the chain at the
    time of the export). With ``ome_tiff`` also ``fields/``, see `edgeall.rig.record.ome`.

    Raises:
        RecordError: no such session.
        UsageError: the folder is not empty.
    """
    session = record.session(session_id)
    _create(out)
    rows = export_csv(record, session_id, out / "frames.csv")
    cells = export_cells(record, session_id, out / "cells.csv")
    export_counted(record, session_id, out / "counted.csv")
    images = 0
    (out / "images").mkdir()
    named = {frame.image for frame in record.each_frame(session_id) if frame.image}
    with progress.task("copying images", len(named)) as advance:
        for done, digest in enumerate(named, 1):
            images += _copy(record, digest, out / "images" / digest)
            advance(done, "")
    found = record.found(session_id)
    (out / "pictures").mkdir()
    for each in (*found.fields.values(), *found.cells.values()):
        if each.counts and each.image:
            _copy(record, each.image, out / "pictures" / f"{each.kind}-{each.id}")
    training = export_training(record, out / "training", session_id)
    facts = {
        "use": RESEARCH_USE,
        "session": dataclasses.asdict(session),
        "summary": dataclasses.asdict(record.summary(session_id)),
        "head": record.head(),
    }
    (out / "session.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    result = {"frames": rows, "cells": cells, "images": images, "training": training, "out": str(out)}
    if ome_tiff:
        (out / "fields").mkdir()
        result["fields"] = export_fields(record, session_id, out / "fields")
    return result


def export_csv(record: Record, session_id: int, out: Path) -> int:
    """Write a CSV line for each frame of a session, oldest first; returns their number.

    After them comes a line with the status ``skipped`` for each file that could not be used.

    Raises:
        RecordError: no such session.
        UsageError: the file exists.
    """
    session, skipped = record.session(session_id), record.skipped(session_id)
    frames = (_values(session, frame) for frame in record.each_frame(session_id))
    lines = itertools.chain(frames, (_values_of_skipped(session, each) for each in skipped))
    return _write(out, COLUMNS, lines) - len(skipped)


def export_cells(record: Record, session_id: int, out: Path) -> int:
    """Write a CSV line for each judged cell of a session; returns their number. Raises RecordError."""
    session = record.session(session_id)
    frames = record.each_frame(session_id)
    return _write(out, CELL_COLUMNS, (row for frame in frames for row in _values_of_cells(session, frame)))


def export_counted(record: Record, session_id: int, out: Path) -> int:
    """Write a CSV line for each different field and cell of a session; returns their number. Raises RecordError."""
    return _write(out, COUNTED_COLUMNS, _values_of_counted(record, record.session(session_id)))


def _write(out: Path, columns: Sequence[str], lines: Iterable[Mapping[str, object]]) -> int:
    count = 0
    try:
        with open(out, "x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for line in lines:
                writer.writerow({name: as_text(value) for name, value in line.items()})
                count += 1
    except FileExistsError as error:
        raise UsageError(message("{path}: already exists", path=out), hint="choose another name") from error
    return count


def _values(session: Session, frame: RecordedFrame) -> dict[str, object]:
    """The values of one line, by the names of `COLUMNS`."""
    row, last = frame.row, {review.cell: review for review in frame.reviews}
    notes = [(cell, review.note) for cell, review in last.items() if review.note]
    return {
        "frame": frame.id,
        "recorded": frame.at,
        "taken": row.taken.isoformat(),
        "camera_frame": row.number,
        "source": row.source,
        "source_sha256": row.source_sha256,
        "trigger": row.trigger,
        "status": row.status,
        "reasons": "; ".join(row.reasons),
        "captured_by": row.by,
        "label": frame.label,
        "model_label": row.label,
        "probability": row.probability,
        "review_asked": "yes" if row.review else "no",
        "review_reason": row.review_reason,
        "reviewed_by": "; ".join(dict.fromkeys(review.by for review in last.values())),
        "review_note": "; ".join(note if cell is None else f"cell {cell + 1}: {note}" for cell, note in notes),
        "cells": len(row.cells),
        "model_cell_labels": json.dumps(Counter(cell["label"] for cell in row.cells), ensure_ascii=False),
        "cell_labels": json.dumps(Counter(frame.cell_labels), ensure_ascii=False),
        "image": frame.image,
        "probabilities": json.dumps(dict(row.probabilities)),
        "field_id": row.field_id,
        "patch": row.patch,
        "position": json.dumps(row.position) if row.position else "",
        "um_per_px": row.um_per_px,
        "scale_source": row.scale_source,
        "flat_field": row.flat_field,
        **_about(session),
    }


def _about(session: Session) -> dict[str, object]:
    """What every line says of its slide."""
    return {
        "session": session.id,
        "sample": session.notes.sample,
        "model": session.model,
        "model_sha256": session.model_sha256,
        "software": session.software,
        "use": RESEARCH_USE,
    }


def _values_of_skipped(session: Session, skipped: SkippedRow) -> dict[str, object]:
    return {
        "session": session.id,
        "sample": session.notes.sample,
        "recorded": skipped.at,
        "source": skipped.source,
        "source_sha256": skipped.source_sha256,
        "status": "skipped",
        "reasons": skipped.reason,
        "model": session.model,
        "model_sha256": session.model_sha256,
        "software": session.software,
        "use": RESEARCH_USE,
    }


def _values_of_cells(session: Session, frame: RecordedFrame) -> Iterator[dict[str, object]]:
    """The values of each cell's line, by the names of `CELL_COLUMNS`."""
    of_frame = _values(session, frame)
    shared = {name: of_frame[name] for name in (*_OF_FRAME, "field_id")}
    last = {review.cell: review for review in frame.reviews}
    for index, (cell, label) in enumerate(zip(frame.row.cells, frame.cell_labels, strict=True)):
        review = last.get(index)
        yield (
            shared
            | dict(zip(("left", "top", "right", "bottom"), cell["box"], strict=True))
            | {
                "cell": index + 1,
                "cell_id": cell.get("cell_id"),
                "label": label,
                "model_label": cell["label"],
                "probability": cell.get("probability"),
                "review_asked": "yes" if cell.get("review") else "no",
                "review_reason": cell.get("review_reason"),
                "reviewed_by": review.by if review else "",
                "review_note": review.note if review else "",
            }
        )


def _values_of_counted(record: Record, session: Session) -> Iterator[dict[str, object]]:
    """The values of each different field's and cell's line, by the names of `COUNTED_COLUMNS`."""
    found, reviews = record.found(session.id), reviews_on(record, session.id)
    for each in (*found.fields.values(), *found.cells.values()):
        review = reviews.get((each.kind, each.id))
        if each.same_as is not None or not (each.counted or review):
            continue
        names = ("kind", "id", "field_id", "patch", "x", "y", "width", "height", "probability", "review_reason")
        yield {
            **{name: getattr(each, name) for name in (*names, "frames", "image")},
            "frame": each.frame_id,
            "label": review.label if review else each.label,
            "model_label": each.label,
            "reviewed_by": review.by if review else "",
            "review_note": review.note if review else "",
            **_about(session),
        }


def export_training(record: Record, folder: Path, session_id: int | None = None) -> dict[str, int]:
    """Write the reviewed images as ``folder/<label>/<image>``, the layout that `edgeall train` reads.

    A reviewed frame is copied as it was recorded. A reviewed cell is cropped to a square, as cell models see it, and
    saved as PNG. The last review of each counts. Images that were pruned, damaged or never saved are left out;
    `edgeall record verify` lists the damaged ones.

    Args:
        record: the record.
        folder: new or empty.
        session_id: None for all sessions.

    Returns:
        The number of images of each label.

    Raises:
        RecordError: no such session.
        UsageError: the folder is not empty.
    """
    sessions = [session.id for session in record.sessions()] if session_id is None else [session_id]
    _create(folder)
    written: Counter[str] = Counter()
    for number in sessions:
        for frame in record.frames(number, review="done", limit=None):
            for cell, label in {review.cell: review.label for review in frame.reviews}.items():
                if label in (*SET_ASIDE, UNCLEAR):
                    continue
                written[label] += _write_example(record, frame, cell, folder / label)
    return dict(sorted((label, count) for label, count in written.items() if count))


def _write_example(record: Record, frame: RecordedFrame, cell: int | None, folder: Path) -> int:
    path = None if frame.image is None else record.image_path(frame.image)
    if path is None or frame.image is None:
        return 0
    folder.mkdir(exist_ok=True)
    if cell is None:
        return _copy(record, frame.image, folder / frame.image)
    try:
        with open_rgb(path) as image:
            cut_out(image, frame.row.cells[cell]["box"]).save(folder / f"{frame.image}-{cell}.png")
    except ImageError:
        return 0
    return 1


def _copy(record: Record, digest: str, stem: Path) -> int:
    """Copy an image to ``stem`` with its own suffix. Returns the number of copies: 1, or 0 if it is there or gone."""
    path = record.image_path(digest)
    to = stem.with_name(stem.name + path.suffix) if path else stem
    if path is None or to.exists():
        return 0
    shutil.copyfile(path, to)
    return 1


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(message("{path}: not a folder", path=folder), hint="choose another name") from error
    except OSError as error:
        raise RecordError(
            message("{path}: cannot be written ({reason})", path=folder, reason=error.strerror)
        ) from error
    if used:
        raise UsageError(message("{path}: is not empty", path=folder), hint="choose a new folder")
