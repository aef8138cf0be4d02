"""Verifies a record: reports every row and image that was altered or is missing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...console.progress import QUIET, Progress
from ...console.tables import record
from ..language import N_, message
from . import chain
from .image_store import ImageStore

MISSING, ALTERED, ADDED = N_("{name} is missing"), N_("{name} was altered"), N_("{name} was added")
"""What can have happened to a table, an index or a trigger."""
WITH_IMAGES = ("frame", "field", "cell", "event")
"""The kinds of rows that may name an image."""


@dataclass(frozen=True)
class Problem:
    """One alteration: the number of the row where it shows, None for the file as a whole."""

    number: int | None
    text: str

    def __str__(self) -> str:
        return self.told()

    def told(self) -> str:
        """The text with its row; it can be translated."""
        if self.number is None:
            return self.text
        return message("row {number}: {problem}", number=self.number, problem=self.text)


@dataclass(frozen=True)
class Verification:
    """The result of `check`.

    Attributes:
        rows: number of rows in the record.
        images: number of images that its rows name and that must exist.
        pruned: number of images that were removed with a ``prune`` row.
        head: digest of the last row. A copy kept elsewhere proves later that no row up to here is missing or was
            changed. Without it, missing rows at the end cannot be detected.
        problems: empty if the record is intact.
    """

    rows: int
    images: int
    pruned: int
    head: str
    problems: list[Problem]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``edgeall record verify --json``."""
        return asdict(self) | {"ok": not self.problems, "problems": [str(problem) for problem in self.problems]}


def check(folder: Path, head: str | None = None, progress: Progress = QUIET) -> Verification:
    """Follow the chain from the first row to the last and read every image.

    Args:
        folder: the record's.
        head: a head noted earlier; some row must have it.
        progress: told how many images were read.

    Raises:
        RecordError: there is no record, or it has another version.
    """
    problems: list[Problem] = []
    named: dict[str, tuple[int, str]] = {}
    prunes: list[tuple[int, str]] = []
    rows, last, met = 0, chain.FIRST, head in (None, chain.FIRST)
    with chain.reading(folder) as database:
        database.text_factory = lambda text: text.decode(
            "utf-8", "surrogateescape"
        )  # a flipped bit must not stop the check
        problems += _damage(database)
        expected = 1
        for number, text, digest in database.execute("SELECT number, row, digest FROM entries ORDER BY number"):
            if number != expected:
                several = message("{first} to {last} are missing", first=expected, last=number - 1)
                problems.append(Problem(expected, message("it is missing") if number == expected + 1 else several))
            row, wrong = _read_row(number, text)
            problems += wrong
            if digest != chain.chained(last, text):
                problems.append(Problem(number, message("altered, or does not follow the row before it")))
            if row.get("kind") in WITH_IMAGES and isinstance(row.get("image"), str):
                named[row["image"]] = (number, str(row.get("at")))  # the last frame that names it decides
            if row.get("kind") == "prune":
                prunes.append((number, str(row.get("before"))))
            rows, last, expected = rows + 1, digest, number + 1
            met = met or digest == head
    if not met:
        text = message("no row has the digest {head}: rows were cut off, or rewritten up to there", head=head)
        problems.append(Problem(None, text))
    images = pruned = 0
    store = ImageStore(folder)
    with progress.task("verifying images", len(named)) as advance:
        for done, (image, (number, at)) in enumerate(named.items(), 1):
            if store.path(image) is None and any(later > number and at < before for later, before in prunes):
                pruned += 1
            else:
                images += 1
                problems += _check_image(store, image, number)
            advance(done, "")
    return Verification(rows, images, pruned, last, problems)


def check_text(found: Verification) -> str:
    """The result as text: the problems, and the head to keep."""
    facts = {"rows": found.rows, "images": found.images, "pruned images": found.pruned, "head": found.head}
    verdict = [f"ALTERED  {problem}" for problem in found.problems] or ["intact"]
    return "\n".join([record(facts), "", *verdict])


def _read_row(number: int, text: str) -> tuple[dict[str, Any], list[Problem]]:
    try:
        row = json.loads(text)
        wrong = not isinstance(row, dict) or row.get("number") != number or chain.canonical(row) != text
    except (ValueError, RecursionError, TypeError):
        row, wrong = {}, True
    problems = [Problem(number, message("not in edgeall's format"))] if wrong else []
    return (row if isinstance(row, dict) else {}), problems


def _check_image(store: ImageStore, image: str, number: int) -> list[Problem]:
    if store.path(image) is None:
        return [Problem(number, message("its image {image} is missing", image=image))]
    try:
        altered = Problem(number, message("its image {image} was altered", image=image))
        return [] if store.is_intact(image) else [altered]
    except OSError as error:
        text = message("its image {image} cannot be read ({reason})", image=image, reason=error.strerror)
        return [Problem(number, text)]


def _damage(database: sqlite3.Connection) -> list[Problem]:
    """Errors that SQLite finds, and tables, indexes or triggers that were removed, changed or added."""
    found: list[str] = [text for (text,) in database.execute("PRAGMA integrity_check") if text != "ok"]
    with closing(sqlite3.connect(":memory:")) as new:
        for statement in (statement for script in chain.MIGRATIONS for statement in script):
            new.execute(statement)
        expected, actual = _schema(new), _schema(database)
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            change = MISSING if name not in actual else ALTERED if name in expected else ADDED
            found.append(message(change, name=name))
    return [Problem(None, message("{file}: {problem}", file=chain.DATABASE, problem=text)) for text in found]


def _schema(database: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    rows = database.execute("SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return {name: (kind, sql) for name, kind, sql in rows}
