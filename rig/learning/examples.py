"""What reviewers said of counted cells and fields, as labelled images to learn from."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.vision.cells import Box, cut_out
from ..language import N_
from ..record import chain
from ..record.found import CELL, FIELD, FoundOnSlide, read_found
from ..record.readings import Unit, disagree, read_readings, standing
from ..record.record import Record

OTHER_LABEL = N_("another label than one of the model's")
DISAGREE = N_("readers disagree")
NO_IMAGE = N_("no image of the frame was saved")
_Seen = tuple[str, Box | None]
"""Digest of a frame's image, and the box of a cell in it."""


@dataclass(frozen=True)
class Example:
    """A cell or field with a reviewer's label and a saved image that shows it.

    Attributes:
        session: id of the slide.
        kind: ``cell`` or ``field``.
        id: of the cell or field on the slide.
        label: by the reviewer.
        image: digest of the sharpest saved frame that shows it.
        box: of the cell in that frame; None for a field.
        picture: digest of its picture, for the page; None if it has none.
    """

    session: int
    kind: str
    id: int
    label: str
    image: str
    box: Box | None
    picture: str | None

    @property
    def name(self) -> str:
        """Unique in the record."""
        return f"{self.session}-{self.kind}-{self.id}"


@dataclass(frozen=True)
class Reviewed:
    """The reviewed cells or fields of slides.

    Attributes:
        examples: those that can be learned from.
        left_out: number of the others, by reason.
    """

    examples: tuple[Example, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def counts(self, labels: Sequence[str]) -> dict[str, int]:
        """Number of examples of each label."""
        found = Counter(each.label for each in self.examples)
        return {label: found[label] for label in labels}


def reviewed_slides(record: Record) -> list[int]:
    """The ids of the slides with reviews, newest first."""
    with chain.reading(record.folder) as database:
        query = "SELECT DISTINCT session FROM entries WHERE kind = 'review' ORDER BY session DESC"
        return [number for (number,) in database.execute(query)]


def read_examples(record: Record, sessions: Iterable[int], unit: str, labels: Sequence[str]) -> Reviewed:
    """The reviewed cells or fields of some slides. The model's own labels are none: a person gave each.

    An image that several slides show, such as one that was replayed twice, counts once.

    Args:
        record: with the reviews.
        sessions: ids of the slides.
        unit: of the model, ``cell`` or ``field``.
        labels: of the model.
    """
    left_out: Counter[str] = Counter()
    examples: dict[_Seen, Example] = {}
    contradicted: set[_Seen] = set()
    for session in sessions:
        with chain.reading(record.folder) as database:
            found, told = _on_slide(database, record, session, unit, labels)
        left_out += told
        for each in found:
            seen = each.image, each.box
            known = examples.setdefault(seen, each)
            if known.label != each.label:
                contradicted.add(seen)
    left_out[DISAGREE] += len(contradicted)
    kept = tuple(each for seen, each in examples.items() if seen not in contradicted)
    return Reviewed(kept, {reason: count for reason, count in left_out.items() if count})


def write_examples(record: Record, examples: Iterable[Example], folder: Path, aspect: float) -> None:
    """Write the images as ``folder/<label>/<name>``, cells as the model sees them.

    An image that was removed or damaged meanwhile is left out.

    Args:
        record: with the images.
        examples: to write.
        folder: created.
        aspect: width over height of the model's input.
    """
    by_image: dict[str, list[Example]] = {}
    for each in examples:
        by_image.setdefault(each.image, []).append(each)
    for digest, shown in by_image.items():
        path = record.image_path(digest)
        if path is None:
            continue
        for each in shown:
            (folder / each.label).mkdir(parents=True, exist_ok=True)
        whole = [each for each in shown if each.box is None]
        for each in whole:
            shutil.copyfile(path, folder / each.label / f"{each.name}{path.suffix}")
        if len(whole) == len(shown):
            continue
        try:
            with open_rgb(path) as image:
                for each in shown:
                    if each.box is not None:
                        cut_out(image, each.box, aspect).save(folder / each.label / f"{each.name}.png")
        except ImageError:  # `edgeall record verify` reports it
            continue


def _on_slide(
    database: sqlite3.Connection, record: Record, session: int, unit: str, labels: Sequence[str]
) -> tuple[list[Example], Counter[str]]:
    """The examples of a slide, and the number of reviewed units without one, by reason."""
    found = read_found(database, session)
    known = found.cells if unit == CELL else found.fields
    told: dict[Unit, str] = {}
    left_out: Counter[str] = Counter()
    for (kind, number), reviews in read_readings(database, session, found).items():
        label = standing(reviews).label
        if kind != unit or number not in known:
            continue
        if label not in labels:
            left_out[OTHER_LABEL] += 1
        elif disagree(reviews):
            left_out[DISAGREE] += 1
        else:
            told[kind, number] = label
    shown = _saved(database, record, session, found, told)
    left_out[NO_IMAGE] = len(told) - len(shown)
    examples = [
        Example(session, kind, number, told[kind, number], image, box, known[number].image)
        for (kind, number), (image, box) in sorted(shown.items())
    ]
    return examples, left_out


def _saved(
    database: sqlite3.Connection, record: Record, session: int, found: FoundOnSlide, wanted: Collection[Unit]
) -> dict[Unit, _Seen]:
    """The sharpest saved frame of each unit, with the box of the cell in it."""
    query = (
        "SELECT row FROM entries WHERE kind = 'frame' AND session = ? AND image IS NOT NULL AND status = 'judged'"
        " ORDER BY number"
    )
    best: dict[Unit, tuple[float, _Seen]] = {}

    def offer(unit: Unit, sharpness: float, seen: _Seen) -> None:
        if unit in wanted and (unit not in best or sharpness > best[unit][0]):
            best[unit] = sharpness, seen

    for (text,) in database.execute(query, (session,)) if wanted else ():
        row = json.loads(text)
        sharpness = float(row.get("quality", {}).get("sharpness") or 0.0)
        if row.get("field_id") is not None and row.get("label") is not None:
            offer((FIELD, found.root(FIELD, row["field_id"])), sharpness, (row["image"], None))
        for cell in row.get("cells", ()):
            if cell.get("cell_id") is not None:
                left, top, right, bottom = cell["box"]
                box = (left, top, right, bottom)
                offer((CELL, found.root(CELL, cell["cell_id"])), sharpness, (row["image"], box))
    return {unit: seen for unit, (_, seen) in best.items() if record.image_path(seen[0]) is not None}
